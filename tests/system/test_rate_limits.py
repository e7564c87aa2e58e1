"""/api/rate-limit/PLATFORM and the metrics over it: what nodes report to each other over a real Redis, as a pool beside its
coordinator shows it."""

import json
import time

import pytest

from postgres import ORIGINAL, Postgres
from servers import Coordinator, Front, Pool, wait_until
from test_coordinator import publish
from test_metrics import OPENMETRICS, samples, scrape

MINUTE_MS = 60_000


@pytest.fixture
def start(folder, servers, redis):
    """A pool and the coordinator of its node."""
    def begin(**options):
        node = servers.enter_context(Coordinator(folder, "node", REDIS_URL=redis.url, **options))
        pool = servers.enter_context(Pool(folder, RUN_DIR=node.run_dir, REDIS_URL=redis.url, SESSION_CACHE_BYTES=1 << 20))
        wait_until(lambda: node.view()["subscribed"], "it listens")
        return pool
    return begin


@pytest.fixture
def pool(start):
    return start()


def show(pool, platform):
    answer = pool.ask("GET", f"/api/rate-limit/{platform}")
    return answer.status, json.loads(answer.body)


def now_ms():
    return int(time.time() * 1000)


def report(redis, pool, platform, **said):
    """One sync; then what is shown, as soon as it is another than before."""
    before = show(pool, platform)[1]
    time.sleep(0.002)  # another millisecond, so lastUpdated changes
    publish(redis, "rate_limit_sync", {"platform": platform, **said})
    wait_until(lambda: show(pool, platform)[1].get("lastUpdated") != before.get("lastUpdated"), f"{platform} is reported")
    return show(pool, platform)[1]


def metrics(pool):
    """Of the names of the original, by their labels' values."""
    return {(name, *(value for _, value in sorted(labels))): value
            for (name, labels), value in samples(scrape(pool).body.decode())[0].items() if name.startswith("rate_limit_")}


def test_what_is_reported_is_shown(redis, pool):
    reset_ms = now_ms() + 10 * MINUTE_MS
    began_ms = now_ms()
    body = report(redis, pool, "github", endpoint="core", limit=5000, remaining=4500, resetTime=reset_ms, usage=10)
    assert began_ms <= body.pop("lastUpdated") <= now_ms()
    core = {"limit": 5000, "remaining": 4500, "used": 500, "usagePercent": 10.0, "resetTime": reset_ms, "retryAfter": None}
    assert body == {"platform": "github", "dataFresh": True, "status": "normal", "limits": {"github": {"core": core}}}
    body = report(redis, pool, "github", endpoint="search", limit=30, remaining=7)
    assert body["limits"]["github"]["core"] == core
    assert body["limits"]["github"]["search"] == {"limit": 30, "remaining": 7, "used": 23, "usagePercent": 76.6,
                                                  "resetTime": None, "retryAfter": None}
    assert body["status"] == "warning", "the worst of its endpoints"
    assert pool.ask("HEAD", "/api/rate-limit/github").status == 200


@pytest.mark.parametrize("said, status", [
    ({"usage": 74.9}, "normal"), ({"usage": 75}, "warning"), ({"usage": 89.9}, "warning"), ({"usage": 90}, "critical"),
    ({"limit": 100, "remaining": 26}, "normal"), ({"limit": 100, "remaining": 25}, "warning"),
    ({"limit": 100, "remaining": 10}, "critical"), ({"remaining": 0}, "critical"), ({"usage": 1, "retryAfter": 30}, "critical"),
    ({"remaining": 12}, "unknown")])
def test_thresholds(redis, pool, said, status):
    body = report(redis, pool, "jira", **said)
    assert body["status"] == status
    assert body["limits"]["jira"]["global"]["retryAfter"] in (said.get("retryAfter"), 29, None)
    assert metrics(pool)["rate_limit_status", "jira"] == ["normal", "warning", "critical", "unknown"].index(status)


def test_what_was_used_before_a_reset_is_not_used_after_it(redis, pool):
    assert report(redis, pool, "gitlab", limit=100, remaining=1, resetTime=now_ms() + 700)["status"] == "critical"
    wait_until(lambda: show(pool, "gitlab")[1]["status"] == "normal", "its reset has come", 3)
    limit = show(pool, "gitlab")[1]["limits"]["gitlab"]["global"]
    assert (limit["remaining"], limit["used"], limit["usagePercent"]) == (100, 0, 0.0)
    assert metrics(pool)["rate_limit_remaining", "global", "gitlab"] == 100


@pytest.mark.parametrize("platform, code", [("bitbucket", "PLATFORM_NOT_SUPPORTED"), ("GitHub", "PLATFORM_NOT_SUPPORTED"),
                                            ("git%20hub", "INVALID_PLATFORM"), ("a" * 200, "INVALID_PLATFORM")])
def test_a_platform_that_is_none(pool, platform, code):
    status, body = show(pool, platform)
    assert (status, body["success"], body["error"]["code"]) == (400, False, code)
    if code == "PLATFORM_NOT_SUPPORTED":
        assert body["error"]["details"] == {"supported": ["github", "gitlab", "jira"]}


def test_other_methods_and_paths(pool):
    answer = pool.ask("POST", "/api/rate-limit/github", {})
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert pool.ask("GET", "/api/rate-limit").status == 404
    assert pool.ask("GET", "/api/rate-limit/github/core").status == 404


def test_of_what_nobody_has_reported_nothing_is_made_up(redis, pool):
    status, body = show(pool, "github")
    assert (status, body["error"]["code"]) == (502, "RATE_LIMIT_UNAVAILABLE")
    have = metrics(pool)
    assert have["rate_limit_status", "github"] == 3 and ("rate_limit_usage_percent", "github") not in have
    report(redis, pool, "jira", usage=1)
    assert show(pool, "github")[0] == 502
    assert "failed: method=GET route=/api/rate-limit" not in pool.log(), "nothing has"


def test_what_reports_no_number_changes_nothing(redis, pool):
    def malformed():
        return samples(scrape(pool).body.decode())[0]["hyperpage_coordination_messages_malformed_total", ()]
    for n, said in enumerate(({"platform": "github", "usage": "x"}, {"platform": "github", "nonsense": 1}), start=1):
        publish(redis, "rate_limit_sync", said)
        wait_until(lambda n=n: malformed() == n, "it is counted")
    assert report(redis, pool, "jira", usage=1)["status"] == "normal"
    assert show(pool, "github")[0] == 502
    before = show(pool, "jira")
    publish(redis, "rate_limit_sync", {"platform": "jira", "endpoint": "other"})
    wait_until(lambda: malformed() == 3, "it is counted")
    assert show(pool, "jira") == before


def test_what_the_database_knows_is_shown_with_its_age(folder, servers, redis, start):
    database = servers.enter_context(Postgres(folder))
    database.ask(ORIGINAL)
    old_ms, recent_ms = now_ms() - 5 * MINUTE_MS - 1, now_ms() - 4 * MINUTE_MS
    for key, at_ms in (("github:core", old_ms), ("gitlab:global", recent_ms)):
        database.ask("INSERT INTO rate_limits (key, remaining, reset_at, metadata) VALUES (%s, 8, now() + interval '1 hour', "
                     "jsonb_build_object('platform', %s::text, 'limitTotal', 10, 'lastUpdated', %s::bigint))",
                     key, key.partition(":")[0], at_ms)
    pool = start(DATABASE_URL=database.url)
    wait_until(lambda: show(pool, "github")[0] == show(pool, "gitlab")[0] == 200, "they are read")
    github, gitlab = show(pool, "github")[1], show(pool, "gitlab")[1]
    assert (github["lastUpdated"], github["dataFresh"], github["status"]) == (old_ms, False, "normal")
    assert (gitlab["lastUpdated"], gitlab["dataFresh"]) == (recent_ms, True)
    told = {dict(labels)["platform"]: value for (name, labels), value in samples(scrape(pool).body.decode())[0].items()
            if name == "hyperpage_rate_limit_updated_timestamp_seconds"}
    assert told == {"github": old_ms / 1000, "gitlab": recent_ms / 1000}
    assert report(redis, pool, "github", endpoint="search", usage=1)["dataFresh"], "one of its endpoints is"


def test_the_metrics(redis, pool):
    report(redis, pool, "github", endpoint="core", limit=5000, remaining=4000)
    report(redis, pool, "github", endpoint="graphql", limit=100, remaining=0, retryAfter=9)
    report(redis, pool, "github", endpoint="graphql", limit=100, remaining=0)
    report(redis, pool, "github", endpoint='x"} 1\nevil{a="', limit=1, remaining=1)
    report(redis, pool, "jira", usage=12.5)
    publish(redis, "rate_limit_sync", {"platform": "moon", "remaining": 0, "limit": 3})
    report(redis, pool, "gitlab", usage=1, retryAfter=1)
    assert metrics(pool) == {
        ("rate_limit_usage_percent", "github"): 100, ("rate_limit_usage_percent", "jira"): 12.5,
        ("rate_limit_usage_percent", "gitlab"): 1,
        ("rate_limit_status", "github"): 2, ("rate_limit_status", "jira"): 0,
        ("rate_limit_status", "gitlab"): pytest.approx(1, abs=1),  # until it need not wait any more
        ("rate_limit_max", "core", "github"): 5000, ("rate_limit_remaining", "core", "github"): 4000,
        ("rate_limit_max", "graphql", "github"): 100, ("rate_limit_remaining", "graphql", "github"): 0,
        ("rate_limit_hits_total", "github"): 2, ("rate_limit_hits_total", "gitlab"): 0, ("rate_limit_hits_total", "jira"): 0,
        ("rate_limit_retries_total", "github"): 1, ("rate_limit_retries_total", "gitlab"): 1,
        ("rate_limit_retries_total", "jira"): 0}
    scrape(pool, Accept=OPENMETRICS)


def test_counters_outlive_who_counted(redis, folder, servers):
    node = servers.enter_context(Coordinator(folder, "node", REDIS_URL=redis.url))
    pool = servers.enter_context(Pool(folder, RUN_DIR=node.run_dir, REDIS_URL=redis.url, SESSION_CACHE_BYTES=1 << 20))
    for hits in range(1, 4):
        wait_until(lambda: redis.call("PUBSUB", "NUMSUB", "hyperpage:coord:all")[1] == 1, "it listens")
        report(redis, pool, "jira", remaining=0)
        assert metrics(pool)["rate_limit_hits_total", "jira"] == hits
        node.process.kill()
        node.stop()
        assert metrics(pool)["rate_limit_hits_total", "jira"] == hits
        wait_until(lambda: redis.call("PUBSUB", "NUMSUB", "hyperpage:coord:all")[1] == 0, "Redis knows that it has gone")
        node.start()


def test_health_tells_of_them(redis, pool):
    report(redis, pool, "github", endpoint="core", usage=80)
    report(redis, pool, "github", endpoint="search", usage=20)
    report(redis, pool, "jira", usage=10)
    said = json.loads(pool.ask("GET", "/api/health").body)["rateLimits"]
    assert (said["overallHealth"], said["enabledPlatforms"], said["averageUsagePercent"]) == ("warning", 2, 45.0)
    assert said["platforms"].keys() == {"github", "jira"}
    assert said["platforms"]["github"]["status"] == "warning" and said["platforms"]["github"]["usagePercent"] == 80.0
    assert said["platforms"]["jira"]["dataFresh"] is True


@pytest.mark.parametrize("kind", ["lighttpd", "nginx"])
def test_web_servers_pass_it_on(folder, servers, redis, pool, kind):
    """Its 502 too, which is not theirs."""
    front = servers.enter_context(Front(folder, kind, f"unix:{pool.address}"))
    answer = front.ask("GET", "/api/rate-limit/jira")
    assert (answer.status, answer.json["error"]["code"]) == (502, "RATE_LIMIT_UNAVAILABLE")
    report(redis, pool, "jira", usage=1)
    assert front.ask("GET", "/api/rate-limit/jira").json["status"] == "normal"
