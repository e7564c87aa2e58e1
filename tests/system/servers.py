"""Real servers for the tests: each on a free port or a socket in the test's own folder, each ended through the handle
it was started with, and nothing else ever."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

import fcgi
import openapi

REPO = pathlib.Path(__file__).resolve().parents[2]
BUILD = REPO / os.environ.get("HYPERPAGE_BUILD", "build")
KEEPERS = 1  # processes of a pool beside its master and its workers
NO_QUARANTINE = {"ASAN_OPTIONS": "quarantine_size_mb=0:thread_local_quarantine_size_kb=0"}  # for tests that count memory
PATIENCE_S = 10  # CI machines are slow; no test waits so long unless something is wrong


def wait_until(condition, what, timeout_s=PATIENCE_S):
    """Waits for `condition` to be true and returns its value."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not after {timeout_s} s: {what}"
        time.sleep(0.005)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def accepts(address):
    """Does somebody accept connections at this path or (host, port)?"""
    try:
        with fcgi.Client(address):
            return True
    except OSError:
        return False


def alive(pid):
    """Is there such a process, other than one that is dead and only waits to be reaped?"""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def name_of(pid):
    return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()


def children(pid):
    """The processes that `pid` has started and those below them."""
    found = []
    with contextlib.suppress(OSError):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child)] + children(int(child))
    return found


def built_with_asan():
    return b"__asan_init" in (BUILD / "hyperpage-fcgi").read_bytes()


def waited_for_cpu_ns(pid):
    """How long a process has been ready to run and had to wait, since its start. 0 where the kernel does not count it."""
    try:
        return int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[1])
    except (OSError, IndexError):
        return 0


class Stopwatch:
    """The time that passes, less what this test, and that one of `server` and its children that had to wait longest, have
    waited for a processor meanwhile: other programs of a busy machine had it, and the server can do nothing about that."""

    def __init__(self, server):
        self.server = server
        self.before = self.waits()
        self.own_before, self.started, self.passed_s = waited_for_cpu_ns(os.getpid()), time.monotonic(), None

    def waits(self):
        return {pid: waited_for_cpu_ns(pid) for pid in (self.server.pid, *children(self.server.pid))}

    def seconds(self):
        """That; and all of it in passed_s."""
        self.passed_s = time.monotonic() - self.started
        own_ns = waited_for_cpu_ns(os.getpid()) - self.own_before
        theirs_ns = max(now - self.before.get(pid, 0) for pid, now in self.waits().items())
        return max(self.passed_s - (own_ns + theirs_ns) / 1e9, 0)


class Server:
    """A process with its output in a log file. Use with `with`, or start() and stop()."""

    started = []  # of the running test, for conftest to show their logs when it fails
    patience_s = PATIENCE_S  # until it is ready
    cwd, stdin = None, subprocess.DEVNULL
    host = "127.0.0.1"  # where those servers that listen on TCP do

    def __init__(self, folder, name, command, env=None):
        self.folder, self.name, self.command = pathlib.Path(folder), name, [str(word) for word in command]
        self.env = {**os.environ, **{k: str(v) for k, v in (env or {}).items()}}
        self.log_path = self.folder / f"{name}.log"
        self.process = None

    def __enter__(self):
        return self if self.process else self.start()

    def __exit__(self, *_):
        self.stop()

    def is_ready(self):
        raise NotImplementedError

    def launch(self):
        """Starts the process without waiting for it."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=self.env, cwd=self.cwd, stdin=self.stdin,
                                            stdout=log, stderr=log)
        Server.started.append(self)
        return self

    def start(self):
        self.launch()
        try:
            wait_until(lambda: self.process.poll() is not None or self.is_ready(), f"{self.name} is ready", self.patience_s)
            assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{self.log()}"
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, sig=signal.SIGTERM):
        """Ends it, by force if it stays longer than any drain may take, and returns its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(sig)
        try:
            return self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not end:\n{self.log()}") from None

    def signal(self, sig):
        self.process.send_signal(sig)

    def pause(self):
        """Stops answering, as a server on a hanging machine does: connections stay and are accepted."""
        self.signal(signal.SIGSTOP)

    def resume(self):
        self.signal(signal.SIGCONT)

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        """What it has said; without the line that ASan begins each process with, which is no finding."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return re.sub(r"(?m)^==\d+==WARNING: ASan doesn't fully support makecontext/.*\n", "", text)


class RedisConnection:
    """A connection to a Redis, kept until the end of a `with`."""

    def __init__(self, port, password=None, host="127.0.0.1"):
        self.socket = socket.create_connection((host, port), timeout=PATIENCE_S)
        self.file = self.socket.makefile("rwb")
        if password:
            self.call("AUTH", password)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def send(self, *commands):
        for command in commands:
            self.file.write(b"*%d\r\n" % len(command))
            for word in command:
                word = word if isinstance(word, bytes) else str(word).encode()
                self.file.write(b"$%d\r\n%s\r\n" % (len(word), word))
        self.file.flush()

    def reply(self):
        line = self.file.readline()
        if not line:
            raise EOFError
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"*":
            return None if rest == b"-1" else [self.reply() for _ in range(int(rest))]
        return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]

    def call(self, *words):
        self.send(words)
        return self.reply()

    def pipeline(self, commands):
        self.send(*commands)
        return [self.reply() for _ in commands]

    def next(self, timeout_s=PATIENCE_S):
        """After a SUBSCRIBE: the next message as (channel, bytes)."""
        self.socket.settimeout(timeout_s)
        _, channel, data = self.reply()
        return channel.decode(), data


class Redis(Server):
    """redis-server; `url` is what REDIS_URL takes. `options` are lines of its configuration without the dashes."""

    def __init__(self, folder, name="redis", port=None, host=Server.host, **options):
        self.port, self.host = port or free_port(), host
        self.socket = pathlib.Path(folder) / f"{name}.sock"
        settings = {"port": self.port, "bind": host, "unixsocket": self.socket, "dir": folder, "save": "",
                    "appendonly": "no", "dbfilename": f"{name}.rdb", **options}
        super().__init__(folder, name, ["redis-server"] + [
            word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", value)])
        self.password = options.get("requirepass")
        login = f":{self.password}@" if self.password else ""
        self.url = f"redis://{login}{host}:{self.port}/0"
        self.unix_url = f"redis+unix://{login}{self.socket}"

    def is_ready(self):
        try:
            return self.call("PING") == b"PONG"
        except (OSError, EOFError, RuntimeError):  # nobody there, or "LOADING"
            return False

    def call(self, *words):
        """One command; returns bytes, int, None or a list of them. An error reply is raised."""
        with self.connection() as r:
            return r.call(*words)

    def connection(self):
        return RedisConnection(self.port, self.password, self.host)

    def listen(self, *channels):
        r = self.connection()
        r.send(("SUBSCRIBE", *channels))
        for _ in channels:
            r.reply()
        return r


class Sentinel(Redis):
    """redis-server --sentinel that watches `primary`, a Redis with a password, under the name "main"."""

    def __init__(self, folder, name, primary, password, quorum=2, port=None, host=Server.host, **options):
        self.port, self.host, self.password = port or free_port(), host, password
        settings = {"port": self.port, "bind": host, "dir": folder, "requirepass": password,
                    "sentinel sentinel-pass": password,
                    "sentinel monitor main": f"{primary.host} {primary.port} {quorum}",
                    "sentinel auth-pass main": primary.password,
                    "sentinel down-after-milliseconds main": 500, "sentinel failover-timeout main": 2000, **options}
        path = pathlib.Path(folder) / f"{name}.conf"  # which it rewrites
        path.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        Server.__init__(self, folder, name, ["redis-server", path, "--sentinel"])

    def facts(self):
        """SENTINEL MASTER main as a dictionary."""
        words = [word.decode() for word in self.call("SENTINEL", "MASTER", "main")]
        return dict(zip(words[::2], words[1::2]))


class Pool(Server):
    """hyperpage-fcgi. Options are given by their environment names: Pool(folder, WORKERS=2, REDIS_URL=redis.url)."""

    def __init__(self, folder, name="pool", arguments=(), **options):
        folder = pathlib.Path(folder)
        options = {"RUN_DIR": folder / "run", "STATE_DIR": folder / "state", "WORKERS": 2, "REDIS_URL": "", **options}
        listen = str(options.get("LISTEN", f"unix:{options['RUN_DIR']}/fcgi.sock"))
        host, _, port = listen.rpartition(":")
        self.address = (host, int(port)) if port.isdigit() else listen[len("unix:"):] if host == "unix" else listen
        options["LISTEN"] = listen
        super().__init__(folder, name, [BUILD / "hyperpage-fcgi", *arguments], options)

    def is_ready(self):
        """A worker answers, whatever it says: that the socket accepts would not mean that somebody serves it."""
        try:
            return self.ask("HEAD", "/api/sessions").status >= 200
        except (OSError, EOFError):
            return False

    def ask(self, method, uri, body=b"", **more):
        """One request on a FastCGI connection of its own. The answer must be one that docs/openapi.json declares."""
        body = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        answer = fcgi.ask(self.address, method, uri, body, **more)
        openapi.check(method, uri, answer)
        return answer

    def all_serve(self):
        """Waits until all workers and the keeper do: the first worker answers before that."""
        pid_file = pathlib.Path(self.env["RUN_DIR"]) / "pool.pid"
        wait_until(lambda: pid_file.exists() and pid_file.read_text() == f"{self.pid}\n", "all workers serve")
        return self

    def connect(self, timeout_s=PATIENCE_S):
        """A FastCGI connection, to be kept or misused."""
        return fcgi.Client(self.address, timeout_s)

    def processes(self):
        """The workers and the keeper."""
        return children(self.pid)


class Coordinator(Server):
    """hyperpage-coordinator of a node that is called `name`, with a short lease."""

    def __init__(self, folder, name, arguments=(), **options):
        self.run_dir = pathlib.Path(folder) / name / "run"
        options = {"RUN_DIR": self.run_dir, "STATE_DIR": pathlib.Path(folder) / name / "state", "POD_NAME": name,
                   "REDIS_URL": "", "LEADER_ELECTION_TIMEOUT": 1000, "LEADER_HEARTBEAT_INTERVAL": 250,
                   "SESSION_CACHE_BYTES": 1 << 20, **options}
        self.run_dir = pathlib.Path(options["RUN_DIR"])
        for key in ("RUN_DIR", "STATE_DIR"):
            pathlib.Path(options[key]).mkdir(parents=True, exist_ok=True)
        super().__init__(folder, name, [BUILD / "hyperpage-coordinator", *arguments], options)

    def is_ready(self):
        return "coordinator started" in self.log() or "this one waits" in self.log()

    def view(self):
        """What it shows to the other processes of its node."""
        done = subprocess.run([BUILD / "tests/system/coordination", self.run_dir], stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)

    def rss_mib(self):
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


class Front(Server):
    """lighttpd or nginx from the repository's configuration, made ready by conf/run.sh as for `make run`. `pool` is
    what LISTEN would be: the address of the pool behind it. `tree` is a changed copy of the configuration:
    edited_tree()."""

    def __init__(self, folder, kind, pool, tree=REPO, port=None, host=Server.host, **options):
        self.port, self.host, self.kind = port or free_port(), host, kind
        self.run_dir = pathlib.Path(folder) / f"{kind} run"  # the blank is on purpose
        super().__init__(folder, kind, [tree / "conf/run.sh", "front"],
                         {"FRONT": kind, "PORT": self.port, "BIND": host, "RUN_DIR": self.run_dir, "STATE_DIR": self.run_dir,
                          "LISTEN": pool, **options})

    def is_ready(self):
        return accepts((self.host, self.port))

    def ask(self, method, path, body=None, headers=None):
        return ask(self.port, method, path, body, headers, self.host)

    def access_log(self):
        return (self.run_dir / "hyperpage.log").read_text()


def edited_tree(folder, **edits):
    """A copy of the configuration with changes, for tests of what its comments offer. `edits` maps a file's name to
    [(old, new), ...]; what is to be replaced must be there."""
    tree = pathlib.Path(folder) / "tree"
    shutil.copytree(REPO / "conf", tree / "conf")
    shutil.copytree(REPO / "fcgi-app/status", tree / "fcgi-app/status")
    shutil.copy(REPO / "lighttpd.conf", tree)
    for path in (tree / "lighttpd.conf", tree / "conf/nginx.conf"):
        text = path.read_text()
        for old, new in edits.get(path.stem, ()):
            assert old in text, f"{path.name} no longer holds: {old}"
            text = text.replace(old, new)
        path.write_text(text)
    return tree


def metric(place, name, **labels):
    """The sum of hyperpage_NAME over all series whose labels match, each as a regular expression."""
    text = place.ask("GET", "/api/metrics").body.decode()
    found = [(dict(re.findall(r'(\w+)="([^"]*)"', line)), float(value))
             for line, value in re.findall(rf"^hyperpage_{name}(\{{.*\}}|) (\S+)$", text, re.M)]
    assert found or labels, f"there is no hyperpage_{name}"
    return sum(value for have, value in found if all(re.fullmatch(v, have.get(k, "")) for k, v in labels.items()))


class Reply:
    """An HTTP answer: `status`, `headers` (case does not matter), `body`, and `json`, read on demand."""

    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self):
        return json.loads(self.body)


def ask(port, method, path, body=None, headers=None, host=Server.host):
    """One HTTP request on a connection of its own; a dict or list as body is sent as JSON."""
    headers = dict(headers or {})
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
        headers.setdefault("Content-Type", "application/json")
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=PATIENCE_S)) as connection:
        connection.request(method, path, body, headers)
        return Reply(connection.getresponse())


def ask_raw(port, data):
    """Sends `data` as it is, be it HTTP or not, and returns the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as s:
        s.sendall(data)
        response = http.client.HTTPResponse(s)
        response.begin()
        return Reply(response)
