-- So that the hourly cleanup finds what has expired without reading all. It keeps writers of user_sessions waiting while
-- it is built, about a second for a million rows; for a much larger table make it before, with CREATE INDEX
-- CONCURRENTLY and this name.

CREATE INDEX IF NOT EXISTS user_sessions_expires_at_idx ON user_sessions (expires_at);
