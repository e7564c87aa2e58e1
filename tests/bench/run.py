#!/usr/bin/python3
"""Measures the session service beside reference programs, in turn, in the same run, and prints ratios.

Absolute figures of a machine mean little on another, and on a shared machine they change by the minute. So every
comparison starts its contenders together and lets each run once a round, in a rotating order; a ratio is taken within a
round, and what is printed is the median of the rounds' ratios with their spread: 0.62 [0.58-0.65]. A goal is met when
the worse end of the spread meets it.

Contenders (all on unix sockets, all giving an answer of the same size, which the pool itself gave before):
  pool             hyperpage-fcgi with --workers (default 2) over Redis, which every read asks: without a coordinator
  pool-coherent    the same beside hyperpage-coordinator: reads are answered from the node's copies
  pool-1           the same with one worker
  embedded         hyperpage-fcgi with --workers over its embedded store
  L                loop_epoll: one process, epoll, no libfcgi, no work: the most that FastCGI gives on this machine
  textbook         loop_textbook: 4 processes in FCGX_Accept_r, no work
  textbook-redis   the same with one blocking GET per request
Fronts:
  kept             nginx, fastcgi_keep_conn on, keepalive 64. The textbook loops starve on kept connections (each pins
                   a process), so they run unkept there too, as people run them
  unkept           nginx, a connection per request
  lighttpd         a connection per request: it can't do otherwise
Requests:
  get              GET of one of 1,000 sessions by id
  touch            POST {"sessionId", "updates": {"lastActivity"}} to one of them: the portal's dominant request
  create           GET without an id
Benchmarks are named REQUEST-FRONT (get-kept), and besides:
  get-outage, touch-outage   through nginx with kept connections: the pool with Redis, and while Redis is stopped and its
                   sessions are served from the refuge
  get-cache, touch-cache     the same front: the pool that keeps copies of sessions for an outage, which is the default,
                   and one that does not (SESSION_CACHE_BYTES=0). Each round is the mean of 12 seconds of either, in turn
                   second by second: what is looked for is less than what two runs differ by
  start            from the start of the pool to its first answer
  latency          one request at a time on one kept connection straight to the socket of an idle pool, minus the same
                   to L, minus a bare GET to Redis, one after the other from this process
  replace          kill -9 of a pool's only worker, until the next one answers
  store-size       (minutes; only when named) the embedded store with 1,000,000 sessions: its rates, its file, and how long purging 100,000
                   expired ones keeps writers waiting (bench_store_embedded --size; TMPDIR=/dev/shm leaves the disk out)
  scrape           what a scrape of /api/metrics costs: the pool's processor time for one, and the throughput of get that
                   one a second takes away. That is less than what two runs differ by, so it is measured with 50 a second
  memory           PSS of a worker that holds 256 connections: each has had one answer and is idle, or all have a
                   request in work at once (Redis is stopped for that moment). Mappings that are shared on purpose
                   (MAP_SHARED: the state file) are left out; pages of programs and libraries count by their share

The front servers' configurations are this benchmark's own, minimal ones: no access log, nginx with 2 worker processes,
request bodies buffered as by default. The project's shipped configurations log every request.

wrk is the client, with one thread. CPU per request is what the processes of the backend, or of redis-server, used in
user and kernel mode, from /proc. Any failed request or status above 399 ends the benchmark with an error.
"""

import argparse
import collections
import contextlib
import fcntl
import fnmatch
import glob
import http.client
import itertools
import json
import os
import platform
import re
import shutil
import signal
import socket
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time

SESSIONS = 1000
STORE_SESSIONS = 1_000_000
CONNECTIONS_HELD = 256  # by the worker whose memory is measured
TEXTBOOK_WORKERS = 4
LATENCY_SAMPLES = 2000
STARTS = 5  # in each round
SCRAPES = 200  # in each round
SCRAPES_PER_S = 50  # while throughput is measured
COPIES_SLICES = 12  # a second each, in turn with as many of the other, make a round where a few percent are looked for
REQUESTS = ("get", "touch", "create")
FRONTS = ("kept", "unkept", "lighttpd")
HERE = os.path.dirname(os.path.abspath(__file__))

# A ratio of requests per second, at least.
RATIO_GOALS = {
    # (benchmark, contender, reference)
    ("get-kept", "pool", "L"): 0.60,
    ("get-kept", "pool", "textbook-redis"): 2.0,
    ("get-lighttpd", "pool", "textbook-redis"): 1.4,
    ("touch-kept", "pool", "L"): 0.40,
    ("create-kept", "pool", "L"): 0.50,
    ("get-outage", "outage", "with Redis"): 0.90,
    ("touch-outage", "outage", "with Redis"): 0.40,
    ("get-cache", "cache", "no cache"): 0.97,
    ("touch-cache", "cache", "no cache"): 0.97,
}
REFERENCES = ("L", "textbook", "textbook-redis", "with Redis", "no cache")
WITHOUT_REDIS = ("embedded", "L", "textbook", "outage")
# A figure, at most.
FIGURE_GOALS = {
    "purge beside none, turn held, p99.9, ms": 5,
    "purge beside a writer, turn held, p99.9, ms": 5,
    "a replacement's first answer, ms": 100,
    "first answer over Redis, ms": 50,
    "first answer, embedded store, ms": 50,
    "latency added to L and a Redis round trip, us": 60,
    "processor time of a scrape, ms": 2,
    "throughput lost by a scrape a second, %": 1,
    f"PSS of a worker with {CONNECTIONS_HELD} idle connections, MiB": 3,
    f"PSS of a worker with {CONNECTIONS_HELD} active connections, MiB": 16,
    f"PSS of that worker when the {CONNECTIONS_HELD} are idle again, MiB": 3,
}


class Failed(Exception):
    """A measurement that means nothing."""


def wait_until(what, condition, seconds=10, pause_s=0.001):
    """Returns what `condition` returns once that is true; an OSError counts as not yet."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            value = condition()
            if value:
                return value
        if time.monotonic() > end:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(pause_s)


# ---------------------------------------------------------------- processes


class Server:
    """A program in a process group of its own, so that its CPU time can be summed and all of it ended."""

    def __init__(self, argv, folder, env=None):
        self.log = os.path.join(folder, f"{os.path.basename(argv[0])}-{time.monotonic_ns()}.log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=env
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            print(f"{self.process.args[0]}: killed, no end within 10 s of SIGTERM", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def alive(self):
        if self.process.poll() is not None:
            with open(self.log) as log:
                raise Failed(f"{self.process.args[0]} ended with {self.process.returncode}:\n{log.read()}")
        return True

    def stats(self):
        """(pid, fields of /proc/PID/stat from the third on) of each process of the group."""
        for path in glob.glob("/proc/[0-9]*/stat"):
            with contextlib.suppress(OSError):
                with open(path) as f:
                    fields = f.read().rpartition(")")[2].split()
                if int(fields[2]) == self.process.pid:
                    yield int(path.split("/")[2]), fields

    def cpu_s(self):
        return sum(int(f[11]) + int(f[12]) for _, f in self.stats()) / os.sysconf("SC_CLK_TCK")


class FastCgi:
    """One kept FastCGI connection, straight to a backend's socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    @staticmethod
    def get(target):
        """The bytes of a GET request."""
        path, _, query = target.partition("?")
        params = {
            "REQUEST_METHOD": "GET",
            "REQUEST_URI": target,
            "SCRIPT_NAME": path,
            "QUERY_STRING": query,
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": "bench",
        }
        pairs = b"".join(struct.pack("BB", len(k), len(v)) + (k + v).encode() for k, v in params.items())

        def record(kind, content):
            return struct.pack("!BBHHBx", 1, kind, 1, len(content), 0) + content

        keep_connection = b"\0\1\1" + bytes(5)
        return record(1, keep_connection) + record(4, pairs) + record(4, b"") + record(5, b"")

    def send(self, request):
        self.socket.sendall(request)

    def receive(self):
        """The records of one answer, as they came."""
        data = b""
        while data[-16:-14] != b"\1\3":  # END_REQUEST is the last record, 16 bytes
            more = self.socket.recv(65536)
            if not more:
                raise Failed("the backend closed a kept connection")
            data += more
        return data

    @staticmethod
    def output(data):
        """What the backend wrote to its standard output: headers, empty line, body."""
        out, at = b"", 0
        while at < len(data):
            _, kind, _, length, padding = struct.unpack_from("!BBHHBx", data, at)
            if kind == 6:
                out += data[at + 8 : at + 8 + length]
            at += 8 + length + padding
        return out

    def json(self, target):
        self.send(self.get(target))
        output = self.output(self.receive())
        answer = json.loads(output.partition(b"\r\n\r\n")[2])
        if answer.get("success") is not True:
            raise Failed(f"GET {target.partition('?')[0]}: {output.decode()}")
        return answer


# ---------------------------------------------------------------- what runs


class Stage:
    """Redis, backends and fronts of one benchmark, each on a fresh socket, port or folder of its own."""

    appendonly = "no"

    def __init__(self, options):
        self.options = options
        self.backends = {}  # name -> Server
        self.ports = {}  # (backend, front) -> port

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hyperpage-bench-"))
            self.redis = stack.enter_context(self.redis_start())
            self.redis_connect().close()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def socket(self, backend):
        return self.path(backend + ".sock")

    def redis_start(self):
        argv = ["redis-server", "--port", "0", "--unixsocket", self.path("redis.sock"), "--dir", self.folder]
        return Server(argv + ["--save", "", "--appendonly", self.appendonly], self.folder)

    def redis_connect(self):
        def connect():
            s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            s.settimeout(10)
            s.connect(self.path("redis.sock"))
            return s

        return wait_until("redis-server accepts", connect)

    def redis_flush(self):
        with self.redis_connect() as s:
            s.sendall(b"*2\r\n$8\r\nFLUSHALL\r\n$4\r\nSYNC\r\n")
            if s.recv(100) != b"+OK\r\n":
                raise Failed("FLUSHALL failed")

    def pool_argv(self, name, workers):
        argv = [self.options.pool, "--listen", "unix:" + self.socket(name), "--workers", str(workers)]
        argv += ["--run-dir", self.path(name + ".run"), "--state-dir", self.path(name + ".state")]
        for kind in ("run", "state"):
            os.makedirs(self.path(f"{name}.{kind}"), exist_ok=True)
        if not name.startswith("embedded"):
            argv += ["--redis-url", "redis+unix://" + self.path("redis.sock")]
        return argv

    def backend_argv(self, name):
        loop = os.path.join(self.options.build, "tests", "bench", "loop_")
        fixed = [self.socket(name), self.path("answer")]
        return {
            "pool": lambda: self.pool_argv(name, self.options.workers),
            "pool-1": lambda: self.pool_argv(name, 1),
            "pool-coherent": lambda: self.pool_argv(name, self.options.workers),
            "pool-uncached": lambda: self.pool_argv(name, self.options.workers) + ["--session-cache-bytes", "0"],
            "embedded": lambda: self.pool_argv(name, self.options.workers),
            "L": lambda: [loop + "epoll"] + fixed,
            "textbook": lambda: [loop + "textbook"] + fixed + [str(TEXTBOOK_WORKERS)],
            "textbook-redis": lambda: [loop + "textbook"]
            + fixed
            + [str(TEXTBOOK_WORKERS), self.path("redis.sock")],
        }[name]()

    def backend_start(self, name, env=()):
        """Starts a backend; it accepts when this returns."""
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "LD_LIBRARY_PATH")}
        server = Server(self.backend_argv(name), self.folder, {**keep, **dict(env)})
        self.backends[name] = self.stack.enter_context(server)
        wait_until(f"{name} accepts", lambda: server.alive() and self.connect(name), pause_s=0.0001).socket.close()
        return server

    def coordinator_start(self, name):
        """Starts the coordinator of the pool `name`, to the stage's end; its reads are answered from copies when this
        returns."""
        self.coordinator_await(name, self.stack.enter_context(self.coordinator(name)))

    def coordinator(self, name):
        argv = [os.path.join(self.options.build, "hyperpage-coordinator"), "--run-dir", self.path(name + ".run")]
        argv += ["--state-dir", self.path(name + ".state"), "--redis-url", "redis+unix://" + self.path("redis.sock")]
        return Server(argv, self.folder)

    def coordinator_await(self, name, coordinator):
        def hits():
            with self.connect(name) as c:
                session = c.json("/api/sessions")["sessionId"]
                for target in [f"/api/sessions/{session}"] * 3 + ["/api/metrics"]:
                    c.send(c.get(target))
                    text = c.output(c.receive()).decode()
            return coordinator.alive() and int(re.search(r"^cache_hits_total (\d+)", text, re.M)[1])

        before = hits()
        wait_until("reads are answered from copies", lambda: hits() > before, pause_s=0.05)

    def cpu_s(self, name):
        return self.backends[name].cpu_s()

    def connect(self, name):
        return FastCgi(self.socket(name))

    def sessions_make(self, name):
        """Makes the sessions through the pool `name`; for the other contenders' sake their ids stand in a file, and
        one answer in another."""
        with self.connect(name) as c:
            ids = [c.json("/api/sessions")["sessionId"] for _ in range(SESSIONS)]
            c.send(c.get("/api/sessions?sessionId=" + ids[0]))
            with open(self.path("answer"), "wb") as f:
                f.write(c.output(c.receive()))
        with open(self.path(name + ".ids"), "w") as f:
            f.write("\n".join(ids) + "\n")
        return ids

    def load(self, request, name):
        """The arguments of load.lua."""
        return [request, self.ids_path(name)]

    def ids_path(self, name):
        return self.path(name + ".ids" if name == "embedded" else "pool.ids")

    def fronts_start(self, lanes):
        """Gives each (backend, front) a port; starts what listens there."""
        for lane in lanes:
            self.ports[lane] = free_port()
        for front in sorted({"lighttpd" if front == "lighttpd" else "nginx" for _, front in lanes}):
            self.stack.enter_context(Server(getattr(self, front + "_argv")(lanes), self.folder))
        for lane in lanes:
            wait_until(f"{lane} answers", lambda: self.answers(*lane))

    def answers(self, backend, front):
        """Does this lane answer as it should? Then what is measured is what we think it is."""
        with open(self.ids_path(backend)) as f:
            session_id = f.readline().strip()
        c = http.client.HTTPConnection("127.0.0.1", self.ports[backend, front], timeout=5)
        try:
            c.request("GET", "/api/sessions?sessionId=" + session_id)
            r = c.getresponse()
            body = r.read()
        finally:
            c.close()
        if r.status == 200:
            answer = json.loads(body)
            if "metadata" not in answer["session"]:
                raise Failed(f"{backend} through {front} answers {body!r}")
        return r.status == 200

    def nginx_argv(self, lanes):
        upstreams, servers = "", ""
        for backend, front in lanes:
            if front == "lighttpd":
                continue
            kept = front == "kept"
            upstreams += f"upstream {backend}-{front} {{ server {self.address(backend)};"
            upstreams += " keepalive 64; }\n" if kept else " }\n"
            servers += f"server {{ listen 127.0.0.1:{self.ports[backend, front]} backlog=1024; location / {{"
            servers += f" {self.location(backend, front)} }} }}\n"
        with open(self.path("nginx.conf"), "w") as f:
            f.write(NGINX_CONF.replace("FOLDER", self.folder) + upstreams + servers + "}\n")
        return ["nginx", "-p", self.folder, "-e", self.path("nginx.error"), "-c", self.path("nginx.conf")]

    def address(self, backend):
        return "unix:" + self.socket(backend)

    def location(self, backend, front):
        """What nginx does with a request."""
        return f"fastcgi_pass {backend}-{front}; fastcgi_keep_conn {'on' if front == 'kept' else 'off'};"

    def lighttpd_argv(self, lanes):
        conf = ""
        ports = [(backend, self.ports[backend, front]) for backend, front in lanes if front == "lighttpd"]
        for backend, port in ports:
            conf += f'$SERVER["socket"] == "127.0.0.1:{port}" {{ fastcgi.server = ("/" => (('
            conf += f'"socket" => "{self.socket(backend)}", "check-local" => "disable", "disable-time" => 0))) }}\n'
        with open(self.path("lighttpd.conf"), "w") as f:
            f.write(LIGHTTPD_CONF.replace("FOLDER", self.folder).replace("PORT", str(ports[0][1])) + conf)
        return ["lighttpd", "-D", "-f", self.path("lighttpd.conf")]


NGINX_CONF = f"""\
{"user root;" if os.geteuid() == 0 else ""}
daemon off;
worker_processes 2;
pid FOLDER/nginx.pid;
error_log FOLDER/nginx.error warn;
events {{ worker_connections 1024; }}
http {{
access_log off;
keepalive_requests 1000000;
client_body_temp_path FOLDER/nginx-body;
fastcgi_temp_path FOLDER/nginx-fastcgi;
proxy_temp_path FOLDER/nginx-proxy;
uwsgi_temp_path FOLDER/nginx-uwsgi;
scgi_temp_path FOLDER/nginx-scgi;
fastcgi_param QUERY_STRING $query_string;
fastcgi_param REQUEST_METHOD $request_method;
fastcgi_param CONTENT_TYPE $content_type;
fastcgi_param CONTENT_LENGTH $content_length;
fastcgi_param SCRIPT_NAME $uri;
fastcgi_param REQUEST_URI $request_uri;
fastcgi_param DOCUMENT_URI $document_uri;
fastcgi_param SERVER_PROTOCOL $server_protocol;
fastcgi_param REQUEST_SCHEME $scheme;
fastcgi_param GATEWAY_INTERFACE CGI/1.1;
fastcgi_param SERVER_SOFTWARE nginx;
fastcgi_param REMOTE_ADDR $remote_addr;
fastcgi_param REMOTE_PORT $remote_port;
fastcgi_param SERVER_ADDR 127.0.0.1;
fastcgi_param SERVER_PORT $server_port;
fastcgi_param SERVER_NAME bench;
"""

LIGHTTPD_CONF = """\
server.modules = ("mod_fastcgi")
server.document-root = "FOLDER"
server.upload-dirs = ("FOLDER")
server.errorlog = "FOLDER/lighttpd.error"
server.bind = "127.0.0.1"
server.port = PORT
server.listen-backlog = 1024
server.max-keep-alive-requests = 1000000
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# ---------------------------------------------------------------- throughput

Run = collections.namedtuple("Run", "per_s p50_ms p99_ms cpu_us redis_us")


def throughput_lanes(request, front):
    pools = ("pool", "pool-1", "pool-coherent", "embedded") if request == "get" else ("pool", "pool-1", "embedded")
    lanes = [(backend, front) for backend in pools + ("L",)]
    unkept = "unkept" if front == "kept" else front
    lanes.append(("textbook", unkept))
    if request == "get":
        lanes.append(("textbook-redis", unkept))
    return lanes


def wrk_says(stage, request, lane, seconds, meanwhile=None):
    """How many requests there were, how long they took, which failed. With `meanwhile` it ends when that returns."""
    argv = ["wrk", "-t1", f"-c{stage.options.connections}", f"-d{seconds}s", "--timeout", "10s"]
    argv += ["-s", os.path.join(HERE, "load.lua"), f"http://127.0.0.1:{stage.ports[lane]}", "--"]
    argv += stage.load(request, lane[0])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as client:
        if meanwhile:
            try:
                meanwhile()
            finally:
                client.send_signal(signal.SIGINT)
        out = client.communicate(timeout=seconds + 60)[0]
    stage.backends[lane[0]].alive()
    line = re.search(r"^JSON (.*)$", out, re.M)
    if line is None:
        raise Failed(f"wrk: {out}")
    return json.loads(line[1])


def wrk(stage, request, lane, seconds):
    """One run of one contender."""
    before = stage.cpu_s(lane[0]), stage.redis.cpu_s()
    r = wrk_says(stage, request, lane, seconds)
    after = stage.cpu_s(lane[0]), stage.redis.cpu_s()
    if any(r["errors"].values()) or r["requests"] == 0:
        raise Failed(f"{request} to {lane}: {r['requests']} requests, errors: {r['errors']}")
    cpu_us, redis_us = (1e6 * (b - a) / r["requests"] for a, b in zip(before, after))
    return Run(1e6 * r["requests"] / r["duration_us"], r["p50_us"] / 1e3, r["p99_us"] / 1e3, cpu_us, redis_us)


def throughput(options, request, front):
    """backend -> its runs, one a round."""
    lanes = throughput_lanes(request, front)
    runs = {backend: [] for backend, _ in lanes}
    with Stage(options) as stage:
        for name in ("pool", "embedded"):
            stage.backend_start(name)
            stage.sessions_make(name)
        for name, _ in lanes:
            if name not in stage.backends:
                stage.backend_start(name)
        if "pool-coherent" in stage.backends:
            stage.coordinator_start("pool-coherent")
        stage.fronts_start(lanes)
        if not options.short:
            for lane in lanes:
                wrk(stage, request, lane, 1)  # connections, caches and the processes' memory are there afterwards
        for i in range(options.rounds):
            turn = i % len(lanes)
            for lane in lanes[turn:] + lanes[:turn]:
                if request == "create":
                    stage.redis_flush()  # as many keys for each
                runs[lane[0]].append(wrk(stage, request, lane, options.seconds))
                progress()
    return runs


@contextlib.contextmanager
def outage(stage):
    """Redis does not answer, all workers serve from the refuge; and at the end all that was written is in Redis again."""
    def from_refuge():
        """Whichever worker answers: each connection meets one of them, any."""
        outputs = []
        for _ in range(20):
            with stage.connect("pool") as c:
                c.send(c.get("/api/sessions?sessionId=" + first))
                outputs.append(c.output(c.receive()))
        return [b"X-Session-Store: refuge" in output and b"Status: 503" not in output for output in outputs]

    def awaits_replay():
        with contextlib.closing(sqlite3.connect(f"file:{stage.path('pool.state')}/sessions.db?mode=ro", uri=True)) as db:
            return db.execute("SELECT count(*) FROM refuge").fetchone()[0]

    with open(stage.ids_path("pool")) as f:
        first = f.readline().strip()
    os.kill(stage.redis.process.pid, signal.SIGSTOP)
    try:
        wait_until("the refuge serves", lambda: all(from_refuge()))
        yield
    finally:
        os.kill(stage.redis.process.pid, signal.SIGCONT)
    wait_until("Redis serves", lambda: not any(from_refuge()))
    wait_until("all is in Redis again", lambda: awaits_replay() == 0, seconds=30, pause_s=0.01)


def with_and_without_redis(options, request):
    lane, runs = ("pool", "kept"), {"with Redis": [], "outage": []}
    with Stage(options) as stage:
        stage.backend_start("pool")
        stage.sessions_make("pool")
        stage.fronts_start([lane])
        wrk(stage, "get", lane, 1)  # each session has been read: the node knows it
        circumstances_of = {"with Redis": lambda _: contextlib.nullcontext(), "outage": outage}
        for i in range(options.rounds):
            for name in list(runs)[:: 1 if i % 2 == 0 else -1]:
                with circumstances_of[name](stage):
                    runs[name].append(wrk(stage, request, lane, options.seconds))
                progress()
    return runs


def with_and_without_cache(options, request):
    backends, runs = {"cache": "pool", "no cache": "pool-uncached"}, {"cache": [], "no cache": []}
    lanes = {name: (backend, "kept") for name, backend in backends.items()}
    with Stage(options) as stage:
        for backend in backends.values():
            stage.backend_start(backend)
        stage.sessions_make("pool")
        stage.fronts_start(list(lanes.values()))
        for lane in lanes.values():
            wrk(stage, request, lane, 1)
        for _ in range(options.rounds):
            slices = {name: [] for name in runs}
            for i in range(1 if options.short else COPIES_SLICES):
                for name in list(runs)[:: 1 if i % 2 == 0 else -1]:
                    slices[name].append(wrk(stage, request, lanes[name], 1))
                progress()
            for name, of_round in slices.items():
                runs[name].append(Run(*map(statistics.mean, zip(*of_round))))
    return runs


# ---------------------------------------------------------------- start, latency, memory


def start(options):
    """From before the fork of the pool to its first answer."""
    figures = collections.defaultdict(list)
    titles = {"pool": "first answer over Redis, ms", "embedded": "first answer, embedded store, ms"}
    for _ in range(options.rounds):
        for name, title in titles.items():
            for _ in range(1 if options.short else STARTS):
                with Stage(options) as stage:
                    begin = time.monotonic()
                    stage.backend_start(name)
                    with stage.connect(name) as c:
                        c.json("/api/sessions")
                    figures[title].append(1e3 * (time.monotonic() - begin))
        progress()
    return figures


def replace(options):
    """From the kill of the only worker to the answer of its successor, on a new connection."""
    figures = collections.defaultdict(list)
    title = "a replacement's first answer, ms"
    for _ in range(options.rounds):
        with Stage(options) as stage:
            pool = stage.backend_start("pool-1")
            for _ in range(1 if options.short else STARTS):
                with stage.connect("pool-1") as c:
                    c.json("/api/sessions")
                    worker = worker_of(pool)
                os.kill(worker, signal.SIGKILL)
                begin = time.monotonic()
                with stage.connect("pool-1") as c:
                    c.json("/api/sessions")
                figures[title].append(1e3 * (time.monotonic() - begin))
        progress()
    return figures


def redis_get(connection, command, length):
    connection.sendall(command)
    while length > 0:
        length -= len(connection.recv(65536))


def latency(options):
    """Medians of each round, in microseconds."""
    figures = collections.defaultdict(list)
    with Stage(options) as stage:
        stage.backend_start("pool")
        session_id = stage.sessions_make("pool")[0]
        stage.backend_start("L")
        key = "hyperpage:session:" + session_id
        command = f"*2\r\n$3\r\nGET\r\n${len(key)}\r\n{key}\r\n".encode()
        request = FastCgi.get("/api/sessions?sessionId=" + session_id)
        with stage.connect("pool") as pool, stage.connect("L") as loop, stage.redis_connect() as redis:
            redis.sendall(command)
            length = len(redis.recv(65536))
            asks = {
                "pool": lambda: (pool.send(request), pool.receive()),
                "L": lambda: (loop.send(request), loop.receive()),
                "Redis": lambda: redis_get(redis, command, length),
            }
            orders = itertools.cycle(itertools.permutations(asks))  # whoever was asked last is still in the caches
            for _ in range(options.rounds):
                took = {name: [] for name in asks}
                for _ in range(200 if options.short else LATENCY_SAMPLES):
                    for name in next(orders):
                        begin = time.monotonic_ns()
                        asks[name]()
                        took[name].append((time.monotonic_ns() - begin) / 1e3)
                added = [p - l - r for p, l, r in zip(*took.values())]
                for name in asks:
                    figures[f"latency of a GET: {name}, us"].append(statistics.median(took[name]))
                figures["latency added to L and a Redis round trip, us"].append(statistics.median(added))
                progress()
    return figures


@contextlib.contextmanager
def scraped(stage):
    """The pool is scraped SCRAPES_PER_S times a second, on a kept connection."""
    over, taken = threading.Event(), []

    def scrape_on():
        with stage.connect("pool") as c:
            due = time.monotonic()
            while not over.wait(max(0, due - time.monotonic())):
                c.send(c.get("/api/metrics"))
                taken.append(len(c.receive()))
                due += 1 / SCRAPES_PER_S

    thread = threading.Thread(target=scrape_on)
    begin = time.monotonic()
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if len(taken) < 0.9 * SCRAPES_PER_S * (time.monotonic() - begin):
        raise Failed(f"only {len(taken)} scrapes")


def scrape(options):
    figures = collections.defaultdict(list)
    lane = ("pool", "kept")
    with Stage(options) as stage:
        pool = stage.backend_start("pool")
        stage.sessions_make("pool")
        stage.fronts_start([lane])
        wrk(stage, "get", lane, 1)
        circumstances_of = {"plain": lambda _: contextlib.nullcontext(), "scraped": scraped}
        for i in range(options.rounds):
            per_s = {}
            for name in list(circumstances_of)[:: 1 if i % 2 == 0 else -1]:
                with circumstances_of[name](stage):
                    per_s[name] = wrk(stage, "get", lane, options.seconds).per_s
            lost = 100 * (1 - per_s["scraped"] / per_s["plain"])
            figures["throughput lost by a scrape a second, %"].append(lost / SCRAPES_PER_S)
            with stage.connect("pool") as c:
                before = pool.cpu_s()
                for _ in range(SCRAPES):
                    c.send(c.get("/api/metrics"))
                    c.receive()
            figures["processor time of a scrape, ms"].append(1e3 * (pool.cpu_s() - before) / SCRAPES)
            progress()
    return figures


def worker_of(pool):
    """The only worker of a pool, by the name it gives itself."""
    def name(pid):
        with open(f"/proc/{pid}/comm") as f:
            return f.read().strip()

    return next(pid for pid, _ in pool.stats() if name(pid) == "fcgi-worker")


def private_pss_mib(pid):
    kib, shared = 0, False
    with open(f"/proc/{pid}/smaps") as smaps:
        for line in smaps:
            head = re.match(r"[0-9a-f]+-[0-9a-f]+ ...([ps]) ", line)
            if head:
                shared = head[1] == "s"
            elif line.startswith("Pss:") and not shared:
                kib += int(line.split()[1])
    return kib / 1024


def all_read(pid, connections):
    """Has the worker read all that was sent to it, and is it asleep?"""
    def unread(c):
        return struct.unpack("i", fcntl.ioctl(c.socket, termios.TIOCOUTQ, bytes(4)))[0]

    if any(unread(c) for c in connections):
        return False
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rpartition(")")[2].split()[0] == "S"


def memory(options):
    idle, active = (f"PSS of a worker with {CONNECTIONS_HELD} {s} connections, MiB" for s in ("idle", "active"))
    again = f"PSS of that worker when the {CONNECTIONS_HELD} are idle again, MiB"
    figures = collections.defaultdict(list)
    for _ in range(options.rounds):
        with Stage(options) as stage, contextlib.ExitStack() as held:
                # Redis is stopped for some milliseconds below; on a busy machine that could look like an outage.
            pool = stage.backend_start("pool-1", {"REDIS_TIMEOUT_MS": "4000"})
            with stage.connect("pool-1") as c:
                ids = [c.json("/api/sessions")["sessionId"] for _ in range(CONNECTIONS_HELD)]
            connections = [held.enter_context(stage.connect("pool-1")) for _ in ids]
            for c, session_id in zip(connections, ids):
                c.json("/api/sessions?sessionId=" + session_id)
            worker = worker_of(pool)
            figures[idle].append(private_pss_mib(worker))
            os.kill(stage.redis.process.pid, signal.SIGSTOP)
            try:
                for c, session_id in zip(connections, ids):
                    c.send(c.get("/api/sessions?sessionId=" + session_id))
                wait_until("the worker has read all requests", lambda: all_read(worker, connections))
                figures[active].append(private_pss_mib(worker))
            finally:
                os.kill(stage.redis.process.pid, signal.SIGCONT)
            for c, session_id in zip(connections, ids):
                if session_id.encode() not in c.receive():
                    raise Failed("an active connection got a wrong answer")
            with contextlib.suppress(Failed): # the worker gives memory back once a second
                wait_until("it is small again", lambda: private_pss_mib(worker) <= FIGURE_GOALS[idle], 3, pause_s=0.1)
            figures[again].append(private_pss_mib(worker))
        progress()
    return figures


def store_size(options):
    """What bench_store_embedded says, of a new store each round."""
    figures = collections.defaultdict(list)
    program = os.path.join(options.build, "tests/bench/bench_store_embedded")
    sessions = STORE_SESSIONS // 50 if options.short else STORE_SESSIONS
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="hyperpage-bench-") as folder:
            run = subprocess.run([program, "--size", str(sessions), folder], capture_output=True, text=True)
        if run.returncode != 0:
            raise Failed(f"{program}: {run.stderr.strip()}")
        for line in run.stdout.splitlines():
            title, value = line.split("\t")
            figures[title].append(float(value))
        progress()
    return figures


# ---------------------------------------------------------------- report


def spread(values, digits):
    middle, low, high = statistics.median(values), min(values), max(values)
    if low == high:
        return f"{middle:,.{digits}f}"
    return f"{middle:,.{digits}f} [{low:,.{digits}f}-{high:,.{digits}f}]"


def verdict(options, goal, worst, sign):
    """`worst` is the end of the spread that is further from the goal."""
    if goal is None:
        return ""
    met = worst >= goal if sign == ">=" else worst <= goal
    return f" (goal {sign} {goal})" if options.short else f" (goal {sign} {goal}: {'met' if met else 'missed'})"


def ratio(options, benchmark, runs, contender, reference):
    if reference not in runs or contender == reference:
        return ""
    ratios = [a.per_s / b.per_s for a, b in zip(runs[contender], runs[reference])]
    goal = RATIO_GOALS.get((benchmark, contender, reference))
    return spread(ratios, 2) + verdict(options, goal, min(ratios), ">=")


def throughput_table(options, benchmark, runs):
    references = [r for r in REFERENCES if r in runs]
    yield ["contender"] + ["x " + r for r in references] + [
        "requests/s", "p50 ms", "p99 ms", "CPU us/request", "of Redis, us/request"
    ]
    for name, row in runs.items():
        # Whoever does not talk to Redis has nothing to say about Redis' CPU.
        redis = "" if name in WITHOUT_REDIS else spread([r.redis_us for r in row], 1)
        yield (
            [name]
            + [ratio(options, benchmark, runs, name, r) for r in references]
            + [spread([r.per_s for r in row], 0), spread([r.p50_ms for r in row], 2)]
            + [spread([r.p99_ms for r in row], 2), spread([r.cpu_us for r in row], 1), redis]
        )


def figures_table(options, figures):
    yield ["figure", "value"]
    for title, values in figures.items():
        digits = 0 if min(values) >= 1000 else 1
        yield [title, spread(values, digits) + verdict(options, FIGURE_GOALS.get(title), max(values), "<=")]


def print_table(title, rows, markdown):
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    edge, between = ("| ", " | ") if markdown else ("", "  ")
    print(("\n### " if markdown else "\n") + title + ("\n" if markdown else ""))
    for i, row in enumerate(rows):
        line = between.join(cell.ljust(width) for cell, width in zip(row, widths))
        print((edge + line + edge[::-1]).rstrip())
        if markdown and i == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def version(*argv):
    out = subprocess.run(argv, capture_output=True, text=True)
    return ((out.stdout + out.stderr).splitlines() or [f"{argv[0]}: unknown"])[0].strip()


def circumstances(options):
    with open("/proc/cpuinfo") as f:
        model = re.search(r"^model name\s*: (.*)$", f.read(), re.M)
    return {
        "machine": f"{os.cpu_count()} cores, {model[1] if model else platform.machine()}, Linux {platform.release()}",
        "load": f"wrk -t1 -c{options.connections} -d{options.seconds}s, {options.rounds} rounds; {SESSIONS} sessions",
        "pool": f"{version(options.pool, '--version')}, {options.workers} workers (pool-1: 1)",
        "fronts": f"{version('nginx', '-v')}, 2 workers; {version('lighttpd', '-v')}; no access logs",
        "store": version("redis-server", "-v") + ", unix socket",
        "client": version("wrk", "-v"),
        "textbook": f"{TEXTBOOK_WORKERS} processes",
        # A busy neighbour takes more from a contender of one process than from one of four.
        "others": f"load average before the run: {os.getloadavg()[0]:.2f}",
    }


def progress():
    print(".", end="", file=sys.stderr, flush=True)


def benchmarks():
    """name -> (what measures it, what makes a table of it)."""
    found = {}
    for request in REQUESTS:
        for front in FRONTS:
            name = f"{request}-{front}"
            found[name] = (
                lambda options, request=request, front=front: throughput(options, request, front),
                lambda options, runs, name=name: throughput_table(options, name, runs),
            )
    for kind, measure in (("outage", with_and_without_redis), ("cache", with_and_without_cache)):
        for request in ("get", "touch"):
            name = f"{request}-{kind}"
            found[name] = (
                lambda options, measure=measure, request=request: measure(options, request),
                lambda options, runs, name=name: throughput_table(options, name, runs),
            )
    for measure in (start, replace, latency, scrape, memory, store_size):
        found[measure.__name__.replace("_", "-")] = (measure, figures_table)
    return found


def options_read(doc, known, tools):
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", action="append", metavar="NAME", help="a benchmark, also by pattern ('get-*'); repeatable")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=int, default=3, help="of each run (default 3)")
    p.add_argument("--connections", type=int, default=32, help="of wrk (default 32)")
    p.add_argument("--workers", type=int, default=2, help="of the pool (default 2)")
    p.add_argument("--short", action="store_true", help="one round of a second each, no verdicts: does it work?")
    p.add_argument("--markdown", action="store_true", help="tables in Markdown")
    p.add_argument("--json", metavar="FILE", help="all figures, each round's")
    p.add_argument("--build", default="build", help="where the programs are (default build)")
    p.add_argument("--pool", help="the pool's program (default BUILD/hyperpage-fcgi)")
    options = p.parse_args()
    if options.short:
        options.rounds = options.seconds = 1
    options.pool = os.path.abspath(options.pool or os.path.join(options.build, "hyperpage-fcgi"))
    wanted = options.only or [n for n in known if n != "store-size"]  # which takes minutes
    names = [n for n in known if any(fnmatch.fnmatch(n, w) for w in wanted)]
    missing = [t for t in (*tools, options.pool) if shutil.which(t) is None]
    if not names:
        p.error("no such benchmark; there are " + ", ".join(known))
    if missing:
        p.error("not found: " + ", ".join(missing))
    return options, {n: known[n] for n in names}


def main(doc, known, tools, circumstances):
    # The servers' own clean-up needs the stack to unwind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    options, chosen = options_read(doc, known, tools)
    try:
        facts = circumstances(options)
    except Failed as e:
        sys.exit(str(e))
    for name, text in facts.items():
        print(f"- {name}: {text}" if options.markdown else f"{name:9} {text}")
    results = {}
    for name, (measure, table) in chosen.items():
        print(f"{name} ", end="", file=sys.stderr, flush=True)
        try:
            results[name] = measure(options)
        except Failed as e:
            sys.exit(f"\n{name}: {e}")
        finally:
            print(file=sys.stderr)
        print_table(name, table(options, results[name]), options.markdown)
        sys.stdout.flush()
    if options.json:
        plain = {
            name: {k: [r._asdict() if isinstance(r, tuple) else r for r in v] for k, v in figures.items()}
            for name, figures in results.items()
        }
        with open(options.json, "w") as f:
            json.dump({"circumstances": facts, "results": plain}, f, indent=1)


if __name__ == "__main__":
    try:
        main(__doc__, benchmarks(), ("wrk", "nginx", "lighttpd", "redis-server"), circumstances)
    except KeyboardInterrupt:
        sys.exit(130)
