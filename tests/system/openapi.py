"""docs/openapi.json as a judge: check() looks whether an answer of the service is one that the document declares. Every
answer that Pool.ask() gets passes here. The document leaves answers open for more members; the judge does not, so
that what the service says and the document does not is seen."""

import functools
import json
import pathlib
import urllib.parse

import jsonschema

PATH = pathlib.Path(__file__).resolve().parents[2] / "docs/openapi.json"
METHODS = ("get", "head", "post", "put", "patch", "delete", "options")
OF_THE_WIRE = {"status", "content-type", "content-length"}  # headers that OpenAPI declares by other means, or CGI's


@functools.lru_cache(maxsize=None)
def document():
    return json.loads(PATH.read_text())


def merged(a, b):
    """A schema that demands both: what stands beside a $ref adds to it."""
    if isinstance(a, dict) and isinstance(b, dict):
        return {**a, **{k: merged(a[k], v) if k in a else v for k, v in b.items()}}
    return b


def resolved(node):
    """`node` with every $ref replaced by what it names."""
    if isinstance(node, list):
        return [resolved(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {k: resolved(v) if k != "$ref" else v for k, v in node.items()}
    ref = node.pop("$ref", None)
    return node if ref is None else merged(resolved(named(ref)), node)


def named(ref):
    assert ref.startswith("#/"), f"{ref} stands elsewhere"
    found = document()
    for step in ref[2:].split("/"):
        found = found[step.replace("~1", "/").replace("~0", "~")]
    return found


def closed(schema):
    """The schema without room for members that it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {k: closed(v) for k, v in schema.items()}
    if isinstance(schema.get("properties"), dict) and "not" not in schema:
        schema.setdefault("additionalProperties", False)
    return schema


@functools.lru_cache(maxsize=None)
def operations():
    """{(METHOD, template): the operation, all references resolved}"""
    return {(method.upper(), template): resolved(item[method])
            for template, item in document()["paths"].items() for method in METHODS if method in item}


@functools.lru_cache(maxsize=None)
def judge_of(method, template, status):
    """(schemas by media type, or None where there is no body; headers as {name: (required, schema)}) of an answer."""
    responses = operations()[method, template]["responses"]
    response = responses.get(str(status), responses.get("default"))
    if response is None:
        return None
    bodies = {kind: jsonschema.Draft202012Validator(closed(media["schema"]))
              for kind, media in response.get("content", {}).items()}
    headers = {name.lower(): (header.get("required", False), jsonschema.Draft202012Validator(header["schema"]))
               for name, header in response["headers"].items()}
    return bodies, headers


@functools.lru_cache(maxsize=4096)
def template_of(uri):
    """The template that this URI's path fits, or None. A slash at the end does not count."""
    path = urllib.parse.unquote(uri.partition("?")[0])
    segments = path.rstrip("/").split("/") if path.count("/") > 1 else path.split("/")
    for template in sorted(document()["paths"], key=lambda t: t.count("{")):
        wanted = template.split("/")
        if len(wanted) == len(segments) and all(w == s or (w[0:1] == "{" and s) for w, s in zip(wanted, segments)):
            return template
    return None


def error_code(answer):
    return json.loads(answer.body)["error"]["code"] if answer.body[:16] == b'{"success":false' else None


def check_code(answer):
    """The answer's error code, after a look whether the table of codes gives it this status."""
    code = error_code(answer)
    if code is not None:
        entry = document()["x-error-codes"].get(code)
        assert entry is not None, f"{code} is not in the table of codes"
        assert answer.status == entry["status"], f"{code} came with {answer.status}"
    return code


def check(method, uri, answer):
    """Fails if the document does not allow this answer. Returns (method, template, status, error code); template None
    where there is no such operation."""
    template = template_of(uri)
    code = check_code(answer)
    if template is None or (method, template) not in operations():
        expected = {"NOT_FOUND", None} if template is None else {"METHOD_NOT_ALLOWED", None}
        if (template or "").startswith("/api/admin/"):  # where nobody can be an administrator nothing is there
            expected.add("NOT_FOUND")
        assert code in expected | {"INVALID_PATH", "PAYLOAD_TOO_LARGE", "HEADERS_TOO_LARGE"}, (method, uri[:80], code)
        if answer.status == 405:
            known = {m for m, t in operations() if t == template}
            assert set(answer.headers["Allow"].split(", ")) == known, f"{template}: {answer.headers['Allow']}"
        return method, None, answer.status, code
    judge = judge_of(method, template, answer.status)
    what = f"{method} {template} -> {answer.status}"
    assert judge is not None, f"{what}: not declared"
    check_headers(what, judge[1], answer)
    check_body(what, judge[0], answer)
    return method, template, answer.status, code


def check_headers(what, declared, answer):
    for name, (required, _) in declared.items():
        assert not required or name in answer.headers, f"{what}: without {name}"
    for name, value in answer.headers.items():
        if name.lower() not in OF_THE_WIRE:
            assert name.lower() in declared, f"{what}: {name} is not declared"
            declared[name.lower()][1].validate(value)


def check_body(what, bodies, answer):
    if not bodies:
        assert answer.body == b"", f"{what}: a body that is not declared"
        return
    kind = answer.headers["Content-Type"].partition(";")[0]
    assert kind in bodies, f"{what}: {kind} is not declared"
    if kind == "application/json":
        bodies[kind].validate(json.loads(answer.body))
