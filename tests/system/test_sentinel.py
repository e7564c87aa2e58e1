"""A primary, one replica or two, and three Sentinels, all with passwords: the pool follows the primary without a restart."""

import contextlib
import json
import re
import signal
import time

import pytest

from load import Load
from servers import Front, Pool, Redis, Sentinel, metric, wait_until

PASSWORD, SENTINEL_PASSWORD = "data", "watch"
FOLLOWED_S = 10  # Sentinels need 0.5 s to see, and some to agree; the rest is for a slow machine


class Watched:
    def __init__(self, folder, servers, replicas=1):
        login = {"requirepass": PASSWORD, "masterauth": PASSWORD, "repl-diskless-sync-delay": 0}
        first = servers.enter_context(Redis(folder, "first", **login))
        others = [servers.enter_context(Redis(folder, f"replica{i}", replicaof=f"127.0.0.1 {first.port}", **login))
                  for i in range(replicas)]
        wait_until(lambda: all(s.call("ROLE")[3] == b"connected" for s in others) and
                   first.call("INFO", "replication").count(b"state=online") == replicas, "the replicas are in step")
        self.servers = {str(server.port): server for server in (first, *others)}
        self.sentinels = [servers.enter_context(Sentinel(folder, f"sentinel{i}", first, SENTINEL_PASSWORD))
                          for i in range(3)]
        wait_until(lambda: all(s.facts()["num-other-sentinels"] == "2" and s.facts()["num-slaves"] == str(replicas)
                               for s in self.sentinels), "the Sentinels know each other")

    def url(self, sentinels=None):
        hosts = ",".join(f"127.0.0.1:{s.port}" for s in sentinels or self.sentinels)
        return f"redis-sentinel://:{PASSWORD}@{hosts}/main/1"

    def primary(self):
        """As most Sentinels see it."""
        ports = [s.facts()["port"] for s in self.sentinels if s.process.poll() is None]
        return self.servers[max(ports, key=ports.count)]

    def replica(self):
        return next(s for s in self.servers.values() if s is not self.primary())


@pytest.fixture
def watched(folder, servers):
    return Watched(folder, servers)


def make_pool(folder, servers, url, **options):
    return servers.enter_context(Pool(folder, REDIS_URL=url, REDIS_SENTINEL_PASSWORD=SENTINEL_PASSWORD, **options))


def create(pool):
    answer = pool.ask("GET", "/api/sessions")
    assert answer.status == 200, answer.body
    return json.loads(answer.body)["sessionId"]


def keeps_up(pool, session_id, n):
    """A write is accepted, and until then refused as an outage, never as an unknown session."""
    answer = pool.ask("PATCH", f"/api/sessions/{session_id}", {"kept": n})
    assert answer.status in (200, 503), answer.body
    return answer.status == 200


def by_workers(pool, words):
    """How often they said so; the keeper looks for Redis too."""
    return len(re.findall(rf"worker\[\d+\] {words}", pool.log()))


def lost_by(pool, figures):
    """Sessions that do not hold what was acknowledged."""
    def number(session_id):
        answer = pool.ask("GET", f"/api/sessions/{session_id}")
        return json.loads(answer.body)["session"].get("n", 0) if answer.status == 200 else -1
    written = {i: 0 for i in figures["created"]} | {i: n for i, (n, _) in figures["sessions"].items()}
    return [i for i, n in written.items() if number(i) < n]


def end(how, watched):
    primary = watched.primary()
    if how == "killed":
        primary.stop(signal.SIGKILL)
        watched.sentinels[0].stop(signal.SIGKILL)
    elif how == "paused":
        primary.pause()
    else:
        watched.sentinels[0].call("SENTINEL", "FAILOVER", "main")
    return primary


# An ordered failover promotes one replica while the old primary still takes writes and the other confirms them: WAIT
# has to ask for all replicas then, or some are lost.
def test_what_a_worker_has_learned_of_sentinels_counts_for_all_that_it_asks(folder, servers):
    """Messages and the way back from an outage too: REDIS_URL may name a Sentinel that is gone by now."""
    watched = Watched(folder, servers, replicas=1)
    pool = make_pool(folder, servers, watched.url(watched.sentinels[:1]), WORKERS=1, ADMIN_TOKEN="admin")
    create(pool)
    wait_until(lambda: by_workers(pool, "redis Sentinel found") == 2, "the worker knows of the two others")
    watched.sentinels[0].stop(signal.SIGKILL)
    message = {"type": "cache_invalidate", "payload": {"keys": []}}
    answer = pool.ask("POST", "/api/admin/coordination/messages", message, headers={"Authorization": "Bearer admin"})
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("how, wait_replicas", [("killed", 1), ("paused", 1), ("demoted", 0)])
def test_a_new_primary_is_followed_under_load(folder, servers, how, wait_replicas):
    watched = Watched(folder, servers, replicas=2)
    pool = make_pool(folder, servers, watched.url(watched.sentinels[:1]), SESSION_REDIS_WAIT_REPLICAS=wait_replicas)
    session_id = create(pool)
    load = servers.enter_context(Load(servers.enter_context(Front(folder, "nginx", f"unix:{pool.address}")).port, 16))
    before, served, refused = pool.processes(), metric(pool, "requests_total"), metric(pool, "requests_total", status="4..")
    wait_until(lambda: metric(pool, "requests_total") > served + 1000, "there is load")
    wait_until(lambda: by_workers(pool, "redis Sentinel found") == 4, "both workers know of the two others")
    old, started = end(how, watched), time.monotonic()
    wait_until(lambda: watched.primary() is not old, "the Sentinels have agreed", FOLLOWED_S)
    agreed = time.monotonic() - started
    wait_until(lambda: keeps_up(pool, session_id, 1), "writes go on", FOLLOWED_S)
    followed = time.monotonic() - started
    wait_until(lambda: by_workers(pool, "redis primary changed") >= 1, "who is asked for something has followed")
    figures = load.stop()
    lost = lost_by(pool, figures)
    print(f"{how}: Sentinels agreed after {agreed:.2f} s, writes were acknowledged again after {followed:.2f} s; WAIT "
          f"{wait_replicas}, {figures['requests']} acknowledged, {figures['failed']} failed, {len(lost)} sessions lost a write")
    assert pool.processes() == before, "nothing was restarted"
    assert figures["refused"] == 0
    if wait_replicas:
        assert lost == []
        assert metric(pool, "requests_total", status="4..") == refused, "a live session was not found"
    if how == "killed":
        assert_comes_back_as_a_replica(old, pool, session_id)


def assert_comes_back_as_a_replica(old, pool, session_id):
    """Until a Sentinel has told it so, which takes it some 10 s, it believes to be a primary: nobody must ask it."""
    old.start()
    assert old.call("ROLE")[0] == b"master"

    def is_replica():
        assert pool.ask("GET", f"/api/sessions/{session_id}").status == 200
        with contextlib.suppress(EOFError, ConnectionError):  # a server that becomes a replica ends its connections
            return old.call("ROLE")[0] == b"slave"
        return False
    wait_until(is_replica, "it is told", 20)


def test_a_replica_that_is_away_makes_confirmed_writes_wait_and_nothing_else(folder, servers, watched):
    pool = make_pool(folder, servers, watched.url(), SESSION_REDIS_WAIT_REPLICAS=1, REDIS_TIMEOUT_MS=1000)
    session_id = create(pool)
    watched.replica().stop()
    started = time.monotonic()
    answer = pool.ask("PATCH", f"/api/sessions/{session_id}", {"a": 1})
    took = time.monotonic() - started
    assert answer.status == 503 and answer.headers["Retry-After"]
    assert "not confirmed by 1 replicas, only by 0" in pool.log()
    assert took < 1 * 2, "WAIT is answered before the connection is given up"
    assert pool.ask("GET", f"/api/sessions/{session_id}").status == 200
    assert pool.ask("GET", "/api/health/ready").status == 200
    assert metric(pool, "redis_errors_total", kind="timeout") == 0


def point_sentinels_at(server, watched):
    for sentinel in watched.sentinels:
        sentinel.call("SENTINEL", "REMOVE", "main")
        sentinel.call("SENTINEL", "MONITOR", "main", "127.0.0.1", server.port, 2)
        sentinel.call("SENTINEL", "SET", "main", "auth-pass", PASSWORD)


def test_a_primary_that_turns_read_only_is_left_within_the_request(folder, servers, watched):
    """And one that goes on, as if it were cut off from Sentinels and replicas but not from the pool, soon."""
    pool = make_pool(folder, servers, watched.url(), WORKERS=1)
    session_id = create(pool)
    old, new = watched.primary(), watched.replica()
    wait_until(lambda: new.call("ROLE")[4] == old.call("ROLE")[1], "the replica has it")
    new.call("REPLICAOF", "NO", "ONE")
    point_sentinels_at(new, watched)
    old.call("REPLICAOF", "127.0.0.1", new.port)
    assert pool.ask("PATCH", f"/api/sessions/{session_id}", {"a": 1}).status == 200
    assert f"redis primary changed: from=127.0.0.1:{old.port} to=127.0.0.1:{new.port}" in pool.log()

    stranger = servers.enter_context(Redis(folder, "stranger", requirepass=PASSWORD))
    point_sentinels_at(stranger, watched)
    started = time.monotonic()
    wait_until(lambda: create(pool) and b"db1:" in stranger.call("INFO", "keyspace"), "sessions are made there")
    print(f"followed: {time.monotonic() - started:.2f} s after the Sentinels changed their mind")


def test_what_is_configured_wrong_is_refused_and_said(folder, servers, watched):
    for url, password, said in (
            (watched.url().replace(f":{PASSWORD}@", ":wrong@"), SENTINEL_PASSWORD, "WRONGPASS"),
            (watched.url().replace("/main", "/other"), SENTINEL_PASSWORD, "knows no primary named other"),
            (watched.url(), "wrong", "WRONGPASS"), (watched.url(), "", "NOAUTH")):
        with Pool(folder, REDIS_URL=url, REDIS_SENTINEL_PASSWORD=password) as pool:
            pool.log_path.write_text("")
            assert pool.ask("GET", "/api/sessions").status == 503
            assert said in pool.log() and ":wrong" not in pool.log()
