"""The leader keeps user_sessions and rate_limits true: real Redis, real PostgreSQL, a pool that makes sessions."""

import contextlib
import json
import os
import random
import signal
import threading
import time
import uuid

import pytest

from postgres import ORIGINAL, Postgres
from servers import Coordinator, Pool, metric, wait_until

TTL_S = 1000
LEASE = {"LEADER_ELECTION_TIMEOUT": 2000, "LEADER_HEARTBEAT_INTERVAL": 500}
SERVICE = {"Authorization": "Bearer service-token"}
STREAM, GROUP = "hyperpage:session-events", "hyperpage-registry"


@pytest.fixture
def database(folder, servers):
    database = servers.enter_context(Postgres(folder))
    database.ask(ORIGINAL)
    return database


@pytest.fixture
def pool(folder, servers, redis):
    return servers.enter_context(Pool(folder, REDIS_URL=redis.url, SERVICE_TOKEN="service-token",
                                      SESSION_DEFAULT_TTL_SECONDS=TTL_S, SESSION_MAX_TTL_SECONDS=TTL_S))


@pytest.fixture
def start(folder, servers, redis, database):
    def begin(name="node", **options):
        return servers.enter_context(Coordinator(folder, name, **{
            **LEASE, "REDIS_URL": redis.url, "DATABASE_URL": database.url, "SESSION_DEFAULT_TTL_SECONDS": TTL_S, **options}))
    return begin


def create(pool, user=None):
    answer = pool.ask("POST", "/api/sessions?create=1", {"sessionData": {"userId": user} if user else {}},
                      headers={**SERVICE, "Content-Type": "application/json"})
    assert answer.status == 201, answer.body
    return json.loads(answer.body)["sessionId"]


def patch(pool, session_id, **members):
    assert pool.ask("PATCH", f"/api/sessions/{session_id}", members,
                    headers={**SERVICE, "Content-Type": "application/json"}).status == 200


def user_id(user):
    """What a userId is in a column of type uuid."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, user))


def rows(database):
    """Session id -> user."""
    return dict(database.ask("SELECT session_token, user_id::text FROM user_sessions"))


def wait_for_rows(database, expected):
    wait_until(lambda: rows(database) == expected, f"user_sessions holds {expected}")


def pending(redis):
    return redis.call("XPENDING", STREAM, GROUP)[0]


def clean_again(database):
    count = "SELECT count(*) FROM jobs WHERE type = 'cleanup' AND status = 'completed'"
    wait_until(lambda: database.value("SELECT count(*) FROM jobs WHERE status IN ('pending', 'running')") == 0, "nothing is under way")
    before = database.value(count)
    database.ask("UPDATE app_state SET value = value || jsonb_build_object('next', now()) WHERE key = 'coordinator.cleanup'")
    wait_until(lambda: database.value(count) > before, "cleaned up")


def gap(database):
    return database.value("SELECT value->'gap' FROM app_state WHERE key = 'coordinator.registry'")


def test_a_session_with_a_user_has_a_row_as_long_as_it_lives(database, pool, start, redis):
    start()
    anonymous, session_id, known = create(pool), create(pool, "anna"), create(pool, "7d444840-9dc0-11d1-b245-5ffdce74fad2")
    wait_for_rows(database, {session_id: user_id("anna"), known: "7d444840-9dc0-11d1-b245-5ffdce74fad2"})
    left_s = database.value("SELECT extract(epoch FROM expires_at - now())::float8 FROM user_sessions WHERE session_token = %s", session_id)
    assert TTL_S * 1.1 - 20 < left_s <= TTL_S * 1.1, "a tenth more, since not every touch is told"

    patch(pool, anonymous, userId="otto")
    patch(pool, session_id, userId="berta")
    wait_for_rows(database, {anonymous: user_id("otto"), session_id: user_id("berta"), known: "7d444840-9dc0-11d1-b245-5ffdce74fad2"})

    body = json.loads(pool.ask("POST", f"/api/sessions/{session_id}/rotate", {}, headers=SERVICE).body)
    pool.ask("DELETE", f"/api/sessions/{known}")
    wait_for_rows(database, {anonymous: user_id("otto"), body["sessionId"]: user_id("berta")})

    assert json.loads(pool.ask("POST", f"/api/sessions/{anonymous}/extend", {"seconds": 100}, headers=SERVICE).body)["success"]
    wait_until(lambda: database.value("SELECT expires_at < now() + interval '201 seconds' FROM user_sessions WHERE session_token = %s",
                                      anonymous), "the row ends earlier too")
    wait_until(lambda: pending(redis) == 0, "all is acknowledged")


def test_what_a_dead_leader_was_handed_is_done_by_the_next(database, pool, start, redis):
    """As if it had died between reading and writing."""
    redis.call("XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM")
    session_id = create(pool, "anna")
    wait_until(lambda: redis.call("XLEN", STREAM) == 1, "the event is there")
    redis.call("XREADGROUP", "GROUP", GROUP, "leader", "COUNT", 10, "STREAMS", STREAM, ">")
    assert pending(redis) == 1
    start()
    wait_for_rows(database, {session_id: user_id("anna")})
    wait_until(lambda: pending(redis) == 0, "it is acknowledged")


def test_events_that_come_in_another_order_end_the_same(database, pool, start, redis):
    """They only say where to look."""
    start()
    session_id = create(pool, "anna")
    wait_for_rows(database, {session_id: user_id("anna")})
    redis.call("XADD", STREAM, "*", "type", "updated", "sessionId", session_id, "userId", "stale", "expiresAt", 1)
    pool.ask("DELETE", f"/api/sessions/{session_id}")
    redis.call("XADD", STREAM, "*", "type", "updated", "sessionId", session_id, "userId", "anna", "expiresAt", 1)
    marker = create(pool, "marker")
    wait_for_rows(database, {marker: user_id("marker")})


def test_what_is_left_over_may_be_older_than_what_was_read_since(database, pool, start, redis):
    """An event from before the session had a user, handed to a leader that stood still, takes no row away."""
    start()
    session_id = create(pool, "anna")
    wait_for_rows(database, {session_id: user_id("anna")})
    clean_again(database)  # or the first cleanup comes to the rescue
    with redis.connection() as r:
        r.pipeline([("MULTI",), ("XADD", STREAM, "*", "type", "created", "sessionId", session_id, "userId", ""),
                    ("XREADGROUP", "GROUP", GROUP, "leader", "COUNT", 10, "STREAMS", STREAM, ">"), ("EXEC",)])
    assert pending(redis) == 1
    database.stop()
    marker = create(pool, "berta")  # at which it fails, and begins anew with what is left over
    wait_until(lambda: pending(redis) == 2, "it has been handed out")
    database.start()
    wait_until(lambda: pending(redis) == 0, "all is acknowledged", 20)
    assert rows(database) == {session_id: user_id("anna"), marker: user_id("berta")}


def test_hostile_events_are_passed_over(database, pool, start, redis):
    start()
    for members in (("a", "b"), ("sessionId", "it's\"{},\\", "userId", "u"), ("sessionId", "NULL", "userId", "u"),
                    ("sessionId", "x" * 5000, "userId", "u"), ("sessionId", b"\xff\x00", "userId", b"\xff\x00", "type", "created"),
                    ("sessionId", "a", "wasSessionId", "\"", "userId", ""), ("sessionId",) * 2 + ("type", "deleted")):
        redis.call("XADD", STREAM, "*", *members)
    redis.call("SET", "hyperpage:session:NULL", json.dumps({"userId": "null \u0000 \"'"}), "EX", 100)
    redis.call("XADD", STREAM, "*", "sessionId", "NULL", "userId", "u", "type", "created")
    redis.call("LPUSH", "hyperpage:session:list", "1")
    redis.call("XADD", STREAM, "*", "sessionId", "list", "userId", "u", "type", "created")
    marker = create(pool, "marker")
    wait_until(lambda: rows(database).get(marker), "what follows is done")
    assert set(rows(database)) <= {marker, "NULL"}
    wait_until(lambda: pending(redis) == 0, "all are acknowledged")


@pytest.mark.parametrize("loss", ["trimmed", "all of it", "handed out, then trimmed"])
def test_where_events_were_lost_the_cleanup_builds_all_rows_anew(database, pool, start, redis, loss):
    node = start()
    kept, changed, deleted = create(pool, "anna"), create(pool, "berta"), create(pool, "carl")
    wait_for_rows(database, {kept: user_id("anna"), changed: user_id("berta"), deleted: user_id("carl")})
    wait_until(lambda: pending(redis) == 0, "all is acknowledged")
    clean_again(database)
    assert gap(database) is False
    assert "registry begins" in node.log() and "may have been lost" not in node.log(), "a new database has lost nothing"
    database.ask("INSERT INTO user_sessions (user_id, session_token, expires_at) "
                 "VALUES (gen_random_uuid(), 'theirs', now() + interval '1 day')")
    node.stop()

    pool.ask("DELETE", f"/api/sessions/{deleted}")
    patch(pool, changed, userId="dora")
    new = create(pool, "emil")
    wait_until(lambda: redis.call("XLEN", STREAM) >= 6, "the events are there")
    if loss == "all of it":
        redis.call("DEL", STREAM)
    else:
        if loss != "trimmed":
            redis.call("XREADGROUP", "GROUP", GROUP, "leader", "COUNT", 2, "STREAMS", STREAM, ">")
        redis.call("XTRIM", STREAM, "MAXLEN", 0 if loss == "trimmed" else 1)
        create(pool)
    node.start()
    wait_until(lambda: gap(database) is True, "the loss is noted")
    wait_until(lambda: " warn  " in "".join(line for line in node.log().splitlines() if "may have been lost" in line), "and told")
    clean_again(database)
    wait_until(lambda: gap(database) is False, "and mended")
    expected = {kept: user_id("anna"), changed: user_id("dora"), new: user_id("emil")}
    assert {token: user for token, user in rows(database).items() if token != "theirs"} == expected
    assert "theirs" in rows(database), "a row that is none of ours stays"


def test_events_that_are_trimmed_while_a_leader_reads_too_slowly_are_missed(database, pool, start, redis):
    """It is held up, but nothing fails: it goes on reading behind what is gone."""
    start()
    slow = create(pool, "anna")
    wait_for_rows(database, {slow: user_id("anna")})
    clean_again(database)
    assert gap(database) is False
    with contextlib.closing(database.connect()) as holder:
        holder.cursor().execute("SELECT 1 FROM user_sessions WHERE session_token = %s FOR UPDATE", [slow])
        patch(pool, slow, userId="berta")
        wait_until(lambda: database.ask("SELECT 1 FROM pg_stat_activity WHERE application_name = 'hyperpage-coordinator' "
                                        "AND wait_event_type = 'Lock'"), "the leader waits for the row")
        length = redis.call("XLEN", STREAM)
        lost = create(pool, "carl")
        wait_until(lambda: redis.call("XLEN", STREAM) > length, "the event is there")
        redis.call("XTRIM", STREAM, "MAXLEN", 0)
        create(pool)
        wait_until(lambda: redis.call("XLEN", STREAM) > 0, "others follow")
    wait_until(lambda: gap(database) is True, "the loss is noted")
    clean_again(database)
    wait_for_rows(database, {slow: user_id("berta"), lost: user_id("carl")})


def test_the_cleanup_repairs_redis(database, pool, start, redis):
    start()
    session_id = create(pool, "anna")
    redis.call("ZADD", "hyperpage:user:anna:sessions", 1, "dead")
    redis.call("PERSIST", f"hyperpage:session:{session_id}")
    redis.call("LPUSH", "hyperpage:session:list", "1")
    clean_again(database)
    assert redis.call("ZRANGE", "hyperpage:user:anna:sessions", 0, -1) == [session_id.encode()]
    assert TTL_S - 10 < redis.call("TTL", f"hyperpage:session:{session_id}") <= TTL_S
    assert redis.call("TTL", "hyperpage:session:list") == -1
    details = database.value("SELECT details FROM job_history WHERE details ? 'sessions' ORDER BY id DESC LIMIT 1")
    assert (details["sessions"], details["sessionsWithoutEnd"], details["deadEntries"]) == (1, 1, 1)


def test_without_a_database_redis_is_cleaned_once_an_hour_too(pool, start, redis):
    session_id = create(pool, "anna")
    redis.call("PERSIST", f"hyperpage:session:{session_id}")
    with start("first", DATABASE_URL=""):
        wait_until(lambda: redis.call("TTL", f"hyperpage:session:{session_id}") > 0, "it got an end")
    assert 3000 < redis.call("TTL", "hyperpage:cleanup") < 4000
    redis.call("PERSIST", f"hyperpage:session:{session_id}")
    with start("second", DATABASE_URL="") as second:
        wait_until(lambda: "this node leads" in second.log(), "it leads")
        time.sleep(0.5)  # nothing to wait for: nothing shall happen
        assert redis.call("TTL", f"hyperpage:session:{session_id}") == -1


# --- jobs that others take part in ---

def finished(database, kind, payload="{}"):
    job_id = database.value("INSERT INTO jobs (type, payload) VALUES (%s, %s) RETURNING id", kind, payload)
    wait_until(lambda: database.value("SELECT status FROM jobs WHERE id = %s", job_id) == "completed", f"{kind} is done")
    return database.value("SELECT details FROM job_history WHERE job_id = %s AND status = 'completed'", job_id)


def test_every_node_loads_the_sessions_that_a_warmup_names(database, pool, start, redis):
    nodes = [start("one"), start("two")]
    wait_until(lambda: redis.call("PUBSUB", "NUMSUB", "hyperpage:coord:all")[1] >= 2, "both listen")
    wait_until(lambda: database.value("SELECT to_regclass('hyperpage_schema') IS NOT NULL"), "the schema is there")
    anonymous, of_user = create(pool), create(pool, "anna")
    wait_for_rows(database, {of_user: user_id("anna")})
    assert finished(database, "cache_warmup", json.dumps({"sessionIds": [anonymous, of_user, "unknown", 7, "no id!"]}))["sessions"] == 3
    for node in nodes:
        wait_until(lambda node=node: "session cache warmed up: sessions=2" in node.log(), "it has loaded them")
    assert finished(database, "cache_warmup")["sessions"] == 1, "without names: those of users, active last"
    for node in nodes:
        wait_until(lambda node=node: "session cache warmed up: sessions=1" in node.log(), "it has loaded it")


@pytest.mark.parametrize("operation", ["bg_job_balance", "cache_warmup"])
def test_a_message_of_the_leader_starts_a_job(database, start, redis, operation):
    node = start()
    wait_until(lambda: subscribed(redis) and "this node leads" in node.log(), "it leads and listens")
    for source, jobs in (("somebody", 0), (node.name, 1)):
        message = {"id": "msg-1", "type": "job_coordination", "timestamp": 1, "sourcePod": source, "priority": "normal",
                   "payload": {"operation": operation, "data": {}, "coordinator": source}}
        redis.call("PUBLISH", "hyperpage:coord:all", json.dumps(message))
        if jobs:
            wait_until(lambda: database.value("SELECT count(*) FROM jobs WHERE type = %s AND status = 'completed'", operation) == 1, "done")
        else:
            wait_until(lambda: "does not come from the leader" in node.log(), "it is refused")
            assert database.value("SELECT count(*) FROM jobs WHERE type = %s", operation) == 0


# --- rate limits ---

def sync(redis, **payload):
    message = {"id": "msg-1", "type": "rate_limit_sync", "payload": payload, "timestamp": int(time.time() * 1000),
               "sourcePod": "another", "priority": "normal"}
    assert redis.call("PUBLISH", "hyperpage:coord:all", json.dumps(message)) >= 1


def limits(database):
    return database.ask("SELECT key, remaining, metadata->>'platform', (metadata->>'limitTotal')::int FROM rate_limits ORDER BY key, id")


def subscribed(redis):
    return redis.call("PUBSUB", "NUMSUB", "hyperpage:coord:all")[1] >= 1


def test_rate_limits_reach_the_database_and_every_later_start(database, start, redis):
    node = start()
    wait_until(lambda: subscribed(redis), "it listens")
    reset_ms = int(time.time() * 1000) + 600_000
    sync(redis, platform="github", endpoint="core", usage=10, limit=5000, remaining=4500, resetTime=reset_ms)
    sync(redis, platform="jira", usage=90)
    wait_until(lambda: len(limits(database)) == 2, "both are stored")
    assert limits(database) == [("github:core", 4500, "github", 5000), ("jira:global", -1, "jira", None)]
    assert database.value("SELECT trunc(extract(epoch FROM reset_at) * 1000)::bigint FROM rate_limits WHERE key = 'github:core'") == reset_ms
    sync(redis, platform="github", endpoint="core", usage=20, limit=5000, remaining=4000, resetTime=reset_ms)
    wait_until(lambda: limits(database)[0][1] == 4000, "the row is changed, not doubled")
    assert len(limits(database)) == 2
    node.stop()
    later = int(time.time() * 1000) + 1000
    database.ask("UPDATE rate_limits SET remaining = 77, metadata = metadata || jsonb_build_object('lastUpdated', %s) "
                 "WHERE key = 'github:core'", later)
    start("other", STATE_DIR=node.folder / "other-state")
    wait_until(lambda: len(limits(database)) == 2, "it works")
    wait_until(lambda: subscribed(redis), "it listens")
    sync(redis, platform="gitlab", usage=1)
    wait_until(lambda: len(limits(database)) == 3, "it writes")
    assert limits(database)[0][1] == 77, "what it has loaded is not older than what it would write"


def shown(node):
    """Endpoint -> remaining, as the node's other processes see it."""
    return {f"{row['platform']}:{row['endpoint']}": row["remaining"] for row in node.view()["limits"]}


def test_a_new_node_knows_what_the_database_knows(database, start, redis):
    database.ask("INSERT INTO rate_limits (key, remaining, reset_at, metadata) VALUES "
                 "('github:core', 4, now() + interval '1 hour', '{\"platform\": \"github\", \"limitTotal\": 10, \"lastUpdated\": 1700000000000}'), "
                 "('github:core', 7, now() + interval '1 hour', '{\"platform\": \"github\", \"limitTotal\": 10, \"lastUpdated\": 1700000000001}'), "
                 "('odd', 1, now(), NULL), ('jira:x', 1, now(), '{\"lastUpdated\": \"nonsense\"}'), "
                 "('gitlab:global', 3, now(), '{\"lastUpdated\": 1700000000000.5}')")
    node = start()
    wait_until(lambda: shown(node) == {"github:core": 7, "gitlab:global": 3}, "it shows them")
    wait_until(lambda: subscribed(redis), "it listens")
    sync(redis, platform="gitlab", usage=1, limit=100, remaining=99)
    wait_until(lambda: shown(node) == {"github:core": 7, "gitlab:global": 99}, "what is reported later joins them")


def test_a_database_that_is_away_gets_what_was_reported_meanwhile(database, start, redis):
    start()
    wait_until(lambda: subscribed(redis), "it listens")
    sync(redis, platform="github", endpoint="core", remaining=1, limit=10, usage=90)
    wait_until(lambda: len(limits(database)) == 1, "stored")
    database.stop()
    for remaining in range(9, 1, -1):
        sync(redis, platform="github", endpoint="core", remaining=remaining, limit=10, usage=90)
    database.start()
    wait_until(lambda: limits(database) == [("github:core", 2, "github", 10)], "the last report is stored", 20)


# --- PostgreSQL is away, or stands still ---

LONG = os.environ.get("HYPERPAGE_LONG") == "1"
OUTAGES = {  # how it goes, and how it comes back
    "stopped": (lambda database: database.stop(), lambda database: database.start()),
    "crashed": (lambda database: database.stop(signal.SIGQUIT), lambda database: database.start()),
    "paused": (lambda database: database.pause(), lambda database: database.resume()),
}


class Events(threading.Thread):
    """Makes sessions of users at a steady rate, and now and then asks for a job."""

    def __init__(self, redis):
        super().__init__()
        self.redis, self.made, self.over = redis, {}, threading.Event()

    def run(self):
        while not self.over.wait(0.01):
            session_id = f"s{len(self.made)}"
            self.redis.call("SET", f"hyperpage:session:{session_id}", json.dumps({"userId": f"user {session_id}"}), "EX", 1000)
            self.redis.call("XADD", STREAM, "*", "type", "created", "sessionId", session_id, "userId", "u", "expiresAt", 1)
            self.made[session_id] = user_id(f"user {session_id}")

    def stop(self):
        self.over.set()
        self.join()
        return self.made


class Pulse(threading.Thread):
    """Watches the lease: how little was left of it before it was renewed?"""

    def __init__(self, redis):
        super().__init__()
        self.redis, self.least_ms, self.over = redis, 1 << 30, threading.Event()

    def run(self):
        with self.redis.connection() as connection:
            while not self.over.wait(0.01):
                self.least_ms = min(self.least_ms, connection.call("PTTL", "hyperpage:leader"))

    def stop(self):
        self.over.set()
        self.join()
        return self.least_ms


def late_ticks(pool):
    return metric(pool, "coordinator_ticks_late_total")


def test_postgres_may_go_in_all_phases_and_nothing_is_late_or_lost(folder, servers, database, redis):
    """A second of each outage at a random moment of the work; a minute of each in the long form."""
    redis.call("SET", "{hyperpage:leader}:term", 1)
    node = servers.enter_context(Coordinator(folder, "node", REDIS_URL=redis.url, DATABASE_URL=database.url, RUN_DIR=folder / "run",
                                             LEADER_ELECTION_TIMEOUT=1000, LEADER_HEARTBEAT_INTERVAL=250))
    pool = servers.enter_context(Pool(folder))  # which shows the node's counters
    wait_until(lambda: "this node leads" in node.log(), "it leads")
    events, pulse, seed = Events(redis), Pulse(redis), time.time_ns()
    print(f"seed {seed}")
    moment = random.Random(seed)
    events.start()
    pulse.start()
    try:
        for go, come_back in list(OUTAGES.values()) * (1 if LONG else 2):
            time.sleep(moment.uniform(0.2, 1))
            database.ask("INSERT INTO jobs (type, payload) SELECT 'bg_job_balance', '{}' WHERE to_regclass('hyperpage_schema') IS NOT NULL")
            go(database)
            time.sleep(60 if LONG else moment.uniform(0.5, 1.5))  # for so long it is away
            come_back(database)
    finally:
        made, least_ms = events.stop(), pulse.stop()
    wait_until(lambda: rows(database) == made, "every session has its row", 30)
    wait_until(lambda: pending(redis) == 0, "all is acknowledged")
    wait_until(lambda: database.value("SELECT count(*) FROM jobs WHERE status <> 'completed'") == 0, "every job is done", 60)
    assert "does not lead any more" not in node.log(), "no heartbeat was late"
    print(f"{len(made)} events, late ticks of the loop: {late_ticks(pool):.0f}, "
          f"rounds over 20 ms: {metric(pool, 'coordinator_rounds_long_total'):.0f}; of its 1000 ms the lease, renewed each 250, "
          f"had {least_ms} left at least")
    assert least_ms > (500 if LONG else 0), "no heartbeat was left out"
    # That none is late for the database's sake shows the long form, alone on the machine.
    assert late_ticks(pool) <= (3 if LONG else 30), "a machine that is busy with other things may cost some"


def test_a_query_that_hangs_holds_nothing_else_up(folder, servers, database, redis, pool):
    """Somebody holds the row that every fenced write must lock."""
    node = servers.enter_context(Coordinator(folder, "node", REDIS_URL=redis.url, DATABASE_URL=database.url, LEADER_ELECTION_TIMEOUT=1000,
                                             LEADER_HEARTBEAT_INTERVAL=250))
    wait_until(lambda: database.value("SELECT to_regclass('jobs') IS NOT NULL")
               and database.value("SELECT count(*) FROM jobs WHERE status = 'completed'") == 1, "it works")
    with contextlib.closing(database.connect()) as holder:
        holder.cursor().execute("SELECT 1 FROM app_state WHERE key = 'coordinator.term' FOR UPDATE")
        session_id = create(pool, "anna")
        wait_until(lambda: "session events cannot be followed: error=\"postgres: canceling statement due to lock timeout" in node.log(), "it gives up")
        beat = redis.call("GET", "hyperpage:leader")
        wait_until(lambda: redis.call("GET", "hyperpage:leader") not in (beat, None), "it still renews its lease")
    wait_for_rows(database, {session_id: user_id("anna")})
    assert "does not lead any more" not in node.log()


def test_a_leader_that_stood_still_writes_nothing_more(folder, servers, database, redis, pool):
    """It is stopped in the middle of a transaction while another is elected; the fence, not its own clock, refuses it."""
    one, two = (servers.enter_context(Coordinator(folder, name, REDIS_URL=redis.url, DATABASE_URL=database.url,
                                                  LEADER_ELECTION_TIMEOUT=1000, LEADER_HEARTBEAT_INTERVAL=250))
                for name in ("one", "two"))
    wait_until(lambda: any("this node leads" in node.log() for node in (one, two)), "one leads")
    old, new = (one, two) if "this node leads" in one.log() else (two, one)
    wait_until(lambda: database.ask("SELECT 1 FROM pg_tables WHERE tablename = 'app_state'")
               and database.ask("SELECT 1 FROM app_state WHERE value ? 'term'"), "it has written")
    first_term = database.value("SELECT (value->>'term')::int FROM app_state WHERE key = 'coordinator.term'")
    old.pause()
    wait_until(lambda: "this node leads" in new.log(), "another leads")
    session_id = create(pool, "anna")
    wait_for_rows(database, {session_id: user_id("anna")})
    terms = database.value("SELECT (value->>'term')::int FROM app_state WHERE key = 'coordinator.term'")
    assert terms > first_term
    old.resume()
    other = create(pool, "berta")
    wait_for_rows(database, {session_id: user_id("anna"), other: user_id("berta")})
    assert database.value("SELECT value->>'leaderId' FROM app_state WHERE key = 'coordinator.term'") == new.name


def test_a_coordinator_leaves_at_once_although_the_database_stands_still(folder, servers, database, redis):
    redis.call("SET", "{hyperpage:leader}:term", 1)
    node = servers.enter_context(Coordinator(folder, "node", REDIS_URL=redis.url, DATABASE_URL=database.url))
    wait_until(lambda: redis.call("EXISTS", STREAM), "it follows the events")
    database.pause()
    try:
        redis.call("XADD", STREAM, "*", "type", "deleted", "sessionId", "a")
        wait_until(lambda: pending(redis) == 1, "it is about to write")
        began = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - began < 3
    finally:
        database.resume()
