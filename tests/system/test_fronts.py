"""lighttpd.conf and conf/nginx.conf: what reaches the pool and how, what the web server says itself, what it logs.
Most of it before a stand-in for the pool, which shows what arrives and answers as told."""

import json
import re

import pytest

from fcgi import Responder
from servers import REPO, Front, ask_raw, edited_tree, wait_until

ID = "0d9f2a6e-SECRET-4c1b"
SECURITY = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}


def echo(params, body):
    """The stand-in's answer: the status that X-Answer asks for, and what arrived; "none" is no answer at all."""
    status = params.get("HTTP_X_ANSWER", "200")
    if status == "none":
        return None
    text = json.dumps({"params": params, "body_bytes": len(body)})
    return (f"Status: {status} As Told\r\nContent-Type: application/json; charset=utf-8\r\nCache-Control: no-store\r\n"
            f"X-Request-Id: {params.get('HTTP_X_REQUEST_ID', 'made-by-pool')}\r\n\r\n{text}").encode()


@pytest.fixture(params=["lighttpd", "nginx"])
def kind(request):
    return request.param


@pytest.fixture
def standin(folder, servers):
    return servers.enter_context(Responder(folder / "standin.sock", echo))


@pytest.fixture
def web(folder, servers, kind, standin):
    return servers.enter_context(Front(folder, kind, f"unix:{folder}/standin.sock"))


def assert_is_own_error(reply, status, code):
    assert reply.status == status
    assert reply.headers["Content-Type"] == "application/json; charset=utf-8"
    assert reply.json["success"] is False
    assert reply.json["error"]["code"] == code and reply.json["error"]["message"]
    assert reply.headers["Server"] in (None, "nginx")  # no version


@pytest.mark.parametrize("path", ["/", "/index.html", "/api", "/apiary/x", "/error", "/404.html", "/api/../etc/passwd",
                                  "/api/%2e%2e/x"])
def test_only_api_reaches_the_pool(web, standin, path):
    reply = web.ask("GET", path)
    assert_is_own_error(reply, 404, "NOT_FOUND")
    assert reply.headers["Cache-Control"] == "no-store"
    assert SECURITY.items() <= dict(reply.headers.items()).items()
    assert standin.seen == []


STATUS_TYPES = {"": "text/html; charset=utf-8", ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
                ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


def test_the_status_page_is_served_whole_under_a_strict_policy(web, standin):
    files = sorted(path.name for path in (REPO / "fcgi-app/status").iterdir())
    for name in ["", *files]:
        reply = web.ask("GET", f"/status/{name}")
        assert reply.status == 200
        assert reply.body == (REPO / "fcgi-app/status" / (name or "index.html")).read_bytes()
        assert reply.headers["Content-Type"] == STATUS_TYPES[name and "." + name.partition(".")[2]]
        policy = reply.headers.get_all("Content-Security-Policy")
        assert len(policy) == 1 and policy[0].startswith("default-src 'none'; ") and "unsafe" not in policy[0]
        assert reply.headers.get_all("X-Content-Type-Options") == ["nosniff"]
        assert reply.headers.get_all("Cache-Control") == ["no-store"]
    assert web.ask("HEAD", "/status/").body == b""
    assert_is_own_error(web.ask("GET", "/status/index.html/x"), *{
        "lighttpd": (403, "FORBIDDEN"), "nginx": (404, "NOT_FOUND")}[web.kind])
    reply = web.ask("GET", "/status")
    assert reply.status == 301 and reply.headers["Location"].endswith("/status/")
    assert standin.seen == []


@pytest.mark.parametrize("path", ["/status/x.js", "/status/x.html", "/status/../conf/nginx.conf",
                                  "/status/..%2fstatus.css", "/status/%2e%2e/pool/api.h", "/status../pool/api.h", "/status.css"])
def test_nothing_but_the_status_page_is_served(web, standin, path):
    """lighttpd knows a page's file by its name before it looks for it, so what it says of a missing one is under the page's
    policy."""
    reply = web.ask("GET", path)
    assert_is_own_error(reply, 404, "NOT_FOUND")
    policy, told = SECURITY["Content-Security-Policy"], reply.headers["Content-Security-Policy"]
    assert told == policy or (web.kind, path) == ("lighttpd", "/status/x.js") and told.startswith("default-src 'none'; ")
    assert (SECURITY | {"Content-Security-Policy": told}).items() <= dict(reply.headers.items()).items()
    assert standin.seen == []


def head(line, *headers):
    return "\r\n".join([f"{line} HTTP/1.1", "Host: h", *headers, "", ""]).encode()


CHUNK = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
REFUSED = {  # what is wrong: (request, {web server: (status, code)})
    "header without colon": (head("GET /api/sessions", "Bad Header"), (400, "BAD_REQUEST")),
    "no host": (b"GET /api/sessions HTTP/1.1\r\n\r\n", (400, "BAD_REQUEST")),
    "no HTTP": (b"garbage\r\n\r\n", (400, "BAD_REQUEST")),
    "NUL in path": (head("GET /api/sessions/%00"), (400, "BAD_REQUEST")),
    "length and chunks": (head("POST /api/sessions", "Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
                          (400, "BAD_REQUEST")),
    "unknown coding": (head("POST /api/sessions", "Transfer-Encoding: foo"), (501, "NOT_IMPLEMENTED")),
    "HTTP/3": (b"GET /api/sessions HTTP/3.0\r\nHost: h\r\n\r\n", (505, "HTTP_VERSION_NOT_SUPPORTED")),
    "large header": (head("GET /api/sessions", "X-Large: " + "x" * 100_000), (431, "HEADERS_TOO_LARGE")),
    "large body": (head("POST /api/sessions", "Content-Length: 140000") + b"x" * 140_000, (413, "PAYLOAD_TOO_LARGE")),
    "large body in chunks": (head("POST /api/sessions", "Transfer-Encoding: chunked") + CHUNK * 20 + b"0\r\n\r\n",
                             (413, "PAYLOAD_TOO_LARGE")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses_with_json_what_the_pool_should_not_see(web, standin, what):
    request, (status, code) = REFUSED[what]
    reply = ask_raw(web.port, request)
    assert_is_own_error(reply, status, code)
    if web.kind == "nginx":  # lighttpd sets no headers on what it refuses so early
        assert reply.headers["Cache-Control"] == "no-store"
        assert reply.headers["X-Request-Id"]
    assert standin.seen == []


def test_refuses_a_long_address(web, standin):
    reply = ask_raw(web.port, head("GET /api/" + "x" * 100_000))
    assert_is_own_error(reply, *{"lighttpd": (431, "HEADERS_TOO_LARGE"), "nginx": (414, "URI_TOO_LONG")}[web.kind])
    assert standin.seen == []


def test_answers_json_while_the_pool_is_down_and_goes_on_when_it_is_back(folder, servers, kind):
    web = servers.enter_context(Front(folder, kind, f"unix:{folder}/standin.sock"))
    for _ in range(3):
        reply = web.ask("GET", "/api/sessions")
        assert_is_own_error(reply, *{"lighttpd": (503, "SERVICE_UNAVAILABLE"), "nginx": (502, "BAD_GATEWAY")}[kind])
        assert reply.headers["Cache-Control"] == "no-store"
        assert reply.headers["Retry-After"] == {"lighttpd": None, "nginx": "1"}[kind]
    servers.enter_context(Responder(folder / "standin.sock", echo))
    wait_until(lambda: web.ask("GET", "/api/sessions").status == 200, "the pool is asked again",
               timeout_s={"lighttpd": 5 * 2, "nginx": 0}[kind])  # of lighttpd "within a second or two" is promised


@pytest.mark.parametrize("status", [200, 201, 304, 400, 401, 403, 404, 405, 412, 413, 415, 429, 500, 502, 503, 504])
def test_answers_of_the_pool_pass_as_they_are(web, status):
    reply = web.ask("GET", "/api/sessions", headers={"X-Answer": str(status), "X-Request-Id": "rid"})
    assert reply.status == status
    if status != 304:
        assert reply.json["params"]["HTTP_X_ANSWER"] == str(status)
    for name, value in {"Cache-Control": "no-store", "X-Request-Id": "rid", **SECURITY}.items():
        assert reply.headers.get_all(name) == [value]


@pytest.mark.parametrize("method, body_bytes", [("GET", 0), ("HEAD", 0), ("OPTIONS", 0)] + [
    (method, body_bytes) for method in ("POST", "PATCH", "PUT", "DELETE") for body_bytes in (0, 1, 100_000)])
def test_methods_and_bodies_pass(web, standin, method, body_bytes):
    reply = web.ask(method, "/api/sessions/x", b"x" * body_bytes, {"Content-Type": "application/merge-patch+json"})
    assert reply.status == 200
    params, body = standin.seen[-1]
    assert params["REQUEST_METHOD"] == method
    assert params["CONTENT_TYPE"] == "application/merge-patch+json"
    assert int(params["CONTENT_LENGTH"] or 0) == len(body) == body_bytes
    assert (method == "HEAD") == (reply.body == b"")


def test_bodies_in_chunks_and_after_100_continue_pass(web, standin):
    reply = ask_raw(web.port, head("POST /api/sessions", "Transfer-Encoding: chunked") + CHUNK * 3 + b"0\r\n\r\n")
    assert reply.status == 200
    assert int(standin.seen[-1][0]["CONTENT_LENGTH"]) == len(standin.seen[-1][1]) == 3 * 0x2000
    reply = ask_raw(web.port, head("PATCH /api/sessions", "Expect: 100-continue", "Content-Length: 3") + b"abc")
    assert reply.status == 200  # http.client passes over the 100
    assert standin.seen[-1][1] == b"abc"


def test_the_pool_learns_what_it_needs(web, standin):
    web.ask("GET", "/api/sessions/a%20b?sessionId=x%26y&z", headers={
        "X-Session-Id": "sid", "X-Forwarded-For": "203.0.113.9", "User-Agent": "ua", "If-None-Match": '"tag"',
        "Authorization": "Bearer t", "Cookie": "c=1"})
    expected = {"REQUEST_URI": "/api/sessions/a%20b?sessionId=x%26y&z", "QUERY_STRING": "sessionId=x%26y&z",
                "REMOTE_ADDR": "127.0.0.1", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_X_SESSION_ID": "sid",
                "HTTP_X_FORWARDED_FOR": "203.0.113.9", "HTTP_USER_AGENT": "ua", "HTTP_IF_NONE_MATCH": '"tag"',
                "HTTP_AUTHORIZATION": "Bearer t", "HTTP_COOKIE": "c=1", "HTTP_HOST": f"127.0.0.1:{web.port}"}
    assert expected.items() <= standin.seen[0][0].items()


def test_a_request_gets_an_id_unless_the_client_sent_one(web, standin):
    web.ask("GET", "/api/sessions", headers={"X-Request-Id": "from-client"})
    assert standin.seen[-1][0]["HTTP_X_REQUEST_ID"] == "from-client"
    web.ask("GET", "/api/sessions")
    if web.kind == "nginx":
        assert re.fullmatch("[0-9a-f]{32}", standin.seen[-1][0]["HTTP_X_REQUEST_ID"])
        web.ask("GET", "/api/sessions", headers={"X-Request-Id": "not one!"})
        assert re.fullmatch("[0-9a-f]{32}", standin.seen[-1][0]["HTTP_X_REQUEST_ID"])
    else:
        assert "HTTP_X_REQUEST_ID" not in standin.seen[-1][0]  # the pool makes one


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"])
def test_only_get_and_head_are_asked_twice(web, standin, method):
    """The stand-in takes each request and closes: on a fresh connection, and on one that nginx has kept."""
    tries = 2 if web.kind == "nginx" and method in ("GET", "HEAD") else 1
    for _ in range(2):
        before = len(standin.seen)
        assert web.ask(method, "/api/sessions", b"", {"X-Answer": "none"}).status in (500, 502)
        assert len(standin.seen) - before == tries
        for _ in range(8):  # so many that each worker of nginx keeps a connection
            assert web.ask("GET", "/api/sessions").status == 200


def test_nginx_keeps_connections_and_lighttpd_does_not(web, standin):
    before = standin.connections
    for _ in range(50):
        assert web.ask("POST", "/api/sessions", b"{}").status == 200
    opened = standin.connections - before
    assert opened < 25 if web.kind == "nginx" else opened == 50


ODD_PATHS = ["/api/sessions/{}", "/api/sessions?sessionId={}", "/api//sessions/{}", "/api/%73essions/{}",
             "/api/./sessions/{}", "/api/health/../sessions/{}", "/api/sessions/{}/../../health", "/api/x{}", "/{}",
             "/{}?sessionId={}", "/api/sessions/{}%00", "/api/metrics/{}", "/api/sessionsx{}"]


def test_the_logs_hold_no_id_and_no_query(web):
    for path in ODD_PATHS:
        web.ask("GET", path.format(ID, ID), headers={"X-Session-Id": ID, "Cookie": f"hyperpage-session={ID}"})
    web.ask("POST", f"/api/sessions/{ID}", b"", {"X-Answer": "none"})
    web.ask("POST", f"/api/sessions/{ID}", b"x" * 140_000)
    ask_raw(web.port, head(f"GET /api/sessions/{ID}", "Bad Header"))
    web.stop()
    assert len(web.access_log().splitlines()) == len(ODD_PATHS) + 3
    assert ID not in web.access_log() and "sessionId" not in web.access_log()
    assert ID not in web.log()


def test_the_access_log_tells_method_path_status_and_request_id(web):
    web.ask("GET", f"/api/sessions/{ID}?x=1", headers={"X-Request-Id": "rid-1"})
    web.ask("DELETE", "/api/sessions", headers={"X-Request-Id": "rid-2", "X-Answer": "none"})
    web.ask("GET", "/api/health/live", headers={"X-Request-Id": "rid-3", "X-Answer": "503"})
    web.stop()
    lines = web.access_log().splitlines()
    assert re.search(r"\] GET /api/sessions 200 \d+ [\d.]+ rid-1$", lines[0])
    assert re.search(r"\] DELETE /api/sessions 50[02] \d+ [\d.]+ (rid-2|-)$", lines[1])
    assert re.search(r"\] GET /api/health 503 \d+ [\d.]+ rid-3$", lines[2])


BEHIND_TLS = {  # what the files offer in comments, with this machine as the TLS server
    "nginx": [("#set_real_ip_from 192.0.2.10;", "set_real_ip_from 127.0.0.1;"),
              ("#real_ip_header", "real_ip_header")],
    "lighttpd": [("#server.modules +=", "server.modules +="),
                 ('#extforward.forwarder = ( "192.0.2.10"', 'extforward.forwarder = ( "127.0.0.1"')],
}


def test_what_tells_of_the_inside_is_for_private_networks_only(folder, servers, kind, standin):
    tree = edited_tree(folder, **BEHIND_TLS)
    web = servers.enter_context(Front(folder, kind, f"unix:{folder}/standin.sock", tree))
    for path in ("/status/", "/api/metrics", "/api/coordination", "/api/status", "/api//metrics", "/api/%6detrics",
                 "/status/status.js", "/status//index.html", "/%73tatus/"):
        for client in ("203.0.113.9", "2001:db8::1", "172.32.0.1"):
            reply = web.ask("GET", path, headers={"X-Forwarded-For": client})
            assert_is_own_error(reply, 403, "FORBIDDEN")
        assert standin.seen == []
    for client in ("10.1.2.3", "172.16.0.1", "192.168.7.7", "127.0.0.1", "::1", "fd00::1"):
        for path in ("/api/metrics", "/api/status", "/status/"):
            assert web.ask("GET", path, headers={"X-Forwarded-For": client}).status == 200
    assert web.ask("GET", "/api/sessions", headers={"X-Forwarded-For": "203.0.113.9"}).status == 200
    assert standin.seen[-1][0]["REMOTE_ADDR"] == "203.0.113.9"


def test_a_session_lives_and_dies_through_the_web_server(front):
    created = front.ask("GET", "/api/sessions", headers={"X-Request-Id": "create-1"})
    assert created.status == 200 and created.headers["X-Request-Id"] == "create-1"
    path = f"/api/sessions/{created.json['sessionId']}"
    assert front.ask("PATCH", path, {"uiState": {"dashboardLayout": "wide"}}).status == 200
    assert front.ask("GET", path).json["session"]["uiState"]["dashboardLayout"] == "wide"
    assert front.ask("HEAD", path).status == 200
    assert front.ask("POST", "/api/sessions", {"sessionId": created.json["sessionId"],
                                               "updates": {"lastActivity": "2020-01-01T00:00:00.000Z"}}).status == 200
    assert front.ask("DELETE", path).status == 200
    assert front.ask("GET", path).json["error"]["code"] == "SESSION_NOT_FOUND"
    front.stop()
    assert "GET /api/sessions 200" in front.access_log() and "create-1" in front.access_log()
    assert created.json["sessionId"] not in front.access_log() + front.log()


@pytest.mark.parametrize("body_bytes", [65_537, 70_000, 131_072])
def test_the_pool_refuses_bodies_over_its_own_limit_with_its_own_words(front, body_bytes):
    reply = front.ask("POST", "/api/sessions", b"x" * body_bytes)
    assert reply.status == 413
    assert "SESSION_MAX_BYTES" in reply.json["error"]["message"]  # the web server's own answer does not say that
