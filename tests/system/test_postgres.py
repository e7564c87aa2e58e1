"""What the leader does in PostgreSQL: schema, fence, jobs, cleanup. With a real server, which is also stopped, killed,
paused and locked."""

import contextlib
import os
import signal
import threading
import time

import psycopg2
import pytest

from postgres import ORIGINAL, Postgres
from servers import BUILD, Coordinator, wait_until
from test_coordinator import original_leads

LONG = os.environ.get("HYPERPAGE_LONG") == "1"
TABLES = ("app_state", "rate_limits", "jobs", "job_history", "user_sessions")
LEASE_MS = 2000  # of these tests: locks are waited for a quarter of it
LEASE = {"LEADER_ELECTION_TIMEOUT": LEASE_MS, "LEADER_HEARTBEAT_INTERVAL": 500}


@pytest.fixture
def database(folder, servers):
    return servers.enter_context(Postgres(folder))


@pytest.fixture
def filled(database):
    """A database that the original portal has made."""
    database.ask(ORIGINAL)
    return database


@pytest.fixture
def start(folder, servers):
    """Starts a coordinator that leads alone."""
    def begin(database, name="node", **options):
        return servers.enter_context(Coordinator(folder, name, **{**LEASE, "DATABASE_URL": database.url, **options}))
    return begin


def cleanups(database, status="completed"):
    return database.value("SELECT count(*) FROM jobs WHERE type = 'cleanup' AND status = %s", status)


def wait_for_cleanup(database, count=1, timeout_s=10):
    wait_until(lambda: has_schema(database) and cleanups(database) >= count, "cleaned up", timeout_s)


def has_schema(database):
    return database.value("SELECT to_regclass('hyperpage_schema') IS NOT NULL")


def clean_again(database):
    """The hour is over."""
    before = cleanups(database)
    wait_until(lambda: database.ask("SELECT 1 FROM app_state WHERE key = 'coordinator.cleanup'"), "a first time is planned")
    database.ask("UPDATE app_state SET value = value || jsonb_build_object('next', now()) WHERE key = 'coordinator.cleanup'")
    wait_for_cleanup(database, before + 1)


def add_job(database, kind, payload="{}", **columns):
    names = ", ".join(columns)
    values = ", ".join(columns.values())
    return database.value(f"INSERT INTO jobs (type, payload, scheduled_at{', ' if names else ''}{names}) "
                          f"VALUES (%s, %s, now(){', ' if values else ''}{values}) RETURNING id", kind, payload)


def job(database, job_id, columns="status"):
    row = database.ask(f"SELECT {columns} FROM jobs WHERE id = %s", job_id)[0]
    return row[0] if len(row) == 1 else row


def history(database, job_id):
    return [row[0] for row in database.ask("SELECT status FROM job_history WHERE job_id = %s ORDER BY id", job_id)]


# --- schema ---

def describe(database):
    """Tables, columns, constraints and indexes, as text to compare."""
    columns = database.ask("SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, "
                           "regexp_replace(column_default, '_seq.*', '') FROM information_schema.columns "
                           "WHERE table_name = ANY (%s) AND (table_name, column_name) <> ('job_history', 'job_id') ORDER BY 1, 2",
                           list(TABLES))
    indexes = database.ask("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = ANY (%s) ORDER BY 1", list(TABLES))
    return columns, indexes


def test_the_schema_is_the_originals_and_one_more_index(folder, servers, database, start):
    original = servers.enter_context(Postgres(folder, "original"))
    original.ask(ORIGINAL)
    start(database)
    wait_for_cleanup(database)
    columns, indexes = describe(database)
    assert columns == describe(original)[0]
    added = dict(indexes).keys() - dict(describe(original)[1]).keys()
    assert added == {"user_sessions_expires_at_idx"}
    assert set(describe(original)[1]) <= set(indexes)


def test_a_database_that_the_original_has_filled_keeps_what_it_holds(filled, start):
    filled.ask("INSERT INTO user_sessions (user_id, session_token, expires_at) "
               "SELECT gen_random_uuid(), 'token-' || n, now() + interval '1 day' FROM generate_series(1, 100) n")
    filled.ask("INSERT INTO app_state (key, value) VALUES ('theirs', '1')")
    before = describe(filled)
    rows = filled.ask("SELECT * FROM user_sessions ORDER BY id")
    for name in ("first", "again"):
        with start(filled, name):
            wait_until(lambda: has_schema(filled), "the schema is there")
            clean_again(filled) if name == "again" else wait_for_cleanup(filled)
    columns, indexes = describe(filled)
    assert columns == before[0] and set(before[1]) <= set(indexes)
    assert filled.ask("SELECT * FROM user_sessions ORDER BY id") == rows
    assert filled.value("SELECT value FROM app_state WHERE key = 'theirs'") == 1
    assert filled.ask("SELECT version FROM hyperpage_schema ORDER BY 1") == [(1,), (2,)]


def test_nodes_that_start_at_once_apply_the_schema_once(folder, servers, database):
    nodes = [Coordinator(folder, f"node-{n}", DATABASE_URL=database.url, **LEASE) for n in range(4)]
    for node in nodes:
        servers.enter_context(node.launch())
    wait_for_cleanup(database)
    wait_until(lambda: sum("schema of the database changed: step=001" in node.log() for node in nodes) == 1, "one did it")
    assert "duplicate key" not in database.log(), "the others waited"
    assert database.ask("SELECT version FROM hyperpage_schema ORDER BY 1") == [(1,), (2,)]


def test_where_the_tables_are_made_no_right_to_make_any_is_needed(database, start):
    with start(database):
        wait_for_cleanup(database)
    database.ask("REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE ROLE modest LOGIN; "
                 "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO modest; "
                 "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO modest")
    start(database, "modest", DATABASE_URL=database.url.replace("test@", "modest@"))
    clean_again(database)


# --- the fence ---

def test_a_term_above_ours_refuses_us_until_we_are_above_it(database, start):
    node = start(database)
    wait_for_cleanup(database)
    database.ask("UPDATE app_state SET value = '{\"term\": 41, \"leaderId\": \"another\"}' WHERE key = 'coordinator.term'")
    database.ask("UPDATE app_state SET value = value || jsonb_build_object('next', now()) WHERE key = 'coordinator.cleanup'")
    wait_for_cleanup(database, 2)
    assert database.value("SELECT value FROM app_state WHERE key = 'coordinator.term'") == {"term": 42, "leaderId": "node"}
    assert node.log().count("leader refused by the database") == 1
    assert "term=1 stored_term=41" in node.log()


def test_our_term_under_anothers_name_is_refused_too(database, start):
    node = start(database)
    wait_for_cleanup(database)
    database.ask("UPDATE app_state SET value = value || '{\"leaderId\": \"another\"}' WHERE key = 'coordinator.term'")
    clean_again(database)
    assert "term=1 stored_term=1" in node.log()
    assert database.value("SELECT value->'term' FROM app_state WHERE key = 'coordinator.term'") == 2


@pytest.mark.parametrize("value", ['"nonsense"', '{"term": "x"}', "[]", "7"])
def test_a_mark_that_is_none_of_ours_is_replaced(filled, start, value):
    filled.ask("INSERT INTO app_state (key, value) VALUES ('coordinator.term', %s)", value)
    start(filled)
    wait_for_cleanup(filled)
    assert filled.value("SELECT value FROM app_state WHERE key = 'coordinator.term'") == {"term": 1, "leaderId": "node"}


# --- jobs ---

def test_due_jobs_of_known_types_are_run_others_left_alone(database, start):
    node = start(database)
    wait_for_cleanup(database)
    ours, theirs = add_job(database, "bg_job_balance"), add_job(database, "send_mail")
    later = add_job(database, "bg_job_balance")
    database.ask("UPDATE jobs SET scheduled_at = now() + interval '1 hour' WHERE id = %s", later)
    wait_until(lambda: job(database, ours) == "completed", "it is done")
    assert history(database, ours) == ["running", "completed"]
    status, attempts, started, completed, error = job(database, ours, "status, attempts, started_at, completed_at, last_error")
    assert (status, attempts, error) == ("completed", 1, None) and started <= completed
    assert job(database, theirs) == "pending" and history(database, theirs) == []
    assert job(database, later) == "pending"
    assert f"job done: type=bg_job_balance id={ours} attempt=1" in node.log()


def test_a_job_that_fails_is_tried_later_and_then_given_up(database, start):
    start(database)
    wait_for_cleanup(database)
    with contextlib.closing(database.connect()) as locker:
        locker.cursor().execute("LOCK TABLE rate_limits")
        failing = add_job(database, "cleanup")
        last = add_job(database, "cleanup", attempts="4")
        wait_until(lambda: job(database, last) == "failed", "its last attempt has failed")
        wait_until(lambda: job(database, failing, "last_error"), "its first attempt has failed")
        status, attempts, error, wait_s = job(database, failing, "status, attempts, last_error, "
                                              "extract(epoch FROM scheduled_at - updated_at)::float8")
        assert (status, attempts) == ("pending", 1) and "lock timeout" in error
        assert 9 <= wait_s <= 11
        assert history(database, failing) == ["running", "pending"]
        assert job(database, last, "completed_at") is not None and history(database, last) == ["running", "failed"]
        locker.rollback()
    database.ask("UPDATE jobs SET scheduled_at = now() WHERE id = %s", failing)
    wait_until(lambda: job(database, failing) == "completed", "it succeeds once nothing is in its way")
    assert job(database, failing, "attempts, last_error") == (2, None)


def test_a_job_that_takes_longer_than_it_may_is_tried_later_and_ends_as_timeout(database, start, monkeypatch):
    monkeypatch.setattr("servers.BUILD", BUILD / "faults")  # where a job's hour can be made a second
    start(database, LEADER_ELECTION_TIMEOUT=8000, HYPERPAGE_JOB_MS=1000)
    wait_for_cleanup(database, timeout_s=30)
    with contextlib.closing(database.connect()) as locker:
        locker.cursor().execute("LOCK TABLE rate_limits")  # which is waited for for 2 s
        slow = add_job(database, "cleanup")
        last = add_job(database, "cleanup", attempts="4")
        wait_until(lambda: job(database, last) == "timeout", "its last attempt took too long")
        wait_until(lambda: job(database, slow, "last_error"), "its first attempt took too long")
    assert job(database, slow, "status, attempts") == ("pending", 1)
    assert history(database, last) == ["running", "timeout"]
    assert job(database, last, "completed_at") is not None


def test_a_job_that_was_cancelled_while_it_ran_stays_cancelled(database, start):
    start(database)
    wait_for_cleanup(database)
    with contextlib.closing(database.connect()) as locker:
        locker.cursor().execute("LOCK TABLE rate_limits")
        running = add_job(database, "cleanup")
        wait_until(lambda: job(database, running) == "running", "it runs")
        database.ask("UPDATE jobs SET status = 'cancelled' WHERE id = %s", running)
    other = add_job(database, "bg_job_balance")
    wait_until(lambda: job(database, other) == "completed", "the next one is done")
    assert job(database, running) == "cancelled"


def test_what_a_killed_leader_was_running_is_begun_again_at_once(database, start):
    node = start(database)
    wait_for_cleanup(database)
    with contextlib.closing(database.connect()) as locker:
        locker.cursor().execute("LOCK TABLE rate_limits")
        running = add_job(database, "cleanup")
        wait_until(lambda: job(database, running) == "running", "it runs")
        node.stop(signal.SIGKILL)
    node.start()
    wait_until(lambda: job(database, running) == "completed", "it was begun again")
    assert history(database, running) == ["running", "pending", "running", "completed"]


def test_balance_puts_stale_jobs_back_and_spreads_what_is_due(database, start):
    start(database)
    wait_for_cleanup(database)
    stale = add_job(database, "send_mail", status="'running'", started_at="now() - interval '1 hour'", attempts="1")
    hopeless = add_job(database, "send_mail", status="'running'", started_at="now() - interval '1 hour'", attempts="9")
    busy = add_job(database, "send_mail", status="'running'", started_at="now() - interval '1 minute'", attempts="1")
    database.ask("INSERT INTO jobs (type, payload) SELECT 'send_mail', '{}' FROM generate_series(1, 40)")
    balance = add_job(database, "bg_job_balance")
    wait_until(lambda: job(database, balance) == "completed", "balanced")
    assert [job(database, n) for n in (stale, hopeless, busy)] == ["pending", "timeout", "running"]
    assert database.value("SELECT count(*) FROM jobs WHERE type = 'send_mail' AND scheduled_at > "
                          "(SELECT completed_at FROM jobs WHERE id = %s)", balance) >= 20
    assert database.value("SELECT max(scheduled_at) < now() + interval '10 seconds' FROM jobs WHERE type = 'send_mail'")
    details = database.value("SELECT details FROM job_history WHERE job_id = %s AND status = 'completed'", balance)
    assert details["putBack"] == 2 and details["spread"] >= 30


# --- cleanup ---

def fill(database, expired):
    database.ask("INSERT INTO user_sessions (user_id, session_token, expires_at) "
                 "SELECT gen_random_uuid(), 'dead-' || n, now() - n * interval '1 ms' FROM generate_series(1, %s) n", expired)
    database.ask("INSERT INTO user_sessions (user_id, session_token, expires_at) "
                 "SELECT gen_random_uuid(), 'live-' || n, now() + interval '1 day' FROM generate_series(1, 10) n")
    database.ask("INSERT INTO rate_limits (key, remaining, reset_at, metadata) VALUES "
                 "('github:core', 1, now() - interval '2 days', '{}'), ('github:search', 1, now() - interval '1 hour', NULL)")
    database.ask("INSERT INTO jobs (id, type, payload, status, updated_at) VALUES "
                 "(1001, 'x', '{}', 'completed', now() - interval '31 days'), (1002, 'x', '{}', 'timeout', now() - interval '31 days'), "
                 "(1003, 'x', '{}', 'completed', now() - interval '29 days'), (1004, 'x', '{}', 'running', now() - interval '31 days')")
    database.ask("INSERT INTO job_history (job_id, status, created_at) VALUES (1001, 'completed', now()), (1003, 'completed', now()), "
                 "(7, 'completed', now() - interval '31 days')")


def left(database):
    """What a cleanup is about, without times and ids of its own."""
    return {
        "sessions": database.ask("SELECT session_token FROM user_sessions ORDER BY 1"),
        "limits": database.ask("SELECT key FROM rate_limits ORDER BY 1"),
        "jobs": database.ask("SELECT id, status FROM jobs WHERE id > 1000 ORDER BY 1"),
        "history": database.ask("SELECT job_id, status FROM job_history WHERE job_id > 1000 OR created_at < now() - interval '1 day' ORDER BY 1"),
        "cleanups": database.ask("SELECT status FROM jobs WHERE type = 'cleanup'"),
    }


CLEAN = {"sessions": sorted((f"live-{n}",) for n in range(1, 11)), "limits": [("github:search",)],
         "jobs": [(1003, "completed"), (1004, "running")], "history": [(1003, "completed")], "cleanups": [("completed",)]}


def test_what_has_expired_goes_and_history_says_what_went(filled, start):
    fill(filled, 2500)
    start(filled)
    wait_for_cleanup(filled)
    assert left(filled) == CLEAN
    details = filled.value("SELECT details FROM job_history h JOIN jobs j ON h.job_id = j.id WHERE j.type = 'cleanup' AND h.status = 'completed'")
    assert details == {"attempt": 1, "userSessions": 2500, "rateLimits": 1, "jobs": 2, "jobHistory": 1}


def test_whoever_leads_no_more_stops_between_two_batches(folder, servers, filled, redis, start):
    fill(filled, 80_000)
    redis.call("SET", "{hyperpage:leader}:term", 1)  # else the first leader waits before it acts
    node = start(filled, REDIS_URL=redis.url, LEADER_ELECTION_TIMEOUT=1000, LEADER_HEARTBEAT_INTERVAL=250)

    def dead():
        return filled.value("SELECT count(*) FROM user_sessions WHERE expires_at < now()")
    wait_until(lambda: dead() < 80_000, "it has begun")
    original_leads(redis)
    wait_until(lambda: "does not lead any more" in node.log(), "another one leads")
    wait_until(lambda: not filled.ask("SELECT 1 FROM pg_stat_activity WHERE application_name = 'hyperpage-coordinator' "
                                      "AND state <> 'idle'"), "its last batch is over")
    left_over = dead()
    time.sleep(0.3)  # as long as some ten batches take
    print(f"{80_000 - left_over} of 80000 rows were gone when it stopped")
    assert 0 < left_over == dead() and left_over % 1000 == 0
    assert job(filled, filled.value("SELECT max(id) FROM jobs WHERE type = 'cleanup'")) == "running"
    redis.call("DEL", "hyperpage:leader")
    wait_for_cleanup(filled)
    assert dead() == 0


def test_it_is_done_once_an_hour_whoever_leads(database, start):
    with start(database, "first"):
        wait_for_cleanup(database)
        minutes = database.value("SELECT extract(epoch FROM (value->>'next')::timestamptz - now())::float8 / 60 "
                                 "FROM app_state WHERE key = 'coordinator.cleanup'")
        assert 53 < minutes < 67
    with start(database, "second"):
        probe = add_job(database, "bg_job_balance")
        wait_until(lambda: job(database, probe) == "completed", "the second works")
        assert cleanups(database) == 1
    with start(database, "third", SESSION_CLEANUP_INTERVAL_MINUTES=1):  # an interval made shorter counts at once
        database.ask("UPDATE app_state SET value = value || jsonb_build_object('last', now() - interval '2 minutes') "
                     "WHERE key = 'coordinator.cleanup'")
        probe = add_job(database, "bg_job_balance")  # has it look
        wait_for_cleanup(database, 2)


def test_rows_that_somebody_holds_are_left_for_the_next_time(filled, start):
    fill(filled, 50)
    with contextlib.closing(filled.connect()) as holder:
        holder.cursor().execute("SELECT 1 FROM user_sessions WHERE session_token = 'dead-7' FOR UPDATE")
        start(filled)
        wait_for_cleanup(filled)
        assert filled.ask("SELECT session_token FROM user_sessions WHERE session_token LIKE 'dead%%'") == [("dead-7",)]
    clean_again(filled)
    assert filled.value("SELECT count(*) FROM user_sessions WHERE session_token LIKE 'dead%%'") == 0


def test_a_million_expired_rows_go_while_others_write(folder, servers, start):
    """20,000 in the short form. PostgreSQL itself says whether anybody waited for a lock for more than 50 ms (in the short
    form, beside other tests: 500 ms)."""
    rows = 1_000_000 if LONG else 20_000
    database = servers.enter_context(Postgres(folder, deadlock_timeout="50ms" if LONG else "500ms", max_wal_size="4GB"))
    database.ask(ORIGINAL)
    database.ask("CREATE INDEX user_sessions_expires_at_idx ON user_sessions (expires_at)")
    fill(database, rows)
    database.ask("ANALYZE")
    done, took_ms = threading.Event(), []

    def write():
        """Extends expired rows, those first that go first, and touches live ones."""
        with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            for n in iter(lambda: len(took_ms), None):
                if done.is_set():
                    return
                began = time.monotonic()
                cursor.execute("UPDATE user_sessions SET expires_at = now() + interval '1 day' WHERE session_token = ANY (%s)",
                               ([f"live-{n % 10 + 1}", f"dead-{rows - n * 7 % rows}"],))
                took_ms.append((time.monotonic() - began) * 1000)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        began = time.monotonic()
        start(database)
        wait_for_cleanup(database, timeout_s=600)
        took_s = time.monotonic() - began
    finally:
        done.set()
        writer.join()
    took_ms.sort()
    print(f"{rows} expired rows: {rows / took_s:.0f} a second; {len(took_ms)} writes beside it, p99 "
          f"{took_ms[len(took_ms) * 99 // 100]:.1f} ms, worst {took_ms[-1]:.1f} ms")
    assert "still waiting for" not in database.log()
    assert database.value("SELECT count(*) FROM user_sessions WHERE expires_at < now()") == 0
