"""Signals, reloads, upgrades and the other ways to start and end a pool. Under a steady load through each web server a
reload or an upgrade costs no request, POSTs included, which no web server would send twice."""

import array
import contextlib
import ctypes
import fcntl
import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import termios
import time

import pytest

import fcgi
from load import Load, failures
from servers import BUILD, KEEPERS, Front, Pool, Redis, Server, alive, children, edited_tree, metric, name_of, wait_until

LONG = os.environ.get("HYPERPAGE_LONG") == "1"
RELOADS = 20
UPGRADES = 3
WORKERS = 2
PR_SET_CHILD_SUBREAPER = 36


# --- what an upgrade leaves behind ---

@pytest.fixture
def subreaper():
    """A master whose starter has gone becomes our child, so that it can be waited for."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0)


class Adopted:
    """What subprocess.Popen is, for a process that became our child only later."""

    def __init__(self, pid):
        self.pid, self.returncode = pid, None

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=40):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return self.returncode

    def send_signal(self, sig):
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Upgradable(Pool):
    """A pool whose program and configuration file belong to the test. Needs the fixture `subreaper`."""

    def __init__(self, folder, name="pool", **options):
        self.program, self.file = folder / "program", folder / "pool.conf"
        shutil.copy(BUILD / "hyperpage-fcgi", self.program)
        self.file.touch()
        super().__init__(folder, name, ["--config", self.file], **options)
        self.command[0] = str(self.program)

    def is_ready(self):
        """All workers serve: a reload that came sooner would be part of the start."""
        return f"master[{self.pid}] pool serves" in self.log()

    def said(self, pattern):
        return re.findall(pattern, self.log())

    def reload(self, word="reload done"):
        before = len(self.said(word))
        self.signal(signal.SIGHUP)
        wait_until(lambda: len(self.said(word)) > before, word)

    def upgrade(self):
        """USR2; returns when the old master has ended and the new one is `process`."""
        before = len(self.said(r"new binary started"))
        self.signal(signal.SIGUSR2)
        wait_until(lambda: len(self.said(r"new binary started")) > before, "a new binary is started")
        new = int(self.said(r"new binary started: child=(\d+)")[-1])
        code = self.process.wait(timeout=40)
        assert code == 0, f"the old master ended with {code}"
        self.process = Adopted(new)

    def replace_program(self, text):
        """The path holds another file; a running program's own cannot be written to."""
        new = self.folder / "program.new"
        new.write_text(text)
        new.chmod(0o755)
        new.rename(self.program)


def create(pool):
    return json.loads(pool.ask("GET", "/api/sessions").body)["sessionId"]


def workers(pool):
    return set(pool.processes())


def assert_same(pool, before):
    """A look at /proc may miss a process while another one ends, hence more than one."""
    wait_until(lambda: workers(pool) == before, "the processes are those that were there before", 2)


def answered(pool):
    """Requests that the pool has answered."""
    return metric(pool, "requests_total")


def let_it_work(pool, requests=300):
    """Waits for so many requests to be answered."""
    before = answered(pool)
    wait_until(lambda: answered(pool) >= before + requests, f"{requests} requests are answered")


# --- under load ---

def front_before(kind, folder, servers, pool):
    if kind != "nginx unkept":
        return servers.enter_context(Front(folder, kind, f"unix:{pool.address}"))
    tree = edited_tree(folder, nginx=[("fastcgi_keep_conn on;", "fastcgi_keep_conn off;")])
    return servers.enter_context(Front(folder, "nginx", f"unix:{pool.address}", tree))


@pytest.fixture(params=["nginx", "nginx unkept", "lighttpd"])
def loaded(request, folder, servers, subreaper):
    """A pool behind each web server, under a steady load of 64 connections."""
    pool = servers.enter_context(Upgradable(folder, WORKERS=WORKERS))
    load = servers.enter_context(Load(front_before(request.param, folder, servers, pool).port))
    load.kind = request.param
    return pool, load


def assert_nothing_failed(load, what):
    figures = load.stop()
    print(f"{load.kind}: {what}: {figures['requests']} requests, {figures['failed']} failed, "
          f"{figures['refused']} refused")
    assert failures(figures) == (0, 0), figures["first_failures"]
    return figures


def assert_all_acknowledged_is_there(pool, figures):
    with pool.connect() as client:
        for session_id, (acknowledged, sent) in figures["sessions"].items():
            answer = client.request("GET", f"/api/sessions/{session_id}", keep_conn=True)
            assert acknowledged <= json.loads(answer.body)["session"].get("n", 0) <= sent
        for session_id in figures["created"]:
            assert client.request("HEAD", f"/api/sessions/{session_id}", keep_conn=True).status == 200


def test_reloads_and_upgrades_cost_no_request(loaded):
    pool, load = loaded
    for _ in range(RELOADS * (5 if LONG else 1)):
        before = workers(pool)
        pool.reload()
        wait_until(lambda: not before & workers(pool), "all processes are new")
        let_it_work(pool)
    for _ in range(UPGRADES * (5 if LONG else 1)):
        pool.upgrade()
        let_it_work(pool)
    figures = assert_nothing_failed(load, f"HUP x{RELOADS}, USR2 x{UPGRADES}")
    assert_all_acknowledged_is_there(pool, figures)


def test_workers_are_recycled_without_a_failed_request(folder, servers, subreaper):
    pool = servers.enter_context(Upgradable(folder, WORKERS=WORKERS, MAX_REQUESTS=300))
    load = servers.enter_context(Load(front_before("nginx", folder, servers, pool).port))
    load.kind, seen = "nginx", set()
    wait_until(lambda: seen.update(workers(pool)) or len(seen) >= 10, "workers come and go")
    assert_nothing_failed(load, f"{len(seen)} workers of 300 requests each")


def test_more_and_fewer_workers_under_load(loaded):
    pool, load = loaded
    for count, sig in ((3, signal.SIGTTIN), (4, signal.SIGTTIN), (3, signal.SIGTTOU), (2, signal.SIGTTOU),
                       (1, signal.SIGTTOU)):
        pool.signal(sig)
        wait_until(lambda: len(pool.processes()) == KEEPERS + count, f"{count} workers")  # pylint: disable=W0640
        let_it_work(pool)
    pool.signal(signal.SIGTTOU)
    let_it_work(pool)
    assert len(pool.processes()) == KEEPERS + 1, "the last one stays"
    assert_nothing_failed(load, "TTIN x2, TTOU x4")


# --- draining ---

def has_been_read(client):
    """Has the other end taken in all that was sent?"""
    unread = array.array("i", [0])
    fcntl.ioctl(client.sock, termios.TIOCOUTQ, unread)
    return unread[0] == 0


def cpu_s(pid):
    """What a process has used of a processor; 0 if there is none."""
    with contextlib.suppress(OSError):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0


@pytest.fixture
def make_busy(folder, servers):
    """A pool with a request in its hands that takes until Redis goes on."""
    def make(**options):
        redis = servers.enter_context(Redis(folder))
        pool = servers.enter_context(Upgradable(folder, REDIS_URL=redis.url, WORKERS=WORKERS, **{
            "REDIS_TIMEOUT_MS": 20000, "REQUEST_TIMEOUT_MS": 20000, **options}))
        session_id = create(pool)
        redis.pause()
        client = servers.enter_context(pool.connect(timeout_s=20))
        client.send(fcgi.request("PATCH", f"/api/sessions/{session_id}", b'{"a":1}'))
        wait_until(lambda: has_been_read(client), "the request is in a worker's hands")
        return redis, pool, client
    return make


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2])
def test_a_request_in_flight_is_finished(make_busy, subreaper, sig):
    redis, pool, client = make_busy()
    before = workers(pool)
    pool.signal(sig)
    wait_until(lambda: {signal.SIGHUP: "reload: ", signal.SIGUSR2: "a new binary has taken over: "}.get(sig, "pool stops") in pool.log(), "the signal has arrived")
    assert pool.process.poll() is None
    redis.resume()
    assert client.receive().status == 200
    if sig == signal.SIGUSR2:
        new = int(pool.said(r"new binary started: child=(\d+)")[-1])
        assert pool.process.wait(timeout=10) == 0
        pool.process = Adopted(new)
    if sig in (signal.SIGTERM, signal.SIGINT):
        assert pool.process.wait(timeout=10) == 0
    wait_until(lambda: not [pid for pid in before if alive(pid)], "the old workers have left")


def test_a_worker_waits_idly_for_the_rest_of_a_request(folder, servers, subreaper):
    """One that it has read half of, so that nobody else can go on with it."""
    pool = servers.enter_context(Pool(folder, WORKERS=1, REQUEST_TIMEOUT_MS=3000)).all_serve()
    (worker,) = [pid for pid in pool.processes() if name_of(pid) == "fcgi-worker"]
    request = fcgi.request("GET", "/api/sessions")
    with pool.connect() as client:
        client.send(request[:-9])
        wait_until(lambda: has_been_read(client), "it is read")
        pool.signal(signal.SIGHUP)
        wait_until(lambda: "reload done" in pool.log() or worker not in pool.processes(), "another one serves")
        used = [cpu_s(worker)]
        def has_left():
            used.append(cpu_s(worker) or used[-1])
            return not alive(worker)
        wait_until(has_left, "it has left")
    assert used[-1] - used[0] < 0.3, "of the three seconds"


def test_connections_on_their_way_to_a_worker_that_is_told_to_leave_too_are_served(folder, servers, subreaper):
    """TTOU, and TERM at once: one worker has handed its connections over, the other one has not taken them yet."""
    pool = servers.enter_context(Upgradable(folder, WORKERS=2))
    request = fcgi.request("GET", f"/api/sessions/{create(pool)}", keep_conn=True)
    stays, leaves = [pid for pid in pool.processes() if name_of(pid) == "fcgi-worker"]  # TTOU takes the last seat away
    os.kill(stays, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(pool.connect()) for _ in range(120)]
        for client in clients:
            client.send(request)
        assert [client.receive().status for client in clients] == [200] * 120
        pool.signal(signal.SIGTTOU)
        wait_until(lambda: not alive(leaves), "it has handed over all it had")
        for client in clients:
            client.send(request)
        pool.signal(signal.SIGTERM)
        wait_until(lambda: "pool stops" in pool.log(), "the other one is told")
        os.kill(stays, signal.SIGCONT)
        assert [client.receive().status for client in clients] == [200] * 120
    assert pool.process.wait(timeout=10) == 0


def test_what_does_not_finish_in_time_is_ended_by_force(make_busy, subreaper):
    redis, pool, client = make_busy(DRAIN_TIMEOUT=1)
    started = time.monotonic()
    pool.signal(signal.SIGTERM)
    assert pool.process.wait(timeout=10) == 1
    assert 0.9 <= time.monotonic() - started < 5
    assert "did not leave in time, killed" in pool.log()
    assert client.closed_by_peer()
    redis.resume()


def test_int_is_faster_than_term(folder, servers):
    """TERM lets a kept connection go once it has been silent for a while, INT at once."""
    took = {signal.SIGTERM: [], signal.SIGINT: []}
    for sig in (signal.SIGTERM, signal.SIGINT) * 3:
        pool = servers.enter_context(Pool(folder, WORKERS=WORKERS))
        with pool.connect() as client:
            assert client.request("GET", "/api/sessions", keep_conn=True).status == 200
            started = time.monotonic()
            pool.signal(sig)
            assert client.closed_by_peer()
            assert pool.process.wait(timeout=10) == 0
            took[sig].append(time.monotonic() - started)
    term_s, int_s = min(took[signal.SIGTERM]), min(took[signal.SIGINT])  # the least is what the machine adds nothing to
    print(f"TERM {term_s:.3f} s, INT {int_s:.3f} s")
    assert int_s < 0.3 < term_s < 5


def test_a_second_int_hastens_a_drain(make_busy, subreaper):
    redis, pool, _ = make_busy(DRAIN_TIMEOUT=60)
    pool.signal(signal.SIGTERM)
    wait_until(lambda: "pool stops" in pool.log(), "the drain has begun")
    started = time.monotonic()
    pool.signal(signal.SIGINT)
    assert pool.process.wait(timeout=15) == 1
    assert 1 < time.monotonic() - started < 10
    redis.resume()


# --- reload ---

def test_hup_changes_options(folder, servers, subreaper):
    pool = servers.enter_context(Upgradable(folder))
    session_id = create(pool)

    def status():
        return pool.ask("PATCH", f"/api/sessions/{session_id}", {"a": "x" * 5000}).status

    assert status() == 200
    pool.file.write_text("SESSION_MAX_BYTES=1024\n")
    pool.reload()
    assert status() == 413
    pool.file.write_text("SESSION_MAX_BYTES=9000\nSERVICE_TOKEN=sesame\n")
    pool.reload()
    assert status() == 200
    headers = {"Authorization": "Bearer sesame"}
    assert pool.ask("PATCH", f"/api/sessions/{session_id}", {"userId": "u"}, headers=headers).status == 200


def test_hup_changes_the_number_of_workers(folder, servers, subreaper):
    pool = servers.enter_context(Upgradable(folder))
    del pool.env["WORKERS"]
    pool.stop()
    for count in (3, 1, 2):
        pool.file.write_text(f"WORKERS={count}\n")
        if pool.process.poll() is not None:
            pool.start()
        else:
            pool.reload()
        wait_until(lambda: len(pool.processes()) == KEEPERS + count, f"{count} workers")  # pylint: disable=W0640


@pytest.mark.parametrize("text, words", [("WORKERS=lots\n", "WORKERS=lots"), ("NONSENSE=1\n", "NONSENSE"),
                                         ("STATE_DIR=/dev/null/x\n", "/dev/null/x"), ("REDIS_URL=ftp://x\n", "REDIS_URL"), (None, "--config")])
def test_hup_with_a_broken_configuration_keeps_the_old_one(folder, servers, subreaper, text, words):
    pool = servers.enter_context(Upgradable(folder))
    for name in ("STATE_DIR", "REDIS_URL", "WORKERS"):
        del pool.env[name]
    pool.stop()
    pool.file.write_text(f"STATE_DIR={folder}/state\nWORKERS=2\n")
    pool.start()
    session_id, before = create(pool), workers(pool)
    if text is None:
        pool.file.unlink()
    else:
        pool.file.write_text(text)
    pool.reload("reload refused, the old configuration stays")
    line = pool.said(r"reload refused.*")[-1]
    assert words in line
    assert metric(pool, "pool_changes_refused_total", kind="reload") == 1
    assert_same(pool, before)
    assert pool.ask("GET", f"/api/sessions/{session_id}").status == 200
    pool.file.write_text(f"STATE_DIR={folder}/state\nWORKERS=2\n")
    pool.reload()
    wait_until(lambda: not workers(pool) & before, "all are new")
    assert pool.ask("GET", f"/api/sessions/{session_id}").status == 200


# --- upgrade ---

HANGS = "#!/bin/sh\nexec sleep 300\n"


def started_by(pool):
    return int(pool.said(r"new binary started: child=(\d+)")[-1])


def test_a_new_binary_that_never_serves_is_given_up(folder, servers, subreaper):
    pool = servers.enter_context(Upgradable(folder, DRAIN_TIMEOUT=1))
    session_id, before = create(pool), workers(pool)
    pool.replace_program(HANGS)
    pool.signal(signal.SIGUSR2)
    wait_until(lambda: "new binary given up, the old one goes on" in pool.log(), "it is given up")
    assert metric(pool, "pool_changes_refused_total", kind="upgrade") == 1
    wait_until(lambda: not alive(started_by(pool)), "it is ended")
    assert_same(pool, before)
    assert pool.ask("GET", f"/api/sessions/{session_id}").status == 200


@pytest.mark.parametrize("broken", ["workers cannot start", "master cannot start"])
def test_a_new_binary_that_is_given_up_leaves_the_old_one_its_socket(folder, servers, subreaper, broken):
    """It is the right program, it listens on the same socket, and it takes its leave: the path is not its own to remove."""
    pool = Upgradable(folder)
    del pool.env["STATE_DIR"], pool.env["RUN_DIR"]
    good, pid_file = f"RUN_DIR={folder}/run\nSTATE_DIR={folder}/state\n", folder / "run/pool.pid"
    pool.file.write_text(good + "DRAIN_TIMEOUT=1\n")
    servers.enter_context(pool)
    session_id, before = create(pool), workers(pool)
    if broken == "workers cannot start":
        (folder / "newer").mkdir()
        with contextlib.closing(sqlite3.connect(folder / "newer/sessions.db")) as db:
            db.execute("PRAGMA user_version = 99")
        pool.file.write_text(f"RUN_DIR={folder}/run\nSTATE_DIR={folder}/newer\n")
        ends = "new binary given up, the old one goes on"
    else:
        (state,) = (folder / "run").glob("pool.state-*")
        (folder / "run2" / state.name).mkdir(parents=True)
        pool.file.write_text(f"RUN_DIR={folder}/run2\nSTATE_DIR={folder}/state\n")
        ends = "new binary gave up, the old one goes on"
    pool.signal(signal.SIGUSR2)
    wait_until(lambda: ends in pool.log(), "the old one hears of it")
    wait_until(lambda: not alive(started_by(pool)), "it has ended")
    assert_same(pool, before)
    assert pool.ask("GET", f"/api/sessions/{session_id}").status == 200
    assert int(pid_file.read_text()) == pool.pid
    pool.file.write_text(good)
    pool.reload()
    pool.upgrade()
    wait_until(lambda: int(pid_file.read_text()) == pool.pid, "it names the new one")
    assert pool.ask("GET", f"/api/sessions/{session_id}").status == 200
    assert pool.stop() == 0 and not os.path.exists(pool.address) and not pid_file.exists()


def test_a_new_binary_whose_old_master_is_killed_meanwhile_is_the_master(folder, servers, subreaper):
    pool = servers.enter_context(Upgradable(folder))
    session_id = create(pool)
    pool.signal(signal.SIGUSR2)
    wait_until(lambda: pool.said("new binary started") and children(started_by(pool)), "it starts its workers")
    new = started_by(pool)
    pool.signal(signal.SIGKILL)
    pool.process.wait()
    pool.process = Adopted(new)
    wait_until(pool.is_ready, "it serves")
    assert pool.ask("GET", f"/api/sessions/{session_id}").status == 200
    wait_until(lambda: int((folder / "run/pool.pid").read_text()) == new, "it is named")
    assert pool.stop() == 0 and not os.path.exists(pool.address) and not (folder / "run/pool.pid").exists()


def test_a_pool_told_to_stop_takes_a_new_binary_that_does_not_serve_yet_with_it(folder, servers, subreaper):
    pool = servers.enter_context(Upgradable(folder))
    pool.replace_program(HANGS)
    pool.signal(signal.SIGUSR2)
    wait_until(lambda: pool.said("new binary started"), "it is started")
    assert pool.stop() == 0
    wait_until(lambda: not alive(started_by(pool)), "it is ended")
    assert "taken over" not in pool.log() and not os.path.exists(pool.address)


def test_the_pid_file_names_the_master_that_serves(folder, servers, subreaper):
    pool = servers.enter_context(Upgradable(folder))
    pid_file = folder / "run/pool.pid"
    pool.all_serve()
    pool.upgrade()
    wait_until(lambda: int(pid_file.read_text()) == pool.pid, "it names the new one")
    assert pool.stop() == 0
    assert not pid_file.exists()


def test_a_stopping_master_leaves_a_socket_that_is_not_its_own(folder, servers):
    first = servers.enter_context(Pool(folder, "first", LISTEN=f"unix:{folder}/same.sock"))
    os.unlink(folder / "same.sock")
    second = servers.enter_context(Pool(folder, "second", LISTEN=f"unix:{folder}/same.sock"))
    assert first.stop() == 0
    assert second.ask("GET", "/api/sessions").status == 200


@pytest.mark.parametrize("broken", ["program ends", "program is gone", "program is no program", "option", "store"])
def test_usr2_with_something_broken_keeps_the_old_one(folder, servers, subreaper, broken):
    pool = servers.enter_context(Upgradable(folder))
    session_id, before, first = create(pool), workers(pool), pool.pid
    if broken == "program ends":
        pool.replace_program("#!/bin/sh\nexit 3\n")
    elif broken == "program is gone":
        pool.program.unlink()
    elif broken == "program is no program":
        pool.replace_program("\x7fELF, almost")
    elif broken == "option":
        pool.file.write_text("SESSION_MAX_BYTES=none\n")
    else:
        (folder / "state").rename(folder / "state.away")
        (folder / "state").write_text("a file")
    pool.signal(signal.SIGUSR2)
    wait_until(lambda: "new binary gave up, the old one goes on" in pool.log(), "the old one hears of it")
    assert pool.pid == first
    assert_same(pool, before)
    assert pool.ask("GET", f"/api/sessions/{session_id}").status == 200
    if broken == "store":
        (folder / "state").unlink()
        (folder / "state.away").rename(folder / "state")
    pool.program.unlink(missing_ok=True)
    shutil.copy(BUILD / "hyperpage-fcgi", pool.program)
    pool.file.write_text("SESSION_MAX_BYTES=2048\n")
    pool.upgrade()
    wait_until(lambda: not [pid for pid in before if alive(pid)], "the old ones have left")
    assert pool.ask("PATCH", f"/api/sessions/{session_id}", {"a": "x" * 5000}).status == 413, "the new options hold"


def test_signals_after_an_upgrade_reach_the_new_master(folder, servers, subreaper):
    pool = servers.enter_context(Upgradable(folder))
    for _ in range(2):
        pool.upgrade()
        pool.reload()
    assert pool.ask("GET", "/api/sessions").status == 200
    assert pool.stop() == 0
    assert not os.path.exists(pool.address), "the last one takes the socket away"


# --- the master dies ---

def test_workers_whose_master_was_killed_finish_and_leave_and_a_new_one_can_start(make_busy, folder, servers, subreaper):
    redis, pool, client = make_busy()
    before = workers(pool)
    pool.signal(signal.SIGKILL)
    pool.process.wait()
    redis.resume()
    assert client.receive().status == 200, "what is in flight is finished"
    started = time.monotonic()
    wait_until(lambda: not [pid for pid in before if alive(pid)], "the workers have left")
    print(f"workers left {time.monotonic() - started:.3f} s after their last request")
    new = servers.enter_context(Upgradable(folder, REDIS_URL=redis.url, WORKERS=WORKERS))
    assert new.ask("GET", "/api/sessions").status == 200


# --- logs ---

def test_usr1_opens_the_log_again(folder, servers):
    path, moved = folder / "log", folder / "log.1"
    pool = servers.enter_context(Pool(folder, LOG_FILE=path, LOG_LEVEL="debug"))
    path.rename(moved)
    pool.signal(signal.SIGUSR1)
    wait_until(path.exists, "there is a new log")
    before = moved.read_text()
    pool.signal(signal.SIGTTOU)
    wait_until(lambda: "] worker leaves" in path.read_text() and "] worker left" in path.read_text(),
               "the master's line and the worker's are in the new log")
    assert moved.read_text() == before
    assert pool.log() == "", "nothing on standard error"
    assert path.stat().st_mode & 0o777 == 0o640


# --- who starts the pool ---

WRAPPER = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(64)
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Activated(Server):
    """The pool with a socket that was opened for it, as systemd does."""

    def __init__(self, folder, fds=1):
        self.address = folder / "activated.sock"
        super().__init__(folder, "activated", [sys.executable, "-c", WRAPPER, self.address, BUILD / "hyperpage-fcgi"],
                         {"RUN_DIR": folder / "run", "STATE_DIR": folder / "state", "REDIS_URL": "", "WORKERS": 2,
                          "LISTEN_FDS": fds})

    def is_ready(self):
        return f"master[{self.pid}] pool serves" in self.log()


def test_takes_the_socket_of_a_socket_unit(folder, servers):
    pool = servers.enter_context(Activated(folder))
    assert fcgi.ask(pool.address, "GET", "/api/sessions").status == 200
    assert not (folder / "run/fcgi.sock").exists()
    pool.signal(signal.SIGHUP)
    wait_until(lambda: "reload done" in pool.log(), "reload")
    assert fcgi.ask(pool.address, "GET", "/api/sessions").status == 200
    assert pool.stop() == 0
    assert pool.address.exists(), "the socket is systemd's"


def test_two_sockets_are_refused(folder, servers):
    pool = servers.enter_context(Activated(folder, fds=2).launch())
    assert pool.process.wait(timeout=10) == 2
    assert "LISTEN_FDS=2" in pool.log()


class Notified:
    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(path)
        self.sock.settimeout(10)

    def next(self):
        return self.sock.recv(4096).decode().split("\n")

    def says_nothing(self):
        return select.select([self.sock], [], [], 0)[0] == []


@pytest.mark.parametrize("abstract", [False, True])
def test_tells_systemd_what_it_is_doing(folder, servers, subreaper, abstract):
    name = f"@{folder}/notify" if abstract else f"{folder}/notify"
    notified = Notified(name.replace("@", "\0"))
    pool = servers.enter_context(Upgradable(folder, NOTIFY_SOCKET=name))
    assert "READY=1" in notified.next()
    pool.signal(signal.SIGHUP)
    assert "RELOADING=1" in notified.next()
    assert "READY=1" in notified.next()
    old = pool.pid
    pool.upgrade()
    assert pool.pid != old
    assert {"READY=1", f"MAINPID={pool.pid}"} <= set(notified.next())
    assert notified.says_nothing(), "a master that was replaced does not stop the service"
    pool.signal(signal.SIGTERM)
    assert "STOPPING=1" in notified.next()
    assert pool.process.wait() == 0
    notified.sock.close()


def test_says_ready_only_when_it_serves(folder, servers):
    notified = Notified(str(folder / "notify"))
    pool = servers.enter_context(Pool(folder, NOTIFY_SOCKET=folder / "notify").launch())
    assert "READY=1" in notified.next()
    assert pool.ask("GET", "/api/sessions").status == 200
    assert len(pool.processes()) == KEEPERS + 2
    notified.sock.close()
