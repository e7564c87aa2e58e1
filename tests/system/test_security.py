"""The configurations of docs/security.md, as they stand there: Redis' ACL, TLS to Redis by stunnel, TLS before the web
server."""

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess

import pytest

from postgres import Postgres
from servers import BUILD, PATIENCE_S, REPO, Coordinator, Front, Pool, Redis, Server, accepts, free_port, wait_until

PAGE = (REPO / "docs/security.md").read_text()
SERVICE = {"Authorization": "Bearer service-token"}
ADMIN = {"Authorization": "Bearer admin-token"}
TOKENS = {"SERVICE_TOKEN": "service-token", "ADMIN_TOKEN": "admin-token"}


def shown(language):
    return re.search(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S).group(1)


def changed(text, places):
    """The configuration with places of this machine."""
    for old, new in places.items():
        assert old in text, f"the page no longer holds: {old}"
        text = text.replace(old, str(new))
    return text


def said(answer, status=200):
    assert answer.status == status, answer.body
    return json.loads(answer.body)


# --- Redis' ACL ---

@pytest.fixture
def guarded(redis):
    """A Redis with the page's user, and nobody else for the service."""
    words = shown("text acl").replace("PASSWORD", "data").split()
    assert words.pop(0) == "user"
    redis.call("ACL", "SETUSER", *words)
    redis.guarded_url = f"redis://hyperpage:data@127.0.0.1:{redis.port}/0"
    return redis


def refused(redis):
    """What the ACL has refused to the service."""
    entries = [dict(zip(entry[::2], entry[1::2])) for entry in redis.call("ACL", "LOG")]
    return [(e[b"reason"], e[b"object"], e[b"context"]) for e in entries if e[b"username"] == b"hyperpage"]


def create(pool, user):
    answer = pool.ask("POST", "/api/sessions?create=1", {"sessionData": {"userId": user}}, headers=SERVICE)
    return said(answer, 201)["sessionId"]


def use_all(pool):
    session_id = create(pool, "alice")
    path = f"/api/sessions/{session_id}"
    said(pool.ask("GET", path, headers={"Cache-Control": "no-cache"}))
    said(pool.ask("PATCH", path, {"a": 1}))
    said(pool.ask("PATCH", path, {"a": 2}, headers={"If-Match": "*"}))
    said(pool.ask("POST", f"{path}/extend", {"seconds": 1000}))
    session_id = said(pool.ask("POST", f"{path}/rotate", headers={"Idempotency-Key": "k"}))["sessionId"]
    assert said(pool.ask("POST", f"{path}/rotate", headers={"Idempotency-Key": "k"}))["sessionId"] == session_id
    assert len(said(pool.ask("GET", "/api/admin/sessions?userId=alice", headers=ADMIN))["sessions"]) == 1
    assert said(pool.ask("DELETE", "/api/admin/sessions?userId=alice", headers=ADMIN))["revoked"] == 1
    said(pool.ask("DELETE", f"/api/sessions/{said(pool.ask('GET', '/api/sessions'))['sessionId']}"))
    for message in ({"type": "broadcast", "payload": {}},
                    {"type": "cache_invalidate", "payload": {"keys": ["*"]}, "podId": "a"}):
        assert said(pool.ask("POST", "/api/admin/coordination/messages", message, headers=ADMIN))["receivers"] >= 1


def use_tool(node, folder):
    """The operator's tool, by the same user."""
    for words in (["sessions", "count"], ["sessions", "list", "bob"], ["store", "check"], ["cache", "flush"],
                  ["store", "export", folder / "sessions"], ["store", "import", folder / "sessions"],
                  ["send", "broadcast", "{}"], ["sessions", "revoke", "bob"]):
        done = subprocess.run([BUILD / "hyperpagectl", *words], env={**os.environ, **{k: str(v) for k, v in node.items()}},
                              text=True, capture_output=True, timeout=30)
        assert done.returncode == 0, (words, done.stdout, done.stderr)


def test_the_acl_allows_all_that_the_service_does_and_no_more(folder, servers, guarded):
    database = servers.enter_context(Postgres(folder))
    node = {"RUN_DIR": folder / "a/run", "STATE_DIR": folder / "a/state", "REDIS_URL": guarded.guarded_url, "POD_NAME": "a"}
    coordinator = servers.enter_context(Coordinator(folder, "a", DATABASE_URL=database.url, **node))
    pool = servers.enter_context(Pool(folder, SESSION_ROLLING="true", **TOKENS, **node))
    wait_until(lambda: said(pool.ask("GET", "/api/coordination"))["leader"]["isSelf"], "it leads")
    wait_until(lambda: "session cache is coherent" in coordinator.log(), "it hears of changes")
    wait_until(lambda: database.value("SELECT to_regclass('hyperpage_schema') IS NOT NULL"),
               "the tables are made", PATIENCE_S * 3)
    use_all(pool)
    session_id = create(pool, "bob")
    wait_until(lambda: database.ask("SELECT 1 FROM user_sessions WHERE session_token = %s", session_id),
               "the registry has heard of it", PATIENCE_S * 3)
    wait_until(lambda: database.ask("SELECT 1 FROM jobs WHERE type = 'cleanup' AND status = 'completed'"),
               "the cleanup has scanned", PATIENCE_S * 3)
    wait_until(lambda: guarded.call("EXISTS", "hyperpage:sessions:active"), "the sessions are counted")
    use_tool(node, folder)
    coordinator.stop()  # gives the lease back
    assert refused(guarded) == []
    with guarded.connection() as r:
        r.call("AUTH", "hyperpage", "data")
        for words in (("KEYS", "*"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("GET", "portal:secret"),
                      ("PUBLISH", "portal", "x"), ("CLIENT", "KILL", "ID", "1"),
                      ("EVAL", "return redis.call('GET', 'portal:secret')", 0)):
            with pytest.raises(RuntimeError, match="NOPERM|can't|permission"):
                r.call(*words)


def test_the_acl_allows_a_refuge_and_its_replay(folder, servers, guarded):
    pool = servers.enter_context(Pool(folder, REDIS_URL=guarded.guarded_url, SESSION_REDIS_WAIT_REPLICAS=0))
    session_id, ended = (said(pool.ask("GET", "/api/sessions"))["sessionId"] for _ in range(2))
    guarded.call("REPLICAOF", "127.0.0.1", free_port())  # read-only: away
    changed = pool.ask("PATCH", f"/api/sessions/{session_id}", {"a": 1})
    assert changed.status == 200 and changed.headers["X-Session-Store"] == "refuge"
    born = said(pool.ask("GET", "/api/sessions"))["sessionId"]
    said(pool.ask("DELETE", f"/api/sessions/{ended}"))
    guarded.call("REPLICAOF", "NO", "ONE")
    wait_until(lambda: b'"a":1' in guarded.call("GET", f"hyperpage:session:{session_id}")
               and guarded.call("EXISTS", f"hyperpage:session:{born}")
               and not guarded.call("EXISTS", f"hyperpage:session:{ended}"), "all three are back")
    assert refused(guarded) == []


# --- TLS ---

def certificate(folder, host):
    """A self-signed certificate for this host, which is its own authority: (certificate, key)."""
    paths = folder / f"{host}.pem", folder / f"{host}.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
                    "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}", "-keyout", paths[1], "-out", paths[0]],
                   check=True, capture_output=True)
    return paths


class Stunnel(Server):
    """stunnel with the page's configuration, of which places are changed."""

    def __init__(self, folder, name, redis_port, authority, host="redis.example.org"):
        self.port = free_port()
        text = shown("ini")
        text = changed(text, {"127.0.0.1:6380": f"127.0.0.1:{self.port}",
                              "connect = redis.example.org:6379": f"connect = 127.0.0.1:{redis_port}",
                              "/etc/ssl/certs/redis-ca.pem": authority, "checkHost = redis.example.org": f"checkHost = {host}"})
        path = folder / f"{name}.conf"
        path.write_text(text)
        super().__init__(folder, name, ["stunnel4", path])

    def is_ready(self):
        return "Configuration successful" in self.log() and accepts(("127.0.0.1", self.port))


def test_redis_is_reached_through_stunnel_and_only_the_right_one(folder, servers):
    cert, key = certificate(folder, "redis.example.org")
    tls_port = free_port()
    redis = servers.enter_context(Redis(folder, tls_port=tls_port, tls_cert_file=cert, tls_key_file=key, tls_ca_cert_file=cert,
                                        tls_auth_clients="no"))
    tunnel = servers.enter_context(Stunnel(folder, "stunnel", tls_port, cert))
    pool = servers.enter_context(Pool(folder, REDIS_URL=f"redis://127.0.0.1:{tunnel.port}/0"))
    session_id = said(pool.ask("GET", "/api/sessions"))["sessionId"]
    said(pool.ask("PATCH", f"/api/sessions/{session_id}", {"a": 1}))
    assert b'"a":1' in redis.call("GET", f"hyperpage:session:{session_id}")
    tunnel.stop()
    answer = pool.ask("PATCH", f"/api/sessions/{session_id}", {"a": 2})
    assert answer.status == 200 and answer.headers["X-Session-Store"] == "refuge", "an outage like others"

    wrong = servers.enter_context(Stunnel(folder, "wrong", tls_port, cert, host="other.example.org"))
    with pytest.raises((OSError, EOFError)):
        with contextlib.closing(socket.create_connection(("127.0.0.1", wrong.port), timeout=10)) as s:
            s.sendall(b"PING\r\n")
            if not s.recv(10):
                raise EOFError
    wait_until(lambda: "CERT: " in wrong.log(), "it says why")


class Tls(Server):
    """nginx with the page's server before a web server."""

    def __init__(self, folder, behind, cert, key):
        self.port = free_port()
        text = shown("nginx")
        text = changed(text, {"listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl", "/etc/ssl/private/portal.pem": cert,
                              "/etc/ssl/private/portal.key": key, "127.0.0.1:8080": f"127.0.0.1:{behind}"})
        path = folder / "tls.conf"
        temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        path.write_text(f"daemon off; pid {folder}/tls.pid; error_log stderr; events {{}} "
                        f"http {{ access_log off; {temporary}\n{text} }}")
        super().__init__(folder, "tls", ["/usr/sbin/nginx", "-e", "stderr", "-p", folder, "-c", path])

    def is_ready(self):
        return accepts(("127.0.0.1", self.port))

    def ask(self, cert, path, **headers):
        context = ssl.create_default_context(cafile=cert)
        with contextlib.closing(http.client.HTTPSConnection("portal.example.org", self.port, context=context, timeout=10)) as c:
            plain = socket.create_connection(("127.0.0.1", self.port), timeout=10)
            c.sock = context.wrap_socket(plain, server_hostname="portal.example.org")
            c.request("GET", path, headers=headers)
            response = c.getresponse()
            return response, response.read()


def test_tls_before_the_web_server(folder, servers):
    cert, key = certificate(folder, "portal.example.org")
    pool = servers.enter_context(Pool(folder, SESSION_COOKIE="true", ADMIN_TOKEN="admin-token"))
    front = servers.enter_context(Front(folder, "lighttpd", f"unix:{pool.address}"))
    tls = servers.enter_context(Tls(folder, front.port, cert, key))
    claims = {"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6", "X-Forwarded-Proto": "http"}
    response, body = tls.ask(cert, "/api/sessions", **claims)
    assert response.status == 200 and "; Secure" in response.headers["Set-Cookie"]
    assert json.loads(body)["session"]["metadata"]["ipAddress"] == "127.0.0.1"
    assert response.headers["X-Content-Type-Options"] == "nosniff" and response.headers["Strict-Transport-Security"]
    for path in ("/api/metrics", "/api/coordination", "/api/status", "/status/", "/api/admin/sessions?userId=u",
                 "/api//metrics", "/api/%6detrics", "/api/x/../metrics"):
        assert tls.ask(cert, path)[0].status == 404, path
