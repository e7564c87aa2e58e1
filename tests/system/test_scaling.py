"""docs/scaling.md: how large things are. 412<!-- measured: NAME --> in the page is what measure() finds here, to within a
twentieth (a tenth where memory is shared out in steps)."""

import contextlib
import json
import re
import sqlite3

import pytest

from servers import REPO, Pool, wait_until

SESSIONS = 2000
QUOTED = {name: int(figure.replace(",", "")) for figure, name in re.findall(
    r"([\d,]+)<!-- measured: ([\w-]+) -->", (REPO / "docs/scaling.md").read_text())}


def create(pool, count, user=None):
    """Sessions by one kept connection; their ids."""
    headers = {"Authorization": "Bearer service"}
    body = json.dumps({"sessionData": {"userId": user}} if user else {}).encode()
    with pool.connect() as connection:
        answers = [connection.request("POST", "/api/sessions?create=1", body, headers=headers, keep_conn=True)
                   for _ in range(count)]
    assert {answer.status for answer in answers} == {201}
    return [json.loads(answer.body) for answer in answers]


TWICE = 40  # bytes of a key's entry and object, which MEMORY USAGE and the tables of MEMORY STATS both count


def used(redis):
    """Sessions, and the tables they are found by. Not the difference of two totals: what Redis frees late, or has as buffers
    at that moment, would be the sessions'."""
    usage, count = redis.call("EVAL", """
        local bytes, keys = 0, redis.call('KEYS', 'hyperpage:session:*')
        for _, key in ipairs(keys) do bytes = bytes + redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 0) end
        return {bytes, #keys}""", 0)
    stats = redis.call("MEMORY", "STATS")
    stats = dict(zip(stats[::2], stats[1::2]))
    tables = dict(zip(stats[b"db.0"][::2], stats[b"db.0"][1::2]))
    return usage + sum(tables.values()) - count * TWICE


def measure_redis(folder, redis):
    with Pool(folder, "with-redis", REDIS_URL=redis.url, SERVICE_TOKEN="service", RUN_DIR=folder / "run-1") as pool:
        sessions = create(pool, SESSIONS)
        wait_until(lambda: redis.call("XLEN", "hyperpage:session-events") == SESSIONS, "all are announced")
        events = redis.call("MEMORY", "USAGE", "hyperpage:session-events", "SAMPLES", 0)
        yield "redis-session", used(redis) / SESSIONS
        yield "redis-event", events / SESSIONS
        key = f"hyperpage:session:{sessions[0]['sessionId']}"
        yield "document", redis.call("STRLEN", key)
        cache = json.loads(pool.ask("GET", "/api/health").body)["cache"]
        yield "copy", cache["bytes"] / cache["size"]
        create(pool, 1, "alice")
        yield "redis-user", redis.call("MEMORY", "USAGE", "hyperpage:user:alice:sessions")


def measure_embedded(folder):
    with Pool(folder, "embedded", SERVICE_TOKEN="service") as pool:
        create(pool, SESSIONS)
    path = folder / "state/sessions.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    yield "embedded-session", path.stat().st_size / SESSIONS


def test_sizes_are_as_the_page_says(folder, redis):
    found = {**dict(measure_redis(folder, redis)), **dict(measure_embedded(folder))}
    print({name: round(value) for name, value in found.items()})
    assert set(found) == set(QUOTED)
    for name, value in found.items():
        assert QUOTED[name] == pytest.approx(value, rel=0.1 if name.startswith("redis") else 0.05), f"{name}: {value:.0f}"
