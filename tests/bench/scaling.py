#!/usr/bin/python3
"""Two tables of docs/scaling.md. Writes are touches of 200 sessions over 8 kept connections, by one pool of two workers.

    HYPERPAGE_BUILD=build tests/bench/scaling.py nodes         what each further node costs Redis: its processor time for a
        write, and for a second in which nothing is written, with 0 to 16 coordinators, each of which hears of every write
    HYPERPAGE_BUILD=build tests/bench/scaling.py durability    writes a second and their latency, by what is promised
"""

import contextlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "system"))
from servers import Coordinator, Pool, Redis, wait_until  # noqa: E402

ROUNDS, WRITES, IDLE_S, CONNECTIONS, SESSIONS = 3, 6000, 3, 8, 200


def cpu_s(redis):
    facts = dict(line.split(":") for line in redis.call("INFO", "cpu").decode().split("\r\n") if ":" in line)
    return float(facts["used_cpu_user"]) + float(facts["used_cpu_sys"])


def writer(pool, ids, count, took_s):
    with pool.connect() as connection:
        for n in range(count):
            body = b'{"sessionId":"%s","updates":{"n":%d}}' % (ids[n % len(ids)].encode(), n)
            at = time.monotonic()
            assert connection.request("POST", "/api/sessions", body, keep_conn=True).status == 200
            took_s.append(time.monotonic() - at)


def write(pool, ids, writes=WRITES):
    """Each connection has sessions of its own. Returns how long it took, and each write, in s, sorted."""
    share, took_s, at = len(ids) // CONNECTIONS, [], time.monotonic()
    threads = [threading.Thread(target=writer, args=(pool, ids[i * share:(i + 1) * share], writes // CONNECTIONS, took_s))
               for i in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took_s) == writes
    return time.monotonic() - at, sorted(took_s)


def create(pool):
    return [json.loads(pool.ask("GET", "/api/sessions").body)["sessionId"] for _ in range(SESSIONS)]


def measure(nodes):
    """(us of Redis for a write, ms of Redis for an idle second, writes a second)"""
    with tempfile.TemporaryDirectory(prefix="hp-") as folder, contextlib.ExitStack() as servers:
        redis = servers.enter_context(Redis(folder))
        coordinators = [servers.enter_context(Coordinator(folder, f"n{i}", REDIS_URL=redis.unix_url,
                        LEADER_ELECTION_TIMEOUT=15000, LEADER_HEARTBEAT_INTERVAL=5000)) for i in range(nodes)]
        for coordinator in coordinators:
            wait_until(lambda c=coordinator: "session cache is coherent" in c.log(), "it hears of changes")
        pool = servers.enter_context(Pool(folder, REDIS_URL=redis.unix_url, REDIS_TIMEOUT_MS=5000))
        ids = create(pool)
        write(pool, ids)
        rounds = []
        for _ in range(ROUNDS):
            idle, at = cpu_s(redis), time.monotonic()
            time.sleep(IDLE_S)  # what is measured is what passes by itself
            busy, idle_ms = cpu_s(redis), (cpu_s(redis) - idle) * 1000 / (time.monotonic() - at)
            took_s, _ = write(pool, ids)
            us = ((cpu_s(redis) - busy) * 1e6 - idle_ms * 1000 * took_s) / WRITES
            rounds.append((us, idle_ms, WRITES / took_s))
        return [statistics.median(column) for column in zip(*rounds)]


PROMISES = [  # what Redis promises, with how many replicas; the pool's options
    ("Redis, appendonly no", {"appendonly": "no"}, 0, {}),
    ("Redis, appendfsync everysec", {"appendonly": "yes", "appendfsync": "everysec"}, 0, {}),
    ("Redis, appendfsync always", {"appendonly": "yes", "appendfsync": "always"}, 0, {}),
    ("Redis, one replica", {"appendonly": "no"}, 1, {}),
    ("Redis, SESSION_REDIS_WAIT_REPLICAS=1", {"appendonly": "no"}, 1, {"SESSION_REDIS_WAIT_REPLICAS": 1}),
    ("embedded, EMBEDDED_SYNC=normal", None, 0, {}),
    ("embedded, EMBEDDED_SYNC=full", None, 0, {"EMBEDDED_SYNC": "full"}),
]


def price(settings, replicas, options):
    """(writes a second, p50 ms, p99 ms)"""
    with tempfile.TemporaryDirectory(prefix="hp-", dir=os.environ.get("TMPDIR", "/var/tmp")) as folder, contextlib.ExitStack() as servers:
        redis = settings and servers.enter_context(Redis(folder, **settings))
        for i in range(replicas):
            replica = servers.enter_context(Redis(folder, f"replica{i}", replicaof=f"127.0.0.1 {redis.port}"))
            wait_until(lambda r=replica: b"master_link_status:up" in r.call("INFO", "replication"), "it replicates")
        pool = servers.enter_context(Pool(folder, REDIS_URL=redis.unix_url if redis else "", REDIS_TIMEOUT_MS=5000, **options))
        ids = create(pool)
        write(pool, ids, 800)
        rounds = []
        for _ in range(ROUNDS):
            took_s, each_s = write(pool, ids)
            rounds.append((WRITES / took_s, each_s[WRITES // 2] * 1000, each_s[WRITES * 99 // 100] * 1000))
        return [statistics.median(column) for column in zip(*rounds)]


if sys.argv[1:] == ["nodes"]:
    for nodes in (0, 1, 2, 4, 8, 16):
        us, idle_ms, rate = measure(nodes)
        print(f"| {nodes} | {us:.1f} | {idle_ms:.1f} | {rate:,.0f} |", flush=True)
elif sys.argv[1:] == ["durability"]:
    for what, *settings in PROMISES:
        rate, p50_ms, p99_ms = price(*settings)
        print(f"| {what} | {rate:,.0f} | {p50_ms:.1f} | {p99_ms:.1f} |", flush=True)
else:
    sys.exit(__doc__)
