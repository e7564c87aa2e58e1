"""docs/openapi.json: that it is an OpenAPI 3.1 document, that it declares what the program's own tables hold, and that
each answer that it declares has been seen. That answers are as declared is judged wherever a test asks the pool
(openapi.py)."""

import json
import re

import jsonschema

import openapi
from servers import REPO, Coordinator, Pool, Redis, wait_until

SERVICE = {"Authorization": "Bearer service-token"}
ADMIN = {"Authorization": "Bearer admin-token"}
COMMON_CODES = {"INVALID_PATH", "PAYLOAD_TOO_LARGE", "HEADERS_TOO_LARGE", "INTERNAL_ERROR"}  # of any request: once is enough

# What nothing that a test can do from outside brings about.
NOT_SEEN = {(500, "INTERNAL_ERROR"): "only a defect makes one"}

TEXT = {"type": "string"}
REFERENCE_OR = lambda schema: {"if": {"required": ["$ref"]}, "then": {"properties": {"$ref": TEXT}}, "else": schema}
NAMED = lambda schema: {"type": "object", "additionalProperties": REFERENCE_OR(schema)}
MEDIA = {"type": "object", "minProperties": 1, "additionalProperties": {
    "type": "object", "required": ["schema"], "properties": {"schema": {}}, "additionalProperties": False}}
HEADER = {"type": "object", "required": ["schema"], "additionalProperties": False,
          "properties": {"description": TEXT, "required": {"type": "boolean"}, "schema": {}}}
RESPONSE = {"type": "object", "required": ["description", "headers"], "additionalProperties": False,
            "properties": {"description": TEXT, "headers": NAMED(HEADER), "content": MEDIA}}
PARAMETER = {"type": "object", "required": ["name", "in", "schema"], "additionalProperties": False,
             "properties": {"name": TEXT, "in": {"enum": ["query", "header", "path", "cookie"]}, "schema": {},
                            "required": {"type": "boolean"}, "description": TEXT},
             "if": {"properties": {"in": {"const": "path"}}}, "then": {"required": ["required"]}}
BODY = {"type": "object", "required": ["content"], "additionalProperties": False,
        "properties": {"description": TEXT, "required": {"type": "boolean"}, "content": MEDIA}}
PARAMETERS = {"type": "array", "items": REFERENCE_OR(PARAMETER)}
OPERATION = {"type": "object", "required": ["operationId", "tags", "responses"], "additionalProperties": False,
             "properties": {"operationId": TEXT, "summary": TEXT, "tags": {"type": "array", "items": TEXT},
                            "parameters": PARAMETERS, "requestBody": REFERENCE_OR(BODY),
                            "security": {"type": "array", "items": {"type": "object"}},
                            "responses": {"type": "object", "minProperties": 1, "additionalProperties": False,
                                          "patternProperties": {"^([1-5][0-9][0-9]|default)$": REFERENCE_OR(RESPONSE)}}}}
PATH_ITEM = {"type": "object", "additionalProperties": False,
             "properties": {"parameters": PARAMETERS, **{method: OPERATION for method in openapi.METHODS}}}
SHAPE = {  # of OpenAPI 3.1.0, what this document uses
    "type": "object", "required": ["openapi", "info", "paths", "components"], "additionalProperties": False,
    "patternProperties": {"^x-": {}},
    "properties": {"openapi": {"const": "3.1.0"}, "servers": {"type": "array"}, "tags": {"type": "array"},
                   "info": {"type": "object", "required": ["title", "version"]},
                   "paths": {"type": "object", "patternProperties": {"^/": PATH_ITEM}, "additionalProperties": False},
                   "components": {"type": "object", "additionalProperties": False, "properties": {
                       "schemas": {"type": "object"}, "responses": NAMED(RESPONSE), "parameters": NAMED(PARAMETER),
                       "headers": NAMED(HEADER), "requestBodies": NAMED(BODY), "securitySchemes": NAMED(
                           {"type": "object", "required": ["type"]})}}}}


def walk(node, path=()):
    yield path, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from walk(value, (*path, key))


# --- the document by itself ---

def test_the_document_has_the_shape_of_openapi_3_1():
    jsonschema.Draft202012Validator(SHAPE).validate(openapi.document())
    for path, node in walk(openapi.document()):
        if path and path[-1] == "schema" or path[:2] == ("components", "schemas") and len(path) == 3:
            jsonschema.Draft202012Validator.check_schema(node)


def test_each_name_is_unique_and_each_component_is_there_and_used():
    names = [op["operationId"] for op in openapi.operations().values()]
    assert len(names) == len(set(names))
    tags = {tag["name"] for tag in openapi.document()["tags"]}
    assert {tag for op in openapi.operations().values() for tag in op["tags"]} == tags
    used = {node for path, node in walk(openapi.document()) if path and path[-1] == "$ref"}
    used |= {f"#/components/securitySchemes/{name}" for op in openapi.operations().values()
             for choice in op.get("security", ()) for name in choice}
    there = {f"#/components/{kind}/{name}" for kind, items in openapi.document()["components"].items() for name in items}
    assert used == there


def test_parameters_in_a_path_are_those_of_its_template():
    for template, item in openapi.document()["paths"].items():
        named = [p["name"] for p in openapi.resolved(item["parameters"]) if p["in"] == "path"]
        assert named == re.findall(r"\{(\w+)\}", template)


def test_the_version_is_the_program_s():
    version = re.search(r"^VERSION := (\S+)", (REPO / "Makefile").read_text(), re.M).group(1)
    assert openapi.document()["info"]["version"] == version


# --- the document and the program's tables ---

def test_paths_and_methods_are_those_of_the_routes():
    paths = dict(re.findall(r'ENDPOINT\((\w+), "(/\S+)"\)', (REPO / "lib/endpoints.h").read_text()))
    routes = re.findall(r"\{ HTTP_(\w+),\s+ENDPOINT_(\w+),", (REPO / "fcgi-app/pool/routes.c").read_text())
    assert {(method, re.sub(r"\{\w+\}", "*", template)) for method, template in openapi.operations()} == {
        (method, paths[endpoint]) for method, endpoint in routes}


def test_error_codes_are_those_of_the_program():
    source = "".join(path.read_text() for path in (REPO / "fcgi-app/pool").glob("*.c"))
    answers = re.findall(r"\b(?:response_(?:error|fault|details)|refuse_length)\([^;]*;", source)
    given = {(int(status), code) for answer in answers for status in re.findall(r"\b[45]\d\d\b", answer)
             for code in re.findall(r'"([A-Z_]{5,})"', answer)}
    assert given == {(entry["status"], code) for code, entry in openapi.document()["x-error-codes"].items()}


def test_headers_that_are_read_are_declared():
    read = set(re.findall(r'WANT\("HTTP_(\w+)"', (REPO / "lib/http.c").read_text()))
    by_the_front = {"X_FORWARDED_FOR", "X_FORWARDED_PROTO", "X_REAL_IP", "USER_AGENT", "AUTHORIZATION", "COOKIE"}
    declared = {p["name"].upper().replace("-", "_") for _, p in walk(openapi.resolved(openapi.document()["paths"]))
                if isinstance(p, dict) and p.get("in") == "header"}
    assert read - by_the_front == declared


# --- each declared answer is seen ---

def codes_of(response):
    """The error codes that a response declares; {None} where it has none."""
    found = {code for media in response.get("content", {}).values() for path, node in walk(media["schema"])
             if path[-2:] == ("code", "enum") for code in node}
    return found or {None}


def declared():
    """(method, template, status, code) of all, those of any request apart as (status, code)."""
    mine, common = set(), set()
    table = openapi.document()["x-error-codes"]
    for (method, template), operation in openapi.operations().items():
        for status, response in operation["responses"].items():
            for code in codes_of(response):
                if code in COMMON_CODES:
                    common.add((table[code]["status"], code))
                else:
                    mine.add((method, template, int(status), code))
    return mine, common


class Seen:
    def __init__(self):
        self.answers = set()

    def ask(self, pool, method, uri, body=b"", **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = pool.ask(method, uri, body, headers=headers)
        self.answers.add(openapi.check(method, uri, answer))
        return answer

    def read(self, pool, uri, **headers):
        self.ask(pool, "HEAD", uri, **headers)
        return self.ask(pool, "GET", uri, **headers)


def see_sessions(seen, pool, session_id):
    """All that an id may bring about, wherever it stands, and whatever is behind it."""
    query, path = f"/api/sessions?sessionId={session_id}", f"/api/sessions/{session_id}"
    for uri in (query, path):
        seen.read(pool, uri)
        for body in ({"toolConfigs": {}}, {"userId": "u"}, [], b"{", {"a": "x" * 65000}):
            seen.ask(pool, "PATCH", uri, body)
        seen.ask(pool, "PATCH", uri, {"a": 1}, Content_Type="text/plain")
        seen.ask(pool, "PATCH", uri, {"a": 1}, If_Match='"x"')
    for member in ("updates", "sessionData"):
        for body in ({"toolConfigs": {}}, {"userId": "u"}, []):
            seen.ask(pool, "POST", "/api/sessions", {"sessionId": session_id, member: body})
    seen.ask(pool, "POST", "/api/sessions", {"sessionId": session_id, "updates": {}}, If_Match='"x"')
    for body in ({"sessionId": session_id}, b"{"):
        seen.ask(pool, "POST", "/api/sessions", body)
    for body in (b"", {"seconds": 0}, [], b"{"):
        seen.ask(pool, "POST", f"{path}/extend", body)
    seen.ask(pool, "POST", f"{path}/extend", If_Match='"x"')
    for body in ({"updates": {"userId": "u"}}, {"updates": []}, b"{"):
        seen.ask(pool, "POST", f"{path}/rotate", body)
    seen.ask(pool, "POST", f"{path}/rotate", Idempotency_Key="k" * 256)
    seen.ask(pool, "POST", f"{path}/rotate", If_Match='"x"')


def end_sessions(seen, pool, make_id):
    for uri in ("/api/sessions?sessionId={}", "/api/sessions/{}"):
        uri = uri.format(make_id())
        seen.ask(pool, "DELETE", uri, If_Match='"x"')
        seen.ask(pool, "DELETE", uri)
    seen.ask(pool, "POST", f"/api/sessions/{make_id()}/rotate")


def see_the_rest(seen, pool):
    for uri in ("/api/health", "/api/health/live", "/api/health/ready", "/api/coordination", "/api/metrics", "/api/status",
                "/api/rate-limit/github", "/api/rate-limit/jira", "/api/rate-limit/trello", "/api/rate-limit/a+b"):
        seen.read(pool, uri)
    seen.ask(pool, "GET", "/api/sessions?check=ready")
    for method in ("GET", "DELETE"):
        for headers in ({}, SERVICE, ADMIN):
            seen.ask(pool, method, "/api/admin/sessions?userId=u", **headers)
        seen.ask(pool, method, "/api/admin/sessions", **ADMIN)
    message = {"type": "broadcast", "payload": {}}
    for body, headers in ((message, {}), (message, SERVICE), (message, ADMIN), ({"type": "x"}, ADMIN), (b"{", ADMIN),
                          ({**message, "payload": {"a": "x" * 65400}}, ADMIN)):
        seen.ask(pool, "POST", "/api/admin/coordination/messages", body, **headers)


def test_every_declared_answer_is_seen(folder, servers):
    seen, redis = Seen(), servers.enter_context(Redis(folder))
    options = {"RUN_DIR": folder / "a/run", "STATE_DIR": folder / "a/state", "REDIS_URL": redis.url, "POD_NAME": "a",
               "SESSION_FALLBACK_TO_MEMORY": "false"}
    servers.enter_context(Coordinator(folder, "a", **options))
    pool = servers.enter_context(Pool(folder, SERVICE_TOKEN="service-token", ADMIN_TOKEN="admin-token", **options))
    make_id = lambda: json.loads(seen.ask(pool, "GET", "/api/sessions").body)["sessionId"]
    wait_until(lambda: json.loads(pool.ask("GET", "/api/coordination").body)["leader"]["isSelf"], "it leads")

    tag = pool.ask("GET", f"/api/sessions/{make_id()}")
    session_id = json.loads(tag.body)["sessionId"]
    for uri in (f"/api/sessions/{session_id}", f"/api/sessions?sessionId={session_id}"):
        seen.read(pool, uri, If_None_Match=tag.headers["ETag"])
    see_sessions(seen, pool, make_id())
    end_sessions(seen, pool, make_id)
    for unknown in ("none", "a%20b", "a%00b", "x" * 3000):
        see_sessions(seen, pool, unknown)
        end_sessions(seen, pool, lambda: unknown)
    corrupt = lambda: redis.call("SET", "hyperpage:session:corrupt", "[]") and "corrupt"
    see_sessions(seen, pool, corrupt())
    end_sessions(seen, pool, corrupt)
    for body in (b"", {"sessionData": {"a": 1}}, {"sessionData": {"user": {}}}, {"sessionData": []}, b"x" * 70000):
        seen.ask(pool, "POST", "/api/sessions?create=1", body)
    seen.ask(pool, "GET", "/api/sessions", X_Large="x" * 100_000)
    sync = {"type": "rate_limit_sync", "payload": {"platform": "github", "usage": 10}}
    assert seen.ask(pool, "POST", "/api/admin/coordination/messages", sync, **ADMIN).status == 200
    wait_until(lambda: pool.ask("GET", "/api/rate-limit/github").status == 200, "the sync has arrived")
    see_the_rest(seen, pool)

    redis.stop()
    wait_until(lambda: pool.ask("GET", "/api/health").status == 503, "the keeper has noticed")
    see_sessions(seen, pool, session_id)
    end_sessions(seen, pool, lambda: session_id)
    seen.ask(pool, "GET", "/api/sessions")
    seen.ask(pool, "POST", "/api/sessions?create=1")
    see_the_rest(seen, pool)

    alone = servers.enter_context(Pool(folder, "alone", SESSION_MAX_TOTAL=1, SESSION_CREATE_PER_MINUTE=2, RUN_DIR=folder / "run",
                                       STATE_DIR=folder / "state"))
    for address in ("198.51.100.1", "198.51.100.2"):
        for _ in range(4):
            seen.ask(alone, "GET", "/api/sessions", X_Real_IP=address)
            seen.ask(alone, "POST", "/api/sessions?create=1", X_Real_IP=address)
    see_the_rest(seen, alone)

    mine, common = declared()
    assert sorted(map(str, mine - seen.answers)) == [], "declared, but not seen"
    got_codes = {(status, code) for _, _, status, code in seen.answers}
    assert common - got_codes == set(NOT_SEEN), "declared for any request, but not seen; or seen after all"
