"""The pool under spawn-fcgi, which hands it a listening socket as descriptor 0."""

import json
import os
import re
import select
import signal
import subprocess

import pytest

import fcgi
from servers import BUILD, KEEPERS, PATIENCE_S, Server, alive, children, wait_until


class Spawned:
    """spawn-fcgi -F: processes that spawn-fcgi leaves behind. They are not our children, so they are held by
    descriptors, which cannot come to mean another process."""

    def __init__(self, folder, count, **options):
        self.address = folder / "spawned.sock"
        env = {**os.environ, "RUN_DIR": str(folder / "run"), "STATE_DIR": str(folder / "state"), "REDIS_URL": "",
               "LOG_FILE": str(folder / "spawned.log"), **options}
        done = subprocess.run(["spawn-fcgi", "-s", self.address, "-F", str(count), "--", BUILD / "hyperpage-fcgi",
                               "--workers", "0"], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              check=False)
        self.processes = {pid: os.pidfd_open(pid) for pid in map(int, re.findall(r"PID: (\d+)", done.stdout))}
        assert done.returncode == 0, done.stdout + done.stderr

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self.processes:
            self.end(pid, signal.SIGKILL)
        for fd in self.processes.values():
            os.close(fd)

    def end(self, pid, sig=signal.SIGTERM):
        """Sends the signal and waits for the end."""
        fd = self.processes[pid]
        try:
            signal.pidfd_send_signal(fd, sig)
        except ProcessLookupError:
            return
        ended, _, _ = select.select([fd], [], [], PATIENCE_S)
        assert ended, f"process {pid} is still there"


class SpawnedMaster(Server):
    """spawn-fcgi -n: becomes the pool's master."""

    def __init__(self, folder):
        self.address = folder / "spawned.sock"
        super().__init__(folder, "master", ["spawn-fcgi", "-s", self.address, "-n", "--", BUILD / "hyperpage-fcgi"],
                         {"RUN_DIR": folder / "run", "STATE_DIR": folder / "state", "REDIS_URL": "", "WORKERS": 2})

    def is_ready(self):
        try:
            return fcgi.ask(self.address, "HEAD", "/api/sessions").status == 400
        except (OSError, EOFError):
            return False


def create(address):
    answer = fcgi.ask(address, "GET", "/api/sessions")
    assert answer.status == 200
    return json.loads(answer.body)["sessionId"]


@pytest.fixture
def spawned(folder, servers):
    return servers.enter_context(Spawned(folder, 4))


def test_each_spawned_process_is_one_worker_of_the_same_store(spawned):
    assert len(spawned.processes) == 4
    created = [create(spawned.address) for _ in range(10)]
    for session_id in created * 2:
        assert fcgi.ask(spawned.address, "GET", f"/api/sessions/{session_id}").status == 200
    assert [children(pid) for pid in spawned.processes] == [[], [], [], []]


def test_the_others_serve_on_when_one_is_killed(spawned):
    session_id = create(spawned.address)
    for pid in list(spawned.processes)[:3]:
        spawned.end(pid, signal.SIGKILL)
        for _ in range(5):
            assert fcgi.ask(spawned.address, "GET", f"/api/sessions/{session_id}").status == 200


def test_term_ends_each_spawned_process(spawned):
    create(spawned.address)
    for pid in spawned.processes:
        spawned.end(pid)
        assert not alive(pid)


def test_a_master_takes_the_socket_of_spawn_fcgi(folder, servers):
    master = servers.enter_context(SpawnedMaster(folder))
    wait_until((folder / "run/pool.pid").exists, "all workers serve: the first one answers before that")
    processes = children(master.pid)
    assert len(processes) == 2 + KEEPERS
    session_id = create(master.address)
    os.kill(processes[-1], signal.SIGKILL)
    wait_until(lambda: len(children(master.pid)) == 2 + KEEPERS and processes[-1] not in children(master.pid),
               "the killed process is replaced")
    assert fcgi.ask(master.address, "GET", f"/api/sessions/{session_id}").status == 200
    processes = children(master.pid)
    assert master.stop() == 0
    assert [pid for pid in processes if alive(pid)] == []


def test_a_new_binary_takes_over_the_socket_of_spawn_fcgi(folder, servers):
    """Descriptor 0 goes on from program to program."""
    master = servers.enter_context(SpawnedMaster(folder))
    pid_file = folder / "run/pool.pid"
    wait_until(pid_file.exists, "all workers serve")
    session_id = create(master.address)
    new = master.pid
    try:
        for _ in range(2):
            old = new
            os.kill(old, signal.SIGUSR2)
            wait_until(lambda: not alive(old) and int(pid_file.read_text()) != old, "a new master serves")  # pylint: disable=W0640
            new = int(pid_file.read_text())
            assert fcgi.ask(master.address, "GET", f"/api/sessions/{session_id}").status == 200
            assert len(children(new)) == 2 + KEEPERS
    finally:
        if new != master.pid:
            os.kill(new, signal.SIGTERM)
    wait_until(lambda: not alive(new), "it has left")
