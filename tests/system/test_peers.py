"""Peers at the pool's socket that are no good web server: silent, slow, half, gone, hungry, or talking nonsense. A
normal client beside them never waits for them."""

import array
import contextlib
import fcntl
import json
import os
import pathlib
import random
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import termios
import time

import pytest

import fcgi
from load import Load, failures
from servers import NO_QUARANTINE, Front, Pool, Stopwatch, free_port, name_of, wait_until

LONG = os.environ.get("HYPERPAGE_LONG") == "1"
WAIT_S = 0.05
CI_FACTOR = 5  # a bound in a test is so many times the figure that is promised
LIVE = "/api/health/live"


class Normal:
    """The client that must not wait, on connections of its own like lighttpd or on a kept one like nginx."""

    def __init__(self, pool):
        pool.all_serve()
        self.pool, self.worst_s, self.kept = pool, 0, pool.connect()
        self.session_id = json.loads(pool.ask("GET", "/api/sessions").body)["sessionId"]

    def work(self, times=1):
        uri = f"/api/sessions/{self.session_id}"
        for n in range(times):
            for send in (lambda *r: fcgi.ask(self.pool.address, *r), lambda *r: self.kept.request(*r, keep_conn=True)):
                for request in (("GET", uri), ("PATCH", uri, b'{"n":%d}' % n)):
                    watch = Stopwatch(self.pool)
                    assert send(*request).status == 200
                    self.worst_s = max(self.worst_s, watch.seconds())

    def judge(self, what):
        print(f"beside {what}: the longest wait was {self.worst_s * 1000:.1f} ms")
        assert self.worst_s < WAIT_S * CI_FACTOR
        self.kept.sock.close()


@pytest.fixture(params=["unix", "tcp"])
def listen(request, folder):
    return f"unix:{folder}/fcgi.sock" if request.param == "unix" else f"127.0.0.1:{free_port()}"


@pytest.fixture
def pool(listen, folder, servers):
    return servers.enter_context(Pool(folder, WORKERS=2, LISTEN=listen, REQUEST_TIMEOUT_MS=1000))


@pytest.fixture
def patient_pool(listen, folder, servers):
    """For requests that take their time, and on a busy machine more of it."""
    return servers.enter_context(Pool(folder, WORKERS=2, LISTEN=listen, REQUEST_TIMEOUT_MS=60000))


@pytest.fixture
def unix_pool(folder, servers):
    return servers.enter_context(Pool(folder, WORKERS=2, REQUEST_TIMEOUT_MS=1000, **NO_QUARANTINE))


GOOD = fcgi.request("PATCH", "/api/sessions/none", b'{"a":1}')
HEADER = struct.Struct(">BBHHBx")
NONSENSE = {
    "zeros": bytes(100_000), "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "noise": random.Random(1).randbytes(100_000),
    "version 2": b"\x02" + GOOD[1:], "no BEGIN": fcgi.stream(fcgi.PARAMS, b"") + fcgi.stream(fcgi.STDIN, b""),
    "BEGIN twice": fcgi.begin() + GOOD, "short BEGIN": fcgi.record(fcgi.BEGIN, b"\0\1\0\0") + GOOD[16:],
    "authorizer": fcgi.begin(role=2) + GOOD[16:], "STDIN first": fcgi.begin() + fcgi.stream(fcgi.STDIN, b"x") + GOOD[16:],
    "a length beyond the parameters": fcgi.begin() + fcgi.stream(fcgi.PARAMS, b"\x05\x7fabc") + fcgi.stream(fcgi.STDIN, b""),
    "a length of 2 GB": fcgi.begin() + fcgi.stream(fcgi.PARAMS, b"\xff\xff\xff\xff\xff\xff\xff\xffab") + fcgi.stream(fcgi.STDIN, b""),
    "half a length": fcgi.begin() + fcgi.stream(fcgi.PARAMS, b"\x80\0") + fcgi.stream(fcgi.STDIN, b""),
    "lengths that overflow": fcgi.begin() + fcgi.stream(fcgi.PARAMS, b"\x7f\xff\xff\xff"[:1] + b"\xff\xff\xff\xff") + fcgi.stream(fcgi.STDIN, b""),
    "another request's record": fcgi.begin() + fcgi.stream(fcgi.PARAMS, b"", request_id=2),
    "a second BEGIN of another request": fcgi.begin(True) + fcgi.begin(True, request_id=2) + GOOD[16:],
    "the next request too early": GOOD + GOOD,
    "a record type that there is not": fcgi.begin() + fcgi.record(77, b"x") + GOOD[16:],
    "DATA": fcgi.begin() + fcgi.record(fcgi.DATA, b"x") + GOOD[16:],
}


def send_anything(client, data):
    """True unless the other end has had enough before it was all sent."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, socket.timeout):
        client.send(data)
        return True
    return False


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_ends_the_connection_and_nothing_else(pool, what):
    normal, before = Normal(pool), pool.processes()
    for _ in range(20):
        with pool.connect(timeout_s=5) as client:
            send_anything(client, NONSENSE[what])
            normal.work()
            assert client.closed_by_peer()
    assert pool.processes() == before
    normal.judge(what)


def test_silent_and_half_requests_cost_nobody_anything_and_are_closed_in_time(pool):
    """Cut at every stage: in a header, in the parameters, in the body, before the last record."""
    normal = Normal(pool)
    cuts = list(range(0, len(GOOD), 7)) + list(range(len(GOOD) - 9, len(GOOD)))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(pool.connect(timeout_s=10)) for _ in cuts]
        for client, cut in zip(clients, cuts):
            client.send(GOOD[:cut])
        normal.work(100)
        clients[0].send(GOOD)
        assert clients[0].receive().status == 401, "a silent one may still begin"
        watch = Stopwatch(pool)
        assert all(client.closed_by_peer() for client, cut in zip(clients, cuts) if cut)
        assert watch.seconds() < 1 * CI_FACTOR, "half a request has REQUEST_TIMEOUT_MS"
    normal.judge(f"{len(cuts)} peers that stopped")


def test_byte_by_byte_requests_are_answered_and_hold_nobody(patient_pool):
    pool, normal = patient_pool, Normal(patient_pool)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(pool.connect()) for _ in range(20)]
        for at in range(len(GOOD)):
            for client in clients:
                client.send(GOOD[at:at + 1])
            if at % 10 == 0:
                normal.work()
        assert [client.receive().status for client in clients] == [401] * 20
    normal.judge("20 peers that send byte by byte")


def test_peers_that_leave_at_any_stage(pool):
    normal, before = Normal(pool), pool.processes()
    for cut in list(range(0, len(GOOD) + 1, 5)) + [len(GOOD)] * 50:
        for how in ("close", "reset", "half"):
            client = pool.connect()
            client.send(GOOD[:cut])
            if how == "reset":
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if how == "half":
                client.sock.shutdown(socket.SHUT_WR)
                if cut == len(GOOD):
                    assert client.receive().status == 401, "whoever says no more may still listen"
            client.sock.close()
        normal.work()
    assert pool.processes() == before
    normal.judge("peers that leave")


def test_a_kept_connection_whose_peer_says_no_more_is_closed_after_its_last_answer(pool):
    """The end comes in the same moment as the request, while the workers look away."""
    normal = Normal(pool)
    workers = [pid for pid in pool.processes() if name_of(pid) == "fcgi-worker"]
    request = fcgi.request("GET", f"/api/sessions/{normal.session_id}", keep_conn=True)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(pool.connect(timeout_s=5)) for _ in range(20)]
        for client in clients:  # a connection that is known to its worker
            client.send(request)
            assert client.receive().status == 200
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        for client in clients:
            client.send(request)
            client.sock.shutdown(socket.SHUT_WR)
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        assert [client.receive().status for client in clients] == [200] * 20
        assert all(client.closed_by_peer() for client in clients)
    normal.work()


POURING = """
import contextlib, json, sys, threading
import fcgi

def pour(client, data):
    at = 0
    with contextlib.suppress(OSError):
        while True:
            at = (at + client.sock.send(data[at:])) % len(data)

def read(client):
    with contextlib.suppress(OSError):
        while client.sock.recv(1 << 16):
            pass

address = json.loads(sys.argv[1])
asks = fcgi.record(fcgi.GET_VALUES, fcgi.pairs({"FCGI_MAX_CONNS": ""}), 0) * 4000
too_long = fcgi.begin() + fcgi.record(fcgi.PARAMS) + fcgi.record(fcgi.STDIN, b"x" * 65535) + fcgi.record(fcgi.STDIN, b"xx")
for n in range(4):
    client = fcgi.Client(tuple(address) if isinstance(address, list) else address, None)
    client.send(b"" if n % 2 else too_long)
    for work in (pour, client, asks if n % 2 else bytes(1_000_000)), (read, client):
        threading.Thread(target=work[0], args=work[1:], daemon=True).start()
print("pouring", flush=True)
sys.stdin.read()
"""


def test_peers_that_never_stop_sending_hold_nobody(pool):
    """Management records, and a body behind the answer that came before its end: each look at them has its measure."""
    normal = Normal(pool)
    with subprocess.Popen([sys.executable, "-B", "-c", POURING, json.dumps(pool.address)], cwd=pathlib.Path(__file__).parent, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as peers:
        assert peers.stdout.readline() == "pouring\n"
        normal.work(50)
        peers.stdin.close()
    normal.judge("peers that never stop sending")


def test_abort_ends_the_request(pool):
    normal = Normal(pool)
    for cut in (16, len(GOOD) - len(fcgi.record(fcgi.STDIN))):
        for _ in range(20):
            with pool.connect(timeout_s=5) as client:
                client.send(GOOD[:cut] + fcgi.record(fcgi.ABORT))
                normal.work()
                assert client.closed_by_peer()
    normal.judge("ABORT")


@pytest.mark.parametrize("how", ["close", "ABORT", "half"])
def test_peers_that_leave_while_their_request_waits_for_redis(folder, servers, redis, how):
    pool = servers.enter_context(Pool(folder, WORKERS=2, REDIS_URL=redis.url, REDIS_TIMEOUT_MS=10000, REQUEST_TIMEOUT_MS=10000))
    normal, before = Normal(pool), pool.processes()
    normal.work(5)
    workers = [pid for pid in before if name_of(pid) == "fcgi-worker"]
    open_before = descriptors(workers)
    redis.pause()
    clients = [pool.connect() for _ in range(50)]
    for n, client in enumerate(clients):
        client.send(fcgi.request("PATCH", f"/api/sessions/{normal.session_id}", b'{"m%d":1}' % n, keep_conn=n % 2 == 1))
        if how == "ABORT":
            wait_until(lambda: has_been_read(client), "the request is in a worker's hands")  # pylint: disable=W0640
            client.send(fcgi.record(fcgi.ABORT))
        elif how == "half":
            client.sock.shutdown(socket.SHUT_WR)
        else:
            client.sock.close()
    assert pool.ask("GET", LIVE).status == 200, "what needs no Redis goes on"
    redis.resume()
    if how != "close":
        assert [client.receive().status for client in clients] == [200] * 50
        assert all(client.closed_by_peer() for client in clients[::2])
        for client in clients:
            client.sock.close()
    normal.work(5)
    wait_until(lambda: descriptors(workers) <= open_before + 2, "nothing is left of them, but each worker's way to Redis")
    session = json.loads(pool.ask("GET", f"/api/sessions/{normal.session_id}").body)["session"]
    assert all(session[f"m{n}"] == 1 for n in range(50)), "what was asked for was done"
    assert pool.processes() == before
    normal.judge("peers that leave in the middle")


def test_get_values_is_answered_and_the_connection_goes_on(pool):
    with pool.connect() as client:
        for _ in range(3):
            client.send(fcgi.record(fcgi.GET_VALUES, fcgi.pairs({"FCGI_MPXS_CONNS": "", "FCGI_MAX_CONNS": "", "OTHER": ""}), 0))
            kind, request_id, content = client.read_record()
            assert (kind, request_id) == (fcgi.GET_VALUES_RESULT, 0)
            values = fcgi.unpack(content)
            assert values["FCGI_MPXS_CONNS"] == "0" and int(values["FCGI_MAX_CONNS"]) >= 256 and "OTHER" not in values
        client.send(fcgi.record(99, b"x", 0))
        assert client.read_record()[::2] == (fcgi.UNKNOWN, bytes([99]) + bytes(7))
        assert client.request("GET", LIVE).status == 200


def has_been_read(client):
    """Has the other end taken in all that was sent?"""
    unread = array.array("i", [0])
    fcntl.ioctl(client.sock, termios.TIOCOUTQ, unread)
    return unread[0] == 0


def descriptors(pids):
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def test_peers_that_never_read_their_answers(folder, servers):
    """A document larger than the socket's buffer: the answer's rest waits for its reader, and nobody else does."""
    pool = servers.enter_context(Pool(folder, WORKERS=2, REQUEST_TIMEOUT_MS=2000, SESSION_MAX_BYTES=1048576))
    normal = Normal(pool)
    large = f"/api/sessions/{json.loads(pool.ask('GET', '/api/sessions').body)['sessionId']}"
    assert pool.ask("PATCH", large, b'{"a":"%s"}' % (b"x" * 1_000_000)).status == 200
    open_before = descriptors(pool.processes())
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(pool.connect()) for _ in range(40)]
        started = time.monotonic()
        for client in clients:
            client.send(fcgi.request("GET", large))
        for client in clients:
            wait_until(lambda: select.select([client.sock], [], [], 0)[0], "its beginning is there")  # pylint: disable=W0640
        with contextlib.suppress(EOFError) if time.monotonic() > started + 1 else contextlib.nullcontext():  # too late, then
            assert len(json.loads(clients[0].receive().body)["session"]["a"]) == 1_000_000, "whoever reads late gets it all"
        normal.work(100)
        wait_until(lambda: descriptors(pool.processes()) <= open_before, "the others are given up", 2 * CI_FACTOR)
        for client in clients[1:]:
            with pytest.raises(EOFError):  # and what is not whole does not end as if it were
                client.receive()
        normal.work(10)
    normal.judge("40 peers that never read")


def test_256_kept_clients_on_two_workers_and_unkept_ones_besides(pool):
    normal = Normal(pool)
    request = fcgi.request("GET", f"/api/sessions/{normal.session_id}", keep_conn=True)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(pool.connect()) for _ in range(256)]
        for _ in range(20 if LONG else 4):
            for client in clients:
                client.send(request)
            normal.work()
            assert all(client.receive().status == 200 for client in clients)
        normal.work(50)  # while all of them are idle
    normal.judge("256 kept clients")


def test_a_second_web_server_on_the_same_socket_does_not_wait_for_the_256_clients_of_the_first(folder, servers):
    """nginx keeps its connections and is never idle; lighttpd opens one for each request."""
    pool = servers.enter_context(Pool(folder, WORKERS=2))
    nginx, lighttpd = (servers.enter_context(Front(folder, kind, f"unix:{pool.address}")) for kind in ("nginx", "lighttpd"))
    path = f"/api/sessions/{nginx.ask('GET', '/api/sessions').json['sessionId']}"
    load = servers.enter_context(Load(nginx.port, connections=256))
    took, waited = [], []
    for n in range(40):
        watch = Stopwatch(pool)
        assert lighttpd.ask(*[("GET", path), ("PATCH", path, {"n": n})][n % 2]).status == 200
        waited.append(watch.seconds())
        took.append(watch.passed_s)
    figures = load.stop()
    print(f"beside 256 busy clients of nginx ({figures['requests']} requests): a request through lighttpd took "
          f"{statistics.median(took) * 1000:.1f} ms (median of 40; worst {max(took) * 1000:.1f} ms)")
    assert failures(figures) == (0, 0), figures["first_failures"]
    assert statistics.median(waited) < WAIT_S * CI_FACTOR
    assert max(waited) < 5, "no kept connection ends so soon"


def test_out_of_descriptors_who_is_in_is_served_and_the_others_once_there_is_room(folder, servers):
    pool = Pool(folder, WORKERS=1)
    pool.command = ["sh", "-c", 'ulimit -n 60; exec "$0" "$@"', *pool.command]
    servers.enter_context(pool).all_serve()
    request = fcgi.request("GET", LIVE, keep_conn=True)
    with contextlib.ExitStack() as stack:
        clients = []
        while "connections cannot be accepted" not in pool.log():
            clients.append(stack.enter_context(pool.connect()))
            clients[-1].send(request)
            wait_until(lambda: "connections cannot be accepted" in pool.log() or select.select([clients[-1].sock], [], [], 0)[0],
                       "it is answered, or there is no room")
        *served, last = clients  # it may be in or not; a further one is not
        waits = stack.enter_context(pool.connect())
        waits.send(request)
        started = time.monotonic()
        assert [client.receive().status for client in served] == [200] * len(served)
        while time.monotonic() < started + 1.2:
            for client in served:
                client.send(request)
                assert client.receive().status == 200, "those that are in go on"
        for client in served[:20]:
            client.sock.close()
        assert last.receive().status == waits.receive().status == pool.ask("GET", LIVE).status == 200
        said = pool.log().count("connections cannot be accepted")
        print(f"{len(served)} were in; said {said} times in {time.monotonic() - started:.1f} s")
        assert said <= 2 + (time.monotonic() - started)


def test_a_kept_connection_serves_a_thousand_requests(pool):
    normal = Normal(pool)
    uri = f"/api/sessions/{normal.session_id}"
    for n in range(500):
        answer = normal.kept.request("PATCH", uri, b'{"n":%d}' % n, keep_conn=True, request_id=n % 65535 + 1)
        assert answer.status == 200 and (answer.app_status, answer.protocol_status, answer.stderr) == (0, 0, b"")
        assert json.loads(normal.kept.request("GET", uri, keep_conn=True).body)["session"]["n"] == n
    assert normal.kept.request("GET", uri).status == 200
    assert normal.kept.closed_by_peer(), "the last one did not ask to keep it"


@pytest.mark.parametrize("record_bytes", [16, 1000, fcgi.RECORD_MAX_BYTES])
def test_a_body_in_records_of_any_size(patient_pool, record_bytes):
    pool, normal = patient_pool, Normal(patient_pool)
    uri = f"/api/sessions/{normal.session_id}"
    for keep_conn in (False, True):
        with pool.connect() as client:
            for n in range(3 if keep_conn else 1):
                body = b'{"n":%d,"a":"%s"}' % (n, b"x" * 60_000)
                headers = {"X-Filler": "y" * 8000}
                answer = client.request("PATCH", uri, body, keep_conn=keep_conn, record_bytes=record_bytes, headers=headers)
                assert answer.status == 200, answer.body
                session = json.loads(client.request("GET", uri, keep_conn=True).body if keep_conn else
                                     pool.ask("GET", uri).body)["session"]
                assert session["n"] == n and len(session["a"]) == 60_000


@pytest.mark.parametrize("listen", ["unix", "tcp"])
@pytest.mark.parametrize("record_bytes", [256, 8000, fcgi.RECORD_MAX_BYTES])
def test_a_body_of_a_megabyte_where_that_is_allowed(folder, servers, listen, record_bytes):
    address = f"unix:{folder}/fcgi.sock" if listen == "unix" else f"127.0.0.1:{free_port()}"
    pool = servers.enter_context(Pool(folder, WORKERS=2, LISTEN=address, SESSION_MAX_BYTES=1048576))
    normal = Normal(pool)
    with pool.connect() as client:
        uri = f"/api/sessions/{json.loads(pool.ask('GET', '/api/sessions').body)['sessionId']}"
        for n in range(5):
            body = b'{"n":%d,"a":"%s"}' % (n, b"x" * 1_040_000)
            answer = client.request("PATCH", uri, body.ljust(1048576), keep_conn=True, record_bytes=record_bytes)
            assert answer.status == 200, answer.body
            normal.work()
        session = json.loads(client.request("GET", uri, keep_conn=True).body)["session"]
        assert session["n"] == 4 and len(session["a"]) == 1_040_000
        too_long = client.request("PATCH", uri, body.ljust(1048577), record_bytes=record_bytes)
        assert too_long.status == 413
    normal.judge("a body of a megabyte")


def test_a_flood_of_parameters_is_refused(pool):
    normal = Normal(pool)
    for params in ({f"HTTP_X_{n}": "x" * 100 for n in range(2000)}, {f"P{n}": "" for n in range(30_000)}):
        with pool.connect() as client:
            assert send_anything(client, fcgi.begin() + fcgi.stream(fcgi.PARAMS, fcgi.pairs(params)) + fcgi.stream(fcgi.STDIN, b""))
            answer = client.receive()
            assert answer.status == 431
            assert json.loads(answer.body)["error"]["code"] == "HEADERS_TOO_LARGE"
        normal.work()
    many = {f"P{n}": "" for n in range(5000)}
    assert pool.ask("GET", LIVE, **many).status == 200, "many that are small enough are fine"
    normal.judge("floods of parameters")


def test_connections_that_were_misused_leave_nothing_behind(unix_pool):
    """Descriptors and memory, after hundreds of bad peers of each kind."""
    pool = unix_pool
    normal = Normal(pool)

    def misuse(times):
        for n in range(times):
            for data in NONSENSE.values():
                with pool.connect() as client:
                    send_anything(client, data)
            with pool.connect() as client:
                client.send(GOOD[:n % len(GOOD)])
        normal.work(10)

    def kib():
        texts = [pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pool.processes()]
        return sum(int(text.split("Private_Dirty:")[1].split()[0]) for text in texts)

    misuse(20)
    wait_until(lambda: descriptors(pool.processes()) <= 100, "the half requests are closed")
    open_before, kib_before = descriptors(pool.processes()), kib()
    misuse(100)
    wait_until(lambda: descriptors(pool.processes()) <= open_before, "no descriptor is left", 10)
    print(f"{100 * (len(NONSENSE) + 1)} bad connections: {kib() - kib_before} KiB more")
    assert kib() - kib_before <= 512
