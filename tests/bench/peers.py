#!/usr/bin/python3
"""Measures the session service beside what people use instead, in turn, in the same run; docs/peers.md tells of it.

All are on one Redis (unix socket), behind one nginx, under the same wrk, and have copies of the same 1,000 sessions, which
the pool made. Speed is compared as tests/bench/run.py does it: each contender once a round, in a rotating order, a second
of warming up before; ratios within a round; the median and its spread. Contenders:
  pool             hyperpage-fcgi with --workers (default 2)
  pool-coherent    the same beside hyperpage-coordinator, which runs in this contender's turns alone, and whose processor
                   time and memory count as the pool's
  php-fpm          tests/bench/peers/document.php: phpredis, a kept connection to Redis; 2, 4 or 8 children, whichever was the
                   fastest in a trial before; a connection a request, since a kept one occupies a child
  php-fpm-kept     the same with kept connections, and children for each that nginx can have
  php-session      tests/bench/peers/session.php: PHP's own sessions in Redis, with locks; children as for php-fpm
  express          tests/bench/peers/express.js: Express, express-session, connect-redis; a cluster of --workers processes
  webdis           GET and SETEX of the raw document: no existence check, no merge, no times, and the client sends all of it
Requests:
  get              one of the sessions, as JSON
  touch            POST {"updates": {"lastActivity"}} to one of them, after which it has two new times and its whole life
And what is counted:
  lost-updates     UPDATES requests at once, each for another member of one session: how many are there afterwards
  outage-stopped   Redis gets SIGSTOP for two seconds, or
  outage-killed    SIGKILL, and starts again after two seconds with what it had (appendonly): 50 requests a second for known
                   sessions, get and update in turn, from its end until a second after its return. What was acknowledged
                   is looked for afterwards
  reload-get, reload-touch   failed requests while the backend is reloaded, its own graceful way, under --connections

CPU per request and memory (PSS, shared pages by their share) are those of all processes of the backend."""

import collections
import concurrent.futures
import contextlib
import glob
import http.client
import json
import os
import pwd
import re
import signal
import socket
import statistics
import sys
import time
import types

import run
from run import Failed, progress, spread, version, wait_until

UPDATES = 200
OUTAGE_S, PER_S = 2, 50
GIVE_UP_S = 10  # whoever waits longer for an answer has failed
RELOADS = 3  # in each run
HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers")
PHP_FPM = max(glob.glob("/usr/sbin/php-fpm[0-9]*"), default="php-fpm")
SPEED = ("pool", "pool-coherent", "php-fpm", "php-fpm-kept", "php-session", "express", "webdis")
FACTS = tuple(name for name in SPEED if name != "php-fpm-kept")

Request = collections.namedtuple("Request", "method target cookie body")
PeerRun = collections.namedtuple("PeerRun", run.Run._fields + ("pss_mib",))
Updates = collections.namedtuple("Updates", "acknowledged present")
Outage = collections.namedtuple("Outage", "asked answered wait_s acknowledged missing")
Reload = collections.namedtuple("Reload", "reloads requests failed wait_s")


def ask(port, request):
    """(status, cookie, body), over a connection of its own."""
    headers = {"Cookie": request.cookie, "Content-Type": "application/json"}
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=GIVE_UP_S)
    try:
        c.request(request.method, request.target, request.body or None, {k: v for k, v in headers.items() if v})
        r = c.getresponse()
        return r.status, (r.getheader("Set-Cookie") or "").partition(";")[0], r.read()
    finally:
        c.close()


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# ---------------------------------------------------------------- contenders


class Pool:
    """Sessions are named by their id, in the query and in the body."""

    front = "kept"
    env = {}
    reload_signal = signal.SIGHUP
    name_of_worker = "fcgi-worker"

    def __init__(self, stage, name):
        self.stage, self.name = stage, name

    def argv(self):
        return self.stage.pool_argv(self.name, self.stage.options.workers)

    def make(self, documents):
        """Returns what names each session from now on. These are there already."""
        return list(documents)

    def get(self, session):
        return Request("GET", "/api/sessions?sessionId=" + session, "", "")

    def update(self, session, members):
        return Request("POST", "/api/sessions", "", compact({"sessionId": session, "updates": members}))

    def read(self, body):
        return json.loads(body)["session"]

    def done(self, status, body):
        return status == 200

    def workers(self):
        """The pids of those whom a reload replaces."""
        for pid, _ in self.stage.backends[self.name].stats():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as f:
                if f.read().strip() == self.name_of_worker and pid != self.stage.backends[self.name].process.pid:
                    yield pid


class Php(Pool):
    front = "unkept"
    script = "document.php"
    reload_signal = signal.SIGUSR2
    name_of_worker = os.path.basename(PHP_FPM)

    def __init__(self, stage, name):
        super().__init__(stage, name)
        self.children = stage.options.children.get(name) or int(name.rpartition("-")[2])  # php-fpm-8
        self.env = {
            "PEER_SOCKET": stage.socket(name), "PEER_REDIS": stage.path("redis.sock"), "PEER_CHILDREN": str(self.children),
            "PEER_LOG": stage.path(name + ".log"), "PEER_USER": pwd.getpwuid(os.geteuid()).pw_name,
        }

    def argv(self):
        argv = [PHP_FPM, "-F", "-d", "opcache.jit=tracing", "-c", os.path.join(HERE, "php.ini"), "-y", os.path.join(HERE, "php-fpm.conf")]
        return argv + ["-R"] * (os.geteuid() == 0)

    def location(self, upstream):
        params = "".join(re.findall(r"fastcgi_param .*;\n", run.NGINX_CONF))  # own ones replace all of the level above
        return (f"{params}fastcgi_param SCRIPT_FILENAME {HERE}/{self.script};\n"
                f"fastcgi_pass {upstream}; fastcgi_keep_conn {'on' if self.front == 'kept' else 'off'};")

    def make(self, documents):
        self.stage.copy(documents, "php:session:")
        return list(documents)


class PhpKept(Php):
    front = "kept"


class ByCookie:
    """A session is made by PUT of its document, and named by the cookie that comes back."""

    def make(self, documents):
        port = self.stage.ports[self.name, self.front]
        made = [ask(port, Request("PUT", "/api/sessions", "", compact(d))) for d in documents.values()]
        return [cookie for _, cookie, _ in made]

    def get(self, session):
        return Request("GET", "/api/sessions", session, "")

    def update(self, session, members):
        return Request("POST", "/api/sessions", session, compact({"updates": members}))


class PhpSession(ByCookie, Php):
    script = "session.php"


class Proxied(Pool):
    """Speaks HTTP."""

    def location(self, upstream):
        return f'proxy_pass http://{upstream}; proxy_http_version 1.1; proxy_set_header Connection "";'


class Express(ByCookie, Proxied):
    name_of_worker = "node"

    def __init__(self, stage, name):
        super().__init__(stage, name)
        modules = os.path.join(os.path.abspath(stage.options.build), "peers", "node_modules")
        if not os.path.isdir(modules):
            raise Failed(f"{modules} is missing: `make bench-peers` brings it")
        self.env = {"NODE_ENV": "production", "NODE_PATH": modules}

    def argv(self):
        stage = self.stage
        return ["node", os.path.join(HERE, "express.js"), stage.socket(self.name), stage.path("redis.sock"), str(stage.options.workers)]


class Webdis(Proxied):
    reload_signal = None  # it has none

    def __init__(self, stage, name):
        super().__init__(stage, name)
        self.port = run.free_port()

    def argv(self):
        conf = {
            "redis_host": self.stage.path("redis.sock"), "redis_port": 0, "redis_auth": None, "http_host": "127.0.0.1", "http_port": self.port,
            "threads": self.stage.options.workers, "pool_size": 8, "daemonize": False, "websockets": False, "database": 0,
            "verbosity": 0, "logfile": self.stage.path("webdis.log"),
        }
        with open(self.stage.path("webdis.json"), "w") as f:
            json.dump(conf, f)
        return ["webdis", self.stage.path("webdis.json")]

    def make(self, documents):
        self.stage.copy(documents, "webdis:session:")
        self.documents = documents
        return list(documents)

    def get(self, session):
        return Request("GET", f"/GET/webdis:session:{session}.txt", "", "")

    def update(self, session, members):
        return Request("PUT", f"/SETEX/webdis:session:{session}/86400", "", compact({**self.documents[session], **members}))

    def read(self, body):
        return json.loads(body)

    def done(self, status, body):
        """An error of Redis is an answer like others."""
        return status == 200 and (b"[true," in body or b'"metadata"' in body)


KINDS = {
    "pool": Pool, "pool-coherent": Pool, "php-fpm": Php, "php-fpm-kept": PhpKept, "php-session": PhpSession,
    "express": Express, "webdis": Webdis,
}


class Stage(run.Stage):
    """All contenders at once; only one has something to do."""

    def __init__(self, options, names, appendonly="no"):
        super().__init__(options)
        self.names, self.appendonly = names, appendonly
        self.coordinators = {}

    def __enter__(self):
        super().__enter__()
        with contextlib.ExitStack() as undo:
            undo.push(super().__exit__)
            self.contenders = {name: KINDS[name.rstrip("-0123456789")](self, name) for name in self.names}
            for name, c in self.contenders.items():
                self.backend_start(name, c.env)
            ids = self.sessions_make("pool")
            self.fronts_start([(name, c.front) for name, c in self.contenders.items()])
            documents = {i: self.document("pool", i) for i in ids}
            for name, c in self.contenders.items():
                c.sessions = c.make(documents)
                self.check(name, list(documents.values()))
                for request, build in (("get", c.get), ("touch", self.touch(c))):
                    with open(self.path(f"{name}.{request}"), "w") as f:
                        f.writelines("\t".join(build(session)) + "\n" for session in c.sessions)
            undo.pop_all()
        return self

    @staticmethod
    def touch(c):
        return lambda session: c.update(session, {"lastActivity": "2026-01-31T12:00:00.000Z"})

    def check(self, name, documents):
        """Does each answer what it should, and keep what it is told? Then what is measured is what we think it is."""
        c, at = self.contenders[name], -1 - self.names.index(name)  # the two pools share theirs
        answers = [c.read(self.ask(name, c.get(session))[2]) for session in c.sessions]
        if answers[:-10] != documents[:-10]:
            raise Failed(f"{name} has other sessions")
        status, _, body = self.ask(name, c.update(c.sessions[at], {"checked": True}))
        after, times = self.document(name, c.sessions[at]), ("lastActivity", "metadata")
        wanted = {**{k: v for k, v in documents[at].items() if k not in times}, "checked": True}
        if status != 200 or {k: v for k, v in after.items() if k not in times} != wanted:
            raise Failed(f"{name} did not update: {status} {body!r}")

    def copy(self, documents, prefix):
        with self.redis_connect() as s:
            for i in documents:
                keys = f"hyperpage:session:{i}", prefix + i
                s.sendall(f"COPY {keys[0]} {keys[1]} REPLACE\r\n".encode())
                if s.recv(100) != b":1\r\n":
                    raise Failed("COPY failed")

    def backend_argv(self, name):
        return self.contenders[name].argv()

    def connect(self, name):
        port = getattr(self.contenders[name], "port", None)
        if port is None:
            return super().connect(name)
        return types.SimpleNamespace(socket=socket.create_connection(("127.0.0.1", port)))

    def address(self, name):
        port = getattr(self.contenders[name], "port", None)
        return f"127.0.0.1:{port}" if port else super().address(name)

    def location(self, name, front):
        own = getattr(self.contenders[name], "location", None)
        return own(f"{name}-{front}") if own else super().location(name, front)

    def answers(self, name, front):
        return ask(self.ports[name, front], self.contenders[name].get("nobody"))[0] < 500

    def lane(self, name):
        return name, self.contenders[name].front

    def load(self, request, name):
        return ["lines", self.path(f"{name}.{request}")]

    def ask(self, name, request):
        return ask(self.ports[self.lane(name)], request)

    def document(self, name, session):
        c = self.contenders[name]
        return c.read(self.ask(name, c.get(session))[2])

    def servers(self, name):
        return [self.backends[name], *([self.coordinators[name]] if name in self.coordinators else [])]

    def cpu_s(self, name):
        return sum(server.cpu_s() for server in self.servers(name))

    def pss_mib(self, name):
        kib = 0
        for pid, _ in [stat for server in self.servers(name) for stat in server.stats()]:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as f:
                kib += int(re.search(r"^Pss:\s+(\d+)", f.read(), re.M)[1])
        return kib / 1024

    @contextlib.contextmanager
    def turn(self, name):
        if name != "pool-coherent":
            yield self.contenders[name]
            return
        with self.coordinator(name) as coordinator:
            self.coordinators[name] = coordinator
            self.coordinator_await(name, coordinator)
            yield self.contenders[name]
        del self.coordinators[name]

    def turns(self, rounds):
        """(round, name), each first in some round."""
        for i in range(rounds):
            for name in self.names[i % len(self.names):] + self.names[:i % len(self.names)]:
                yield i, name
                progress()

    @contextlib.contextmanager
    def away(self, how):
        """Redis does not answer meanwhile."""
        if how == "stopped":
            os.kill(self.redis.process.pid, signal.SIGSTOP)
            try:
                yield
            finally:
                os.kill(self.redis.process.pid, signal.SIGCONT)
        else:
            self.redis.process.kill()
            self.redis.process.wait()
            yield
            self.redis = self.stack.enter_context(self.redis_start())


# ---------------------------------------------------------------- what is measured


def throughput(options, request):
    runs = {name: [] for name in SPEED}
    with Stage(options, SPEED) as stage:
        for _, name in stage.turns(options.rounds):
            with stage.turn(name):
                if not options.short:
                    run.wrk(stage, request, stage.lane(name), 1)
                r = run.wrk(stage, request, stage.lane(name), options.seconds)
                runs[name].append(PeerRun(*r, stage.pss_mib(name)))
    return runs


def burst(port, requests):
    """The statuses of requests that were sent at once, each on a connection of its own."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in requests]
        for s, r in zip(sockets, requests):
            head = f"{r.method} {r.target} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Type: application/json\r\n"
            head += f"Cookie: {r.cookie}\r\n" if r.cookie else ""
            s.sendall(f"{head}Content-Length: {len(r.body.encode())}\r\n\r\n{r.body}".encode())
        return [int(s.makefile("rb").read()[9:12] or b"0") for s in sockets]


def lost_updates(options):
    counts = {name: [] for name in FACTS if name != "webdis"}
    with Stage(options, tuple(counts)) as stage:
        for i, name in stage.turns(options.rounds):
            with stage.turn(name) as c:
                members = [f"member{n}" for n in range(UPDATES)]
                statuses = burst(stage.ports[stage.lane(name)], [c.update(c.sessions[i], {m: True}) for m in members])
                document = stage.document(name, c.sessions[i])
                counts[name].append(Updates(statuses.count(200), sum(m in document for m in members)))
    return counts


def outage(options, how):
    counts = {name: [] for name in FACTS}
    with Stage(options, FACTS, appendonly="yes") as stage:
        for i, name in stage.turns(min(3, options.rounds)):
            wait_until(f"{name} is well", lambda: stage.ask(name, stage.contenders[name].get(stage.contenders[name].sessions[0]))[0] == 200)
            with stage.turn(name):
                run.wrk(stage, "get", stage.lane(name), 1)  # known to the node
                counts[name].append(outage_of(stage, name, how, i))
    return counts


def outage_of(stage, name, how, i):
    c = stage.contenders[name]
    total = (OUTAGE_S + 1) * PER_S
    sessions = c.sessions[i * total:(i + 1) * total]  # each is asked for once

    def one(n, due):
        request = c.update(sessions[n], {"written": n}) if n % 2 else c.get(sessions[n])
        time.sleep(max(0, due - time.monotonic()))
        begin = time.monotonic()
        try:
            status, _, body = stage.ask(name, request)
            done = c.done(status, body)
        except (OSError, http.client.HTTPException):
            done = False
        return done, time.monotonic() - begin

    with concurrent.futures.ThreadPoolExecutor(total) as threads:
        with stage.away(how):
            begin = time.monotonic()
            futures = [threads.submit(one, n, begin + n / PER_S) for n in range(total)]
            time.sleep(OUTAGE_S)
        results = [f.result() for f in futures]
    acknowledged = [n for n, (done, _) in enumerate(results) if n % 2 and done]

    def is_there(n):
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
            return stage.document(name, sessions[n]).get("written") == n

    def missing():
        return [n for n in acknowledged if not is_there(n)]

    with contextlib.suppress(Failed):
        wait_until("all is in Redis again", lambda: not missing(), 5, pause_s=0.1)
    return Outage(total, sum(done for done, _ in results), max(wait for _, wait in results), len(acknowledged), len(missing()))


def reload(options, request):
    counts = {name: [] for name in FACTS if KINDS[name].reload_signal}
    with Stage(options, tuple(counts)) as stage:
        for _, name in stage.turns(min(3, options.rounds)):
            with stage.turn(name) as c:
                took_s = []
                r = run.wrk_says(stage, request, stage.lane(name), 120, lambda: took_s.extend(reloads(options, stage, c)))
                counts[name].append(Reload(len(took_s), r["requests"], sum(r["errors"].values()), max(took_s)))
    return counts


def reloads(options, stage, c):
    """How long each took. The load has a second between them."""
    for _ in range(1 if options.short else RELOADS):
        time.sleep(1)
        before, begin = set(c.workers()), time.monotonic()
        os.kill(stage.backends[c.name].process.pid, c.reload_signal)
        wait_until(f"{c.name} has others", lambda: len(now := set(c.workers())) == len(before) and not now & before,
                   30, pause_s=0.02)
        yield time.monotonic() - begin
    time.sleep(1)


# ---------------------------------------------------------------- report


def quotients(runs, others, field):
    """Within each round."""
    return "" if runs is others else spread([getattr(a, field) / getattr(b, field) for a, b in zip(runs, others)], 2)


def throughput_table(_, runs):
    yield ["contender", "pool is x times as fast", "pool-coherent", "CPU, x pool's", "requests/s", "p50 ms", "p99 ms",
           "CPU us/request", "of Redis", "memory MiB"]
    figures = (0, "per_s"), (2, "p50_ms"), (2, "p99_ms"), (1, "cpu_us"), (1, "redis_us"), (1, "pss_mib")
    for name, row in runs.items():
        ratios = [quotients(runs[of], row, "per_s") for of in SPEED[:2]] + [quotients(row, runs["pool"], "cpu_us")]
        yield [name, *ratios, *(spread([getattr(r, field) for r in row], digits) for digits, field in figures)]


def lost_table(_, counts):
    yield ["contender", f"answered 200, of {UPDATES}", "present afterwards", "acknowledged and lost"]
    for name, row in counts.items():
        yield [name, spread([r.acknowledged for r in row], 0), spread([r.present for r in row], 0),
               spread([max(0, r.acknowledged - r.present) for r in row], 0)]


def outage_table(_, counts):
    yield ["contender", "requests", "answered 200", "failed", "longest wait, s", "writes acknowledged", "of them missing"]
    for name, row in counts.items():
        asked, answered, _, acknowledged, missing = (sum(column) for column in zip(*row))
        yield [name, *map(str, (asked, answered, asked - answered)), spread([r.wait_s for r in row], 2), str(acknowledged), str(missing)]


def reload_table(_, counts):
    yield ["contender", "reloads", "requests", "failed", "a reload took at most, s"]
    for name, row in counts.items():
        reloads, requests, failed, _ = (sum(column) for column in zip(*row))
        yield [name, str(reloads), f"{requests:,}", str(failed), spread([r.wait_s for r in row], 2)]


def choose(options):
    """The number of children that PHP is fastest with, and what was tried."""
    most = 2 * (options.connections + 1)  # each of nginx's two workers may have had all connections
    options.children = {"php-fpm": 4, "php-session": 4, "php-fpm-kept": most}
    if options.short:
        return "4 children, not tried"
    names = tuple(f"{script}-{children}" for script in ("php-fpm", "php-session") for children in (2, 4, 8))
    took = {name: [] for name in names}
    with Stage(options, ("pool", *names)) as stage:
        for _, name in stage.turns(3):
            if name != "pool":  # one of each request
                took[name].append(sum(1e6 / run.wrk(stage, r, stage.lane(name), 2).per_s for r in ("get", "touch")))
    took = {name: statistics.median(us) for name, us in took.items()}
    for script in ("php-fpm", "php-session"):
        best = min((us, name) for name, us in took.items() if name.startswith(script))[1]
        options.children[script] = int(best.rpartition("-")[2])
    tried = ", ".join(f"{name} {us:,.0f}" for name, us in took.items())
    return f"a get and a touch took, in us, by children: {tried}; the fastest was taken"


def circumstances(options):
    facts = run.circumstances(options)
    facts["pool"] = facts["pool"].partition(" (")[0]
    facts["fronts"] = version("nginx", "-v") + ", 2 workers, no access log"
    del facts["textbook"]
    with open(os.path.join(HERE, "package.json")) as f:
        packages = ", ".join(f"{name} {number}" for name, number in json.load(f)["dependencies"].items())
    debian = {name: version("dpkg-query", "-W", "-f", "${Version}", name) for name in ("php-redis", "webdis")}
    facts["php"] = f"{version(PHP_FPM, '-v')}, phpredis {debian['php-redis']}; {choose(options)}"
    facts["express"] = f"node {version('node', '-v')}, {packages}; {options.workers} workers"
    facts["webdis"] = f"{debian['webdis']}, {options.workers} threads; nginx reaches it over TCP, which is all it has"
    return facts


def benchmarks():
    found = {name: (lambda options, name=name: throughput(options, name), throughput_table) for name in ("get", "touch")}
    found["lost-updates"] = lost_updates, lost_table
    for how in ("stopped", "killed"):
        found[f"outage-{how}"] = (lambda options, how=how: outage(options, how)), outage_table
    for request in ("get", "touch"):
        found[f"reload-{request}"] = (lambda options, request=request: reload(options, request)), reload_table
    return found


if __name__ == "__main__":
    try:
        run.main(__doc__, benchmarks(), ("wrk", "nginx", "redis-server", PHP_FPM, "node", "webdis"), circumstances)
    except KeyboardInterrupt:
        sys.exit(130)
