"""A worker under valgrind: a thousand requests of all kinds, and nothing read that was not written, nothing lost."""

import contextlib
import json
import os
import random
import signal

import pytest

import fcgi
from servers import BUILD, Pool, Redis, built_with_asan

LONG = os.environ.get("HYPERPAGE_LONG") == "1"
REQUESTS = 10_000 if LONG else 1_000
VALGRIND = ["valgrind", "--error-exitcode=99", "--leak-check=full", "--show-leak-kinds=definite,indirect",
            "--errors-for-leak-kinds=definite", "--num-callers=30", "--exit-on-first-error=no"]
BAD_BODIES = [b"", b"[]", b'{"a":', b'{"a":NaN}', b'{"a":1,"a":2}', b'{"preferences":{"theme":"blue"}}', b'{"userId":"u"}',
              b'{"a":"\xff"}', b"[" * 5000, b'{"a\\u0000":1}', b"x" * 70_000]


def make_requests(ids, some):
    """One request of each kind: (method, URI, body, headers)."""
    session_id = some.choice(ids)
    path, value = f"/api/sessions/{session_id}", {f"m{some.randrange(20)}": ["x" * some.randrange(3000)]}
    merge = {"Content-Type": "application/merge-patch+json"}
    yield "GET", path, b"", {}
    yield "GET", f"/api/sessions?sessionId={session_id}", b"", {"If-None-Match": "*"}
    yield "HEAD", "/api/sessions", b"", {"X-Session-Id": session_id}
    yield "GET", "/api/sessions", b"", {"X-Forwarded-For": "1.2.3.4, 5.6.7.8", "User-Agent": "u" * some.randrange(300)}
    yield "POST", "/api/sessions?create=1", {"sessionData": value}, {}
    yield "POST", "/api/sessions", {"sessionId": session_id, "updates": {"lastActivity": "2020-01-01T00:00:00Z"}}, {}
    yield "POST", "/api/sessions", {"sessionId": session_id, "sessionData": value}, {"Authorization": "Bearer token"}
    yield "PATCH", path, value, {}
    yield "PATCH", path, {"a": {"b": some.choice([None, 1, {"c": "d"}])}}, merge
    yield "PATCH", path, value, {"If-Match": '"x"'}
    yield "PATCH", path, {"userId": "u"}, {"Authorization": f"Bearer {some.choice(['token', 'other'])}"}
    yield "PATCH", path, some.choice(BAD_BODIES), some.choice([{}, merge])
    yield "DELETE", "/api/sessions/none", b"", {}
    yield "GET", "/api/metrics", b"", {}
    yield "GET", "/api/health/ready", b"", {}
    yield some.choice(["PUT", "GET"]), some.choice(["/api/sessions", "/api/none", "/api/sessions/%zz"]), b"", {}


@pytest.mark.parametrize("kind", ["redis", "embedded"])
def test_a_thousand_mixed_requests_without_an_error_or_a_leak(folder, servers, kind):
    if built_with_asan():
        pytest.skip("ASan looks for the same, and the two do not run together")
    redis = servers.enter_context(Redis(folder)) if kind == "redis" else None
    pool = Pool(folder, arguments=["--workers", "0"], REDIS_URL=redis.url if redis else "", SERVICE_TOKEN="token,next",
                REDIS_TIMEOUT_MS=20000, REQUEST_TIMEOUT_MS=60000, REQUEST_TERMINATE_TIMEOUT=120,  # it is slow, and none of it is about time
                LOG_LEVEL="debug")
    pool.command, pool.patience_s = VALGRIND + pool.command, 60
    assert pool.command[-3] == str(BUILD / "hyperpage-fcgi")
    servers.enter_context(pool)
    some, statuses, asked = random.Random(3), {}, 0
    ids = [json.loads(pool.ask("GET", "/api/sessions").body)["sessionId"] for _ in range(5)]
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(pool.connect(timeout_s=60)) for _ in range(4)]
        while asked < REQUESTS:
            for method, uri, body, headers in make_requests(ids, some):
                body = json.dumps(body).encode() if isinstance(body, dict) else body
                which = asked % 5  # four kept connections and one that is not
                if len(body) <= 65_536 and which < 4:
                    answer = kept[which].request(method, uri, body, headers=headers, keep_conn=True)
                else:
                    answer = pool.ask(method, uri, body, headers=headers)
                statuses[answer.status] = statuses.get(answer.status, 0) + 1
                asked += 1
            if redis and asked > REQUESTS / 2:  # once, half way: the connection breaks, and another one is made
                redis.call("CLIENT", "KILL", "TYPE", "normal")
                redis.call("SCRIPT", "FLUSH")
                redis = None
            with pool.connect() as client:  # and somebody who leaves in the middle
                client.send(fcgi.request("PATCH", f"/api/sessions/{ids[0]}", b'{"a":1}')[:some.randrange(300)])
    code = pool.stop(signal.SIGTERM)
    print(f"{kind}: {asked} requests under valgrind: {dict(sorted(statuses.items()))}")
    assert {200, 201, 304, 400, 401, 403, 404, 405, 412, 413} <= set(statuses) and not [s for s in statuses if s >= 500]
    assert code == 0, pool.log()
    assert "ERROR SUMMARY: 0 errors" in pool.log()
