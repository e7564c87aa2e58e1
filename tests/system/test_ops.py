"""The scripts of conf/ops, with pools and Sentinels in place of machines."""

import os
import re
import subprocess

import pytest

from servers import REPO, Front, Pool, wait_until
from test_sentinel import SENTINEL_PASSWORD, Watched, make_pool


def script(name, *arguments, **env):
    return subprocess.run([REPO / "conf/ops" / name, *map(str, arguments)], text=True, capture_output=True, check=False,
                          timeout=180, env={**os.environ, **{key: str(value) for key, value in env.items()}})


class Nodes:
    """Pools with a web server each, and a command that does at a node what ssh would, and keeps a list."""

    def __init__(self, folder, servers):
        self.pools, self.names, self.done = [], [], folder / "done"
        cases = ""
        for i in range(3):
            place = folder / str(i)
            place.mkdir()
            pool = servers.enter_context(Pool(place, f"pool{i}"))
            front = servers.enter_context(Front(place, "lighttpd", f"unix:{pool.address}"))
            name = f"127.0.0.1:{front.port}"
            self.pools.append(pool)
            self.names.append(name)
            cases += f"{name}) kill -HUP {pool.pid} ;;\n"
        self.run = folder / "run"
        self.run.write_text(f'#!/bin/sh\necho "$@" >> {self.done}\ncase $1 in\n{cases}esac\n')
        self.run.chmod(0o755)

    def restart(self, *arguments, **env):
        return script("rolling-restart.sh", *arguments, RUN=self.run, READY_URL="http://%s/api/health/ready", **env)


@pytest.fixture
def nodes(folder, servers):
    return Nodes(folder, servers)


def test_nodes_are_restarted_one_after_the_other(nodes):
    done = nodes.restart(*nodes.names)
    assert done.returncode == 0, done.stderr
    assert nodes.done.read_text().splitlines() == [f"{name} systemctl restart hyperpage-fcgi.service" for name in nodes.names]
    assert nodes.restart("--reload", nodes.names[0]).returncode == 0
    assert nodes.done.read_text().splitlines()[-1] == f"{nodes.names[0]} systemctl reload hyperpage-fcgi.service"


def test_nothing_is_done_while_a_node_is_away(nodes):
    nodes.pools[2].stop()
    done = nodes.restart(*nodes.names)
    assert done.returncode == 3 and nodes.names[2] in done.stderr
    assert not nodes.done.exists()


def test_a_node_that_does_not_come_back_is_the_last_one_touched(nodes):
    nodes.run.write_text(nodes.run.read_text().replace(f"kill -HUP {nodes.pools[1].pid}", f"kill -INT {nodes.pools[1].pid}"))
    done = nodes.restart(*nodes.names, TIMEOUT_S=1)
    assert done.returncode == 1 and nodes.names[1] in done.stderr
    assert len(nodes.done.read_text().splitlines()) == 2


def test_wrong_arguments_are_said(folder):
    for name, arguments in (("rolling-restart.sh", ()), ("rolling-restart.sh", ("--fast", "a")), ("failover-drill.sh", ("a", "b"))):
        done = script(name, *arguments)
        assert done.returncode == 2 and "usage" in done.stderr


class Drill:
    def __init__(self, folder, servers):
        self.watched = Watched(folder, servers)
        self.pool = make_pool(folder, servers, self.watched.url())
        self.front = servers.enter_context(Front(folder, "lighttpd", f"unix:{self.pool.address}"))

    def run(self, primary="main"):
        return script("failover-drill.sh", *self.arguments(primary), REDISCLI_AUTH=SENTINEL_PASSWORD, SETTLE_S=2)

    def arguments(self, primary="main"):
        return f"http://127.0.0.1:{self.front.port}", "127.0.0.1", self.watched.sentinels[0].port, primary

    def sessions(self):
        with self.watched.primary().connection() as redis:
            redis.call("SELECT", 1)
            return redis.call("KEYS", "hyperpage:session:*")


@pytest.fixture
def drill(folder, servers):
    return Drill(folder, servers)


def test_a_drill_moves_the_primary_and_says_what_it_cost(drill):
    before = drill.watched.primary().port
    done = drill.run()
    assert done.returncode == 0, done.stderr
    said = re.search(r"127.0.0.1 (\d+) -> 127.0.0.1 (\d+) after \d+ ms; (\d+) writes", done.stdout)
    assert said and int(said[1]) == before and int(said[2]) != before and int(said[3]) > 10, done.stdout
    assert drill.watched.primary().port == int(said[2])
    wait_until(lambda: drill.sessions() == [], "it takes its session away")


def test_a_drill_that_is_ended_takes_its_session_away(drill):
    started = subprocess.Popen([REPO / "conf/ops/failover-drill.sh", *map(str, drill.arguments())], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env={**os.environ, "REDISCLI_AUTH": SENTINEL_PASSWORD, "SETTLE_S": "600"})
    try:
        before = drill.watched.primary().port
        wait_until(lambda: drill.watched.primary().port != before and drill.sessions(), "it writes to the new primary")
        started.terminate()
        assert started.wait(timeout=20) == 1
    finally:
        started.kill()
        started.wait()
    wait_until(lambda: drill.sessions() == [], "it is gone")  # from a refuge a moment later


def test_a_drill_that_cannot_begin_changes_nothing(drill):
    before = drill.watched.primary().port
    assert drill.run("other").returncode == 3
    drill.pool.stop()
    assert drill.run().returncode == 3
    assert drill.watched.primary().port == before
