"""A cluster of three primaries and three replicas with a password: sessions lie on all of them, and the pool follows
slots and primaries wherever they go."""

import json
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from load import Load
from servers import BUILD, Front, Pool, Redis, free_port, metric, wait_until

PASSWORD = "data"
FOLLOWED_S = 10
PREFIX = "hyperpage:session:"


def in_step(server):
    """With its primary, or with each of its replicas: then WAIT counts it."""
    role = server.call("ROLE")
    if role[0] != b"master":
        return role[3] == b"connected"
    states = re.findall(rb"state=(\w+)", server.call("INFO", "replication"))
    return states and set(states) == {b"online"}


class Cluster:
    def __init__(self, folder, servers):
        self.nodes = [servers.enter_context(Redis(
            folder, f"node{i}", cluster_enabled="yes", cluster_config_file=f"node{i}.conf", cluster_node_timeout=1000,
            cluster_port=free_port(), requirepass=PASSWORD, masterauth=PASSWORD, repl_diskless_sync_delay=0,
        )) for i in range(6)]
        hosts = [f"127.0.0.1:{node.port}" for node in self.nodes]
        subprocess.run(["redis-cli", "-a", PASSWORD, "--no-auth-warning", "--cluster", "create", *hosts,
                        "--cluster-replicas", "1", "--cluster-yes"], check=True, stdout=subprocess.DEVNULL)
        self.url = f"redis-cluster://:{PASSWORD}@{','.join(hosts[:2])}"
        wait_until(lambda: len(self.primaries()) == 3 and all(
            b"cluster_state:ok" in node.call("CLUSTER", "INFO") and in_step(node) for node in self.nodes), "the cluster stands")

    def alive(self):
        return [node for node in self.nodes if node.process.poll() is None]

    def primaries(self):
        return [node for node in self.alive() if node.call("ROLE")[0] == b"master"]

    def keys(self):
        return {node.port: node.call("KEYS", PREFIX + "*") for node in self.primaries()}

    def id_of(self, node):
        return node.call("CLUSTER", "MYID")


@pytest.fixture
def cluster(folder, servers):
    return Cluster(folder, servers)


@pytest.fixture
def pool(folder, servers, cluster):
    return servers.enter_context(Pool(folder, REDIS_URL=cluster.url))


def create(pool):
    answer = pool.ask("GET", "/api/sessions")
    assert answer.status == 200, answer.body
    return json.loads(answer.body)["sessionId"]


def probe(*words, **env):
    done = subprocess.run([BUILD / "tests/system/probe", *words], env={**os.environ, **env}, text=True, check=True,
                          stdout=subprocess.PIPE)
    return [int(line) for line in done.stdout.split()]


def assert_holds(pool, figures):
    for session_id, (written, sent) in figures["sessions"].items():
        answer = pool.ask("GET", f"/api/sessions/{session_id}")
        assert answer.status == 200, session_id
        assert written <= json.loads(answer.body)["session"].get("n", 0) <= sent, session_id
    assert [i for i in figures["created"] if pool.ask("GET", f"/api/sessions/{i}").status != 200] == []


def test_sessions_lie_on_all_primaries_and_every_operation_finds_them(cluster, pool):
    sessions = [create(pool) for _ in range(60)]
    keys = cluster.keys()
    assert len(keys) == 3 and all(keys.values()) and sum(map(len, keys.values())) == 60
    assert probe("count", REDIS_URL=cluster.url) == [60]
    for session_id in sessions:
        assert pool.ask("PATCH", f"/api/sessions/{session_id}", {"a": 1}).status == 200
        assert json.loads(pool.ask("GET", f"/api/sessions/{session_id}").body)["session"]["a"] == 1
    assert pool.ask("GET", "/api/health/ready").status == 200
    for session_id in sessions[:30]:
        assert pool.ask("DELETE", f"/api/sessions/{session_id}").status == 200
        assert pool.ask("GET", f"/api/sessions/{session_id}").status == 401
    assert probe("count", REDIS_URL=cluster.url) == [30]
    assert metric(pool, "redis_redirections_total") == 0, "our slots are the servers'"

    # the hash tag, where there is one
    keys = [PREFIX + sessions[0], "x:{" + PREFIX + sessions[0] + "}", "{}", "{", "}", "a{}b", "a{b}c{d}", "{{a}}", "}{a}",
            "a{b", "ä{ö}", "{a", "123456789"]
    assert probe("slot", *keys) == [cluster.nodes[0].call("CLUSTER", "KEYSLOT", key) for key in keys]
    cluster.primaries()[0].call("SCRIPT", "FLUSH")
    for session_id in sessions[30:]:
        assert pool.ask("PATCH", f"/api/sessions/{session_id}", {"a": 2}).status == 200


def move(cluster, slot, source, target, seconds):
    """As redis-cli --cluster reshard does, but slowly: for a while half of the slot's keys have moved."""
    target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
    source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
    time.sleep(seconds)  # with new sessions in this slot made over there
    while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
        source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "AUTH", PASSWORD, "KEYS", *keys)
    time.sleep(seconds)  # while the source answers ASK
    for node in (target, source, *cluster.primaries()):
        node.call("CLUSTER", "SETSLOT", slot, "NODE", cluster.id_of(target))


def test_slots_move_under_load_and_no_request_fails(folder, servers, cluster, pool):
    load = servers.enter_context(Load(servers.enter_context(Front(folder, "nginx", f"unix:{pool.address}")).port, 16))
    source, target = cluster.primaries()[:2]
    # Where the load's own sessions lie: the first that were made.
    wait_until(lambda: len(source.call("KEYS", PREFIX + "*")) > 20, "there are sessions to move")
    slots = sorted({source.call("CLUSTER", "KEYSLOT", key) for key in source.call("KEYS", PREFIX + "*")[:40]})
    before = metric(pool, "redis_redirections_total")
    started = time.monotonic()
    for slot in slots:
        move(cluster, slot, source, target, 0.02)
    figures = load.stop()
    redirections = metric(pool, "redis_redirections_total") - before
    print(f"moved: {len(slots)} slots in {time.monotonic() - started:.2f} s; {figures['requests']} acknowledged, "
          f"{figures['failed']} failed, {redirections} redirections")
    assert figures["failed"] == figures["refused"] == 0, figures["first_failures"]
    assert redirections > 0
    assert_holds(pool, figures)
    assert probe("count", REDIS_URL=cluster.url)[0] >= len(figures["created"])


def at_home(cluster, command, key, *words):
    """Asks the primary that has the key's slot."""
    for node in cluster.primaries():
        try:
            return node.call(command, key, *words)
        except RuntimeError as e:
            if not str(e).startswith("MOVED"):
                raise
    raise AssertionError(f"no primary has {key}")


def heal(cluster, folder):
    env = {**os.environ, "REDIS_URL": cluster.url, "STATE_DIR": str(folder / "state"), "RUN_DIR": str(folder / "run")}
    out = subprocess.run([BUILD / "tests/system/heal"], env=env, check=True, capture_output=True, text=True).stdout
    return {name: int(n) for name, n in re.findall(r"(\w+)=(\d+)", out)}


def test_sessions_and_what_stands_beside_them_lie_in_different_slots(folder, servers, cluster):
    pool = servers.enter_context(Pool(folder, REDIS_URL=cluster.url, SERVICE_TOKEN="s", ADMIN_TOKEN="a",
                                      SESSION_ALLOW_CLIENT_IDS="true"))
    service, admin = {"Authorization": "Bearer s"}, {"Authorization": "Bearer a"}

    def change(method, path, body=None, **headers):
        answer = pool.ask(method, path, body or {}, headers={**service, **headers})
        assert answer.status in (200, 201), answer.body
        return json.loads(answer.body)

    users = {f"user{i}": [] for i in range(4)}
    for i in range(40):
        user = f"user{i % 4}"
        users[user].append(change("POST", "/api/sessions?create=1", {"sessionData": {"userId": user}})["sessionId"])
    for user, sessions in users.items():
        for session_id in sessions[:5]:
            first = change("POST", f"/api/sessions/{session_id}/rotate", **{"Idempotency-Key": session_id})["sessionId"]
            again = change("POST", f"/api/sessions/{session_id}/rotate", **{"Idempotency-Key": session_id})["sessionId"]
            assert first == again != session_id
            assert pool.ask("GET", f"/api/sessions/{session_id}").status == 401
            sessions[sessions.index(session_id)] = first
        for session_id in sessions[5:]:
            change("POST", f"/api/sessions/{session_id}/extend", {"seconds": 1000})
            assert 990_000 < at_home(cluster, "PTTL", PREFIX + session_id) <= 1_000_000
        listed = json.loads(pool.ask("GET", f"/api/admin/sessions?userId={user}", headers=admin).body)["sessions"]
        assert len(listed) == 10

    # a deleted id stays gone, on whichever server it lies
    for i in range(12):
        chosen = {"sessionId": f"chosen{i}", "sessionData": {}}
        assert pool.ask("POST", "/api/sessions", chosen).status == 200
        assert pool.ask("DELETE", f"/api/sessions/chosen{i}").status == 200
        assert pool.ask("POST", "/api/sessions", chosen).status == 401
        assert at_home(cluster, "GET", f"hyperpage:gone:{{{PREFIX}chosen{i}}}") == b"-"

    # 40 created, 20 rotated, 20 extended; 12 chosen ones created and deleted
    wait_until(lambda: at_home(cluster, "XLEN", "hyperpage:session-events") == 104, "all events are there")

    # on each server a session loses its entry, and one that is no session's comes in
    lost = {node.port: [key.decode() for key in node.call("KEYS", PREFIX + "*")][0] for node in cluster.primaries()}
    for key in lost.values():
        for user in users:
            at_home(cluster, "ZREM", f"hyperpage:user:{user}:sessions", key[len(PREFIX):])
    for user in users:
        at_home(cluster, "ZADD", f"hyperpage:user:{user}:sessions", 1, "dead")
    assert heal(cluster, folder) == {"sessions": 40, "entered": 40, "removed": 4}
    for user, sessions in users.items():
        members = at_home(cluster, "ZRANGE", f"hyperpage:user:{user}:sessions", 0, -1)
        assert sorted(m.decode() for m in members) == sorted(sessions)

    for user, sessions in users.items():
        assert json.loads(pool.ask("DELETE", f"/api/admin/sessions?userId={user}", headers=admin).body)["revoked"] == 10
        assert [pool.ask("GET", f"/api/sessions/{session_id}").status for session_id in sessions] == [401] * 10
    assert probe("count", REDIS_URL=cluster.url) == [0]


@pytest.mark.parametrize("moved_first", [False, True])
def test_what_needs_two_keys_waits_while_their_slot_moves(cluster, pool, moved_first):
    """A script on a session and its gone-mark, which is not there yet, is answered TRYAGAIN by either server."""
    wait_until(lambda: create(pool) and len(cluster.primaries()[0].call("KEYS", PREFIX + "*")) >= 2, "sessions lie there")
    source, target = cluster.primaries()[:2]
    dead, rotated = (key.decode()[len(PREFIX):] for key in source.call("KEYS", PREFIX + "*")[:2])
    slots = [source.call("CLUSTER", "KEYSLOT", PREFIX + i) for i in (dead, rotated)]
    for slot, session_id in zip(slots, (dead, rotated)):
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
        if moved_first:
            source.call("MIGRATE", "127.0.0.1", target.port, PREFIX + session_id, 0, 5000, "AUTH", PASSWORD)

    started = time.monotonic()
    with ThreadPoolExecutor(2) as requests:
        deletion = requests.submit(pool.ask, "DELETE", f"/api/sessions/{dead}")
        rotation = requests.submit(pool.ask, "POST", f"/api/sessions/{rotated}/rotate", b"")
        time.sleep(0.5)  # as long as the slots are between two servers
        assert not deletion.done() and not rotation.done()
        for slot in slots:
            if not moved_first:
                keys = source.call("CLUSTER", "GETKEYSINSLOT", slot, 100)
                source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "AUTH", PASSWORD, "KEYS", *keys)
            for node in (target, source, *cluster.primaries()):
                node.call("CLUSTER", "SETSLOT", slot, "NODE", cluster.id_of(target))
        assert deletion.result().status == 200 and rotation.result().status == 200
    assert time.monotonic() - started < 2
    for session_id in dead, rotated:
        assert pool.ask("GET", f"/api/sessions/{session_id}").status == 401
        assert target.call("EXISTS", f"hyperpage:gone:{{{PREFIX}{session_id}}}") == 1
    new_id = json.loads(rotation.result().body)["sessionId"]
    assert pool.ask("GET", f"/api/sessions/{new_id}").status == 200


def test_a_killed_primary_is_replaced_and_nothing_confirmed_is_lost(folder, servers, cluster):
    pool = servers.enter_context(Pool(folder, REDIS_URL=cluster.url, SESSION_REDIS_WAIT_REPLICAS=1))
    old = cluster.primaries()[0]
    wait_until(lambda: create(pool) and old.call("KEYS", PREFIX + "*"), "a session lies there")
    session_id = old.call("KEYS", PREFIX + "*")[0].decode()[len(PREFIX):]
    load = servers.enter_context(Load(servers.enter_context(Front(folder, "nginx", f"unix:{pool.address}")).port, 16))
    served, refused = metric(pool, "requests_total"), metric(pool, "requests_total", status="4..")
    wait_until(lambda: metric(pool, "requests_total") > served + 500, "there is load")
    before = pool.processes()
    old.stop(signal.SIGKILL)
    started = time.monotonic()
    wait_until(lambda: len(cluster.primaries()) == 3, "its replica has taken over", FOLLOWED_S)
    agreed = time.monotonic() - started
    wait_until(lambda: pool.ask("GET", f"/api/sessions/{session_id}").status == 200, "its sessions are read", FOLLOWED_S)
    read = time.monotonic() - started
    old.start()  # as the replica that WAIT 1 needs

    def is_written():
        answer = pool.ask("PATCH", f"/api/sessions/{session_id}", {"a": 1})
        assert answer.status in (200, 503), answer.body
        return answer.status == 200
    wait_until(is_written, "its sessions are written", FOLLOWED_S)
    figures = load.stop()
    print(f"killed: the cluster had a new primary after {agreed:.2f} s, the pool read from it after {read:.2f} s; "
          f"{figures['requests']} acknowledged, {figures['failed']} failed")
    assert metric(pool, "requests_total", status="4..") == refused, "a live session was not found"
    assert_holds(pool, figures)
    assert pool.processes() == before
    assert old.call("ROLE")[0] == b"slave"


def test_what_cannot_work_is_said(folder, servers, cluster):
    pool = servers.enter_context(Pool(folder, REDIS_URL=cluster.url.replace(PASSWORD, "wrong", 1)))
    assert pool.ask("GET", "/api/sessions").status == 503
    assert "redis refuses commands" in pool.log() and "WRONGPASS" in pool.log()
    single = servers.enter_context(Pool(folder, "single", REDIS_URL=cluster.nodes[0].url, RUN_DIR=folder / "single"))
    wait_until(lambda: single.ask("GET", "/api/sessions").status == 503, "a slot of another server is met")
    assert re.search('error .*redis refuses commands: reply="MOVED', single.log())
