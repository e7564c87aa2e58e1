"""The leader is killed before each of its steps: whoever comes after it brings everything to the same end."""

import json
import os
import time

import pytest

from postgres import ORIGINAL, Postgres
from servers import BUILD, Coordinator, wait_until
from test_postgres import CLEAN, fill, left
from test_registry import STREAM, user_id

POINTS = ["schema-step", "jobs-put-back", "cleanup-schedule", "cleanup-scheduled", "job-claim", "job-run", "balance",
          "cleanup-user_sessions", "cleanup-user_sessions-fenced", "cleanup-rate_limits", "cleanup-rate_limits-fenced",
          "cleanup-jobs", "cleanup-jobs-fenced", "cleanup-job_history", "cleanup-job_history-fenced", "cleanup-redis",
          "job-finish", "job-finished", "registry-group", "registry-write", "registry-written", "registry-acknowledge",
          "registry-sweep", "registry-forget", "rate-limit-write", "rate-limit-written"]
# In the long form one by one. In the short one several in a row, so few that a job has an attempt left.
GROUPS = [[point] for point in POINTS] if os.environ.get("HYPERPAGE_LONG") == "1" else [POINTS[n::7] for n in range(7)]


class World:
    """Everything that the leader works on, and a leader that is started again when it has died."""

    def __init__(self, folder, servers, redis, points):
        self.redis, self.arms, self.deaths = redis, folder / "arms", 0
        self.database = servers.enter_context(Postgres(folder))
        self.database.ask(ORIGINAL)
        fill(self.database, 1500)
        self.arms.mkdir()
        for point in points:
            (self.arms / point).touch()
        self.fill_redis()
        self.node = Coordinator(folder, "node", HYPERPAGE_FAULTS=self.arms, REDIS_URL=redis.url,
                                DATABASE_URL=self.database.url, LEADER_ELECTION_TIMEOUT=1000,
                                LEADER_HEARTBEAT_INTERVAL=250)
        servers.enter_context(self.node.launch())

    def fill_redis(self):
        call = self.redis.call
        call("SET", "{hyperpage:leader}:term", 1)  # else the first leader waits before it acts
        call("SET", "hyperpage:session:a", json.dumps({"userId": "anna"}), "EX", 1000)
        call("SET", "hyperpage:session:b", json.dumps({"userId": "berta"}))
        call("SET", "hyperpage:session:c", json.dumps({"userId": "carl"}), "EX", 1000)  # told of by no event
        call("ZADD", "hyperpage:user:anna:sessions", 1, "dead")
        for kind, session_id, user in (("created", "a", "anna"), ("updated", "b", "berta"), ("deleted", "dead", "anna")):
            call("XADD", STREAM, "*", "type", kind, "sessionId", session_id, "userId", user, "expiresAt", 0)

    def until(self, condition, what):
        """Waits; whenever the leader has died, the next one is started."""
        def look():
            if self.node.process.poll() is not None:
                assert self.node.process.returncode == -9
                self.deaths += 1
                self.node.launch()
            return condition()
        return wait_until(look, what, 30)

    def report_limit(self):
        message = {"id": "msg-1", "type": "rate_limit_sync", "timestamp": int(time.time() * 1000), "sourcePod": "another",
                   "payload": {"platform": "gitlab", "limit": 10, "remaining": 3}, "priority": "normal"}
        return self.redis.call("PUBLISH", "hyperpage:coord:all", json.dumps(message)) >= 1

    def asked(self, sql):
        """The only value, or None while there is no such table."""
        there = self.database.value("SELECT to_regclass('job_history') IS NOT NULL AND to_regclass('hyperpage_schema') IS NOT NULL")
        return self.database.value(sql) if there else None

    def work_through(self):
        done = "SELECT count(*) FROM jobs WHERE type = 'cleanup' AND status = 'completed'"
        self.until(lambda: (self.asked(done) or 0) >= 1, "the first cleanup")
        self.until(self.report_limit, "it listens")
        self.until(lambda: self.asked("SELECT count(*) FROM rate_limits WHERE key = 'gitlab:global'") == 1, "the limit is stored")
        self.database.ask("INSERT INTO jobs (type, payload) VALUES ('bg_job_balance', '{}')")
        self.until(lambda: self.asked("SELECT value->>'gap' FROM app_state WHERE key = 'coordinator.registry'"), "it follows the events")
        self.database.ask("UPDATE app_state SET value = value || jsonb_build_object('next', now()) WHERE key = 'coordinator.cleanup'")
        self.until(lambda: self.asked("SELECT count(*) FROM jobs WHERE status IN ('pending', 'running') AND type <> 'x'") == 0
                   and self.asked(done) >= 2, "the second cleanup")
        self.until(lambda: self.redis.call("XINFO", "GROUPS", STREAM)[0][5] == 0, "all events are acknowledged")


def end_of(world):
    """What all this must come to."""
    state = left(world.database)
    database, redis = world.database, world.redis
    state["users"] = database.ask("SELECT session_token, user_id::text FROM user_sessions WHERE session_token NOT LIKE 'live%%' ORDER BY 1")
    state["sessions"] = [row for row in state["sessions"] if row[0].startswith("live")]
    state["gitlab"] = database.ask("SELECT remaining, metadata->>'limitTotal' FROM rate_limits WHERE key = 'gitlab:global'")
    state["balance"] = database.ask("SELECT status FROM jobs WHERE type = 'bg_job_balance'")
    state["gap"] = database.value("SELECT value->>'gap' FROM app_state WHERE key = 'coordinator.registry'")
    state["open"] = database.value("SELECT count(*) FROM job_history h WHERE status = 'running' AND NOT EXISTS (SELECT 1 FROM "
                                   "job_history l WHERE l.job_id = h.job_id AND l.id > h.id)")
    state["index"] = redis.call("ZRANGE", "hyperpage:user:anna:sessions", 0, -1)
    state["ends"] = redis.call("TTL", "hyperpage:session:b") > 0
    state["schema"] = database.ask("SELECT version FROM hyperpage_schema ORDER BY 1")
    return state


END = {**CLEAN, "cleanups": [("completed",)] * 2, "limits": [("github:search",), ("gitlab:global",)],
       "users": [("a", user_id("anna")), ("b", user_id("berta")), ("c", user_id("carl"))], "gitlab": [(3, "10")],
       "balance": [("completed",)], "gap": "false", "open": 0, "index": [b"a"], "ends": True, "schema": [(1,), (2,)]}


@pytest.mark.parametrize("points", GROUPS, ids="+".join)
def test_killed_at_any_step_a_rerun_ends_in_the_same_state(folder, servers, redis, points, monkeypatch):
    monkeypatch.setattr("servers.BUILD", BUILD / "faults")
    world = World(folder, servers, redis, points)
    world.work_through()
    assert end_of(world) == END
    assert world.deaths == len(points) and list(world.arms.iterdir()) == [], "every place was reached"


@pytest.mark.parametrize("point", ["registry-write", "registry-written", "registry-acknowledge"])
def test_an_event_that_a_leader_died_of_is_not_lost(folder, servers, redis, point, monkeypatch):
    """No cleanup comes to the rescue."""
    monkeypatch.setattr("servers.BUILD", BUILD / "faults")
    world = World(folder, servers, redis, [])
    world.work_through()
    (world.arms / point).touch()
    redis.call("SET", "hyperpage:session:d", json.dumps({"userId": "dora"}), "EX", 1000)
    redis.call("XADD", STREAM, "*", "type", "created", "sessionId", "d", "userId", "dora", "expiresAt", 0)
    world.until(lambda: world.database.ask("SELECT 1 FROM user_sessions WHERE session_token = 'd'"), "it has its row")
    world.until(lambda: redis.call("XINFO", "GROUPS", STREAM)[0][5] == 0, "it is acknowledged")
    assert world.deaths == 1
