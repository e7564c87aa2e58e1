"""What the coordinator and PostgreSQL do, in /api/metrics and /api/health: two nodes on a real Redis and a real PostgreSQL."""

import contextlib
import json
import re
import signal
import subprocess
import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from postgres import ORIGINAL, Postgres
from servers import Coordinator, Pool, wait_until
from test_coordinator import ALL, original_leads, publish
from test_health import Times, ready
from test_metrics import KNOWN_COMPLAINTS, OPENMETRICS, samples, scrape
from test_registry import clean_again


class Node:
    """A pool and its coordinator."""

    def __init__(self, folder, servers, name, **options):
        self.name = name
        self.coordinator = servers.enter_context(Coordinator(folder, name, **options))
        self.pool = servers.enter_context(Pool(folder, f"{name}-pool", RUN_DIR=self.coordinator.run_dir,
                                               STATE_DIR=folder / name / "state", SESSION_CACHE_BYTES=1 << 20,
                                               REDIS_URL=options.get("REDIS_URL", "")))

    def get(self, name, **labels):
        """The sum of hyperpage_NAME over all series with these labels; None: there is none."""
        found = [n for (have, has), n in samples(scrape(self.pool).body.decode())[0].items()
                 if have == f"hyperpage_{name}" and labels.items() <= dict(has).items()]
        return sum(found) if found else None

    def health(self):
        return json.loads(self.pool.ask("GET", "/api/health").body)


@pytest.fixture
def database(folder, servers):
    database = servers.enter_context(Postgres(folder))
    database.ask(ORIGINAL)
    return database


@pytest.fixture
def nodes(folder, servers, redis, database):
    nodes = [Node(folder, servers, name, REDIS_URL=redis.url, DATABASE_URL=database.url) for name in ("one", "two")]
    wait_until(lambda: sum(node.get("coordination_leader") for node in nodes) == 1, "one leads", 20)
    return nodes


def by_role(nodes):
    """The leader, the other."""
    return sorted(nodes, key=lambda node: -node.get("coordination_leader"))


def test_who_leads_and_who_is_there(redis, nodes):
    leader, other = by_role(nodes)
    term = int(redis.call("GET", "{hyperpage:leader}:term"))
    for node in nodes:
        wait_until(lambda n=node: n.get("coordination_pods") == 2, "both see both")
        assert (node.get("coordinator_up"), node.get("coordination_subscribed"), node.get("coordination_term")) == (1, 1, term)
        assert node.get("coordination_queue_messages") == 0
        assert 0 <= node.get("coordinator_loop_lag_seconds") < 5
    since = leader.get("coordination_leader_since_timestamp_seconds")
    assert leader.get("coordination_elections_won_total") == 1
    leader.coordinator.process.kill()
    wait_until(lambda: leader.get("coordinator_up") == 0, "its death is seen", 5)
    assert leader.get("coordination_leader") == 0, "what it said last is worth nothing"
    assert leader.get("coordination_term") is None
    wait_until(lambda: other.get("coordination_leader") == 1, "the other leads", 5)
    assert other.get("coordination_term") > term and other.get("coordination_leader_since_timestamp_seconds") > since


def test_messages_are_counted_by_type_direction_and_priority(redis, nodes):
    one, two = nodes
    wait_until(lambda: one.get("coordination_subscribed") == two.get("coordination_subscribed") == 1, "both listen")
    for priority, n in (("low", 1), ("normal", 2), ("high", 3)):
        for _ in range(n):
            publish(redis, "cache_invalidate", {"keys": ["a"]}, priority=priority)
    publish(redis, "moon_phase", {})
    redis.call("PUBLISH", ALL, "nonsense")
    publish(redis, "broadcast", {}, source=f"{one.name}/coordinator")  # what it believes to be its own

    def received(node, **labels):
        return node.get("coordination_messages_total", direction="received", **labels)
    for node in nodes:
        wait_until(lambda n=node: received(n, type="unknown") == 1, "all have come")
        for priority, n in (("low", 1), ("normal", 2), ("high", 3)):
            assert received(node, type="cache_invalidate", priority=priority) == n
        assert node.get("coordination_messages_malformed_total") == 1
    leader, other = by_role(nodes)
    heartbeats = received(other, type="broadcast", priority="high")
    wait_until(lambda: received(other, type="broadcast", priority="high") > heartbeats, "the leader shows itself")
    assert leader.get("coordination_messages_total", direction="sent", type="broadcast", priority="high") > 0
    assert leader.get("coordination_messages_total", direction="sent", type="cache_invalidate") == 0


def test_every_node_knows_what_the_last_cleanup_saw(database, nodes):
    made = [json.loads(nodes[0].pool.ask("GET", "/api/sessions").body)["sessionId"] for _ in range(7)]
    database.ask("INSERT INTO user_sessions (user_id, session_token, expires_at) SELECT gen_random_uuid(), 'dead-' || n, "
                 "now() - interval '1 hour' FROM generate_series(1, 5) n")
    clean_again(database)
    leader = by_role(nodes)[0]
    for node in nodes:
        wait_until(lambda n=node: n.get("cleanup_last_success_timestamp_seconds"), "it is told of the cleanup", 15)
        wait_until(lambda n=node: n.get("sessions_active") == len(made), "and of the count")
        began = database.value("SELECT extract(epoch FROM max(started_at))::float8 FROM jobs WHERE type = 'cleanup'")
        assert began - 1 <= node.get("cleanup_last_success_timestamp_seconds") <= began + 10
    assert leader.get("cleanup_rows_total") == 5
    assert leader.get("cleanup_runs_total") >= 1 and 0 < leader.get("cleanup_seconds_total") < 10


def test_jobs_are_counted_by_status_on_the_leader(database, nodes):
    database.ask("INSERT INTO jobs (type, payload, status) SELECT 'theirs', '{}', s FROM unnest(ARRAY['failed', 'failed', "
                 "'cancelled', 'pending', 'odd']) s")
    leader, other = by_role(nodes)
    wait_until(lambda: leader.get("jobs", status="failed") == 2, "they are counted", 15)
    assert (leader.get("jobs", status="cancelled"), leader.get("jobs", status="timeout")) == (1, 0)
    assert leader.get("jobs", status="pending") >= 1
    assert other.get("jobs") is None


def test_what_the_leader_does_is_counted(database, redis, nodes):
    leader, _ = by_role(nodes)
    wait_until(lambda: leader.get("jobs_completed_total") >= 1, "the first cleanup is done", 15)
    transactions = leader.get("postgres_transactions_total")
    assert transactions >= 1 and leader.get("jobs_failed_total") == leader.get("rate_limits_stored_total") == 0
    publish(redis, "rate_limit_sync", {"platform": "jira", "remaining": 5, "limit": 10})
    wait_until(lambda: leader.get("rate_limits_stored_total") == 1, "it is in the table", 10)
    assert leader.get("postgres_transactions_total") > transactions
    events = leader.get("registry_events_total")
    redis.call("XADD", "hyperpage:session-events", "*", "type", "created", "sessionId", "some", "userId", "anna",
               "expiresAt", int(time.time() * 1000) + 60000)
    wait_until(lambda: leader.get("registry_events_total") > events, "so is the session", 10)
    with contextlib.closing(database.connect()) as locker:
        locker.cursor().execute("LOCK TABLE rate_limits")
        errors = leader.get("postgres_errors_total")
        database.ask("INSERT INTO jobs (type, payload, scheduled_at, attempts) VALUES ('cleanup', '{}', now(), 4)")
        wait_until(lambda: leader.get("jobs_failed_total") == 1, "a job has failed", 10)
        assert leader.get("postgres_errors_total") > errors
        locker.rollback()
    database.ask("UPDATE app_state SET value = '{\"term\": 4100, \"leaderId\": \"another\"}' WHERE key = 'coordinator.term'")
    publish(redis, "rate_limit_sync", {"platform": "jira", "remaining": 4, "limit": 10})
    wait_until(lambda: leader.get("fence_refusals_total") >= 1, "the fence has refused it", 10)


def test_a_coordinator_that_stood_still_was_late(nodes):
    node = nodes[0]
    wait_until(lambda: node.get("coordinator_up") == 1, "it works")
    node.coordinator.pause()
    try:
        wait_until(lambda: node.get("coordinator_up") == 0, "its silence is seen", 5)
    finally:
        node.coordinator.resume()
    wait_until(lambda: node.get("coordinator_up") == 1 and node.get("coordinator_loop_lag_seconds") > 1, "it says how late it was", 5)


@pytest.mark.parametrize("how", ["stop", "pause"])
def test_a_database_that_is_away_degrades_and_harms_nothing(database, nodes, how):
    node = nodes[1]
    wait_until(lambda: node.health()["database"]["status"] == "up", "it is there")
    seen = node.health()["database"]
    assert 0 < seen["latencyMs"] < 3000 and 0 <= seen["ageMs"] <= 5000
    wait_until(lambda: ready(node.pool) == (200, "healthy"), "all is well")
    database.pause() if how == "pause" else database.stop(signal.SIGQUIT)
    try:
        wait_until(lambda: node.get("dependency_up", dependency="postgres") == 0, "its loss is seen", 20)
        assert node.health()["database"]["status"] == "down"
        assert ready(node.pool) == (200, "degraded")
        assert node.pool.ask("GET", "/api/sessions").status == 200
        times = Times(node.pool)
        for _ in range(150):
            node.health()
        assert times.are_short()
    finally:
        database.resume() if how == "pause" else database.start()
    wait_until(lambda: node.get("dependency_up", dependency="postgres") == 1, "it is back", 20)
    wait_until(lambda: ready(node.pool) == (200, "healthy"), "all is well")


def test_a_coordinator_that_is_lost_degrades(nodes):
    node = nodes[0]
    wait_until(lambda: ready(node.pool) == (200, "healthy"), "all is well", 10)
    member = node.health()["coordinator"]
    assert member["status"] == "up" and 0 <= member["ageMs"] < 2000 and member["latencyMs"] >= 0
    node.coordinator.process.kill()
    wait_until(lambda: ready(node.pool) == (200, "degraded"), "its loss is seen", 5)
    assert node.health()["coordinator"]["status"] == "down"
    wait_until(lambda: node.health()["database"]["status"] == "unknown", "nobody looks at the database any more", 10)
    assert node.get("dependency_up", dependency="postgres") is None
    node.coordinator.stop()
    node.coordinator.start()
    wait_until(lambda: ready(node.pool) == (200, "healthy"), "its successor is seen", 10)


# --- how many sessions there are ---

TOKEN = "t" * 32
CENSUS = "hyperpage:sessions:active"


@pytest.fixture
def pair(folder, servers, redis):
    """Two nodes without a database, the leader first. The sessions in Redis, none, have been counted."""
    pair = [Node(folder, servers, name, REDIS_URL=redis.url) for name in ("one", "two")]
    wait_until(lambda: redis.call("EXISTS", CENSUS) == 1, "somebody leads and has counted", 10)
    return by_role(pair)


def create(node, n=1):
    return [json.loads(node.pool.ask("GET", "/api/sessions").body)["sessionId"] for _ in range(n)]


def both_tell(pair, n):
    for node in pair:
        wait_until(lambda node=node: node.get("sessions_active") == n, f"{node.name} tells of {n}", 5)


def count_anew(redis, pair):
    """The hour is over, and who leads next sees it at once."""
    def runs():
        return sum(node.get("cleanup_runs_total") for node in pair)
    before = runs()
    redis.call("DEL", "hyperpage:cleanup")
    pair[0].coordinator.signal(signal.SIGHUP)
    wait_until(lambda: runs() > before, "they are counted", 10)


def test_the_number_of_sessions_follows_what_becomes_of_them(redis, pair):
    one, two = pair
    made = create(one, 20) + create(two, 20)
    both_tell(pair, 40)
    for session in made[5:25]:
        two.pool.ask("DELETE", f"/api/sessions/{session}")
    both_tell(pair, 20)
    assert one.pool.ask("POST", f"/api/sessions/{made[0]}/rotate").status == 200
    assert one.pool.ask("PATCH", f"/api/sessions/{made[1]}", {"uiState": {}}).status == 200
    create(two)
    both_tell(pair, 21)
    # More than are read at once, and some that nobody understands.
    redis.call("EVAL", "for i = 1, 2500 do redis.call('XADD', KEYS[1], '*', 'type', i % 5 == 0 and 'deleted' or 'created') end "
               "redis.call('XADD', KEYS[1], '*', 'kind', 'created') redis.call('XADD', KEYS[1], '*', 'type', 'eaten')",
               1, "hyperpage:session-events")
    both_tell(pair, 1521)


def test_what_a_cleanup_repairs_is_counted(redis, pair):
    redis.call("SET", "hyperpage:session:endless", "{}")
    redis.call("ZADD", "hyperpage:user:anna:sessions", int(time.time() * 1000) + 60000, "gone")
    count_anew(redis, pair)
    assert sum(node.get("cleanup_sessions_ended_total") for node in pair) == 1
    assert sum(node.get("cleanup_index_entries_total") for node in pair) == 1
    assert redis.call("TTL", "hyperpage:session:endless") > 0 and redis.call("EXISTS", "hyperpage:user:anna:sessions") == 0


def test_another_leader_goes_on_where_the_one_before_was(redis, pair):
    leader, other = pair
    create(leader, 5)
    both_tell(pair, 5)
    leader.coordinator.process.kill()
    create(leader, 3)  # its pool goes on; nobody may lead for a moment
    wait_until(lambda: other.get("coordination_leader") == 1, "the other leads", 10)
    create(other, 2)
    both_tell([other], 10)
    leader.coordinator.stop()
    leader.coordinator.start()
    both_tell(pair, 10)


def test_what_says_nothing_is_seen_by_the_next_count(redis, pair):
    """Sessions that expire, those of the original, lost events. Without any count there is no number."""
    leader = pair[0]
    redis.call("DEL", CENSUS)
    for node in pair:
        wait_until(lambda node=node: node.get("sessions_active") is None, "nobody can tell", 5)
    redis.call("HSET", CENSUS, "sessions", 0, "place", "0-0")
    made = create(leader, 10)
    both_tell(pair, 10)
    redis.call("DEL", *(f"hyperpage:session:{session}" for session in made[:4]))
    create(leader)
    both_tell(pair, 11)
    count_anew(redis, pair)
    both_tell(pair, 7)
    redis.call("XTRIM", "hyperpage:session-events", "MAXLEN", "0")
    create(leader)
    both_tell(pair, 8)
    assert any("session events were lost" in node.coordinator.log() for node in pair)


def test_a_number_that_cannot_be_written_is_tried_in_peace(redis, pair):
    """With more events at hand than one look reads: that alone is no reason to look again at once."""
    def looks():
        stats = redis.call("INFO", "commandstats").decode()
        return int(re.search(r"cmdstat_xrange:calls=(\d+)", stats)[1])
    leader = pair[0]
    create(leader)
    both_tell(pair, 1)
    redis.call("ACL", "SETUSER", "default", "-hset")
    redis.call("EVAL", "for i = 1, 2500 do redis.call('XADD', KEYS[1], '*', 'type', 'created') end",
               1, "hyperpage:session-events")
    line = "the number of sessions cannot be kept: error="
    wait_until(lambda: line in leader.coordinator.log(), "it says why")
    first, began = looks(), time.monotonic()
    wait_until(lambda: looks() >= first + 3, "it goes on trying")
    assert time.monotonic() - began >= 1, "two pauses at least"
    assert leader.coordinator.log().count(line) == 1
    redis.call("ACL", "SETUSER", "default", "+hset")
    both_tell(pair, 2501)


def test_sessions_of_an_outage_count_when_redis_has_them(redis, pair):
    leader = pair[0]
    kept, deleted = create(leader, 2)
    both_tell(pair, 2)
    for session in (kept, deleted):  # so that its refuge knows them
        assert leader.pool.ask("GET", f"/api/sessions/{session}").status == 200
    redis.pause()
    try:
        born = create(leader, 3)  # by the refuge
        for session in (deleted, born[0]):
            assert leader.pool.ask("DELETE", f"/api/sessions/{session}").status == 200
        assert leader.pool.ask("PATCH", f"/api/sessions/{kept}", {"uiState": {}}).status == 200
    finally:
        redis.resume()
    wait_until(lambda: leader.get("dirty_sessions") == 0, "all is brought back", 10)
    both_tell(pair, 3)
    assert len(redis.call("KEYS", "hyperpage:session:*")) == 3


def test_without_a_database_it_is_unused(folder, servers, redis):
    node = Node(folder, servers, "alone", REDIS_URL=redis.url)
    wait_until(lambda: node.health()["database"] == {"status": "unused"}, "it says so")
    assert node.get("dependency_up", dependency="postgres") is None
    wait_until(lambda: node.get("cleanup_runs_total") >= 1, "the sessions in Redis are counted")
    wait_until(lambda: node.get("sessions_active") == 0, "and told of")


def test_an_original_pod_that_leads_is_no_leader_of_ours(redis, nodes):
    original_leads(redis, term=99)
    for node in nodes:
        wait_until(lambda n=node: n.get("coordination_leader") == 0 and n.get("coordination_term") == 99, "it is known", 5)


def test_nonsense_where_the_last_cleanup_stands_is_passed_over(redis, nodes):
    node = by_role(nodes)[1]
    for nonsense in ("", "x", "[]", '{"at":1e400,"sessions":1}', '{"at":"x"}', '{"at":9000000000000000'):
        redis.call("SET", "hyperpage:cleanup:last", nonsense)
    node.coordinator.signal(signal.SIGHUP)
    wait_until(lambda: node.coordinator.log().count("coordinator started") == 2, "it starts anew")
    wait_until(lambda: node.get("coordination_subscribed") == 1, "it works")

    def is_told():
        redis.call("SET", "hyperpage:cleanup:last", '{"at":4000000000000}')  # again, if a cleanup has come between
        return node.get("cleanup_last_success_timestamp_seconds") == 4e9
    wait_until(is_told, "what makes sense counts", 15)


def test_the_form_is_as_it_must_be(nodes):
    pool = by_role(nodes)[0].pool
    done = subprocess.run(["promtool", "check", "metrics"], input=scrape(pool).body, capture_output=True)
    assert done.stderr.decode().splitlines() == KNOWN_COMPLAINTS
    names = {name for name, _ in samples(scrape(pool).body.decode())[0]}
    openmetrics = list(parse_openmetrics(scrape(pool, Accept=OPENMETRICS).body.decode()))
    assert {s.name for f in openmetrics for s in f.samples} >= {n for n in names if "coordinat" in n}
