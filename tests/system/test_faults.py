"""What goes wrong on a machine, and what of it is seen outside: killed and stopped workers, Redis away in all the ways
it can be away, a damaged file, two pools on one folder. Nothing acknowledged is lost and nobody is logged out."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import statistics
import subprocess
import time
from collections import Counter
from datetime import datetime

import pytest

import fcgi
from load import Load
from servers import BUILD, KEEPERS, Front, Pool, Redis, Stopwatch, metric, name_of, wait_until

LONG = os.environ.get("HYPERPAGE_LONG") == "1"
CI_FACTOR = 5  # a bound in a test is so many times the figure that is promised
REPLACED_S = 0.1
AWAY = (503, "SESSION_STORE_UNAVAILABLE")
NO_REFUGE = {"SESSION_FALLBACK_TO_MEMORY": "false"}


@pytest.fixture(params=["redis", "embedded"])
def make_pool(request, folder, servers):
    def make(**options):
        url = servers.enter_context(Redis(folder)).url if request.param == "redis" else ""
        return servers.enter_context(Pool(folder, REDIS_URL=url, **options))
    make.kind = request.param
    return make


def create(pool):
    answer = pool.ask("GET", "/api/sessions")
    assert answer.status == 200, answer.body
    return json.loads(answer.body)["sessionId"]


def status(pool, session_id):
    return pool.ask("GET", f"/api/sessions/{session_id}").status


def code_of(answer):
    return answer.status, json.loads(answer.body)["error"]["code"]


def kill(pids, sig=signal.SIGKILL):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)


def workers_of(pool):
    return [pid for pid in pool.processes() if name_of(pid) == "fcgi-worker"]


# --- workers die ---

def test_nothing_acknowledged_is_lost_when_workers_are_killed_under_load(make_pool, folder, servers):
    pool = make_pool(WORKERS=2, REDIS_TIMEOUT_MS=4000).all_serve()
    load = servers.enter_context(Load(servers.enter_context(Front(folder, "nginx", f"unix:{pool.address}")).port))
    took, end = [], time.monotonic() + (20 if LONG else 5)
    while time.monotonic() < end:
        before, watch = pool.processes() if len(took) % 10 == 0 else workers_of(pool), Stopwatch(pool)
        kill(before)  # all workers, so that who answers next is a replacement; now and then the keeper too
        assert pool.ask("HEAD", "/api/health/live").status == 200
        took.append(watch.seconds())
        wait_until(lambda: len(pool.processes()) == KEEPERS + 2 and not set(before) & set(pool.processes()),
                   "all are replaced")
        served = metric(pool, "requests_total")
        wait_until(lambda: metric(pool, "requests_total") >= served + 50, "they work: else the next start is one with a pause")  # pylint: disable=W0640
    figures = load.stop()
    for session_id, (written, sent) in figures["sessions"].items():
        session = json.loads(pool.ask("GET", f"/api/sessions/{session_id}").body)["session"]
        assert written <= session.get("n", 0) <= sent, session_id
    lost = [i for i in figures["created"] if status(pool, i) != 200]
    print(f"{make_pool.kind}: {len(took)} times all workers killed: a replacement answers after "
          f"{statistics.median(took) * 1000:.1f} ms (median, under load; worst {max(took) * 1000:.1f} ms); "
          f"{figures['requests']} acknowledged, {figures['failed']} failed, {figures['refused']} refused, {len(lost)} lost")
    assert lost == []
    assert figures["refused"] == 0, "the web server was always there"
    assert figures["failed"] > 0, "nothing was killed while it worked"
    assert statistics.median(took) < REPLACED_S * CI_FACTOR


def test_a_replacement_serves_at_once(make_pool):
    pool = make_pool(WORKERS=1, REDIS_TIMEOUT_MS=4000).all_serve()
    session_id, took = create(pool), []
    for _ in range(20):
        watch = Stopwatch(pool)
        kill(workers_of(pool))
        assert status(pool, session_id) == 200
        took.append(watch.seconds())
    print(f"{make_pool.kind}: a replacement answers after {statistics.median(took) * 1000:.1f} ms "
          f"(median of 20; worst {max(took) * 1000:.1f} ms)")
    assert max(took) < REPLACED_S * CI_FACTOR


def test_workers_that_die_at_once_are_started_with_growing_pauses(folder, servers):
    pool = servers.enter_context(Pool(folder, WORKERS=2))
    session_id = create(pool)
    pool.all_serve()
    state, away = folder / "state", folder / "state.away"
    state.rename(away)
    state.write_text("no folder any more")
    kill([pid for pid in pool.processes() if name_of(pid) == "fcgi-worker"][-1:])
    pattern = r"(\S+) warn +master\S+ worker died, a new one follows: child=\d+ cause=\"exit 1\""
    wait_until(lambda: len(re.findall(pattern, pool.log())) >= 4, "it was tried four times")
    times = [datetime.strptime(t, "%Y-%m-%dT%H:%M:%S.%fZ").timestamp() for t in re.findall(pattern, pool.log())]
    pauses = [b - a for a, b in zip(times, times[1:])]
    print(f"pauses: {[f'{p:.2f}' for p in pauses]} s")
    assert all(0.9 * pause < p for pause, p in zip((0.2, 0.4, 0.8), pauses))
    assert "worker cannot start" in pool.log()
    assert status(pool, session_id) == 200, "the other one goes on"
    state.unlink()
    away.rename(state)
    wait_until(lambda: len(pool.processes()) == KEEPERS + 2, "it is back")
    assert status(pool, session_id) == 200


def test_one_that_dies_before_it_has_served_anything_is_started_with_growing_pauses(folder, servers):
    """Ready or not: a program that dies of its first request must not fork for ever."""
    pool = servers.enter_context(Pool(folder, WORKERS=1)).all_serve()
    pattern = r"(\S+) warn +master\S+ worker died, a new one follows: child=\d+ cause=\"signal 9\""

    def ready_worker():
        done = subprocess.run([BUILD / "hyperpagectl", "status", "--json"], env=pool.env, capture_output=True, check=True)
        return next((w["pid"] for w in json.loads(done.stdout)["workers"] if w["state"] == "serving"), None)

    for n in range(4):
        kill([wait_until(ready_worker, "one is ready")])
        wait_until(lambda: len(re.findall(pattern, pool.log())) == n + 1, "its death is known")  # pylint: disable=W0640
    times = [datetime.strptime(t, "%Y-%m-%dT%H:%M:%S.%fZ").timestamp() for t in re.findall(pattern, pool.log())]
    pauses = [b - a for a, b in zip(times, times[1:])]
    print(f"pauses: {[f'{p:.2f}' for p in pauses]} s")
    assert all(0.9 * pause < p for pause, p in zip((0, 0.2, 0.4), pauses)), "the first one had served"
    wait_until(lambda: pool.ask("GET", "/api/sessions").status == 200, "it is back")


def test_a_worker_that_stands_still_is_killed_and_replaced(folder, servers):
    pool = servers.enter_context(Pool(folder, WORKERS=1, REQUEST_TERMINATE_TIMEOUT=1)).all_serve()
    session_id = create(pool)
    worker = next(pid for pid in pool.processes() if name_of(pid) == "fcgi-worker")
    long_work = fcgi.request("PATCH", f"/api/sessions/{session_id}", b'{"a":[%s1]}' % (b'{"b":1},' * 4000))

    def stand_still():
        """Stopped in the middle of a round, as long work makes likely; between rounds it only waits, and may."""
        with contextlib.ExitStack() as stack:
            for client in [stack.enter_context(pool.connect()) for _ in range(50)]:
                client.send(long_work)
            os.kill(worker, signal.SIGSTOP)
            end = time.monotonic() + 1.5
            while time.monotonic() < end and worker in pool.processes():
                time.sleep(0.01)
        if worker in pool.processes():
            os.kill(worker, signal.SIGCONT)
        return worker not in pool.processes()

    wait_until(stand_still, "a worker that stands still is killed", 30)
    line = next(line for line in pool.log().splitlines() if "worker stands still, killed" in line)
    match = re.search(rf"child={worker} method=[A-Z]+ route=\S+ duration_ms=(\d+) requests=\d+$", line)
    assert match and int(match.group(1)) >= 1000, line
    assert metric(pool, "worker_restarts_total", cause="stalled") == 1
    assert status(pool, session_id) == 200


# --- Redis is away ---

OPERATIONS = {"GET": lambda i: ("GET", f"/api/sessions/{i}", b""), "create": lambda i: ("GET", "/api/sessions", b""),
              "PATCH": lambda i: ("PATCH", f"/api/sessions/{i}", {"a": 1}),
              "POST": lambda i: ("POST", "/api/sessions", {"sessionId": i, "updates": {}}),
              "DELETE": lambda i: ("DELETE", f"/api/sessions/{i}", b"")}


def assert_away(pool, session_id, within_s):
    for name, make in OPERATIONS.items():
        watch = Stopwatch(pool)
        answer = pool.ask(*make(session_id))
        took = watch.seconds()
        assert code_of(answer) == AWAY, name
        assert int(answer.headers["Retry-After"]) >= 1
        assert took < within_s, f"{name} took {took:.3f} s"
    answer = pool.ask("GET", "/api/health/ready")
    assert answer.status == 503 and json.loads(answer.body)["status"] == "unhealthy"
    assert pool.ask("GET", "/api/health/live").status == 200


def assert_back(pool, session_id):
    """By itself, and while it is not, it says so."""
    def is_back():  # each worker has a connection, and a pause, of its own
        codes = {status(pool, session_id) for _ in range(20)}
        assert codes <= {200, 503}
        return codes == {200}
    started = time.monotonic()
    wait_until(is_back, "Redis is used again", 5)
    print(f"back {time.monotonic() - started:.3f} s after Redis")
    for name, make in OPERATIONS.items():
        assert pool.ask(*make(session_id)).status == 200, name
    wait_until(lambda: pool.ask("GET", "/api/health/ready").status == 200, "it says that it is ready", 1)


class KeptRedis(Redis):
    """Loses nothing when it is killed, and is ready once it has read it all."""

    def __init__(self, folder):
        super().__init__(folder, appendonly="yes", appendfsync="always")

    def is_ready(self):
        with contextlib.suppress(RuntimeError):  # LOADING
            return super().is_ready()
        return False


@pytest.fixture
def kept(folder, servers):
    return servers.enter_context(KeptRedis(folder))


TIMEOUT_MS = 200


@pytest.mark.parametrize("address", ["url", "unix_url"])
def test_redis_may_be_away_when_the_pool_starts(folder, servers, kept, address):
    kept.stop()
    pool = servers.enter_context(Pool(folder, REDIS_URL=getattr(kept, address), **NO_REFUGE))
    assert_away(pool, "some-id", TIMEOUT_MS / 1000 * CI_FACTOR)
    kept.start()
    wait_until(lambda: pool.ask("GET", "/api/sessions").status == 200, "Redis is used", 5)
    assert_back(pool, create(pool))


def assert_reached_after_lost(pool):
    """Of each process and server: the end of an outage is told only where its beginning was."""
    lost = Counter()
    for line in pool.log().splitlines():
        if match := re.search(r"(\[\d+\]) redis (cannot be reached|reached again): server=(\S+)", line):
            who, what, server = match.groups()
            lost[who, server] += 1 if what == "cannot be reached" else -1
            assert lost[who, server] >= 0, line


def test_redis_may_be_killed_and_started_again(folder, servers, kept):
    pool = servers.enter_context(Pool(folder, REDIS_URL=kept.url, **NO_REFUGE))
    for _ in range(2):
        session_id = create(pool)
        kept.stop(signal.SIGKILL)
        assert_away(pool, session_id, TIMEOUT_MS / 1000 * CI_FACTOR)
        kept.start()
        assert_back(pool, session_id)
    assert "redis cannot be reached" in pool.log() and "redis back" in pool.log()
    assert_reached_after_lost(pool)


def test_a_restart_between_two_requests_is_not_even_noticed(folder, servers, kept):
    """An idle connection that was closed is no outage; the scripts that Redis has lost are loaded again."""
    pool = servers.enter_context(Pool(folder, REDIS_URL=kept.url, WORKERS=1))
    session_id = create(pool)
    assert pool.ask("PATCH", f"/api/sessions/{session_id}", {"a": 1}).status == 200
    kept.stop()
    kept.start()
    assert pool.ask("PATCH", f"/api/sessions/{session_id}", {"b": 2}).status == 200
    kept.call("SCRIPT", "FLUSH")
    assert pool.ask("PATCH", f"/api/sessions/{session_id}", {"c": 3}).status == 200
    session = json.loads(pool.ask("GET", f"/api/sessions/{session_id}").body)["session"]
    assert (session["a"], session["b"], session["c"]) == (1, 2, 3)
    assert_reached_after_lost(pool)


def test_redis_may_hang(folder, servers, kept):
    pool = servers.enter_context(Pool(folder, REDIS_URL=kept.url, **NO_REFUGE))
    session_id = create(pool)
    kept.pause()
    assert_away(pool, session_id, (2 * TIMEOUT_MS) / 1000 * CI_FACTOR)
    kept.resume()
    assert_back(pool, create_again(pool))


def test_who_waits_behind_a_write_that_finds_redis_silent_is_answered_with_it(folder, servers, kept):
    """Several changes of one session at once: the first one's timeout is that of all."""
    timeout_s = 1.5
    pool = servers.enter_context(Pool(folder, REDIS_URL=kept.url, REDIS_TIMEOUT_MS=int(timeout_s * 1000), WORKERS=1))
    session_id = create(pool)
    kept.pause()
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(fcgi.Client(pool.address)) for _ in range(4)]
        for n, client in enumerate(clients):
            client.send(fcgi.request("PATCH", f"/api/sessions/{session_id}", b'{"a%d":1}' % n))
        answers = [client.receive() for client in clients]
    took_s = time.monotonic() - started
    assert [answer.status for answer in answers] == [200] * 4
    assert {answer.headers["X-Session-Store"] for answer in answers} == {"refuge"}
    assert took_s < 1.6 * timeout_s
    kept.resume()
    wait_until(lambda: all(b'"a%d":1' % n in kept.call("GET", f"hyperpage:session:{session_id}") for n in range(4)), "all are in Redis")


def create_again(pool):
    """Once Redis goes on. The DELETE that timed out before may have been executed since, so the old one may be gone. That
    one worker is back says nothing of the other."""
    made = wait_until(lambda: next((a for a in [pool.ask("GET", "/api/sessions")] if a.status == 200), None), "Redis is used again", 5)
    return json.loads(made.body)["sessionId"]


def test_a_redis_whose_name_nobody_knows_yet_is_away_too(folder, servers):
    """As when a container is up before the name service knows its neighbours."""
    pool = servers.enter_context(Pool(folder, REDIS_URL="redis://no-such-host.invalid/0", **NO_REFUGE).launch())
    wait_until(lambda: os.path.exists(pool.address), "the pool listens")
    with pool.connect(timeout_s=2 * CI_FACTOR) as client:
        answer = client.request("GET", "/api/sessions")
    assert code_of(answer) == AWAY and answer.headers["Retry-After"]
    assert "no-such-host.invalid" in pool.log()


def test_each_address_of_redis_name_is_tried(folder, servers, kept):
    """As where localhost is ::1 first, or a name has a server that is gone beside the one that serves."""
    hosts, inside = folder / "hosts", ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]),
                                       "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', folder / "hosts"]
    hosts.write_text("".join(f"{address} redis.test\n" for address in ("127.0.0.2", "127.0.0.3", "127.0.0.1")))
    seen = subprocess.run([*inside, "getent", "ahostsv4", "redis.test"], capture_output=True, text=True, check=False).stdout
    if len(set(re.findall(r"127\.0\.0\.\d", seen))) < 3:
        pytest.skip("a name cannot have several addresses here")
    pool = Pool(folder, REDIS_URL=f"redis://redis.test:{kept.port}/0", WORKERS=1, **NO_REFUGE)
    pool.command = [str(word) for word in inside] + pool.command
    servers.enter_context(pool)
    session_id = create(pool)
    for _ in range(3):
        kept.stop(signal.SIGKILL)
        assert status(pool, session_id) == 503
        kept.start()
        assert_back(pool, session_id)
        session_id = create(pool)


@pytest.mark.parametrize("state", ["loading", "read-only", "out of memory"])
def test_redis_may_refuse(folder, servers, kept, state):
    pool = servers.enter_context(Pool(folder, REDIS_URL=kept.url, **NO_REFUGE))
    session_id = create(pool)
    if state == "read-only":
        kept.call("REPLICAOF", "127.0.0.1", "1")
        kept.call("CONFIG", "SET", "replica-serve-stale-data", "yes")
    elif state == "out of memory":
        kept.call("CONFIG", "SET", "maxmemory", "1")
    else:
        kept.call("REPLICAOF", "127.0.0.1", "1")
        kept.call("CONFIG", "SET", "replica-serve-stale-data", "no")  # MASTERDOWN, which is as LOADING is
    for name in ("create", "PATCH", "POST"):
        answer = pool.ask(*OPERATIONS[name](session_id))
        assert code_of(answer) == AWAY and answer.headers["Retry-After"], name
    if state == "loading":
        assert status(pool, session_id) == 503
    kept.call("REPLICAOF", "NO", "ONE")
    kept.call("CONFIG", "SET", "maxmemory", "0")
    assert_back(pool, session_id)


def test_a_request_over_its_deadline_is_answered_and_logged(folder, servers, kept):
    pool = servers.enter_context(Pool(folder, REDIS_URL=kept.url, REQUEST_TIMEOUT_MS=300, REDIS_TIMEOUT_MS=10000))
    session_id = create(pool)
    kept.pause()
    for method, route in (("GET", "/api/sessions/\\*"), ("PATCH", "/api/sessions/\\*"), ("POST", "/api/sessions")):
        started, watch = time.monotonic(), Stopwatch(pool)
        answer = pool.ask(*OPERATIONS[method](session_id), headers={"X-Request-Id": f"slow-{method}"})
        assert code_of(answer) == AWAY and answer.headers["Retry-After"]
        assert watch.seconds() < 0.3 * CI_FACTOR and time.monotonic() - started >= 0.3
        line = wait_until(lambda: next((l for l in pool.log().splitlines() if f"slow-{method}" in l), None), "the line")  # pylint: disable=W0640
        match = re.search(rf"warn +worker\[\d+\] slow request: method={method} route={route} phase=redis duration_ms=(\d+) "
                          rf"status=503 error=\"redis[^\"]*\" request=slow-{method}$", line)
        assert match and int(match.group(1)) >= 299, line
    assert session_id not in pool.log()
    kept.resume()


@pytest.mark.parametrize("credentials, works", [(":pa%3ass%40w/", True), (":wrong", False), ("", False), ("default:pa%3ass%40w/", True),
                                                ("nobody:pa%3ass%40w/", False)])
def test_a_password_and_a_database_in_the_url(folder, servers, credentials, works):
    redis = servers.enter_context(Redis(folder, requirepass="pa:ss@w/"))
    credentials = credentials.replace("pa%3ass%40w/", "pa%3Ass%40w%2F")
    for url in (f"redis://{credentials}{'@' if credentials else ''}127.0.0.1:{redis.port}/3",
                f"redis+unix://{credentials}{'@' if credentials else ''}{redis.socket}?db=3"):
        with Pool(folder, REDIS_URL=url) as pool:
            if works:
                session_id = create(pool)
                assert pool.ask("PATCH", f"/api/sessions/{session_id}", {"a": 1}).status == 200
                keys = redis.call("EVAL", "redis.call('SELECT', 3) return redis.call('KEYS', '*')", 0)
                assert f"hyperpage:session:{session_id}".encode() in keys
                assert redis.call("DBSIZE") == 0
            else:
                assert code_of(pool.ask("GET", "/api/sessions")) == AWAY
                wait_until(lambda: "redis cannot be reached" in pool.log(), "the log says why")
                assert re.search("WRONGPASS|NOAUTH|invalid", pool.log())
            assert "ss@w" not in pool.log() and "ss%40w" not in pool.log()


# --- the embedded store ---

@pytest.mark.parametrize("damage", ["garbage", "first page", "middle", "empty", "short"])
def test_a_damaged_file_is_set_aside(folder, servers, damage):
    with Pool(folder) as pool:
        for _ in range(300):
            session_id = create(pool)
    path = folder / "state/sessions.db"
    with contextlib.closing(sqlite3.connect(path)) as db:  # whoever closes last moves the -wal into it, mostly the pool
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    good = path.read_bytes()
    assert len(good) > 100_000
    path.write_bytes({"garbage": os.urandom(8192), "first page": os.urandom(4096) + good[4096:],
                      "middle": good[:20_000] + os.urandom(40_000) + good[60_000:], "empty": b"",
                      "short": good[:50_000]}[damage])
    bad = path.read_bytes()
    pool = servers.enter_context(Pool(folder))
    assert status(pool, create(pool)) == 200
    aside = [p for p in (folder / "state").iterdir() if "damaged" in p.name]
    if damage == "empty":  # is a new file
        assert aside == []
        return
    assert [p.read_bytes() for p in aside if not p.name.endswith(("-wal", "-shm"))] == [bad]
    assert len(re.findall("error .*embedded store damaged, set aside", pool.log())) == 1
    assert status(pool, session_id) == 401


def test_two_pools_on_one_folder_share_their_sessions(folder, servers):
    pools = [servers.enter_context(Pool(folder, name, RUN_DIR=folder / name, STATE_DIR=folder / "state"))
             for name in ("a", "b")]
    session_id = create(pools[0])
    for n in range(50):
        assert pools[n % 2].ask("PATCH", f"/api/sessions/{session_id}", {f"m{n}": n}).status == 200
    session = json.loads(pools[0].ask("GET", f"/api/sessions/{session_id}").body)["session"]
    assert all(session[f"m{n}"] == n for n in range(50))
    kill(pools[0].processes() + [pools[0].pid])
    assert pools[1].ask("DELETE", f"/api/sessions/{session_id}").status == 200
    pools[0].stop()
    assert status(pools[1], session_id) == 401


def test_without_a_refuge_the_start_says_how_many_sessions_the_embedded_store_holds(folder, servers, redis):
    with Pool(folder) as pool:
        created = [create(pool) for _ in range(7)]
        pool.ask("DELETE", f"/api/sessions/{created[0]}")
    with Pool(folder, "with redis", REDIS_URL=redis.url, **NO_REFUGE) as pool:
        wait_until(lambda: re.search(r"warn .*embedded store still holds sessions.*: sessions=6 ", pool.log()), "the log says so")
        assert status(pool, created[1]) == 401
    with Pool(folder, "without again") as pool:
        assert status(pool, created[1]) == 200


def test_the_sessions_of_the_embedded_store_move_to_redis(folder, servers, redis):
    with Pool(folder) as pool:
        created = [create(pool) for _ in range(7)]
        pool.ask("DELETE", f"/api/sessions/{created[0]}")
    with Pool(folder, "with redis", REDIS_URL=redis.url) as pool:
        assert status(pool, created[1]) == 200 and status(pool, created[0]) == 401
        wait_until(lambda: all(redis.call("EXISTS", f"hyperpage:session:{i}") for i in created[1:]), "all are in Redis")
        assert redis.call("EXISTS", f"hyperpage:session:{created[0]}") == 0


def test_the_start_says_what_of_an_outage_still_waits_for_redis(folder, servers, kept):
    with Pool(folder, "with redis", REDIS_URL=kept.url) as pool:
        kept.stop(signal.SIGKILL)
        create(pool)
    with Pool(folder, "without") as pool:
        # Two, if Redis could have heard of the session under the id that was made first: that one is deleted there.
        wait_until(lambda: re.search(r"warn .*still wait for it: sessions=[12] ", pool.log()), "the log says so")
    kept.start()
    with Pool(folder, "with redis again", REDIS_URL=kept.url) as pool:
        wait_until(lambda: kept.call("KEYS", "hyperpage:session:*"), "it is in Redis")
