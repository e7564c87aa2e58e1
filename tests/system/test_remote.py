"""hyperpagectl --url: over HTTP it tells what it tells on the node, with the same exit codes; the token goes to nobody but the
server that was named and proved itself; and whatever comes back from there, it says what is wrong."""

import contextlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import tempfile
import threading
from datetime import datetime, timedelta

import pytest

from servers import Coordinator, Front, Pool, Redis, Server, accepts, free_port, wait_until
from test_ctl import NOT_SO, OK, TIMED_OUT, UNREACHABLE, USAGE, create, ctl, ctl_with, whole

PLAIN = {key: value for key, value in os.environ.items() if not key.startswith(("REDIS", "ADMIN"))}


class Far:
    """A node behind lighttpd, and hyperpagectl with nothing of it but its address and a file with the token."""

    def __init__(self, folder, servers, redis, **options):
        self.folder = folder
        self.pool = whole(servers.enter_context(Pool(folder, REDIS_URL=redis.url, REDIS_TIMEOUT_MS=2000, SERVICE_TOKEN="service",
                                                     SESSION_CACHE_BYTES=1 << 20, POD_NAME="node", **options)))
        self.coordinator = servers.enter_context(Coordinator(folder, "node", REDIS_URL=redis.url, RUN_DIR=self.pool.env["RUN_DIR"],
                                                             STATE_DIR=self.pool.env["STATE_DIR"]))
        wait_until(lambda: self.coordinator.view()["is_leader"] and self.coordinator.view()["subscribed"], "the node leads")
        self.front = servers.enter_context(Front(folder, "lighttpd", f"unix:{self.pool.address}"))
        self.url = f"http://127.0.0.1:{self.front.port}/"
        self.token = folder / "token"
        self.token.write_text("admin\n")

    def ctl(self, *words, url=None, token=None, env=PLAIN, **more):
        options = ["--url", url or self.url] + ([] if token is False else ["--token-file", token or self.token])
        return ctl_with(env, *words, *options, "--json", **more)

    def look(self, *words, **more):
        answer = self.ctl(*words, **more)
        assert answer.code == OK, answer.err
        return answer.json


@pytest.fixture(scope="module")
def far():
    """One for all tests that leave it as it was."""
    with tempfile.TemporaryDirectory(prefix="hp-") as path, contextlib.ExitStack() as servers:
        folder = pathlib.Path(path)
        yield Far(folder, servers, servers.enter_context(Redis(folder)), ADMIN_TOKEN="admin,next")


@pytest.fixture
def token(folder):
    """A file for another token."""
    return folder / "another"


def test_it_tells_what_it_tells_on_the_node(far):
    here = {words: ctl(far.pool, *words, "--json").json for words in (("status",), ("pods",), ("leader",), ("health",))}
    there = {words: far.look(*words, token=False) for words in here}
    assert there["leader",] == here["leader",] and there["leader",]["isLeader"]
    assert there["pods",].keys() == here["pods",].keys() and [p["podId"] for p in there["pods",]["pods"]] == ["node"]
    for name in ("status", "store", "maintenance"):
        assert there["health",][name] == here["health",][name] == there["status",][name] == here["status",][name]
    assert there["health",]["redis"].keys() == here["health",]["redis"].keys()
    assert {w["pid"] for w in there["status",]["workers"]} == {w["pid"] for w in here["status",]["workers"]}
    assert there["status",]["workers"][0].keys() == here["status",]["workers"][0].keys()
    pools = [answers["status",]["pool"] for answers in (here, there)]
    assert set(pools[1]) <= set(pools[0]) and all(pool["idle"] + pool["busy"] == 2 for pool in pools)
    after = ctl(far.pool, "status", "--json").json["pool"]
    assert after["requestsTotal"] >= 4 and after["requests"] <= 1, "all that there have been, and in hand, as over HTTP"
    assert there["status",]["coordinator"]["leaderId"] == "node" and there["status",]["coordinator"]["alive"]
    text = ctl_with(PLAIN, "status", "--url", far.url).out
    assert "\nstatus: healthy\n" in text and re.search(r"^  - pid=\d+ state=", text, re.M)


def assert_same_but_ends(there, here):
    """Redis tells what is left of a life, so when it ends is told anew each time, a millisecond earlier or later."""
    ends = [datetime.fromisoformat(end.replace("Z", "+00:00")) for end in (there.pop("expiresAt"), here.pop("expiresAt"))]
    assert abs(ends[0] - ends[1]) < timedelta(milliseconds=100)
    assert there == here


def test_sessions_of_a_user_from_afar(far):
    user = "ann & bob/ü?"
    ids = [create(far.pool, user) for _ in range(3)]
    other = create(far.pool, "bob")
    listed = far.look("sessions", "list", user)
    listed_here = ctl(far.pool, "sessions", "list", user, "--json").json
    assert len(listed["sessions"]) == len(listed_here["sessions"]) == 3
    for pair in zip(listed.pop("sessions"), listed_here.pop("sessions")):
        assert_same_but_ends(*pair)
    assert listed == listed_here
    shown = far.look("sessions", "show", "-", token=False, stdin=ids[0] + "\n")
    assert_same_but_ends(shown, ctl(far.pool, "sessions", "show", ids[0], "--json").json)
    assert far.look("sessions", "revoke", user) == {"revoked": 3}
    assert far.ctl("sessions", "show", ids[0], token=False).code == NOT_SO
    assert far.pool.ask("GET", f"/api/sessions/{other}").status == 200
    assert ids[0] not in far.front.access_log() and ids[0] not in far.front.log()


def test_messages_from_afar(far):
    payload = json.dumps({"platform": "github", "endpoint": "core", "limit": 10, "remaining": 4})
    sent = far.look("send", "rate_limit_sync", payload, "--priority", "high", "--pod", "node")
    assert sent["messageId"].startswith("msg-") and sent["receivers"] == 1
    wait_until(lambda: far.coordinator.view()["messages"]["rate_limit_sync"] == 1, "it has come")
    for words in (["moon_phase", "{}"], ["broadcast", "["], ["broadcast", "{}", "--priority", "x"], ["broadcast", "{}", "--pod", "a b"],
                  ["broadcast", '{},"type":"cache_invalidate"']):
        answer = far.ctl("send", *words)
        assert answer.code == USAGE and len(answer.err.splitlines()) == 1, (words, answer.err)


def test_tokens(far, folder, token):
    words = ["sessions", "list", "ann"]
    assert far.ctl(*words, token=False, env={**PLAIN, "ADMIN_TOKEN": "next, other"}).code == OK
    assert far.ctl(*words, token=False, env={**PLAIN, "ADMIN_TOKEN_FILE": str(far.token)}).code == OK
    for text, said in (("wrong", "the token is not the one"), ("service", "none of an administrator"), ("a b", "a character that no token has")):
        token.write_text(text)
        answer = far.ctl(*words, token=token)
        assert answer.code == USAGE and said in answer.err, answer.err
    answer = far.ctl(*words, token=False)
    assert answer.code == USAGE and "needs an administrator's token" in answer.err
    answer = far.ctl(*words, "--admin-token", "admin", token=False)
    assert answer.code == USAGE and "--token-file" in answer.err
    assert far.ctl(*words, token=folder / "none").code == USAGE


def test_a_node_that_fails_bit_by_bit(folder, servers, redis):
    far = Far(folder, servers, redis, SESSION_FALLBACK_TO_MEMORY="false")
    answer = far.ctl("sessions", "list", "ann")
    assert answer.code == USAGE and "without ADMIN_TOKEN" in answer.err
    assert far.ctl("health", "--wait", token=False).code == OK
    far.coordinator.stop()
    redis.stop()
    wait_until(lambda: far.ctl("health", token=False).code == NOT_SO, "it is not healthy")
    answer = far.ctl("health", token=False)
    assert answer.json["status"] == "unhealthy" and answer.json["redis"]["status"] == "down"
    waiting = far.ctl("health", "--wait", "--timeout", "1", token=False)
    assert waiting.code == TIMED_OUT and len(waiting.err.splitlines()) <= 1
    redis.start()
    assert far.ctl("health", "--wait", token=False).code == OK
    wait_until(lambda: far.ctl("pods", token=False).code == UNREACHABLE, "what the coordinator knew is not what is so")
    assert far.ctl("leader", token=False).code == UNREACHABLE
    far.pool.stop()
    answer = far.ctl("health", token=False)
    assert answer.code == UNREACHABLE and "answered 503" in answer.err
    far.front.stop()
    assert far.ctl("health", token=False).code == UNREACHABLE
    assert far.ctl("sessions", "list", "ann").code == UNREACHABLE


@pytest.mark.parametrize("words", [["reload"], ["drain"], ["restart"], ["scale", "2"], ["top"], ["cleanup", "--now"], ["jobs"], ["cache", "flush"],
                                   ["store", "check"], ["store", "export", "-"], ["config", "show"], ["leader", "--step-down"]])
def test_what_works_on_the_node_only_says_so(words):
    answer = ctl_with(PLAIN, *words, "--url", "http://127.0.0.1:1/")
    assert answer.code == USAGE and "on the node itself" in answer.err


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://127.0.0.1/", "file:///etc/passwd", "http://", "http://u:p@127.0.0.1/", "http://127.0.0.1/x",
                                 "http://127.0.0.1/?a=b", "http://127.0.0.1/#a", "http://127.0.0.1/?/", "http://127.0.0.1/#/", "http://127.0.0.1/?",
                                 "http://@127.0.0.1/", "http://127.0.0.1 /", "http://127.0.0.1:99999/"])
def test_an_address_that_is_none_is_said(url):
    answer = ctl_with(PLAIN, "health", "--url", url)
    assert answer.code == USAGE and len(answer.err.splitlines()) == 1 and "allowed is http" in answer.err, answer.err


def test_options_of_the_way_need_a_way(folder):
    for words in (["--token-file", "x"], ["--cacert", "x"]):
        assert ctl_with({**PLAIN, "RUN_DIR": str(folder)}, "status", *words).code == USAGE


def test_no_token_goes_unencrypted_to_another_machine():
    for url in ("http://192.0.2.1/", "http://127.0.0.1.example/", "http://localhost.example/"):
        answer = ctl_with({**PLAIN, "ADMIN_TOKEN": "admin"}, "sessions", "list", "ann", "--url", url)
        assert answer.code == USAGE and "https only" in answer.err
    answer = ctl_with({**PLAIN, "ADMIN_TOKEN": "admin"}, "sessions", "list", "ann", "--url", f"http://LocalHost:{free_port()}/")
    assert answer.code == UNREACHABLE, "a name is the same in capitals"


# --- TLS ---

def openssl(folder, *words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, cwd=folder)


class Tls(Server):
    """nginx before a web server, with a certificate of an authority of our own."""

    def __init__(self, folder, port, names):
        self.port, self.ca = free_port(), folder / "ca.pem"
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
        openssl(folder, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=an authority")
        openssl(folder, "req", "-x509", *key, "-keyout", "tls.key", "-out", "tls.pem", "-subj", "/CN=node", "-addext", f"subjectAltName={names}",
                "-addext", "basicConstraints=critical,CA:FALSE", "-CA", "ca.pem", "-CAkey", "ca.key")
        conf = folder / "tls.conf"
        places = "".join(f"{kind}_temp_path {folder}/tls-{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        conf.write_text(f"""
            {"user root;" if os.geteuid() == 0 else ""} daemon off; pid {folder}/tls.pid; error_log stderr; events {{}}
            http {{ access_log off; {places} server {{
                listen 127.0.0.1:{self.port} ssl; ssl_certificate {folder}/tls.pem; ssl_certificate_key {folder}/tls.key;
                location / {{ proxy_pass http://127.0.0.1:{port}; }} }} }}""")
        super().__init__(folder, "tls", ["nginx", "-e", "stderr", "-p", folder, "-c", conf], {"PATH": os.environ["PATH"] + ":/usr/sbin"})

    def is_ready(self):
        return accepts(("127.0.0.1", self.port))


def test_over_tls_only_to_who_proves_to_be_it(far, folder, servers):
    tls = servers.enter_context(Tls(folder, far.front.port, "IP:127.0.0.1"))
    url, words = f"https://127.0.0.1:{tls.port}/", ["sessions", "list", "ann"]
    assert far.ctl(*words, "--cacert", tls.ca, url=url).code == OK
    assert far.look("health", "--cacert", tls.ca, url=url)["status"] == "healthy"
    before = far.front.access_log().count("/api/admin")
    for more in ([], ["--cacert", folder / "tls.key"], ["--cacert", folder / "none"]):
        answer = far.ctl(*words, *more, url=url)
        assert answer.code in (UNREACHABLE, USAGE) and len(answer.err.splitlines()) == 1, answer.err
    assert far.ctl(*words, "--cacert", tls.ca, url=f"https://localhost:{tls.port}/").code == UNREACHABLE, "another name"
    assert far.front.access_log().count("/api/admin") == before, "nobody was told the token"


# --- whatever comes back ---

class Strange:
    """A server that answers everything in one way, and remembers what it was told."""

    def __init__(self, status, body, headers=()):
        seen = self.seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                seen.append(dict(self.headers))
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    for name, value in headers:
                        self.send_header(name, value)
                    self.end_headers()
                    for piece in body:
                        self.wfile.write(piece)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize("status, body, code, said", [
    (200, [b"<html>hello</html>"], NOT_SO, "not of this service"), (200, [], NOT_SO, "not of this service"),
    (302, [b"{}"], USAGE, "another address"), (403, [b"<html>"], USAGE, "keeps this from machines"),
    (404, [b'{"success":false}'], NOT_SO, "answered 404"), (429, [b'{"error":{"message":"slowly"}}'], NOT_SO, "429: slowly"),
    (503, [b'{"error":{"message":"\\u001b[31mred\\nline\xc2\x9b"}}'], UNREACHABLE, "503: ?[31mred?line?"),
    (500, [b'{"error":7}'], NOT_SO, "answered 500"), (200, [b"{" + b" " * 1_000_000] * 80, NOT_SO, "does not end"),
])
def test_a_strange_answer_is_said_in_one_line(status, body, code, said):
    with Strange(status, body, [("Location", "http://192.0.2.1/")]) as server:
        answer = ctl_with(PLAIN, "status", "--url", server.url)
    assert answer.code == code and said in answer.err and len(answer.err.splitlines()) == 1, answer.err
    assert answer.out == ""


def test_a_redirection_does_not_get_the_token():
    with Strange(200, [b"{}"]) as other, Strange(307, [b"{}"], [("Location", other.url)]) as server:
        env = {**PLAIN, "ADMIN_TOKEN": "admin", "http_proxy": other.url, "all_proxy": other.url}
        assert ctl_with(env, "sessions", "list", "ann", "--url", server.url).code == USAGE
    assert server.seen[0]["Authorization"] == "Bearer admin" and not other.seen


def test_an_answer_that_misses_members_is_told_as_it_is():
    with Strange(200, [b'{"workers":[1,{"pid":{}},[]],"pool":7,"store":{"redis":"x"},"coordination":null}']) as server:
        answer = ctl_with(PLAIN, "status", "--json", "--url", server.url)
    assert answer.code == OK and answer.json["pool"]["idle"] is None and len(answer.json["workers"]) == 3


def test_who_does_not_answer_is_given_up(servers):
    hang = threading.Event()

    def never():
        hang.wait(10)
        yield b"{}"

    with Strange(200, never()) as server:
        try:
            assert ctl_with(PLAIN, "status", "--url", server.url, "--timeout", "1").code == TIMED_OUT
        finally:
            hang.set()
