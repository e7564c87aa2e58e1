"""The HTTP contract of /api/sessions, over both stores, straight at the pool's socket."""

import contextlib
import datetime
import json
import os
import pathlib
import re
import sqlite3
import tempfile
import time

import pytest

from servers import NO_QUARANTINE, Pool, Redis, Server, wait_until

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
JSON_TYPE = "application/json; charset=utf-8"
MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}
LONG = os.environ.get("HYPERPAGE_LONG") == "1"
MAX_BYTES = 65536
DAY_S = 86400


class Place:
    """A pool and a way to look into its store behind its back."""

    def __init__(self, kind, folder, servers, **options):
        self.kind, self.folder = kind, folder
        self.redis = servers.enter_context(Redis(folder)) if kind == "redis" else None
        # No test here is about Redis being slow, and on a busy machine it may be.
        self.pool = servers.enter_context(Pool(folder, REDIS_URL=self.redis.url if self.redis else "",
                                               **{"REDIS_TIMEOUT_MS": 4000, **options}))
        self.ask, self.address = self.pool.ask, self.pool.address

    def sql(self, statement, *values):
        with contextlib.closing(sqlite3.connect(self.folder / "state/sessions.db", isolation_level=None)) as db:
            return db.execute(statement, values).fetchone()

    def put(self, doc, session_id="stored-1", ttl_s=DAY_S):
        """Stores these bytes as an original pod or an older version would have, and returns the id."""
        doc = doc.encode() if isinstance(doc, str) else doc
        if self.redis:
            self.redis.call("SET", f"hyperpage:session:{session_id}", doc, "EX", ttl_s)
        else:
            expires_ms = int((time.time() + ttl_s) * 1000)
            self.sql("INSERT INTO sessions (id, expires_ms, purge_ms, doc) VALUES (?1, ?2, ?2, ?3)"
                     " ON CONFLICT (id) DO UPDATE SET expires_ms = ?2, purge_ms = ?2, doc = ?3",
                     session_id, expires_ms, doc)
        return session_id

    def stored(self, session_id):
        """The stored bytes, or None."""
        if self.redis:
            return self.redis.call("GET", f"hyperpage:session:{session_id}")
        row = self.sql("SELECT doc FROM sessions WHERE id = ?1 AND expires_ms > ?2", session_id,
                       int(time.time() * 1000))
        return row and row[0]

    def ttl_s(self, session_id):
        if self.redis:
            return self.redis.call("PTTL", f"hyperpage:session:{session_id}") / 1000
        return self.sql("SELECT expires_ms FROM sessions WHERE id = ?1", session_id)[0] / 1000 - time.time()

    def expire(self, session_id, ttl_s):
        """Sets the remaining life; 0 ends it."""
        if self.redis:
            self.redis.call("PEXPIRE", f"hyperpage:session:{session_id}", int(ttl_s * 1000))
        else:
            self.sql("UPDATE sessions SET expires_ms = ?1 WHERE id = ?2", int((time.time() + ttl_s) * 1000), session_id)

    def create(self):
        return said(self.ask("GET", "/api/sessions"))["sessionId"]

    def read(self, session_id):
        return said(self.ask("GET", f"/api/sessions/{session_id}"))["session"]


def said(answer):
    """The body, after a look at what every good answer must have."""
    assert answer.status < 300, answer.body
    assert answer.headers["Content-Type"] == JSON_TYPE
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Request-Id"]
    body = json.loads(answer.body)
    assert body["success"] is True
    return body


def error_body(code, message, pointer=None, reason=None):
    error = {"code": code, "message": message}
    if pointer is not None:
        error["details"] = {"pointer": pointer, "reason": reason}
    return json.dumps({"success": False, "error": error}, separators=(",", ":")).encode()


def code_of(answer):
    assert json.loads(answer.body)["success"] is False
    return answer.status, json.loads(answer.body)["error"]["code"]


NOT_FOUND = (401, "SESSION_NOT_FOUND")
BAD_ID = (400, "INVALID_SESSION_ID")
PROTECTED = (403, "SESSION_MEMBER_PROTECTED")


@pytest.fixture(scope="module", params=["redis", "embedded"])
def shared_place(request):
    with tempfile.TemporaryDirectory(prefix="hp-") as folder, contextlib.ExitStack() as stack:
        yield Place(request.param, pathlib.Path(folder), stack, SERVICE_TOKEN="first-token,second-token")


@pytest.fixture
def place(shared_place):
    """One pool for all tests that need no options of their own; its log is shown like any other."""
    Server.started.append(shared_place.pool)
    return shared_place


@pytest.fixture(params=["redis", "embedded"])
def make_place(request, folder, servers):
    return lambda **options: Place(request.param, folder, servers, **options)


# --- create and read ---

def test_get_without_an_id_creates_a_default_session(place):
    answer = place.ask("GET", "/api/sessions", headers={"User-Agent": 'curl/8 "x"', "X-Real-IP": "198.51.100.7"})
    body = said(answer)
    assert answer.status == 200 and body["message"] == "New session created"
    assert UUID.fullmatch(body["sessionId"])
    session, now = body["session"], body["session"]["lastActivity"]
    assert TIME.fullmatch(now)
    assert session == {
        "preferences": {"theme": "system", "timezone": "UTC", "language": "en", "refreshInterval": 300000},
        "uiState": {"expandedWidgets": [], "lastVisitedTools": [], "dashboardLayout": "default", "filterSettings": {}},
        "toolConfigs": {}, "authenticatedTools": {}, "lastActivity": now,
        "metadata": {"ipAddress": "198.51.100.7", "userAgent": 'curl/8 "x"', "created": now, "updated": now}}
    stored = place.stored(body["sessionId"])
    assert answer.body == (b'{"success":true,"sessionId":"%s","session":%s,"message":"New session created"}'
                           % (body["sessionId"].encode(), stored))
    assert DAY_S - 5 < place.ttl_s(body["sessionId"]) <= DAY_S
    assert answer.headers["ETag"] and answer.headers["X-Session-Version"]


@pytest.mark.parametrize("uri", ["/api/sessions?sessionId=", "/api/sessions?sessionId=%20+", "/api/sessions?x=1",
                                 "/api/sessions/"])
def test_an_empty_id_counts_as_none(place, uri):
    assert said(place.ask("GET", uri))["message"] == "New session created"


@pytest.mark.parametrize("agent, kept", [(None, ""), ("", ""), (b"caf\xc3\xa9 \\ \x01", "café \\ \x01"),
                                         (b"bad \xff\xfe", None)])
def test_any_user_agent_gives_a_valid_document(place, agent, kept):
    body = said(place.ask("GET", "/api/sessions", HTTP_USER_AGENT=agent))
    json.loads(place.stored(body["sessionId"]).decode("utf-8"))
    if kept is not None:
        assert body["session"]["metadata"]["userAgent"] == kept


@pytest.mark.parametrize("uri, headers", [("/api/sessions?sessionId={}", {}), ("/api/sessions/{}", {}),
                                          ("/api/sessions", {"X-Session-Id": "{}"}),
                                          ("/api/sessions?sessionId=%20{}%0A", {}), ("/api/sessions/%20{}%20", {}),
                                          ("/api/sessions", {"X-Session-Id": "  {}\t"}),
                                          ("/api/sessions/{}?sessionId={}", {"X-Session-Id": "{}"})])
def test_the_id_may_stand_in_path_query_or_header_and_is_trimmed(place, uri, headers):
    session_id = place.create()
    headers = {k: v.format(session_id) for k, v in headers.items()}
    answer = place.ask("GET", uri.replace("{}", session_id), headers=headers)
    assert answer.body == b'{"success":true,"sessionId":"%s","session":%s}' % (session_id.encode(),
                                                                              place.stored(session_id))
    head = place.ask("HEAD", uri.replace("{}", session_id), headers=headers)
    assert head.status == 200 and head.body == b""
    assert {k: v for k, v in head.headers.items() if k != "X-Request-Id"} == {
        k: v for k, v in answer.headers.items() if k != "X-Request-Id"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "PATCH", "DELETE"])
@pytest.mark.parametrize("uri, header", [("/api/sessions/{}?sessionId=other", None), ("/api/sessions/{}", "other"),
                                         ("/api/sessions?sessionId={}", "other"),
                                         ("/api/sessions?sessionId={}&sessionId=other", None)])
def test_two_ids_that_differ_are_refused(place, method, uri, header):
    session_id = place.create()
    before = place.stored(session_id)
    answer = place.ask(method, uri.format(session_id), b'{"a":1}' if method == "PATCH" else b"",
                       headers={"X-Session-Id": header} if header else {})
    assert answer.status == 400
    if method != "HEAD":
        assert code_of(answer) == BAD_ID
    assert place.stored(session_id) == before


def test_post_takes_the_id_from_the_body_or_the_header_but_not_two(place):
    session_id = place.create()
    body = {"updates": {"a": 1}}
    header = {"X-Session-Id": session_id}
    assert said(place.ask("POST", "/api/sessions", body, headers=header))["sessionId"] == session_id
    assert said(place.ask("POST", "/api/sessions", {"sessionId": f" {session_id}\n", **body}, headers=header))
    assert code_of(place.ask("POST", "/api/sessions", {"sessionId": "other", **body}, headers=header)) == BAD_ID


def test_ids_have_at_most_128_characters(place):
    assert code_of(place.ask("GET", "/api/sessions/" + "x" * 128)) == NOT_FOUND
    assert code_of(place.ask("GET", "/api/sessions/" + "x" * 129)) == BAD_ID
    place.put("{}", "y" * 128)
    assert said(place.ask("GET", "/api/sessions?sessionId=" + "y" * 128))["session"] == {}


def test_head_says_what_get_would_and_every_body_says_its_length(place):
    session_id = place.create()
    got, head = (place.ask(method, f"/api/sessions/{session_id}") for method in ("GET", "HEAD"))
    assert got.headers["Content-Length"] == head.headers["Content-Length"] == str(len(got.body)) and head.body == b""
    assert got.headers["ETag"] == head.headers["ETag"]


def test_head_never_creates(place):
    answer = place.ask("HEAD", "/api/sessions")
    assert (answer.status, answer.body) == (400, b"")
    assert place.ask("HEAD", "/api/sessions/none").status == 401


@pytest.mark.parametrize("given, kept", [("abc-1._Z", True), ("x" * 128, True), ("x" * 129, False), ("a b", False),
                                         ("a/b", False), ("", False), (b"\xff", False)])
def test_the_request_id_is_taken_over_or_made(place, given, kept):
    for uri in ("/api/sessions", "/api/sessions/none", "/api/none"):
        came_back = place.ask("GET", uri, HTTP_X_REQUEST_ID=given).headers["X-Request-Id"]
        assert came_back == given if kept else UUID.fullmatch(came_back)


# --- POST ?create=1 ---

def test_post_create_answers_201_with_location_and_given_members_replace_the_defaults(place):
    data = {"preferences": {"theme": "dark"}, "mine": [1, 2], "metadata": {"note": "x", "created": "2001-01-01T00:00:00Z"}}
    answer = place.ask("POST", "/api/sessions?create=1", {"sessionData": data})
    body = said(answer)
    assert answer.status == 201 and UUID.fullmatch(body["sessionId"])
    assert answer.headers["Location"] == f"/api/sessions/{body['sessionId']}"
    assert body["message"] == "New session created"
    session = body["session"]
    assert session["preferences"] == {"theme": "dark"} and session["mine"] == [1, 2]
    assert session["uiState"]["dashboardLayout"] == "default"
    assert session["metadata"]["note"] == "x" and session["metadata"]["created"] == session["lastActivity"]
    assert place.read(body["sessionId"]) == session


def test_post_create_needs_no_body(place):
    answer = place.ask("POST", "/api/sessions?create=1")
    assert answer.status == 201 and said(answer)["session"]["preferences"]["theme"] == "system"


# --- updates ---

def test_patch_with_json_replaces_top_level_members_and_merges_metadata_one_level(place):
    session_id = place.create()
    before = place.read(session_id)
    body = said(place.ask("PATCH", f"/api/sessions/{session_id}", {
        "uiState": {"dashboardLayout": "wide"}, "mine": None, "metadata": {"note": {"a": 1}}}))
    assert body == {"success": True, "sessionId": session_id, "message": "Session updated successfully"}
    after = place.read(session_id)
    assert after["uiState"] == {"dashboardLayout": "wide"} and after["mine"] is None
    assert after["metadata"] == {**before["metadata"], "note": {"a": 1}, "updated": after["lastActivity"]}
    assert {k: v for k, v in after.items() if k not in ("uiState", "mine", "metadata", "lastActivity")} == {
        k: v for k, v in before.items() if k not in ("uiState", "metadata", "lastActivity")}


def test_patch_with_merge_patch_goes_into_objects_and_null_removes(place):
    session_id = place.put('{"a":{"b":1,"c":{"d":2}},"gone":1,"list":[1,2],"metadata":{"x":1,"y":2}}')
    patch = {"a": {"b": None, "c": {"e": 3}}, "gone": None, "absent": None, "list": [3], "new": {"z": None},
             "metadata": {"x": None}}
    assert said(place.ask("PATCH", f"/api/sessions/{session_id}", json.dumps(patch).encode(), headers=MERGE_PATCH))
    session = place.read(session_id)
    assert session.pop("metadata") == {"y": 2, "updated": session.pop("lastActivity")}
    assert session == {"a": {"c": {"d": 2, "e": 3}}, "list": [3], "new": {}}


@pytest.mark.parametrize("type_", [None, "", "application/json", "Application/JSON; charset=utf-8"])
def test_patch_without_content_type_is_json(place, type_):
    session_id = place.put('{"a":{"b":1}}')
    headers = {"Content-Type": type_} if type_ is not None else {}
    assert place.ask("PATCH", f"/api/sessions/{session_id}", b'{"a":{}}', headers=headers).status == 200
    assert place.read(session_id)["a"] == {}


def test_post_updates_merges_and_wins_over_session_data(place):
    session_id = place.create()
    body = said(place.ask("POST", "/api/sessions", {"sessionId": session_id, "updates": {"a": 1}, "sessionData": {"b": 2}}))
    assert body == {"success": True, "sessionId": session_id, "message": "Session saved successfully"}
    session = place.read(session_id)
    assert session["a"] == 1 and "b" not in session and "preferences" in session


def test_post_session_data_replaces_the_document_but_keeps_who_it_is_and_where_it_came_from(place):
    session_id = place.put('{"userId":"u1","old":1,"metadata":{"ipAddress":"203.0.113.1","userAgent":"a",'
                           '"created":"2020-01-01T00:00:00.000Z","note":1}}')
    data = {"sessionId": session_id, "sessionData": {"new": 1, "metadata": {"ipAddress": "6.6.6.6", "x": 2}}}
    assert said(place.ask("POST", "/api/sessions", data))["message"] == "Session saved successfully"
    session = place.read(session_id)
    now = session.pop("lastActivity")
    assert session == {"new": 1, "userId": "u1", "metadata": {"ipAddress": "203.0.113.1", "x": 2, "userAgent": "a",
                                                             "created": "2020-01-01T00:00:00.000Z", "updated": now}}


def test_the_servers_clock_wins(place):
    session_id = place.put('{"lastActivity":"2020-01-01T00:00:00.000Z","metadata":{}}')
    started = time.time()
    for method, body in (("POST", {"sessionId": session_id, "updates": {"lastActivity": "1999-01-01T00:00:00.000Z"}}),
                         ("PATCH", {"metadata": {"updated": "1999-01-01T00:00:00.000Z"}})):
        assert said(place.ask(method, f"/api/sessions{'/' + session_id if method == 'PATCH' else ''}", body))
        session = place.read(session_id)
        stamp = time.mktime(time.strptime(session["lastActivity"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
        assert started - 1 <= stamp <= time.time()
        assert session["metadata"]["updated"] == session["lastActivity"]


def test_delete_ends_a_session_and_nothing_brings_it_back(place):
    session_id = place.create()
    answer = place.ask("DELETE", f"/api/sessions?sessionId={session_id}")
    assert answer.body == b'{"success":true,"message":"Session deleted successfully"}' and said(answer)
    assert place.stored(session_id) is None
    path = f"/api/sessions/{session_id}"
    assert code_of(place.ask("PATCH", path, {"a": 1})) == NOT_FOUND
    assert code_of(place.ask("POST", "/api/sessions", {"sessionId": session_id, "updates": {}})) == NOT_FOUND
    assert code_of(place.ask("POST", "/api/sessions", {"sessionId": session_id, "sessionData": {}})) == NOT_FOUND
    assert code_of(place.ask("DELETE", path)) == NOT_FOUND
    assert place.stored(session_id) is None


# --- documents of the original ---

ORIGINAL = ('{ "z" : 1.0, "big":12345678901234567890123, "exp":1E400,\t"escaped":"\\u00e9\\/\\ud83d\\ude00 \\u0001",'
            '"né":[ ],\n"userId":null,"preferences":{"theme":"dark" , "later":[1, 2,{"x":-0}]},"__proto__":{"a":1},'
            '"empty":{},"lastActivity":"2024-05-06T07:08:09.010Z","metadata":{"created":"2024-01-01T00:00:00.000Z",'
            '"k":1e2,"updated":"2024-05-06T07:08:09.010Z"} ,"":0}')


def test_documents_of_the_original_come_back_byte_for_byte(place):
    session_id = place.put(ORIGINAL)
    answer = place.ask("GET", f"/api/sessions?sessionId={session_id}")
    assert answer.body == (b'{"success":true,"sessionId":"%s","session":%s}' % (session_id.encode(), ORIGINAL.encode()))


@pytest.mark.parametrize("headers", [{}, MERGE_PATCH])
def test_a_patch_leaves_what_it_does_not_touch_byte_for_byte(place, headers):
    session_id = place.put(ORIGINAL)
    assert said(place.ask("PATCH", f"/api/sessions/{session_id}", b'{"empty" : {"raw":1.50, "big":98765432109876543210}, "new":"\\u00FF"}',
                          headers=headers))
    now = place.read(session_id)["lastActivity"]
    raw = "{\"raw\":1.50, \"big\":98765432109876543210}" if not headers else "{\"raw\":1.50,\"big\":98765432109876543210}"
    expected = ORIGINAL.replace("2024-05-06T07:08:09.010Z", now).replace('"empty":{}', f'"empty":{raw}')
    expected = expected[:-1] + ',"new":"\\u00FF"}'
    assert place.stored(session_id).decode() == expected


# --- preconditions ---

def test_tags_name_the_bytes_and_the_version_without_the_moves_of_the_mouse(place):
    session_id = place.create()
    path = f"/api/sessions/{session_id}"
    first = place.ask("GET", path)
    again = place.ask("GET", path)
    assert (first.headers["ETag"], first.headers["X-Session-Version"]) == (
        again.headers["ETag"], again.headers["X-Session-Version"])
    made_at = place.read(session_id)["lastActivity"]
    wait_until(lambda: datetime.datetime.now(datetime.timezone.utc).isoformat()[:23] > made_at[:23], "another millisecond")
    touched = place.ask("POST", "/api/sessions", {"sessionId": session_id, "updates": {"lastActivity": "2020-01-01T00:00:00.000Z"}})
    assert touched.headers["X-Session-Version"] == first.headers["X-Session-Version"]
    assert touched.headers["ETag"] != first.headers["ETag"]
    changed = place.ask("PATCH", path, {"a": 1})
    read = place.ask("GET", path)
    for name in ("ETag", "X-Session-Version"):
        assert changed.headers[name] == read.headers[name] != first.headers[name]
    assert not read.headers["ETag"].startswith("W/") and read.headers["ETag"] != read.headers["X-Session-Version"]


def test_if_none_match_answers_304_without_a_body(place):
    path = f"/api/sessions/{place.create()}"
    tag = place.ask("GET", path).headers["ETag"]
    for given in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        for method in ("GET", "HEAD"):
            answer = place.ask(method, path, headers={"If-None-Match": given})
            assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", tag), given
    for given in ('"x"', "", tag[:-2] + '"', tag.strip('"')):
        assert place.ask("GET", path, headers={"If-None-Match": given}).status == 200, given


CHANGES = {"PATCH": lambda i: ("PATCH", f"/api/sessions/{i}", {"a": 1}),
           "POST updates": lambda i: ("POST", "/api/sessions", {"sessionId": i, "updates": {"a": 1}}),
           "POST sessionData": lambda i: ("POST", "/api/sessions", {"sessionId": i, "sessionData": {"a": 1}}),
           "DELETE": lambda i: ("DELETE", f"/api/sessions/{i}", b"")}


@pytest.mark.parametrize("change", CHANGES)
def test_if_match_takes_the_etag_or_the_version(place, change):
    for name in ("ETag", "X-Session-Version"):
        session_id = place.create()
        tag = place.ask("GET", f"/api/sessions/{session_id}").headers[name]
        for given in ('"x"', f"W/{tag}", tag.strip('"')):
            answer = place.ask(*CHANGES[change](session_id), headers={"If-Match": given})
            assert code_of(answer) == (412, "PRECONDITION_FAILED"), given
        assert said(place.ask(*CHANGES[change](session_id), headers={"If-Match": f'"x", {tag}'}))
        answer = place.ask(*CHANGES[change](session_id), headers={"If-Match": tag})
        assert code_of(answer) == (NOT_FOUND if change == "DELETE" else (412, "PRECONDITION_FAILED"))
    assert code_of(place.ask(*CHANGES[change]("none"), headers={"If-Match": "*"})) == NOT_FOUND
    assert said(place.ask(*CHANGES[change](place.create()), headers={"If-Match": "*"}))


# --- protected members ---

WHO = {"userId": "u1", "user": {"id": "u1", "provider": "github"}, "authenticatedTools": {"jira": {"connected": True}}}


@pytest.mark.parametrize("member", WHO)
def test_who_somebody_is_only_a_service_may_say(place, member):
    session_id = place.create()
    path, patch = f"/api/sessions/{session_id}", {"a": 1, member: WHO[member]}
    requests = {"": ("PATCH", path, patch),
                "/updates": ("POST", "/api/sessions", {"sessionId": session_id, "updates": patch}),
                "/sessionData": ("POST", "/api/sessions", {"sessionId": session_id, "sessionData": patch})}
    for token in (None, "Bearer wrong", "Bearer first-token,second-token", "Bearer ", "Basic first-token"):
        for prefix, request in requests.items():
            answer = place.ask(*request, headers={"Authorization": token} if token else {})
            assert answer.status == 403
            assert answer.body == error_body("SESSION_MEMBER_PROTECTED", "This member can only be changed with a service token",
                                             f"{prefix}/{member}", "only a service may change this member")
    assert member not in place.read(session_id) or place.read(session_id)[member] == {}
    create = place.ask("POST", "/api/sessions?create=1", {"sessionData": patch})
    assert code_of(create) == PROTECTED and json.loads(create.body)["error"]["details"]["pointer"] == f"/sessionData/{member}"
    for token in ("first-token", "second-token"):
        headers = {"Authorization": f"Bearer {token}"}
        assert said(place.ask("PATCH", path, patch, headers=headers))
        assert place.ask("POST", "/api/sessions?create=1", {"sessionData": patch}, headers=headers).status == 201
    assert place.read(session_id)[member] == WHO[member]
    # the same value, in other words, is no change; leaving it out of a whole document is none; removing it is one
    assert said(place.ask("PATCH", path, json.dumps(patch, indent=1).encode()))
    assert said(place.ask("POST", "/api/sessions", {"sessionId": session_id, "sessionData": {"b": 1}}))
    assert place.read(session_id)[member] == WHO[member]
    assert code_of(place.ask("PATCH", path, json.dumps({member: None}).encode(), headers=MERGE_PATCH)) == PROTECTED


def test_an_escaped_name_is_the_same_member(place):
    path = f"/api/sessions/{place.create()}"
    assert code_of(place.ask("PATCH", path, b'{"user\\u0049d":"u1"}')) == PROTECTED


def test_without_protected_members_it_is_as_in_the_original(make_place):
    place = make_place(SESSION_PROTECTED_MEMBERS="", SERVICE_TOKEN="")
    session_id = place.create()
    metadata = {"ipAddress": "6.6.6.6", "userAgent": "mine", "created": "2001-01-01T00:00:00.000Z"}
    assert said(place.ask("PATCH", f"/api/sessions/{session_id}", {**WHO, "metadata": metadata}))
    session = place.read(session_id)
    assert {name: session[name] for name in WHO} == WHO
    assert {name: session["metadata"][name] for name in metadata} == metadata


def test_with_them_a_client_cannot_say_where_it_came_from(place):
    session_id = place.create()
    before = place.read(session_id)["metadata"]
    for headers in ({}, MERGE_PATCH):
        body = json.dumps({"metadata": {"ipAddress": "6.6.6.6", "userAgent": "x", "created": "2001-01-01T00:00:00.000Z"}})
        assert said(place.ask("PATCH", f"/api/sessions/{session_id}", body.encode(), headers=headers))
        after = place.read(session_id)["metadata"]
        assert {**after, "updated": None} == {**before, "updated": None}


def test_an_empty_service_token_opens_nothing(make_place):
    place = make_place(SERVICE_TOKEN="")
    path = f"/api/sessions/{place.create()}"
    for token in ("Bearer ", "Bearer", "Bearer  ", "Bearer ,"):
        assert code_of(place.ask("PATCH", path, {"userId": "u"}, headers={"Authorization": token})) == PROTECTED


# --- the client's address ---

ADDRESSES = [  # REMOTE_ADDR, X-Forwarded-For, X-Real-IP, what counts by default
    ("203.0.113.9", None, None, "203.0.113.9"),
    ("203.0.113.9", "198.51.100.1", "198.51.100.2", "203.0.113.9"),
    ("127.0.0.1", "198.51.100.1", "198.51.100.2", "198.51.100.1"),
    ("127.0.0.1", None, "198.51.100.2", "198.51.100.2"),
    ("127.0.0.1", "6.6.6.6, 198.51.100.1", None, "198.51.100.1"),
    ("127.0.0.1", "6.6.6.6, 198.51.100.1,127.0.0.5 , ::1", None, "198.51.100.1"),
    ("::1", "2001:db8::7", None, "2001:db8::7"),
    ("::ffff:127.0.0.1", "198.51.100.1", None, "198.51.100.1"),
    ("127.0.0.1", "198.51.100.1:4711", None, "198.51.100.1"),
    ("127.0.0.1", "[2001:db8::7]:4711", None, "2001:db8::7"),
    ("127.0.0.1", "198.51.100.1, garbage", None, "127.0.0.1"),
    ("127.0.0.1", "198.51.100.1,", "198.51.100.2", "198.51.100.1"),
    ("127.0.0.1", "6.6.6.6 ,, 198.51.100.1 ,127.0.0.1, ,", None, "198.51.100.1"),
    ("127.0.0.1", " , ", "198.51.100.2", "127.0.0.1"),
    ("fe80::1%eth0", "198.51.100.1", None, "fe80::1"),
    ("127.0.0.1", " 198.51.100.1 ", "198.51.100.2", "198.51.100.1"),
    ("127.0.0.1", "6.6.6.6, [2001:DB8::7], [::ffff:127.0.0.1]:80", None, "2001:db8::7"),
    ("127.0.0.1", "127.0.0.1, 127.0.0.2", None, "127.0.0.1"),
    ("unix:", "198.51.100.1", None, ""),
    ("127.0.0.1", "<script>", None, "127.0.0.1"),
]


def address_of(place, remote, forwarded, real):
    headers = {k: v for k, v in {"X-Forwarded-For": forwarded, "X-Real-IP": real}.items() if v}
    return said(place.ask("GET", "/api/sessions", headers=headers, REMOTE_ADDR=remote))["session"]["metadata"]["ipAddress"]


@pytest.mark.parametrize("remote, forwarded, real, counts", ADDRESSES)
def test_only_trusted_proxies_are_believed(place, remote, forwarded, real, counts):
    assert address_of(place, remote, forwarded, real) == counts


@pytest.mark.parametrize("trusted, remote, forwarded, counts", [
    ("*", "203.0.113.9", "6.6.6.6, 198.51.100.1", "6.6.6.6"), ("*", "203.0.113.9", None, "203.0.113.9"),
    ("10.0.0.0/8", "10.1.2.3", "6.6.6.6, 198.51.100.1, 10.9.9.9", "198.51.100.1"),
    ("10.0.0.0/8", "127.0.0.1", "198.51.100.1", "127.0.0.1"), ("", "127.0.0.1", "198.51.100.1", "127.0.0.1"),
    ("2001:db8:0:8000::/49", "2001:db8:0:ffff::1", "6.6.6.6, 2001:db8:0:7fff::1, 2001:db8:0:8000::9", "2001:db8:0:7fff::1"),
    ("fd00::/8, 192.0.2.1", "192.0.2.1", "198.51.100.1, fdff::1", "198.51.100.1"),
    ("::ffff:192.0.2.1", "192.0.2.1", "198.51.100.1", "198.51.100.1"),
    ("192.0.2.0/24,*", "203.0.113.9", "6.6.6.6, 192.0.2.1", "6.6.6.6")])
def test_trusted_proxies_may_be_chosen(folder, servers, trusted, remote, forwarded, counts):
    place = Place("embedded", folder, servers, TRUSTED_PROXIES=trusted)
    assert address_of(place, remote, forwarded, None) == counts


# --- life ---

def test_a_write_sets_the_life_back_and_never_shortens_it(place):
    session_id = place.create()
    path = f"/api/sessions/{session_id}"
    place.expire(session_id, 100)
    said(place.ask("GET", path))
    assert place.ttl_s(session_id) <= 100, "a read changes nothing"
    said(place.ask("PATCH", path, {"a": 1}))
    assert DAY_S - 5 < place.ttl_s(session_id) <= DAY_S
    for request in (CHANGES["PATCH"], CHANGES["POST updates"], CHANGES["POST sessionData"]):
        place.expire(session_id, 2 * DAY_S)
        said(place.ask(*request(session_id)))
        assert 2 * DAY_S - 5 < place.ttl_s(session_id) <= 2 * DAY_S


def test_an_expired_session_is_gone_for_reads_and_writes(place):
    for method in ("GET", "PATCH", "DELETE"):
        session_id = place.create()
        place.expire(session_id, 0)
        assert code_of(place.ask(method, f"/api/sessions/{session_id}", {"a": 1} if method == "PATCH" else b"")) == NOT_FOUND
        assert place.stored(session_id) is None


def test_the_life_may_be_chosen_and_is_told_where_it_is_known(make_place):
    place = make_place(SESSION_DEFAULT_TTL_SECONDS=1)
    started = time.time()
    answer = place.ask("GET", "/api/sessions")
    ended = time.time()
    session_id = said(answer)["sessionId"]
    expires = answer.headers["X-Session-Expires-At"]
    assert TIME.fullmatch(expires)
    expires_s = datetime.datetime.fromisoformat(expires.replace("Z", "+00:00")).timestamp()
    assert started + 0.999 <= expires_s <= ended + 1.001
    wait_until(lambda: place.ask("GET", f"/api/sessions/{session_id}").status == 401, "the session has expired", 5)
    assert time.time() - started >= 1


# --- limits and options ---

def test_client_ids_only_where_they_are_allowed(make_place):
    place = make_place(SESSION_ALLOW_CLIENT_IDS="true")
    session_id = "chosen.by_the-client"
    data = {"sessionId": session_id, "sessionData": {"a": 1, "preferences": {"theme": "dark"}}}
    answer = place.ask("POST", "/api/sessions", data)
    assert said(answer) == {"success": True, "sessionId": session_id, "message": "Session saved successfully"}
    assert answer.status == 200 and answer.headers["ETag"]
    session = place.read(session_id)
    assert session["a"] == 1 and session["preferences"] == {"theme": "dark"} and session["metadata"]["created"]
    assert said(place.ask("POST", "/api/sessions", {"sessionId": session_id, "sessionData": {"b": 2}}))
    assert "a" not in place.read(session_id)
    other = {"sessionId": "other", "sessionData": {"userId": "u"}}
    assert code_of(place.ask("POST", "/api/sessions", other)) == PROTECTED and place.stored("other") is None
    assert code_of(place.ask("POST", "/api/sessions", {"sessionId": "other", "updates": {}})) == NOT_FOUND
    assert code_of(place.ask("POST", "/api/sessions", {**data, "sessionId": "other"}, headers={"If-Match": '"x"'})) == NOT_FOUND


def test_the_embedded_store_may_be_bounded(folder, servers):
    place = Place("embedded", folder, servers, SESSION_MAX_TOTAL=3)
    created = [place.create() for _ in range(3)]
    for request in (("GET", "/api/sessions"), ("POST", "/api/sessions?create=1")):
        answer = place.ask(*request)
        assert answer.status == 503 and int(answer.headers["Retry-After"]) > 0
        assert json.loads(answer.body)["error"]["code"] not in ("SESSION_STORE_UNAVAILABLE", "INTERNAL_ERROR")
    assert said(place.ask("PATCH", f"/api/sessions/{created[0]}", {"a": 1})), "those that are there go on"
    assert said(place.ask("DELETE", f"/api/sessions/{created[0]}"))
    place.create()
    place.expire(created[1], -1000)
    place.sql("UPDATE sessions SET purge_ms = expires_ms WHERE id = ?1", created[1])
    place.create()


def test_bodies_and_documents_have_a_limit(place):
    session_id = place.create()
    path = f"/api/sessions/{session_id}"
    fits = b'{"a":"%s"}' % (b"x" * 60_000)
    assert said(place.ask("PATCH", path, fits.ljust(MAX_BYTES)))
    too_long = place.ask("PATCH", path, fits.ljust(MAX_BYTES + 1))
    assert too_long.status == 413
    assert too_long.body == error_body("PAYLOAD_TOO_LARGE", "The request body is larger than SESSION_MAX_BYTES")
    assert too_long.headers["X-Request-Id"] and too_long.headers["Content-Type"] == JSON_TYPE
    before = place.stored(session_id)
    grown = place.ask("PATCH", path, b'{"b":"%s"}' % (b"x" * 10_000))
    assert grown.status == 413
    assert grown.body == error_body("PAYLOAD_TOO_LARGE", "The session document would be larger than SESSION_MAX_BYTES")
    assert place.stored(session_id) == before
    assert said(place.ask("PATCH", path, b'{"a":""}'))


def test_a_large_document_of_the_original_is_served_and_may_shrink(place):
    session_id = place.put('{"large":"%s"}' % ("x" * 500_000))
    assert len(said(place.ask("GET", f"/api/sessions/{session_id}"))["session"]["large"]) == 500_000
    assert said(place.ask("PATCH", f"/api/sessions/{session_id}", {"large": ""}))


# --- errors ---

NO_ID = ("INVALID_SESSION_ID", "sessionId is required")
WRONG_ID = ("INVALID_SESSION_ID", "sessionId must be 1 to 128 letters, digits, dots, dashes or underscores, "
            "and the same wherever it stands")
MISSING = ("SESSION_NOT_FOUND", "Session not found or expired")
NO_DATA = ("INVALID_SESSION_REQUEST", "sessionData or updates required")
NO_PATH = ("NOT_FOUND", "There is nothing at this path")
BAD_PATH = ("INVALID_PATH", "The path is too long or not properly encoded")
NO_METHOD = ("METHOD_NOT_ALLOWED", "This path does not know this method")
NO_TYPE = ("UNSUPPORTED_MEDIA_TYPE", "PATCH takes application/json or application/merge-patch+json")
BAD_JSON = ("INVALID_JSON", "The request body is not valid JSON")
BAD_DATA = ("INVALID_SESSION_DATA", "The session data is not valid")
OBJECT = "must be an object"


def nested(levels):
    return '{"a":' * levels + "1" + "}" * levels


def post(text):
    return ("POST", "/api/sessions", text)


def patch(text):
    return ("PATCH", "/api/sessions/{id}", text)


ERRORS = [  # method, URI, body; status, code, message, pointer, reason. {id} is a session that is there
    (("GET", "/api/sessions?sessionId=a%2Fb", ""), 400, *WRONG_ID),
    (("GET", "/api/sessions?sessionId=a b", ""), 400, *WRONG_ID),
    (("GET", "/api/sessions?sessionId=%zz", ""), 400, *WRONG_ID),
    (("GET", "/api/sessions?sessionId=a%00", ""), 400, *WRONG_ID),
    (("GET", "/api/sessions?sessionId=" + "x" * 20000, ""), 400, *WRONG_ID),
    (("GET", "/api/sessions/%C3%A9", ""), 400, *WRONG_ID),
    (("GET", "/api/sessions/" + "x" * 129, ""), 400, *WRONG_ID),
    (("GET", "/api/sessions/none", ""), 401, *MISSING),
    (("GET", "/api/sessions?sessionId=none", ""), 401, *MISSING),
    (("PATCH", "/api/sessions", "{}"), 400, *NO_ID),
    (("PATCH", "/api/sessions?sessionId=a%20b", "{}"), 400, *WRONG_ID),
    (("PATCH", "/api/sessions/none", "{}"), 401, *MISSING),
    (("DELETE", "/api/sessions", ""), 400, *NO_ID),
    (("DELETE", "/api/sessions?sessionId=a%20b", ""), 400, *WRONG_ID),
    (("DELETE", "/api/sessions/none", ""), 401, *MISSING),
    (post('{"updates":{}}'), 400, *NO_ID), (post('{"sessionId":"","updates":{}}'), 400, *NO_ID),
    (post('{"sessionId":null,"updates":{}}'), 400, *NO_ID), (post('{"sessionId":1,"updates":{}}'), 400, *WRONG_ID),
    (post('{"sessionId":"a b","updates":{}}'), 400, *WRONG_ID), (post('{"sessionId":"{id}"}'), 400, *NO_DATA),
    (post('{"sessionId":"{id}","updates":null,"sessionData":null}'), 400, *NO_DATA),
    (post('{"sessionId":"none","updates":{}}'), 401, *MISSING),
    (post('{"sessionId":"none","sessionData":{}}'), 401, *MISSING),
    (post('{"sessionId":"{id}","updates":[]}'), 400, *BAD_DATA, "/updates", OBJECT),
    (post('{"sessionId":"{id}","sessionData":"x"}'), 400, *BAD_DATA, "/sessionData", OBJECT),
    (post('{"sessionId":"{id}","updates":{"preferences":[]}}'), 400, *BAD_DATA, "/updates/preferences", OBJECT),
    (("POST", "/api/sessions?create=1", '{"sessionData":{"uiState":{"expandedWidgets":["a",1]}}}'), 400, *BAD_DATA,
     "/sessionData/uiState/expandedWidgets", "must be an array of strings"),
    (post(""), 400, *BAD_JSON, "", "not valid JSON at byte 0, where it ends"),
    (post("[]"), 400, *BAD_DATA, "", OBJECT), (patch("[]"), 400, *BAD_DATA, "", OBJECT),
    (patch("1"), 400, *BAD_DATA, "", OBJECT), (patch('"x"'), 400, *BAD_DATA, "", OBJECT),
    (patch(""), 400, *BAD_JSON, "", "not valid JSON at byte 0, where it ends"),
    (patch('{"a":1'), 400, *BAD_JSON, "", "not valid JSON at byte 6, where it ends"),
    (patch('{"a":1}x'), 400, *BAD_JSON, "", "not valid JSON at byte 7"),
    (patch('{"a":1,}'), 400, *BAD_JSON, "", "not valid JSON at byte 7"),
    (patch("{'a':1}"), 400, *BAD_JSON, "", "not valid JSON at byte 1"),
    (patch('{"a":/**/1}'), 400, *BAD_JSON, "", "not valid JSON at byte 5"),
    (patch('{"a":01}'), 400, *BAD_JSON, "", "not valid JSON at byte 6"),
    (patch('{"a":NaN}'), 400, *BAD_JSON, "", "not valid JSON at byte 5"),
    (patch('{"a":-Infinity}'), 400, *BAD_JSON, "", "not valid JSON at byte 6"),
    (patch('{"a":"\x01"}'), 400, *BAD_JSON, "", "not valid JSON at byte 6"),
    (patch(b'{"a":"\xff"}'), 400, *BAD_JSON, "", "not valid JSON at byte 6"),
    (patch(b'{"a":"\xed\xa0\x80"}'), 400, *BAD_JSON, "", "not valid JSON at byte 6"),
    (patch('{"a":{"b":1,"b":2}}'), 400, *BAD_JSON, "/a/b", "the member stands twice in its object"),
    (patch('{"a":1,"\\u0061":2}'), 400, *BAD_JSON, "/a", "the member stands twice in its object"),
    (patch('{"a":{"\\u0000b":1}}'), 400, *BAD_JSON, "/a/\ufffdb", "the member's name holds U+0000 or half a surrogate pair"),
    (patch('{"\\ud800":1}'), 400, *BAD_JSON, "/\ufffd", "the member's name holds U+0000 or half a surrogate pair"),
    (patch(nested(33)), 400, *BAD_DATA, "/a" * 32, "nested deeper than 32 levels"),
    (patch('{"preferences":{"theme":"blue"}}'), 400, *BAD_DATA, "/preferences/theme", "must be light, dark or system"),
    (patch('{"preferences":{"refreshInterval":-1}}'), 400, *BAD_DATA, "/preferences/refreshInterval",
     "must be a number that is not negative"),
    (patch('{"preferences":{"timezone":1}}'), 400, *BAD_DATA, "/preferences/timezone", "must be a string"),
    (patch('{"preferences":null}'), 400, *BAD_DATA, "/preferences", OBJECT),
    (patch('{"toolConfigs":{"a/b":{"enabled":1}}}'), 400, *BAD_DATA, "/toolConfigs/a~1b/enabled", "must be true or false"),
    (patch('{"toolConfigs":{"~":1}}'), 400, *BAD_DATA, "/toolConfigs/~0", OBJECT),
    (patch('{"lastActivity":"yesterday"}'), 400, *BAD_DATA, "/lastActivity",
     "must be an ISO 8601 time with date, time and zone"),
    (patch('{"userId":1}'), 400, *BAD_DATA, "/userId", "must be a string"),
    (("GET", "/", ""), 404, *NO_PATH), (("GET", "/api", ""), 404, *NO_PATH), (("GET", "/api/none", ""), 404, *NO_PATH),
    (("GET", "/api/sessionsx", ""), 404, *NO_PATH), (("GET", "/api/sessions/a/b", ""), 404, *NO_PATH),
    (("POST", "/API/sessions", "{}"), 404, *NO_PATH),
    (("GET", "/api/sessions/%zz", ""), 400, *BAD_PATH), (("GET", "/api/sessions/a%00b", ""), 400, *BAD_PATH),
    (("GET", "/api/sessions/" + "x" * 20000, ""), 400, *BAD_PATH),
    (("PUT", "/api/sessions", "{}"), 405, *NO_METHOD), (("OPTIONS", "/api/sessions", ""), 405, *NO_METHOD),
    (("get", "/api/sessions", ""), 405, *NO_METHOD), (("BREW", "/api/sessions", ""), 405, *NO_METHOD),
    (("POST", "/api/sessions/{id}", "{}"), 405, *NO_METHOD), (("PUT", "/api/sessions/{id}", "{}"), 405, *NO_METHOD),
    (("POST", "/api/health/live", "{}"), 405, *NO_METHOD), (("DELETE", "/api/metrics", ""), 405, *NO_METHOD),
    (("GET", "/api/admin/sessions", ""), 404, *NO_PATH), (("PUT", "/api/admin/sessions", "{}"), 404, *NO_PATH),
    (("GET", "/api/admin/coordination/messages", ""), 404, *NO_PATH),
]


@pytest.mark.parametrize("request_, status, code, message, pointer, reason", [
    row + (None,) * (6 - len(row)) for row in ERRORS],
    ids=[f"{method} {uri[:40]} {str(body)[:40]}" for (method, uri, body), *_ in ERRORS])
def test_every_4xx_and_its_body(place, request_, status, code, message, pointer, reason):
    session_id = place.create()
    before = place.stored(session_id)
    method, uri, body = request_
    body = body.replace("{id}", session_id).encode() if isinstance(body, str) else body
    answer = place.ask(method, uri.replace("{id}", session_id), body)
    assert (answer.status, answer.body) == (status, error_body(code, message, pointer, reason).replace(b"\\ufffd", "\ufffd".encode()))
    assert answer.headers["Content-Type"] == JSON_TYPE and answer.headers["Cache-Control"] == "no-store"
    assert UUID.fullmatch(answer.headers["X-Request-Id"])
    assert place.stored(session_id) == before


@pytest.mark.parametrize("type_", ["text/plain", "application/json-patch+json", "application/x-www-form-urlencoded", "x"])
def test_415_says_what_patch_takes(place, type_):
    answer = place.ask("PATCH", f"/api/sessions/{place.create()}", b"{}", headers={"Content-Type": type_})
    assert (answer.status, answer.body) == (415, error_body(*NO_TYPE))
    assert answer.headers["Accept-Patch"] == "application/json, application/merge-patch+json"


@pytest.mark.parametrize("path, allow", [("/api/sessions", "GET, HEAD, POST, PATCH, DELETE"),
                                         ("/api/sessions/x", "GET, HEAD, PATCH, DELETE"),
                                         ("/api/health/live", "GET, HEAD"), ("/api/health/ready", "GET, HEAD"),
                                         ("/api/metrics", "GET, HEAD")])
def test_405_says_which_methods_there_are(place, path, allow):
    assert place.ask("PUT", path).headers["Allow"] == allow


@pytest.mark.parametrize("value", ["[]", "null", '"x"', "1", "", "no json", '{"a":1', '{"a":1}}', '{"a":NaN}',
                                   b'{"a":"\xff"}', b'\x00{}'])
def test_a_stored_value_that_is_no_object_is_reported_and_kept(place, value):
    session_id = place.put(value)
    before = place.stored(session_id)
    requests = [("GET", f"/api/sessions/{session_id}", b""), CHANGES["PATCH"](session_id),
                CHANGES["POST updates"](session_id), CHANGES["POST sessionData"](session_id)]
    for request in requests:
        answer = place.ask(*request)
        assert answer.status == 500
        assert answer.body == error_body("SESSION_CORRUPT", "What is stored under this id is no session document")
    assert place.ask("HEAD", f"/api/sessions/{session_id}").status == 500
    assert code_of(place.ask(*CHANGES["DELETE"](session_id), headers={"If-Match": "*"})) == (500, "SESSION_CORRUPT")
    assert place.stored(session_id) == before
    assert said(place.ask(*CHANGES["DELETE"](session_id))), "whoever wants it gone gets that"
    assert place.stored(session_id) is None


def test_the_log_line_of_an_error_holds_the_request_s_id(make_place):
    place = make_place()
    session_id = place.put("[]")
    for given in ("from.the-client_1", None):
        answer = place.ask("GET", f"/api/sessions/{session_id}", headers={"X-Request-Id": given} if given else {})
        request_id = answer.headers["X-Request-Id"]
        assert answer.status == 500 and given in (None, request_id)
        wait_until(lambda: re.search(rf"request failed: method=GET route=/api/sessions/\* status=500 error=.* request={request_id}$",  # pylint: disable=W0640
                                     place.pool.log(), re.M), "the line")
    assert session_id not in place.pool.log()


def test_a_key_of_another_type_is_reported_and_kept(folder, servers):
    place = Place("redis", folder, servers)
    for command, kind in (("RPUSH", b"list"), ("SADD", b"set")):
        key = f"hyperpage:session:{kind.decode()}"
        place.redis.call(command, key, "element")
        for request in (("GET", f"/api/sessions/{kind.decode()}", b""), *(make(kind.decode()) for name, make in
                        CHANGES.items() if name != "DELETE")):
            assert code_of(place.ask(*request)) == (500, "SESSION_CORRUPT")
        assert place.redis.call("TYPE", key) == kind


# --- hostile input ---

HOSTILE = {
    "a body of 10 MB": (lambda i: ("PATCH", f"/api/sessions/{i}", b"x" * 10_000_000), {}, {413}),
    "a header of 100 KB": (lambda i: ("GET", f"/api/sessions/{i}", b""), {"X-Large": "x" * 100_000}, {431}),
    "10,000 arrays": (lambda i: ("PATCH", f"/api/sessions/{i}", b'{"a":%s1%s}' % (b"[" * 10_000, b"]" * 10_000)), {}, {400}),
    "10,000 open arrays": (lambda i: ("PATCH", f"/api/sessions/{i}", b"[" * 10_000), {}, {400}),
    "60,000 objects": (lambda i: ("PATCH", f"/api/sessions/{i}", b'{"a":[%s{}]}' % (b"{}," * 20_000)), {}, {400}),
    "no UTF-8": (lambda i: ("PATCH", f"/api/sessions/{i}", b'{"a":"%s"}' % (b"\xff\xc0\x80" * 1000)), {}, {400}),
    "NaN": (lambda i: ("PATCH", f"/api/sessions/{i}", b'{"a":[%sNaN]}' % (b"1," * 1000)), {}, {400}),
    "a member twice": (lambda i: ("PATCH", f"/api/sessions/{i}", b'{%s"m9":1}' % b"".join(b'"m%d":1,' % n for n in range(5000))), {}, {400}),
    "U+0000 in names": (lambda i: ("PATCH", f"/api/sessions/{i}", b'{"a\\u0000b":1}'), {}, {400}),
    "a thousand ids": (lambda i: ("GET", "/api/sessions?" + "sessionId=a&" * 1000 + "sessionId=b", b""), {}, {400}),
}


def private_kib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status).group(1))


@pytest.mark.parametrize("kind", ["redis", "embedded"])
def test_hostile_input_is_refused_and_makes_no_worker_grow(folder, servers, kind):
    place = Place(kind, folder, servers, WORKERS=1, **NO_QUARANTINE)
    session_id = place.create()
    before = place.stored(session_id)
    workers, grown = place.pool.processes(), {}
    for what, (make, headers, statuses) in HOSTILE.items():
        rounds = 40 if what == "a body of 10 MB" and not LONG else 200
        for i in range(-10, rounds):
            if i == 0:  # memory that is kept for the next request is no growth
                start = sum(private_kib(pid) for pid in workers)
            answer = place.ask(*make(session_id), headers=headers)
            assert answer.status in statuses and json.loads(answer.body)["error"]["code"], what
        grown[what] = sum(private_kib(pid) for pid in workers) - start
    print(f"{kind}: KiB grown by {rounds} of each: {grown}")
    assert max(grown.values()) <= 256 and sum(grown.values()) <= 512
    assert place.pool.processes() == workers and place.stored(session_id) == before
