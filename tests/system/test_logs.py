"""What a log line holds, as docs/logs.md says."""

import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from servers import REPO, Coordinator, Pool, Redis, children, name_of, wait_until


def lines(pool, message):
    found = [json.loads(line) for line in pool.log().splitlines()]
    return [line for line in found if line["message"] == message]


def documented():
    """Members and their types."""
    said = {}
    for names, types in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \|", (REPO / "docs/logs.md").read_text(), re.M):
        names, types = re.findall(r"`(\w+)`", names), types.split(", ")
        said |= dict(zip(names, types if len(types) == len(names) else types[:1] * len(names)))
    return said


def written():
    """What the programs' formats hold: (member, type)."""
    for path in [*REPO.glob("lib/*.c"), *REPO.glob("fcgi-app/pool/*.c"), *REPO.glob("fcgi-app/coordinator/*.c")]:
        for call in re.findall(r'\blog_(?:error|warn|info|debug|write)\([^";]*((?:"(?:[^"\\]|\\.)*"|\s|PRI\w+)+)', path.read_text()):
            text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"|PRI\w+', call)).replace('\\"', '"')
            for member, value in re.findall(r'(?<= )([a-z_0-9]+)=("|\S*)', text.partition(": ")[1] + text.partition(": ")[2]):
                yield member, "string" if value == '"' or value.endswith("s") else "number"


def test_a_request_gets_a_line_where_that_is_asked_for(folder):
    with Pool(folder, LOG_FORMAT="json", LOG_REQUESTS="true") as pool:
        session_id = json.loads(pool.ask("GET", "/api/sessions").body)["sessionId"]
        answer = pool.ask("GET", f"/api/sessions/{session_id}", headers={"X-Request-Id": "rid-1"})
        (line,) = [line for line in lines(pool, "request") if line["request"] == "rid-1"]
        assert (line["level"], line["role"], line["method"], line["route"]) == ("info", "worker", "GET", "/api/sessions/*")
        assert (line["status"], line["bytes"], line["store"]) == (200, len(answer.body), "embedded")
        assert 0 < line["duration_us"] < 5_000_000
        before = len(lines(pool, "request"))
        pool.ask("GET", "/nowhere")
        assert len(lines(pool, "request")) == before + 1
        assert lines(pool, "request")[-1]["route"] == "-"
        assert session_id not in pool.log()


def test_else_it_gets_none(pool):
    pool.ask("GET", "/api/sessions")
    pool.ask("GET", "/api/sessions/none")
    assert "request" not in pool.log()


@pytest.mark.parametrize("slow_ms, logged", [(50, True), (60000, False)])
def test_a_slow_request_gets_a_line(folder, servers, slow_ms, logged):
    redis = servers.enter_context(Redis(folder))
    pool = servers.enter_context(Pool(folder, LOG_FORMAT="json", LOG_SLOW_MS=slow_ms, REDIS_URL=redis.url, REDIS_TIMEOUT_MS=5000))
    with pool.connect() as client:
        redis.call("CLIENT", "PAUSE", 200, "ALL")
        assert client.request("GET", "/api/sessions").status == 200
    assert len(lines(pool, "slow request")) == logged
    if logged:
        line = lines(pool, "slow request")[0]
        assert line["duration_ms"] >= 50 and line["status"] == 200 and line["phase"] == "redis"


def test_of_many_slow_requests_some_get_a_line_and_the_others_are_counted(folder, servers):
    """All wait for the same Redis, so they end together."""
    redis = servers.enter_context(Redis(folder))
    pool = servers.enter_context(Pool(folder, LOG_FORMAT="json", LOG_SLOW_MS=50, WORKERS=1, REDIS_URL=redis.url, REDIS_TIMEOUT_MS=5000))
    sent = 40
    redis.call("CLIENT", "PAUSE", 1000, "ALL")
    with ThreadPoolExecutor(sent) as threads:
        assert {answer.status for answer in threads.map(lambda _: pool.ask("GET", "/api/sessions"), range(sent))} == {200}

    def held_back():
        redis.call("CLIENT", "PAUSE", 60, "ALL")
        pool.ask("GET", "/api/sessions")
        return lines(pool, "more requests were slow")
    (line,) = wait_until(held_back, "they are told of when the next one is slow")
    assert 0 < line["count"] < sent


def test_a_redis_that_evicts_is_warned_of(folder, servers):
    warning = "redis throws sessions away when its memory is short"
    for policy in ("noeviction", "volatile-ttl"):
        redis = servers.enter_context(Redis(folder, policy, maxmemory_policy=policy))
        pool = servers.enter_context(Pool(folder, f"pool {policy}", LOG_FORMAT="json", REDIS_URL=redis.url, RUN_DIR=folder / policy))
        wait_until(lambda: pool.ask("GET", "/api/health/ready").status == 200, "it was looked at")  # pylint: disable=W0640
        assert pool.stop() == 0
        assert [line["maxmemory_policy"] for line in lines(pool, warning)] == ([policy] if policy != "noeviction" else [])


def test_a_change_of_state_is_told_with_its_cause_and_what_follows(folder, servers):
    """A worker's death, the breaker, leadership."""
    redis = servers.enter_context(Redis(folder))
    node = servers.enter_context(Coordinator(folder, "node", REDIS_URL=redis.url, LOG_FORMAT="json"))
    pool = servers.enter_context(Pool(folder, RUN_DIR=node.run_dir, LOG_FORMAT="json", REDIS_URL=redis.url, SESSION_CACHE_BYTES=1 << 20))

    def told(by, message, **members):
        line = wait_until(lambda: lines(by, message), message)[-1]
        assert members.items() <= line.items(), line
        return line
    told(node, "this node leads, its duties begin", level="info", pod="node", role="coordinator")
    worker = next(p for p in children(pool.pid) if name_of(p) == "fcgi-worker")
    os.kill(worker, signal.SIGKILL)
    told(pool, "worker died, a new one follows", level="warn", role="master", child=worker, cause="signal 9")
    wait_until(lambda: pool.ask("GET", "/api/sessions").status == 200, "it goes on")
    redis.pause()
    try:
        pool.ask("GET", "/api/sessions")
        assert told(pool, "redis lost, no request waits for it any more", level="warn")["error"]
        told(node, "this node does not lead any more, its duties stop", level="warn", cause="lease not renewed in time")
    finally:
        redis.resume()
    assert told(pool, "redis back, requests go to it again", level="info")["away_ms"] > 0
    wait_until(lambda: len(lines(node, "this node leads, its duties begin")) == 2, "it leads again")
    assert node.stop() == 0
    told(node, "this node does not lead any more, its duties stop", level="info", cause="given back")


def test_every_member_is_documented(folder, servers):
    """Through an outage, a restart of a worker and requests of all kinds."""
    redis = servers.enter_context(Redis(folder, maxmemory_policy="allkeys-lru"))
    pool = servers.enter_context(Pool(folder, LOG_FORMAT="json", LOG_REQUESTS="true", LOG_SLOW_MS=1, REDIS_URL=redis.url))
    redis.pause()
    wait_until(lambda: lines(pool, "redis does not answer"), "the outage is logged")
    pool.ask("GET", "/api/sessions/some")
    redis.resume()
    wait_until(lambda: lines(pool, "redis answers again"), "its end is logged")
    pool.ask("GET", "/api/sessions")
    assert pool.stop() == 0
    seen = {name for line in pool.log().splitlines() for name in json.loads(line)}
    assert seen <= documented().keys(), seen - documented().keys()


def test_every_member_that_the_programs_can_write_is_documented_with_its_type():
    found = set(written())
    assert len(found) > 40
    for member, kind in sorted(found):
        assert documented().get(member) == kind, member


def test_a_client_cannot_change_the_type_of_a_member(folder):
    with Pool(folder, LOG_FORMAT="json", LOG_REQUESTS="true") as pool:
        pool.ask("GET", "/api/health/live", headers={"X-Request-Id": "12345"})
        assert [line["request"] for line in lines(pool, "request") if line["request"] in (12345, "12345")] == ["12345"]
