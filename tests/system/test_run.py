"""conf/run.sh, and `make run` around it: what it starts, what it leaves, what it says when it cannot."""

import os
import shutil
import signal
import socket
import subprocess

import pytest

from servers import (BUILD, KEEPERS, REPO, Server, accepts, alive, ask, children, edited_tree, free_port, name_of,
                     wait_until)


class Run(Server):
    """conf/run.sh, or `make run`, in a folder of its own, with relative paths unless told otherwise."""

    def __init__(self, folder, command=(REPO / "conf/run.sh",), **env):
        self.port = env.setdefault("PORT", free_port())
        super().__init__(folder, "run", command, {"BUILD": BUILD, "RUN_DIR": "my run", "STATE_DIR": "my state",
                                                  "LISTEN": "", "REDIS_URL": "", "WORKERS": 2, **env})
        self.cwd = folder
        self.log_path.unlink(missing_ok=True)

    def is_ready(self):
        return f"curl -i http://localhost:{self.port}/api/sessions" in self.log().splitlines()

    def ask(self, method, path, body=None):
        return ask(self.port, method, path, body)


@pytest.fixture(params=["lighttpd", "nginx"])
def kind(request):
    return request.param


def assert_ends_with_nothing_left(run, end):
    pids = children(run.pid)
    assert len(pids) >= 1 + KEEPERS + 2 + 1 + 1, "the pool's master, keeper and two workers, the coordinator, the web server"
    assert "hyperpage-coord" in [name_of(pid) for pid in pids]
    end()
    assert run.process.wait(timeout=40) == 0, run.log()
    assert [name_of(pid) for pid in pids if alive(pid)] == []
    assert not accepts(("127.0.0.1", run.port))


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serves_until_it_is_told_to_stop_and_leaves_nothing_running(folder, servers, kind, sig):
    run = servers.enter_context(Run(folder, FRONT=kind))
    assert run.log().splitlines()[-1] == f"curl -i http://localhost:{run.port}/api/sessions"
    assert run.ask("GET", "/api/sessions").status == 200
    assert (folder / "my run").is_dir() and (folder / "my state").is_dir()
    assert_ends_with_nothing_left(run, lambda: run.signal(sig))


def test_goes_on_with_the_master_that_has_taken_over(folder, servers, kind):
    run = servers.enter_context(Run(folder, FRONT=kind))
    pid_file = folder / "my run/pool.pid"
    first, session_id = int(pid_file.read_text()), run.ask("GET", "/api/sessions").json["sessionId"]
    os.kill(first, signal.SIGUSR2)
    wait_until(lambda: not alive(first) and int(pid_file.read_text()) != first, "a new master has taken over")
    second = int(pid_file.read_text())
    assert run.ask("GET", f"/api/sessions/{session_id}").status == 200
    run.signal(signal.SIGINT)
    assert run.process.wait(timeout=40) == 0, run.log()
    assert not alive(second) and not accepts(("127.0.0.1", run.port))


def test_a_second_one_in_the_same_folders_is_refused_and_harms_nothing(folder, servers, kind):
    run = servers.enter_context(Run(folder, FRONT=kind))
    second = Run(folder, FRONT=kind)
    done = subprocess.run(second.command, env=second.env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and "serves at RUN_DIR" in done.stderr and "curl" not in done.stdout
    assert run.ask("GET", "/api/sessions").status == 200


def test_a_pid_file_that_a_power_cut_has_left_is_nobody_s(folder, servers):
    """The number in it belongs to somebody else by now, to whom nothing may happen."""
    (folder / "my run").mkdir()
    with subprocess.Popen(["sleep", "300"]) as somebody:
        (folder / "my run/pool.pid").write_text(f"{somebody.pid}\n")
        run = servers.enter_context(Run(folder))
        assert run.ask("GET", "/api/sessions").status == 200
        run.stop()
        assert somebody.poll() is None
        somebody.kill()


def test_ctrl_c_in_a_terminal_stops_it(folder, servers, kind):
    terminal, run_end = os.openpty()
    run = Run(folder, ["setsid", "--ctty", REPO / "conf/run.sh"], FRONT=kind)
    run.stdin = run_end
    servers.enter_context(run)
    assert_ends_with_nothing_left(run, lambda: os.write(terminal, b"\x03"))
    os.close(terminal)
    os.close(run_end)


def test_sessions_survive_a_restart(folder, servers, kind):
    with Run(folder, FRONT=kind) as run:
        session_id = run.ask("GET", "/api/sessions").json["sessionId"]
        updates = {"uiState": {"dashboardLayout": "kept"}}
        assert run.ask("POST", "/api/sessions", {"sessionId": session_id, "updates": updates}).status == 200
    with Run(folder, FRONT=kind) as run:
        session = run.ask("GET", f"/api/sessions?sessionId={session_id}").json["session"]
        assert session["uiState"]["dashboardLayout"] == "kept"


def test_options_of_the_environment_reach_the_pool(folder, servers, redis):
    run = servers.enter_context(Run(folder, REDIS_URL=redis.url, WORKERS=3, SESSION_DEFAULT_TTL_SECONDS=777))
    session_id = run.ask("GET", "/api/sessions").json["sessionId"]
    assert 770 <= redis.call("TTL", f"hyperpage:session:{session_id}") <= 777
    assert [name_of(pid) for pid in children(run.pid)].count("fcgi-worker") == 3


def test_the_pool_may_listen_on_tcp(folder, servers, kind):
    run = servers.enter_context(Run(folder, FRONT=kind, LISTEN=f"127.0.0.1:{free_port()}"))
    assert run.ask("GET", "/api/sessions").status == 200


@pytest.mark.parametrize("who", ["hyperpage-fcgi", "lighttpd"])
def test_when_one_ends_by_itself_the_rest_is_stopped(folder, servers, who):
    run = servers.enter_context(Run(folder))
    pids = children(run.pid)
    victim = next(pid for pid in pids if name_of(pid) == who)
    os.kill(victim, signal.SIGKILL)
    assert run.process.wait(timeout=40) == 128 + signal.SIGKILL
    name = "pool" if who == "hyperpage-fcgi" else who
    assert f"run: {name} ended with code 137" in run.log().splitlines()
    wait_until(lambda: not [pid for pid in pids if alive(pid)], "workers whose master was killed have left")


def test_nothing_is_left_when_it_is_killed_itself(folder, servers, kind):
    run = servers.enter_context(Run(folder, FRONT=kind))
    pids = children(run.pid)
    run.signal(signal.SIGKILL)
    run.process.wait()
    wait_until(lambda: not [pid for pid in pids if alive(pid)], "all children have left")


@pytest.mark.parametrize("env, words", [
    ({"PORT": "0"}, "PORT=0 is not a port"), ({"PORT": "http"}, "PORT=http is not a port"),
    ({"PORT": "65536"}, "PORT=65536 is not a port"), ({"FRONT": "apache"}, "FRONT=apache is not known"),
    ({"WORKERS": "many"}, "many"), ({"SESSION_MAX_BYTES": "1"}, "SESSION_MAX_BYTES"),
    ({"STATE_DIR": "/dev/null/x"}, "/dev/null/x")])
def test_a_wrong_option_is_said_in_one_line(folder, servers, env, words):
    run = servers.enter_context(Run(folder, **env).launch())
    assert run.process.wait(timeout=20) == 2, run.log()
    assert [line for line in run.log().splitlines() if words in line]
    assert len(run.log().splitlines()) <= 2  # the program's own line, and which program it was
    assert "curl" not in run.log()


def test_a_port_in_use_is_said_in_one_line(folder, servers, kind):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = servers.enter_context(Run(folder, FRONT=kind, PORT=taken.getsockname()[1]).launch())
        assert run.process.wait(timeout=20) == 2
        assert run.log().splitlines() == [f"run: port {run.port} is in use; another one: make run PORT=..."]


def test_make_run_builds_and_runs(folder, servers):
    """With the programs that are built already: make has nothing to do but to start them."""
    command = ["make", "-s", "-C", REPO, "run", f"BUILD={BUILD}", f"RUN_DIR={folder}/run", f"STATE_DIR={folder}/state"]
    port = free_port()
    run = servers.enter_context(Run(folder, command + [f"PORT={port}"], PORT=port))
    assert run.ask("GET", "/api/sessions").status == 200
    pids = children(run.pid)
    run.stop()
    assert [pid for pid in pids if alive(pid)] == []


def test_runs_as_any_user(folder, servers, kind):
    if os.geteuid() != 0:
        return  # then every test here shows it
    tree = edited_tree(folder)  # a copy, since a clone in /root is one that nobody else can read
    for program in ("hyperpage-fcgi", "hyperpage-coordinator"):
        shutil.copy(BUILD / program, tree)
    shutil.chown(folder, "nobody")
    folder.chmod(0o755)
    run = servers.enter_context(Run(folder, ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups",
                                             tree / "conf/run.sh"], FRONT=kind, BUILD=tree))
    assert run.ask("GET", "/api/sessions").status == 200
    assert_ends_with_nothing_left(run, lambda: run.signal(signal.SIGINT))
