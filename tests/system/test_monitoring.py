"""conf/prometheus and conf/grafana: the rules fire when they must, and every query of the boards gets data from a
Prometheus that has scraped a pool, its coordinator, Redis and PostgreSQL at work."""

import json
import re
import shutil
import subprocess
import time

import pytest

from postgres import ORIGINAL, Postgres
from servers import REPO, Coordinator, Front, Pool, Redis, metric, wait_until
from test_coordinator import publish
from test_metrics import KEPT, Prometheus, samples, scrape

CONF = REPO / "conf/prometheus"
RULES = CONF / "hyperpage.rules.yml"
BOARDS = [REPO / "conf/grafana" / name for name in ("original.json", "hyperpage.json")]

# What the original exports, and the three that its dashboard reads besides.
ORIGINAL_NAMES = {*KEPT, "rate_limit_usage_percent", "rate_limit_status", "rate_limit_remaining", "rate_limit_max",
                  "rate_limit_hits_total", "rate_limit_retries_total"}


def promtool(*words):
    done = subprocess.run(["promtool", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def expressions(board):
    """Every query of a board, as Grafana sends it for all nodes: (panel, expression)."""
    return [(panel["title"], target["expr"].replace("$__rate_interval", "5s").replace("$instance", ".*"))
            for panel in json.loads(board.read_text())["panels"] for target in panel.get("targets", ())]


def names(text):
    """Names of metrics in expressions; of histograms the family's."""
    found = set(re.findall(r"(?<![\w:])(?:hyperpage|cache|rate_limit|http_connection_pool|api_requests|process)_[a-z0-9_]+\b(?!:)", text))
    return {re.sub("_(bucket|sum|count)$", "", name) for name in found}


# --- rules ---

def test_the_configuration_is_one():
    code, said = promtool("check", "config", CONF / "prometheus.yml")
    assert code == 0 and "1 rule files found" in said, said
    code, said = promtool("check", "rules", RULES)
    assert code == 0 and re.search(r"SUCCESS: \d+ rules found", said), said


def test_the_rules_fire_when_they_must():
    code, said = promtool("test", "rules", CONF / "hyperpage.rules_test.yml")
    assert code == 0, said
    tested = (CONF / "hyperpage.rules_test.yml").read_text()
    for alert in re.findall(r"alert: (\w+)", RULES.read_text()):
        assert f'alertname="{alert}"' in tested, f"{alert} is never expected"


@pytest.mark.parametrize("was, becomes", [("> 0.01", "> 0.9"), ("> 0.01", "> 0.001"), ("> 0.25", "> 2"), ("for: 45s", "for: 0s"),
                                          ("> 8100", "> 80000"), ('"redis"}) > 1', '"redis"}) > 2'), ("status == 2", "status == 1"), ("< 3600", "< 36000")])
def test_the_rules_test_sees_a_rule_that_is_wrong(tmp_path, was, becomes):
    shutil.copy(CONF / "hyperpage.rules_test.yml", tmp_path)
    assert was in RULES.read_text()
    (tmp_path / RULES.name).write_text(RULES.read_text().replace(was, becomes))
    assert promtool("test", "rules", tmp_path / "hyperpage.rules_test.yml")[0] != 0


def fired(tmp_path, rules):
    """What fires in the case "all is well" if the rules were these."""
    shutil.copy(CONF / "hyperpage.rules_test.yml", tmp_path)
    (tmp_path / RULES.name).write_text(rules)
    said = promtool("test", "rules", tmp_path / "hyperpage.rules_test.yml")[1]
    return set(re.findall(r'alertname="(\w+)"', said.partition("got:")[2].partition("\n")[0]))


def test_each_alert_has_a_case_in_which_it_must_not_fire(tmp_path):
    """If it always fired, its test would say so."""
    always, alert = [], False
    for line in RULES.read_text().splitlines():
        alert = "- alert:" in line if line.lstrip().startswith("- ") else alert
        if not alert or line.startswith("        labels:") or line.startswith("      - alert:"):
            always.append(line)
        elif line.startswith("        expr:"):
            always.append("        expr: vector(1)")
    assert fired(tmp_path, "\n".join(always)) == set(re.findall(r"alert: (\w+)", RULES.read_text()))


def test_each_alert_that_waits_has_a_case_in_which_it_must_wait(tmp_path):
    rules = RULES.read_text()
    waiting = set(re.findall(r"alert: (\w+)\n(?:(?!      - alert).*\n)*?        for: ", rules))
    assert len(waiting) == rules.count(" for: ")
    # Those whose expression waits by itself: over 2 to 5 minutes, or until a time has come.
    by_themselves = {"HyperpageQueueGrowing", "HyperpageErrorRate", "HyperpageSlow", "HyperpageCleanupOverdue"}
    assert fired(tmp_path, re.sub(r"for: \d+[sm]", "for: 0s", rules)) == waiting - by_themselves


# --- boards ---

@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_a_board_is_well_formed(board):
    panels = json.loads(board.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, f"{panel['title']} has no place of its own"
        taken |= cells
        refs = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(refs)) == len(refs)


def test_the_original_s_board_asks_for_all_it_exports():
    assert names(" ".join(text for _, text in expressions(BOARDS[0]))) == ORIGINAL_NAMES


class Demo:
    """A pool, its coordinator, nginx before them, Redis, PostgreSQL, a Prometheus with the shipped configuration."""

    def __init__(self, folder, servers):
        self.redis = servers.enter_context(Redis(folder))
        database = servers.enter_context(Postgres(folder))
        database.ask(ORIGINAL)
        self.node = servers.enter_context(Coordinator(folder, "node", REDIS_URL=self.redis.url, DATABASE_URL=database.url))
        self.pool = servers.enter_context(Pool(folder, RUN_DIR=self.node.run_dir, REDIS_URL=self.redis.url,
                                               SESSION_CACHE_BYTES=1 << 20, ADMIN_TOKEN="admin-token"))
        front = servers.enter_context(Front(folder, "nginx", f"unix:{self.pool.address}"))
        self.prometheus = Prometheus(folder, f"127.0.0.1:{front.port}")
        self.configure(folder / "prometheus.yml", front.port)
        servers.enter_context(self.prometheus)

    @staticmethod
    def configure(path, port):
        """The shipped file with a test's target and pace."""
        text = (CONF / "prometheus.yml").read_text()
        for old, new in (("localhost:8080", f"127.0.0.1:{port}"), ("hyperpage.rules.yml", str(RULES)),
                         ("scrape_interval: 15s", "scrape_interval: 200ms\n  scrape_timeout: 200ms"),
                         ("evaluation_interval: 15s", "evaluation_interval: 500ms")):
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)

    def use(self):
        """A bit of everything; the same id twice, so that the cache has something to answer."""
        made = json.loads(self.pool.ask("GET", "/api/sessions").body)["sessionId"]
        for _ in range(2):
            self.pool.ask("GET", f"/api/sessions/{made}")
        self.pool.ask("POST", "/api/sessions", {"sessionId": made, "updates": {}})
        self.pool.ask("GET", "/api/sessions/none")
        for platform, endpoint in (("github", "core"), ("github", "search"), ("github", "graphql"), ("gitlab", "global"), ("jira", "global")):
            publish(self.redis, "rate_limit_sync", {"platform": platform, "endpoint": endpoint, "limit": 100, "remaining": 60})

    def unanswered(self, board):
        return [(title, text) for title, text in expressions(board) if not self.prometheus.query(text)]


@pytest.fixture
def demo(folder, servers):
    demo = Demo(folder, servers)
    wait_until(lambda: demo.node.view()["is_leader"] and demo.node.view()["subscribed"], "it leads")
    wait_until(lambda: metric(demo.pool, "cleanup_runs_total") == 1, "it has cleaned up")
    wait_until(lambda: "hyperpage_jobs{" in scrape(demo.pool).body.decode(), "jobs are counted", 15)
    return demo


def test_every_query_of_the_boards_gets_data(demo):
    end = time.monotonic() + 20
    missing = None
    while missing != [] and time.monotonic() < end:
        demo.use()
        missing = [one for board in BOARDS for one in demo.unanswered(board)]
    assert missing == []
    for name in ORIGINAL_NAMES:
        assert demo.prometheus.query(name), name
    remaining = {(r["metric"]["platform"], r["metric"]["endpoint"]): r["value"][1] for r in demo.prometheus.query("rate_limit_remaining")}
    assert remaining == {(p, e): "60" for p, e in (("github", "core"), ("github", "search"), ("github", "graphql"),
                                                    ("gitlab", "global"), ("jira", "global"))}
    for rule in ("session_requests:rate5m", "session_errors:ratio_rate5m", "session_request_duration_seconds:p99_rate5m",
                 "cache_hits:ratio_rate5m"):
        # A rate is of what comes between two scrapes, so requests go on coming.
        wait_until(lambda r=rule: demo.use() or demo.prometheus.query(f"hyperpage:{r}"), f"{rule} is recorded")
    assert demo.prometheus.query('ALERTS{alertstate="firing"}') == []


def test_all_that_rules_and_boards_ask_about_is_told(demo):
    asked = names(RULES.read_text().split("groups:")[1]) | {n for board in BOARDS for _, text in expressions(board) for n in names(text)}

    def told():
        return {re.sub("_(bucket|sum|count)$", "", name) for name, _ in samples(scrape(demo.pool).body.decode())[0]}
    demo.use()
    wait_until(lambda: "rate_limit_max" in told(), "what was reported is told")
    assert asked - told() == set()
