"""conf/demo.sh: what it starts, that all it says can be tried works, and that nothing of it stays."""

import contextlib
import os
import pathlib
import random
import re
import signal
import socket
import subprocess

import pytest

from servers import BUILD, REPO, Server, accepts, alive, ask, children, wait_until

NODES = 3


def free_ports(count):
    """The first of so many in a row, from where the kernel takes none for others."""
    def is_free(port):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return True
        return False
    return next(p for p in iter(lambda: random.randrange(10000, 32000), None) if all(map(is_free, range(p, p + count))))


class Demo(Server):
    def __init__(self, folder, **env):
        self.port = env.setdefault("PORT", free_ports(1 + NODES))
        super().__init__(folder, "demo", [REPO / "conf/demo.sh"], {"BUILD": BUILD, "TMPDIR": folder, **env})

    def is_ready(self):
        return self.commands()[-1:] == [f"curl -i localhost:{self.port}/api/sessions/$ID"] and "kill -CONT" in self.log()

    def commands(self):
        return re.findall(r"^    (.*)", self.log(), re.M)

    def place(self):
        return pathlib.Path(self.commands()[0].removeprefix("D="))


@pytest.fixture
def demo(folder, servers):
    return servers.enter_context(Demo(folder))


def tried(commands):
    """Each as it is printed, in one shell; what they print."""
    done = subprocess.run(["bash", "-e"], input="\n".join(commands), text=True, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_it_says_can_be_tried_works(demo):
    place = demo.place()
    pools = [(place / f"node{n}/run/pool.pid").read_text() for n in (1, 2, 3)]
    coordinator = (place / "node1/run/coordinator.pid").read_text()
    said = tried(demo.commands())
    statuses = re.findall(r"HTTP/1.1 (\d+)", said)
    assert statuses == ["200"] * 5 + ["503"] + ["200"] * 3, said
    assert re.search("^x-session-store: refuge", said, re.M | re.I), said
    session_id = re.search(r'"sessionId":"([^"]+)', said)[1]

    def is_back():
        answer = ask(demo.port, "GET", f"/api/sessions/{session_id}")
        return "X-Session-Store" not in answer.headers and answer.json["session"]["note"] == "changed without Redis"
    wait_until(is_back, "Redis has what was written without it")
    assert "worker died, a new one follows" in (place / "pool1.log").read_text()
    wait_until(lambda: (place / "node1/run/coordinator.pid").read_text() != coordinator, "there is another coordinator")
    assert [(place / f"node{n}/run/pool.pid").read_text() != pools[n - 1] for n in (1, 2, 3)] == [False, True, False]
    end(demo)


def end(demo):
    place, pids = demo.place(), set(children(demo.pid))
    for n in (1, 2, 3):  # of which one is no child any more
        master = int((place / f"node{n}/run/pool.pid").read_text())
        pids |= {master, *children(master)}
    assert len(pids) >= 1 + NODES * (1 + 1 + 2 + 1 + 1) + 1, \
        "Redis; pools with keeper and workers, coordinators, web servers; balancer"
    demo.signal(signal.SIGINT)
    assert demo.process.wait(timeout=40) == 0, demo.log()
    assert [pid for pid in pids if alive(pid)] == [] and not place.exists()
    assert not any(accepts(("127.0.0.1", demo.port + n)) for n in range(1 + NODES))


def test_a_pool_that_is_drained_stays_down_and_the_others_go_on(demo):
    node = demo.place() / "node3"
    subprocess.run([BUILD / "hyperpagectl", "drain", "--wait"], check=True, timeout=40,
                   env={**os.environ, "RUN_DIR": str(node / "run"), "STATE_DIR": str(node / "state")})
    wait_until(lambda: ask(demo.port + 3, "GET", "/api/health/ready").status == 503, "nobody serves there")
    wait_until(lambda: [ask(demo.port, "GET", "/api/sessions").status for _ in range(10)] == [200] * 10, "the balancer has seen it")
    demo.signal(signal.SIGINT)
    assert demo.process.wait(timeout=40) == 0, demo.log()


def test_the_status_pages_are_there(demo):
    pages = re.findall(r"http://localhost:(\d+)(/status/)", demo.log())
    assert [int(port) for port, _ in pages] == [demo.port + n for n in (1, 2, 3)]
    for port, path in pages:
        assert ask(int(port), "GET", path).status == 200
        assert ask(int(port), "GET", "/api/status").json["store"]


def test_a_port_in_use_is_said_and_nothing_is_started(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run([REPO / "conf/demo.sh"], env={**Demo(folder).env, "PORT": str(port - 2)}, text=True,
                              capture_output=True, check=False, timeout=20)
    assert done.returncode == 2 and done.stderr == f"demo: port {port} is in use; others: make demo PORT=...\n"
    assert list(folder.iterdir()) == []


def test_one_that_cannot_start_ends_it_all(folder, servers):
    demo = servers.enter_context(Demo(folder, SESSION_MAX_BYTES=1).launch())
    assert demo.process.wait(timeout=40) == 1
    assert "SESSION_MAX_BYTES" in demo.log() and "Three nodes" not in demo.log()
    assert [path for path in folder.iterdir() if path.is_dir()] == []
