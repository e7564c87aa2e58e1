-- The tables of the original portal that this service shares with it. Where it has made them already, they stay as they
-- are. No foreign keys, as in the original. Its other tables are none of ours.

CREATE TABLE IF NOT EXISTS app_state (
    key varchar(255) PRIMARY KEY,
    value jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- One row for what is left of a platform's rate limit; key: platform:global or platform:endpoint. The index is not
-- unique, so ON CONFLICT (key) is of no use.
CREATE TABLE IF NOT EXISTS rate_limits (
    id bigserial PRIMARY KEY,
    key varchar(255) NOT NULL,
    remaining integer NOT NULL,
    reset_at timestamptz NOT NULL,
    metadata jsonb,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS rate_limits_key_idx ON rate_limits (key);

CREATE TABLE IF NOT EXISTS jobs (
    id bigserial PRIMARY KEY,
    type varchar(100) NOT NULL,
    payload jsonb NOT NULL,
    status varchar(50) NOT NULL DEFAULT 'pending',
    scheduled_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    completed_at timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS jobs_status_idx ON jobs (status);
CREATE INDEX IF NOT EXISTS jobs_scheduled_at_idx ON jobs (scheduled_at);

CREATE TABLE IF NOT EXISTS job_history (
    id bigserial PRIMARY KEY,
    job_id bigint NOT NULL,
    status varchar(50) NOT NULL,
    details jsonb,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS job_history_job_id_idx ON job_history (job_id);

CREATE TABLE IF NOT EXISTS user_sessions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    session_token varchar(255) NOT NULL,
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT user_sessions_session_token_unique UNIQUE (session_token)
);
CREATE INDEX IF NOT EXISTS user_sessions_user_id_idx ON user_sessions (user_id);
