"""hyperpagectl migrate on the Redis and the PostgreSQL of an original portal, filled as that fills them: a dry run counts and
changes nothing, --apply does what a leader would do, a second one finds nothing left, and what stands in the way is 1."""

import json
import os
import time

import pytest

from postgres import ORIGINAL, Postgres
from servers import Coordinator, wait_until
from test_ctl import NOT_SO, OK, UNREACHABLE, USAGE, ctl_with

KEY = "hyperpage:session:"
DAY_S = 86_400
UUID = "6f1c1f6e-0a43-4b7e-9a55-0c8f6f7d2b11"


def document(**more):
    now = "2026-11-23T10:00:00.000Z"
    return json.dumps({"preferences": {"theme": "system"}, "lastActivity": now, "metadata": {"created": now, "updated": now}, **more})


@pytest.fixture
def original(folder, servers, redis):
    """Its sessions, its leader's key, its tables."""
    database = servers.enter_context(Postgres(folder))
    database.ask(ORIGINAL)
    with redis.connection() as r:
        r.pipeline([("SET", f"{KEY}anonymous-{i}", document(), "EX", DAY_S) for i in range(300)] +
                   [("SET", f"{KEY}uuid-{i}", document(userId=UUID), "EX", DAY_S) for i in range(3)] +
                   [("SET", f"{KEY}name-{i}", document(userId="github|ann"), "EX", DAY_S) for i in range(2)] +
                   [("SET", f"{KEY}forever-{i}", document()) for i in range(4)] +
                   [("SET", "hyperpage:leader", json.dumps({"leaderId": "pod-a", "term": 1, "lastHeartbeat": int(time.time() * 1000), "status": "active"}), "EX", 40)])
    return Original(folder, redis, database)


class Original:
    def __init__(self, folder, redis, database):
        self.redis, self.database = redis, database
        for name in ("run", "state"):
            (folder / name).mkdir()
        self.env = {**os.environ, "RUN_DIR": str(folder / "run"), "STATE_DIR": str(folder / "state"), "REDIS_URL": redis.url,
                    "DATABASE_URL": database.url, "REDIS_TIMEOUT_MS": "2000"}

    def migrate(self, *words, code=OK):
        answer = ctl_with(self.env, "migrate", *words, "--json")
        assert answer.code == code, (answer.code, answer.out, answer.err)
        return answer.json

    def all_keys(self):
        with self.redis.connection() as r:
            # Of an index only who is in it: when a session ends is reckoned anew, a millisecond earlier or later.
            return {key: (sorted(r.call("ZRANGE", key, 0, -1)) if r.call("TYPE", key) == b"zset" else r.call("DUMP", key),
                          r.call("TTL", key) == -1) for key in sorted(r.call("KEYS", "*"))}

    def tables(self):
        return self.database.ask("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1")


def whats(found):
    return [x["what"] for x in found]


def test_a_dry_run_counts_and_changes_nothing(original):
    before = original.all_keys(), original.tables()
    told = original.migrate()
    assert (original.all_keys(), original.tables()) == before
    assert not told["applied"] and told["obstacles"] == []
    assert told["redis"] == {"sessions": 309, "withoutEnd": 4, "notIndexed": 5, "userIdsMapped": 2, "notObjects": 0, "refusedIds": 0, "tooLarge": 0,
                             "pods": 0, "leaderWithoutEnd": 0, "evicts": 0, "leader": "original"}
    assert told["postgres"] == {"used": True, "schemaVersion": 0, "schemaNewest": 2}
    assert "index user_sessions_expires_at_idx is made" in whats(told["changes"]) and len(told["changes"]) == 3
    assert "row of app_state by the leader: coordinator.term is made" in whats(told["remarks"])
    original.redis.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    assert any("noeviction" in what for what in whats(original.migrate()["remarks"]))


def test_applied_it_is_done_and_stays_done(original):
    told = original.migrate("--apply")
    assert told["applied"] and told["changes"] == told["obstacles"] == []
    assert told["postgres"]["schemaVersion"] == told["postgres"]["schemaNewest"]
    assert [0 < original.redis.call("TTL", f"{KEY}forever-{i}") <= DAY_S for i in range(4)] == [True] * 4
    assert original.redis.call("ZCARD", f"hyperpage:user:{UUID}:sessions") == 3
    assert original.database.value("SELECT count(*) FROM pg_indexes WHERE indexname = 'user_sessions_expires_at_idx'") == 1
    assert original.database.value("SELECT count(*) FROM app_state") == 0, "that is the leader's"
    assert original.redis.call("GET", f"{KEY}name-0").decode() == document(userId="github|ann")
    before = original.all_keys(), original.tables()
    assert original.migrate() == {**original.migrate("--apply"), "applied": False}
    assert (original.all_keys(), original.tables()) == before, "again does nothing"


def test_what_a_node_has_done_needs_no_more(original, folder, servers):
    node = servers.enter_context(Coordinator(folder, "node", REDIS_URL=original.redis.url, DATABASE_URL=original.database.url))
    original.redis.call("DEL", "hyperpage:leader")
    wait_until(lambda: node.view()["metrics"]["cleanup_runs_total"] == 1, "the first cleanup of the hour")
    told = original.migrate()
    assert told["changes"] == [] and told["redis"]["leader"] == "this" and told["redis"]["pods"] == 1


@pytest.mark.parametrize("command, count, name", [
    (("SET", KEY + "list", "[]"), 1, "notObjects"), (("SADD", KEY + "set", "x"), 1, "notObjects"), (("SET", KEY + "cut", '{"a":'), 1, "notObjects"),
    (("SET", KEY + "a b", "{}"), 1, "refusedIds"), (("SET", KEY + "large", json.dumps({"a": "b" * 70_000})), 1, "tooLarge"),
    (("SET", "hyperpage:leader", "pod-a"), 1, "leaderWithoutEnd"),
])
def test_what_stands_in_the_way_in_redis(folder, redis, command, count, name):
    for place in ("run", "state"):
        (folder / place).mkdir()
    env = {**os.environ, "RUN_DIR": str(folder / "run"), "STATE_DIR": str(folder / "state"), "REDIS_URL": redis.url, "REDIS_TIMEOUT_MS": "2000",
           "DATABASE_URL": ""}
    answer = ctl_with(env, "migrate", "--json")
    assert answer.code == OK and not answer.json["postgres"]["used"] and answer.json["redis"]["leader"] is None
    redis.call(*command)
    answer = ctl_with(env, "migrate", "--json")
    assert answer.code == NOT_SO and answer.json["redis"][name] == count and [x["count"] for x in answer.json["obstacles"]] == [1]
    value = redis.call("DUMP", command[1])
    assert ctl_with(env, "migrate", "--apply").code == NOT_SO
    assert redis.call("DUMP", command[1]) == value, "what is no session stays as it is"


def test_what_stands_in_the_way_in_postgresql(original):
    ask = original.database.ask
    ask("ALTER TABLE user_sessions ALTER user_id TYPE text")
    ask("INSERT INTO user_sessions (user_id, session_token, expires_at) VALUES ('ann', 't', now())")
    ask("ALTER TABLE jobs DROP COLUMN attempts")
    told = original.migrate("--apply", code=NOT_SO)
    assert whats(told["obstacles"]) == ["column jobs.attempts is missing, wanted is int4", "column user_sessions.user_id is text, wanted is uuid",
                                        "1 rows of user_sessions have a user_id that is no UUID"]
    assert told["postgres"]["schemaVersion"] == 0, "it is left alone"
    ask("DROP TABLE user_sessions, jobs")
    told = original.migrate()
    assert {"table jobs is made", "table user_sessions is made"} <= set(whats(told["changes"]))
    original.migrate("--apply")
    ask("INSERT INTO hyperpage_schema (version, name) VALUES (99, 'x')")
    assert whats(original.migrate(code=NOT_SO)["obstacles"]) == ["the schema was made by a newer version of this service"]


def test_who_may_make_nothing_and_who_reaches_nothing_hear_of_it(original):
    original.database.ask("CREATE ROLE reader LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader; REVOKE CREATE ON SCHEMA public FROM public")
    original.env["DATABASE_URL"] = original.database.url.replace("test@", "reader@")
    assert "this user may not make tables and indexes in the schema" in whats(original.migrate(code=NOT_SO)["obstacles"])
    original.database.stop()
    assert ctl_with(original.env, "migrate").code == UNREACHABLE
    original.redis.stop()
    assert ctl_with(original.env, "migrate").code == UNREACHABLE
    assert ctl_with({**original.env, "REDIS_URL": ""}, "migrate").code == USAGE
