"""Options: what is wrong with them is said in one line and leaves nothing behind; what they do to the logs."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess

import pytest

import fcgi
from servers import BUILD, KEEPERS, REPO, Pool, Redis, alive, children, free_port, name_of, wait_until

PROGRAM = BUILD / "hyperpage-fcgi"
REFERENCE = REPO / "conf/reference.md"
NO_ROW = ("option", "---")


def run(*arguments, cwd=None, **env):
    """The program, with these arguments and options and nothing of ours else."""
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=20, check=False, cwd=cwd,
                          stdin=subprocess.DEVNULL,
                          env={"PATH": os.environ["PATH"], **{k: str(v) for k, v in env.items()}})


def places(folder):
    return {"RUN_DIR": folder / "run", "STATE_DIR": folder / "state"}


def everything_in(folder):
    return sorted(str(p.relative_to(folder)) for p in pathlib.Path(folder).rglob("*"))


def ours():
    """Processes of the pool's program that are our children, however deep."""
    return [pid for pid in children(os.getpid()) if alive(pid) and name_of(pid).startswith(("hyperpage", "fcgi-"))]


def assert_refused(done, folder, before, *words):
    """One line that names what is wrong, exit code 2, and nothing left behind."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("hyperpage-fcgi: "), done.stderr
    for word in words:
        assert word in lines[0]
    assert everything_in(folder) == before
    assert ours() == []


WRONG = {  # option: (value, what the line must name)
    "WORKERS": ("lots", "WORKERS=lots", "auto or 0 to 256"), "MAX_REQUESTS": ("-1", "MAX_REQUESTS=-1", "0 to"),
    "SESSION_MAX_BYTES": ("1", "SESSION_MAX_BYTES=1", "1024 to 1048576"),
    "REQUEST_TIMEOUT_MS": ("5s", "REQUEST_TIMEOUT_MS=5s"), "DRAIN_TIMEOUT": ("", "DRAIN_TIMEOUT="),
    "REDIS_TIMEOUT_MS": ("99999999999999999999", "REDIS_TIMEOUT_MS="),
    "SESSION_ALLOW_CLIENT_IDS": ("yes", "SESSION_ALLOW_CLIENT_IDS=yes", "true or false"),
    "EMBEDDED_SYNC": ("off", "EMBEDDED_SYNC=off", "normal|full"), "LOG_LEVEL": ("loud", "LOG_LEVEL=loud", "error|warn|info|debug"),
    "LOG_FORMAT": ("xml", "LOG_FORMAT=xml"), "LOG_FILE": ("/dev/null/x", "LOG_FILE=/dev/null/x"),
    "LISTEN": ("here", "LISTEN=here", "HOST:PORT"), "LISTEN_MODE": ("rw", "LISTEN_MODE=rw", "octal"),
    "LISTEN_GROUP": ("no-such-group", "LISTEN_GROUP=no-such-group"),
    "REDIS_URL": ("http://localhost", "REDIS_URL", "redis://"), "TRUSTED_PROXIES": ("10.0.0.0/8,10.0.0.0/33", "TRUSTED_PROXIES", "10.0.0.0/33"),
    "SERVICE_TOKEN_FILE": ("/nonexistent", "SERVICE_TOKEN_FILE=/nonexistent"),
    "RUN_DIR": ("/dev/null/x", "RUN_DIR=/dev/null/x"), "STATE_DIR": ("/dev/null", "STATE_DIR=/dev/null", "no folder"),
}


@pytest.mark.parametrize("key", WRONG)
@pytest.mark.parametrize("way", ["environment", "file", "command line", "check"])
def test_a_wrong_value_is_refused_wherever_it_stands(folder, way, key):
    value, *words = WRONG[key]
    file = folder / "pool.conf"
    file.write_text(f"# a comment\n\n{key}={value}\n" if way == "file" else "")
    before = everything_in(folder)
    env = {k: v for k, v in places(folder).items() if k != key}
    arguments = ["--config", file]
    if way in ("environment", "check"):
        env[key] = value
    if way == "check":
        arguments.append("--check")
        if key == "LOG_FILE":
            words = []
    if way == "command line":
        arguments += [f"--{key.lower().replace('_', '-')}", value]
    assert_refused(run(*arguments, **env), folder, before, *words)


@pytest.mark.parametrize("url", ["redis://", "redis://host:0", "redis://host:65536", "redis://host/x", "redis://user@host",
                                 "redis://h/1/2", "redis+unix://relative", "rediss://host", "redis://h:1/2?x=1"])
def test_a_bad_redis_url_is_refused_without_its_password(folder, url):
    url = url.replace("redis://h:", "redis://:hunter2@h:")
    done = run(**places(folder), REDIS_URL=url, WORKERS=1)
    assert "hunter2" not in done.stderr
    assert_refused(done, folder, [], "REDIS_URL")


@pytest.mark.parametrize("proxies", ["10.0.0.0/33", "10.0.0/8", "host", "::1/129", "1.2.3.4/", "1.2.3.4,,x"])
def test_bad_trusted_proxies_are_refused(folder, proxies):
    assert_refused(run(**places(folder), TRUSTED_PROXIES=proxies), folder, [], "TRUSTED_PROXIES")


@pytest.mark.parametrize("line, words", [("SESION_MAX_BYTES=1", "SESION_MAX_BYTES"), ("no key", "KEY=value"),
                                         ("session-max-bytes=2000", "session-max-bytes"), ("=1", "line 2"),
                                         ("LOG_LEVEL=" + "x" * 10_000, "line 2")])
def test_an_unknown_key_in_the_file_is_refused(folder, line, words):
    file = folder / "pool.conf"
    file.write_text(f"WORKERS=1\n{line}\n")
    assert_refused(run("--config", file, **places(folder)), folder, ["pool.conf"], words, "line 2")


@pytest.mark.parametrize("arguments, words", [(["--no-such-option", "1"], "--no-such-option"), (["-x"], "-x"), (["word"], "word"),
                                              (["--workers"], "--workers"), (["--config"], "--config"),
                                              (["--config", "/nonexistent"], "/nonexistent"), (["--check=1"], "--check"),
                                              (["--helpp"], "--helpp")])
def test_an_unknown_argument_is_refused(folder, arguments, words):
    assert_refused(run(*arguments, **places(folder)), folder, [], words)


def test_a_near_miss_in_the_environment_is_only_said(folder, servers):
    pool = servers.enter_context(Pool(folder, SESION_MAX_BYTES=1, SESSION_MAX_BYTE=1, SOMETHING_ELSE=1))
    assert len(re.findall(r"warn .*near miss: name=\w+ near=SESSION_MAX_BYTES", pool.log())) == 2
    assert "SOMETHING_ELSE" not in pool.log()


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(folder, servers):
    file = folder / "pool.conf"
    file.write_text("SESSION_MAX_BYTES='2048'\nSESSION_DEFAULT_TTL_SECONDS=\"500\"\nMAX_REQUESTS=7\n  WORKERS=3  \n")
    options = {"SESSION_MAX_BYTES": 4096, "SESSION_DEFAULT_TTL_SECONDS": 600}
    pool = Pool(folder, arguments=["--config", file, "--session-max-bytes=8192"], **options)
    del pool.env["WORKERS"]
    servers.enter_context(pool).all_serve()
    assert len(pool.processes()) == KEEPERS + 3
    assert pool.ask("POST", "/api/sessions?create=1", {"sessionData": {"a": "x" * 6000}}).status == 201
    assert pool.ask("POST", "/api/sessions?create=1", {"sessionData": {"a": "x" * 9000}}).status == 413


# --- sockets ---

def test_a_port_in_use_is_refused(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert_refused(run(**places(folder), LISTEN=address), folder, [], "LISTEN", address, "in use")


def test_a_path_at_which_a_process_listens_is_refused_and_that_one_goes_on(folder, servers):
    pool = servers.enter_context(Pool(folder))
    done = run(RUN_DIR=folder / "run", STATE_DIR=folder / "state")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "another process listens there" in done.stderr
    assert pool.ask("GET", "/api/sessions").status == 200


def test_a_path_at_which_there_is_something_else_is_refused_and_kept(folder):
    path = folder / "file"
    path.write_text("mine")
    assert_refused(run(**places(folder), LISTEN=f"unix:{path}"), folder, ["file"], str(path))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("path", ["/nonexistent/sock", "x" * 200])
def test_a_path_that_cannot_be_is_refused(folder, path):
    assert_refused(run(**places(folder), LISTEN=f"unix:{path}", cwd=folder), folder, [], "LISTEN")


def test_a_socket_that_is_not_ours_to_connect_to_is_no_stale_one(folder):
    """Of another user's pool, in a folder that both may write to."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    path = folder / "theirs.sock"
    folder.chmod(0o777)
    program = folder / "program"  # a build below /root is one that nobody else can read
    shutil.copy(PROGRAM, program)
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        theirs.listen()
        path.chmod(0o600)
        done = subprocess.run(["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", program], capture_output=True,
                              text=True, timeout=20, check=False, stdin=subprocess.DEVNULL,
                              env={"PATH": os.environ["PATH"], "LISTEN": f"unix:{path}", "RUN_DIR": str(folder / "run"),
                                   "STATE_DIR": str(folder / "state")})
        assert done.returncode == 2 and "Permission denied" in done.stderr and str(path) in done.stderr
        assert path.exists()


def test_a_stale_socket_is_replaced(folder, servers):
    (folder / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "run/fcgi.sock"))
    pool = servers.enter_context(Pool(folder))
    assert pool.ask("GET", "/api/sessions").status == 200


def test_the_socket_has_the_mode_and_group_that_were_asked_for(folder, servers):
    pool = servers.enter_context(Pool(folder, LISTEN_MODE="0600", LISTEN_GROUP=os.getgid()))
    stat = os.stat(pool.address)
    assert (stat.st_mode & 0o777, stat.st_gid) == (0o600, os.getgid())
    pool.stop()
    assert not os.path.exists(pool.address), "the socket leaves with its pool"


@pytest.mark.parametrize("listen", ["127.0.0.1:{}", "localhost:{}", "[::1]:{}"])
def test_listens_on_tcp(folder, servers, listen):
    port = free_port()
    host = listen.split(":{}")[0].strip("[]")
    if host == "::1":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    pool = Pool(folder, LISTEN=listen.format(port))
    pool.is_ready = lambda: "pool serves" in pool.log()
    with servers.enter_context(pool), socket.create_connection((host, port)) as sock:
        assert fcgi.Client.request(FromSocket(sock), "GET", "/api/sessions").status == 200


class FromSocket(fcgi.Client):
    """A client over a connection that is there already."""

    def __init__(self, sock):  # pylint: disable=super-init-not-called
        self.sock = sock


def test_closed_standard_descriptors_are_nothing_that_lines_could_go_into(folder, servers):
    """Whatever is opened first would take their numbers: the log would be written into a socket, or into the shared state."""
    pool = Pool(folder)
    pool.command = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', *pool.command]
    servers.enter_context(pool)
    assert pool.ask("GET", "/api/sessions").status == 200
    for pid in (pool.pid, *pool.processes()):
        assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}


# --- what only prints ---

@pytest.mark.parametrize("asked, started_as, expected", [
    ("batch", os.SCHED_OTHER, os.SCHED_BATCH),
    ("inherited", os.SCHED_OTHER, os.SCHED_OTHER),
    ("batch", os.SCHED_IDLE, os.SCHED_IDLE),
])
def test_how_workers_are_scheduled(folder, servers, asked, started_as, expected):
    own = os.sched_getscheduler(0)
    os.sched_setscheduler(0, started_as, os.sched_param(0))  # what is started from here inherits it
    try:
        pool = servers.enter_context(Pool(folder, WORKER_SCHEDULING=asked, WORKERS=2))
    finally:
        os.sched_setscheduler(0, own, os.sched_param(0))
    assert os.sched_getscheduler(pool.pid) == started_as

    def policies():
        return [os.sched_getscheduler(pid) for pid in pool.processes() if name_of(pid) == "fcgi-worker"]

    wait_until(lambda: policies() == [expected] * 2, "the workers are scheduled so")


def test_check_says_nothing_and_makes_nothing_where_all_is_well(folder):
    file = folder / "pool.conf"
    file.write_text("WORKERS=2\nREDIS_URL=redis://127.0.0.1:1/0\nTRUSTED_PROXIES=10.0.0.0/8\n")
    done = run("--check", "--config", file, **places(folder))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert everything_in(folder) == ["pool.conf"]


def test_check_may_be_asked_beside_a_running_pool(pool):
    done = run("--check", **{k: pool.env[k] for k in ("RUN_DIR", "STATE_DIR", "LISTEN")})
    assert (done.returncode, done.stderr) == (0, "")


def test_version():
    done = run("--version")
    assert done.returncode == 0 and re.fullmatch(r"hyperpage-fcgi \d+\.\d+\.\d+\n", done.stdout) and done.stderr == ""


def reference():
    """{option: (allowed, default)} as --reference prints it."""
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in run("--reference").stdout.splitlines() if line.startswith("|")]
    return {row[0].strip("`"): (row[1].replace("\\|", "|"), row[2].strip("`")) for row in rows if not row[0].startswith(NO_ROW)}


def test_help_names_every_option():
    done = run("--help")
    assert done.returncode == 0 and done.stderr == ""
    named = re.findall(r"^  --([a-z-]+) (?:N|VALUE)  \(", done.stdout, re.M)
    assert [name.upper().replace("-", "_") for name in named] == list(reference())
    assert max(map(len, done.stdout.splitlines())) <= 160
    for word in ("--check", "--config", "--version", "TERM", "HUP", "USR2"):
        assert word in done.stdout


def test_the_reference_is_what_the_program_prints():
    assert run("--reference").stdout == REFERENCE.read_text(), "run: make reference"


@pytest.mark.parametrize("key", [key for key, (allowed, _) in reference().items() if re.match(r"(auto, )?-?\d+ to \d+", allowed)])
def test_numbers_are_held_to_what_the_reference_says(folder, key):
    least, most = map(int, re.search(r"(\d+) to (\d+)", reference()[key][0]).groups())
    for value, ok in ((least, True), (most, True), (least - 1, False), (most + 1, False), (f" {least}", False), (f"{least}x", False)):
        done = run("--check", **places(folder), **{key: value})
        assert (done.returncode == 0) == ok, f"{key}={value}: {done.stderr}"


def test_exit_codes(folder):
    for sig, code in ((signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGQUIT, 3)):
        with Pool(folder) as pool:
            assert pool.stop(sig) == code
            assert everything_in(folder / "run") == [name for name in everything_in(folder / "run") if name.startswith(("pool.state", "coordination"))]


# --- logs ---

SECRET_MARK = "SECRETDOCUMENT"
TOKEN = "SECRETTOKEN-of-the-service"


def exercise(folder, servers, kind, **options):
    """All that makes a pool talk; returns (its log, the ids that must not be in it)."""
    redis = servers.enter_context(Redis(folder, requirepass="SECRETPASSWORD")) if kind == "redis" else None
    pool = servers.enter_context(Pool(folder, REDIS_URL=redis.url if redis else "", LOG_LEVEL="debug", SERVICE_TOKEN=TOKEN,
                                      REQUEST_TIMEOUT_MS=300, MAX_REQUESTS=50, **options))
    def create():
        """A session; a busy machine may need more than REQUEST_TIMEOUT_MS for one."""
        answer = wait_until(lambda: (a := pool.ask("GET", "/api/sessions", headers={"User-Agent": SECRET_MARK})).status == 200 and a, "one is made")
        return json.loads(answer.body)["sessionId"]

    ids = [create() for _ in range(5)]
    everywhere = {"X-Session-Id": ids[0], "Authorization": f"Bearer {TOKEN}", "If-Match": SECRET_MARK, "Cookie": ids[0]}
    for method in ("GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", SECRET_MARK):
        for uri in (f"/api/sessions/{ids[0]}", f"/api/sessions?sessionId={ids[0]}", f"/api/{SECRET_MARK}", f"/api/sessions/{ids[0]}%zz"):
            for body in (b"", b'{"%s":' % SECRET_MARK.encode(), b'{"userId":"%s"}' % SECRET_MARK.encode(),
                         json.dumps({"sessionId": ids[1], "updates": {SECRET_MARK: SECRET_MARK}}).encode()):
                if method != "DELETE":
                    pool.ask(method, uri, body, headers=everywhere)
    if redis:
        redis.call("SET", f"hyperpage:session:{ids[2]}", f"[{SECRET_MARK}")
        redis.call("DEL", f"hyperpage:session:{ids[3]}")
        redis.call("RPUSH", f"hyperpage:session:{ids[3]}", SECRET_MARK)
        for session_id in ids:
            for method, body in (("GET", b""), ("PATCH", b'{"a":1}'), ("DELETE", b"")):
                pool.ask(method, f"/api/sessions/{session_id}", body, headers={"If-Match": '"x"'})
        redis.pause()
        pool.ask("PATCH", f"/api/sessions/{ids[4]}", {SECRET_MARK: 1})
        redis.stop(signal.SIGKILL)
        assert pool.ask("GET", f"/api/sessions/{ids[4]}").headers["X-Session-Store"] == "refuge"
        redis.start()
    for sig in (signal.SIGHUP, signal.SIGTTIN, signal.SIGUSR1):
        pool.signal(sig)
    wait_until(lambda: "reload done" in text_of(pool, options), "the reload")
    for pid in pool.processes():
        with contextlib.suppress(ProcessLookupError):  # some are leaving
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pool.ask("HEAD", "/api/health/live").status == 200, "others serve")
    with pool.connect() as client:
        client.send(ids[0].encode() * 100)
    pool.ask("PATCH", f"/api/sessions/{ids[4]}", {"a": 1})
    assert pool.stop() == 0
    return text_of(pool, options), ids


def text_of(pool, options):
    return pathlib.Path(options["LOG_FILE"]).read_text() if "LOG_FILE" in options else pool.log()


def assert_tells_no_secret(log, ids):
    assert len(log.splitlines()) > 10
    for secret in [SECRET_MARK, TOKEN, "SECRETPASSWORD"] + ids + [i[:13] for i in ids]:
        assert secret not in log


@pytest.mark.parametrize("kind", ["redis", "embedded"])
def test_the_text_log_has_one_line_for_each_event_and_no_secret(folder, servers, kind):
    log, ids = exercise(folder, servers, kind)
    assert_tells_no_secret(log, ids)
    for line in log.splitlines():
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (error|warn |info |debug) (master|worker|keeper)\[\d+\] [ -~]+", line), line


@pytest.mark.parametrize("kind", ["redis", "embedded"])
def test_each_line_of_the_json_log_is_an_object(folder, servers, kind):
    log, ids = exercise(folder, servers, kind, LOG_FORMAT="json", LOG_FILE=folder / "log")
    assert_tells_no_secret(log, ids)
    for line in log.splitlines():
        event = json.loads(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
        assert event["level"] in ("error", "warn", "info", "debug") and event["role"] in ("master", "worker", "keeper")
        assert isinstance(event["pid"], int) and event["message"]
    died = [event for event in map(json.loads, log.splitlines()) if event["message"].startswith("worker died")]
    assert died and died[0]["cause"] == "signal 9"


def test_the_level_says_how_much_is_logged(folder, servers):
    lines = {}
    for level in ("error", "warn", "info", "debug"):
        with Pool(folder, level, LOG_LEVEL=level) as pool:
            pool.all_serve()
            workers = [pid for pid in pool.processes() if name_of(pid) == "fcgi-worker"]
            os.kill(workers[0], signal.SIGKILL)
            wait_until(lambda: len(pool.processes()) == KEEPERS + 2 and not alive(workers[0]), "replaced")  # pylint: disable=W0640
            pool.stop()
            lines[level] = [re.match(r"\S+ (\w+)", line).group(1) for line in pool.log().splitlines()]
    assert lines["error"] == [] and set(lines["warn"]) == {"warn"}
    assert set(lines["info"]) == {"warn", "info"} and set(lines["debug"]) == {"warn", "info", "debug"}
