"""hyperpagectl on real pools, coordinators and a real Redis: what it says is so, what it is told is done when it returns
from --wait, and its exit codes are those that --help promises."""

import datetime
import json
import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import termios
import threading
import time

import pytest

from load import Load, failures
from postgres import Postgres
from servers import BUILD, REPO, Coordinator, Front, Pool, Redis, wait_until
from test_signals import Adopted, subreaper  # noqa: F401

OK, NOT_SO, USAGE, UNREACHABLE, TIMED_OUT = range(5)
CTL = BUILD / "hyperpagectl"


class Answer:
    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def json(self):
        return json.loads(self.out)


def ctl_with(env, *words, stdin=""):
    done = subprocess.run([CTL, *map(str, words)], env=env, input=stdin, capture_output=True, text=True, timeout=90)
    assert "runtime error" not in done.stderr and "Sanitizer" not in done.stderr, done.stderr
    return Answer(done)


def ctl(server, *words, stdin=""):
    """The tool with the options of a server."""
    return ctl_with(server.env, *words, stdin=stdin)


def look(server, *words):
    answer = ctl(server, *words, "--json")
    assert answer.code == OK, answer.err
    return answer.json


def pids(status):
    return {w["pid"] for w in status["workers"]}


def whole(pool):
    """All workers serve, as opposed to the first one; from then on the pid file names the master."""
    assert ctl(pool, "health", "--wait").code == OK
    return pool


@pytest.fixture
def pool(pool):
    return whole(pool)


# --- what it says ---

def test_a_status_says_what_runs(pool):
    status = look(pool, "status")
    assert status["pool"]["running"] and status["pool"]["pid"] == pool.pid and status["pool"]["state"] == "serving"
    assert status["pool"]["workersWanted"] == 2 and status["status"] == "healthy" and status["store"] == "embedded"
    assert {w["state"] for w in status["workers"]} == {"serving"}
    assert pids(status) <= set(pool.processes()) and len(status["workers"]) == 2
    assert not status["coordinator"]["running"]
    before = status["pool"]["requestsTotal"]
    pool.ask("GET", "/api/sessions")
    wait_until(lambda: look(pool, "status")["pool"]["requests"] == 0, "none is in hand")
    assert look(pool, "status")["pool"]["requestsTotal"] == before + 1


def test_text_and_json_tell_the_same(pool):
    text, status = ctl(pool, "status").out, look(pool, "status")
    assert f"\n  pid: {status['pool']['pid']}\n" in text
    for worker in status["workers"]:
        assert f"\n  - pid={worker['pid']} state=serving requests=0 " in text
    assert "\nstatus: healthy\n" in text


def test_where_nothing_runs_nothing_is_made(folder):
    (folder / "run").mkdir()
    env = {**os.environ, "RUN_DIR": str(folder / "run"), "STATE_DIR": str(folder / "state")}
    for words in (["status"], ["health"], ["reload"], ["drain"], ["restart"], ["scale", "2"], ["pods"], ["leader"],
                  ["cache", "stats"], ["cleanup", "--now"]):
        answer = ctl_with(env, *words)
        assert answer.code == UNREACHABLE, (words, answer.out, answer.err)
    assert ctl_with(env, "status", "--json").json == {"pool": {"running": False}, "coordinator": {"running": False}}
    assert list(folder.rglob("*")) == [folder / "run"]


@pytest.mark.parametrize("words", [["nonsense"], ["sessions"], ["scale"], ["scale", "0"], ["scale", "x"],
                                   ["scale", "257"], ["status", "more"], ["status", "--wait"], ["status", "--json=1"],
                                   ["status", "--timeout"], ["status", "--timeout", "0"], ["status", "--no-such", "1"],
                                   ["status", "--workers", "x"], ["send", "moon_phase", "{}"], ["send", "broadcast", "["],
                                   ["send", "broadcast", "{}", "--priority", "x"], ["send", "broadcast", "{}"],
                                   ["sessions", "show", "a b"], ["sessions", "list", ""], ["cleanup"]])
def test_a_wrong_call_is_one_line_and_2(folder, words):
    answer = ctl_with({**os.environ, "RUN_DIR": str(folder), "STATE_DIR": str(folder), "REDIS_URL": ""}, *words)
    assert answer.code == USAGE and answer.out == "", answer.err
    assert re.fullmatch(r"hyperpagectl: [^\n]+\n", answer.err)


def test_without_a_command_the_usage_is_told(folder):
    for words in ([], ["--json"]):
        answer = ctl_with({**os.environ, "RUN_DIR": str(folder)}, *words)
        assert answer.code == USAGE and answer.out == ""
        assert answer.err.startswith("usage: hyperpagectl COMMAND ") and "--help" in answer.err and "no such" not in answer.err


def test_help_lists_every_command_and_version_the_version(pool):
    text = ctl(pool, "--help").out
    for name in ("status", "health", "reload", "drain", "restart", "scale N", "pods", "leader", "send TYPE PAYLOAD",
                 "sessions revoke USER", "cache flush", "store check", "config check", "cleanup"):
        assert f"\n  {name}" in text
    assert ctl(pool, "--version").out.startswith("hyperpagectl ")


def test_the_manual_has_every_command(pool):
    page = (REPO / "docs/man/hyperpagectl.8").read_text()
    text = ctl(pool, "--help").out
    assert re.findall(r"^\.It Cm ((?:[a-z]+ ?)+)(?<! )", page, re.M) == re.findall(r"^  ((?:[a-z]+ ?)+)(?<! )", text, re.M)
    assert set(re.findall(r"--[a-z-]+", text)) <= {"--" + f for f in re.findall(r"Fl -([a-z-]+)", page)} | {"--help", "--version"}


def test_health_follows_the_pool_and_its_store(folder, servers, redis):
    pool = whole(servers.enter_context(Pool(folder, REDIS_URL=redis.url, SESSION_FALLBACK_TO_MEMORY="false")))
    assert ctl(pool, "health", "--wait").code == OK
    redis.stop()
    wait_until(lambda: ctl(pool, "health").code == NOT_SO, "it is not healthy")
    answer = ctl(pool, "health", "--json")
    assert answer.json["status"] == "unhealthy" and answer.json["redis"]["status"] == "down"
    assert ctl(pool, "health", "--wait", "--timeout", "1").code == TIMED_OUT
    redis.start()
    assert ctl(pool, "health", "--wait").code == OK
    mark = pathlib.Path(pool.env["RUN_DIR"], "maintenance")
    mark.touch()
    assert look(pool, "health")["maintenance"] and look(pool, "status")["maintenance"]
    mark.unlink()
    assert not look(pool, "health")["maintenance"]
    pool.stop()
    assert ctl(pool, "health").code == UNREACHABLE


def test_health_degraded_is_still_0(folder, servers, redis):
    pool = whole(servers.enter_context(Pool(folder, REDIS_URL=redis.url)))
    redis.stop()
    wait_until(lambda: look(pool, "health")["status"] == "degraded", "the refuge answers")
    assert look(pool, "status")["store"] == "refuge"


# --- top ---

def test_one_second_of_top_counts_what_happens(pool):
    def ask_on():
        while not done.is_set():
            pool.ask("GET", "/api/health/live")

    done = threading.Event()
    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        top = look(pool, "top")
    finally:
        done.set()
        asking.join()
    assert top["requestsPerSecond"] > 10 and float(top["p50Seconds"]) <= float(top["p99Seconds"])
    # Each is read at its own moment, while requests go on: some thousands a second.
    assert sum(w["requestsPerSecond"] for w in top["workers"]) == pytest.approx(top["requestsPerSecond"], rel=0.05)
    assert look(pool, "top")["requestsPerSecond"] == 0


class Terminal:
    """hyperpagectl on a terminal of its own."""

    def __init__(self, pool, *words):
        self.master, slave = pty.openpty()
        self.slave, self.before, self.seen = slave, termios.tcgetattr(slave), b""
        self.process = subprocess.Popen([CTL, *words], env=pool.env, stdin=slave, stdout=slave, start_new_session=True)

    def shows(self, text):
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 65536)
        return text in self.seen

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.mark.parametrize("end", ["q", "ctrl-c", "term", "pool"])
def test_top_on_a_terminal_leaves_it_as_it_was(pool, end):
    terminal = Terminal(pool, "top")
    try:
        wait_until(lambda: terminal.shows(b"requests/s") and terminal.shows(b"serving"), "it shows the pool")
        if end == "pool":
            pool.stop()
        elif end == "term":
            terminal.process.terminate()
        else:
            os.write(terminal.master, b"q" if end == "q" else b"\x03")
        assert terminal.process.wait(timeout=5) == 0
        assert terminal.shows(b"\033[?1049l") and termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()


# --- what it tells the pool ---

def test_a_reload_is_done_when_it_says_so(pool):
    before = pids(look(pool, "status"))
    assert ctl(pool, "reload", "--wait").code == OK
    after = look(pool, "status")
    assert after["pool"]["pid"] == pool.pid
    new = {w["pid"] for w in after["workers"] if w["state"] == "serving"}
    assert len(new) == 2 and not new & before
    assert "reload done" in pool.log()


def test_a_reload_that_is_refused_is_1(folder, servers):
    conf = folder / "hyperpage.conf"
    conf.write_text("LOG_LEVEL=info\n")
    pool = whole(servers.enter_context(Pool(folder, arguments=["--config", conf])))
    before = pids(look(pool, "status"))
    conf.write_text("LOG_LEVEL=loud\n")
    answer = ctl(pool, "reload", "--wait")
    assert answer.code == NOT_SO and "refused" in answer.err
    assert pids(look(pool, "status")) == before


def test_a_restart_brings_another_master_and_drops_nothing(folder, servers, pool, subreaper):  # noqa: F811
    front = servers.enter_context(Front(folder, "nginx", f"unix:{pool.address}"))
    load = servers.enter_context(Load(front.port))
    old, starter = pool.pid, pool.process
    answer = ctl(pool, "restart", "--wait", "--json")
    assert answer.code == OK, answer.err
    pool.process = Adopted(answer.json["pid"])
    assert pool.pid != old
    starter.wait(timeout=40)
    assert ctl(pool, "restart", "--rolling", "--wait").code == OK
    assert look(pool, "status")["pool"]["pid"] == pool.pid
    assert failures(load.stop()) == (0, 0)


def test_a_restart_that_cannot_be_is_1(folder, servers):
    tree = folder / "bin"
    tree.mkdir()
    binary = tree / "hyperpage-fcgi"
    shutil.copy(BUILD / "hyperpage-fcgi", binary)
    pool = Pool(folder)
    pool.command[0] = str(binary)
    whole(servers.enter_context(pool))
    binary.unlink()
    binary.write_text("#!/bin/sh\nexit 3\n")
    binary.chmod(0o755)
    answer = ctl(pool, "restart", "--wait")
    assert answer.code == NOT_SO and "refused" in answer.err, answer.err
    assert look(pool, "status")["pool"]["pid"] == pool.pid and ctl(pool, "health").code == OK


def test_a_pool_of_another_build_can_be_replaced_by_this_one(folder, servers, subreaper):  # noqa: F811
    tree = folder / "bin"
    tree.mkdir()
    binary = tree / "hyperpage-fcgi"
    shutil.copy(BUILD / "faults" / "hyperpage-fcgi", binary)  # which counts something more
    pool = Pool(folder)
    pool.command[0] = str(binary)
    servers.enter_context(pool)
    wait_until(lambda: ctl(pool, "status").code == OK, "all workers serve")
    assert look(pool, "status")["pool"] == {"running": True, "pid": pool.pid, "thisBuild": False}
    assert ctl(pool, "scale", "3").code == NOT_SO and ctl(pool, "health").code == NOT_SO
    binary.unlink()
    shutil.copy(BUILD / "hyperpage-fcgi", binary)
    starter = pool.process
    answer = ctl(pool, "restart", "--wait", "--json")
    assert answer.code == OK, answer.err
    pool.process = Adopted(answer.json["pid"])
    starter.wait(timeout=40)
    assert look(pool, "status")["pool"]["thisBuild"] and ctl(pool, "health").code == OK


def test_scale_holds_when_it_returns(pool):
    for workers in (5, 1, 3):
        assert ctl(pool, "scale", workers, "--wait").code == OK
        status = look(pool, "status")
        assert status["pool"]["workersWanted"] == workers
        assert len([w for w in status["workers"] if w["state"] == "serving"]) == workers


def test_drain_waits_for_the_end(pool):
    assert ctl(pool, "drain", "--wait").code == OK
    assert pool.process.wait(timeout=1) == 3, "no supervisor shall start it again"
    assert ctl(pool, "status").code == UNREACHABLE


def test_a_wait_ends_with_its_timeout(pool):
    pool.pause()
    try:
        started = time.monotonic()
        for words in (["drain"], ["reload"], ["scale", "3"]):
            assert ctl(pool, *words, "--wait", "--timeout", "1").code == TIMED_OUT
        assert time.monotonic() - started < 8
    finally:
        pool.resume()


def test_a_pid_that_is_another_process_is_not_signalled(folder, pool):
    bystander = subprocess.Popen(["sleep", "600"])
    other = Pool(folder / "other", name="other")
    other.folder.mkdir()
    try:
        with other:
            whole(other)
            pid_file = pathlib.Path(pool.env["RUN_DIR"]) / "pool.pid"
            worker = next(iter(pids(look(pool, "status"))))
            for pid in (bystander.pid, other.pid, worker, 1, 0, -1, 4194304, "x"):
                pid_file.write_text(f"{pid}\n")
                assert ctl(pool, "drain").code == UNREACHABLE, pid
            assert bystander.poll() is None and other.process.poll() is None and pool.process.poll() is None
            pid_file.write_text(f"{pool.pid}\n")
            assert ctl(pool, "health").code == OK
    finally:
        bystander.kill()
        bystander.wait()


def test_root_acts_as_the_owner_of_the_folder(folder):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.chmod(folder, 0o755)
    for name in ("run", "state"):
        (folder / name).mkdir()
        os.chown(folder / name, 65534, 65534)
    env = {**os.environ, "RUN_DIR": str(folder / "run"), "STATE_DIR": str(folder / "state"), "REDIS_URL": ""}
    assert ctl_with(env, "sessions", "count").code == OK
    made = list((folder / "state").iterdir())
    assert made and {path.stat().st_uid for path in made} == {65534}


# --- sessions ---

@pytest.fixture(params=["embedded", "redis"])
def home(request, folder, servers):
    url = servers.enter_context(Redis(folder)).url if request.param == "redis" else ""
    return whole(servers.enter_context(Pool(folder, REDIS_URL=url, SERVICE_TOKEN="service", SESSION_CACHE_BYTES=1 << 20)))


def create(pool, user, agent="a browser"):
    answer = pool.ask("POST", "/api/sessions?create=1", {"sessionData": {"userId": user}},
                      HTTP_AUTHORIZATION="Bearer service", CONTENT_TYPE="application/json", HTTP_USER_AGENT=agent)
    assert answer.status == 201, answer.body
    return json.loads(answer.body)["sessionId"]


def test_sessions_are_listed_shown_and_ended(home):
    ids = [create(home, "ann", "evil \x1b[31m\x9b browser") for _ in range(3)]
    other = create(home, "bob")
    assert look(home, "sessions", "count")["sessions"] == 4
    listed = ctl(home, "sessions", "list", "ann", "--json")
    assert len(listed.json["sessions"]) == 3 and not any(i in listed.out for i in ids)
    text = ctl(home, "sessions", "list", "ann").out
    assert "evil" in text and "\x1b" not in text and "\x9b" not in text
    shown = look(home, "sessions", "show", ids[0])
    assert shown["session"] == json.loads(home.ask("GET", f"/api/sessions/{ids[0]}").body)["session"]
    again = ctl(home, "sessions", "show", "-", "--json", stdin=f"{ids[0]}\n").json
    assert again | {"expiresAt": shown["expiresAt"]} == shown, "what is left to live is asked anew, so the end may differ by ms"
    assert look(home, "sessions", "revoke", "ann")["revoked"] == 3
    assert [home.ask("GET", f"/api/sessions/{i}").status for i in [*ids, other]] == [401, 401, 401, 200]
    assert ctl(home, "sessions", "show", ids[0]).code == NOT_SO
    assert ctl(home, "store", "check").code == OK


def test_a_store_that_is_away_is_3(folder, servers, redis):
    env = {**os.environ, "RUN_DIR": str(folder / "run"), "STATE_DIR": str(folder / "state"), "REDIS_URL": redis.url}
    for name in ("run", "state"):
        (folder / name).mkdir()
    redis.stop()
    for words in (["sessions", "count"], ["store", "export", folder / "out"], ["sessions", "list", "ann"]):
        answer = ctl_with(env, *words)
        assert answer.code == UNREACHABLE and len(answer.err.splitlines()) == 1, answer.err
    for words in (["sessions", "list", "ann"], ["sessions", "revoke", "ann"]):
        assert ctl_with(env, *words, "--json").out in ("", "{}\n"), "what is not known is not told as none"
    answer = ctl_with(env, "store", "check", "--json")
    assert answer.code == UNREACHABLE and answer.json["redis"]["status"] == "down"
    assert answer.json["embedded"]["status"] == "up"
    assert ctl_with(env, "send", "broadcast", "{}").code == UNREACHABLE


def test_the_cache_stays_as_large_as_the_pool_has_it(folder, servers, redis):
    pool = whole(servers.enter_context(Pool(folder, REDIS_URL=redis.url, SESSION_CACHE_BYTES=1 << 20)))
    session = json.loads(pool.ask("GET", "/api/sessions").body)["sessionId"]
    env = {**pool.env, "SESSION_CACHE_BYTES": str(8 << 20)}
    for words in (["sessions", "count"], ["cache", "flush"], ["sessions", "show", session]):
        assert ctl_with(env, *words).code == OK
    stats = ctl_with(env, "cache", "stats", "--json").json
    assert stats["on"] and 0 < stats["maxBytes"] <= 1 << 20 and stats["entries"] == 1


def test_a_flush_makes_the_next_read_ask_redis(folder, servers, redis):
    pool = whole(servers.enter_context(Pool(folder, REDIS_URL=redis.url, SESSION_CACHE_BYTES=1 << 20, WORKERS=1)))
    servers.enter_context(Coordinator(folder, "pod-1", REDIS_URL=redis.url, RUN_DIR=pool.env["RUN_DIR"],
                                      STATE_DIR=pool.env["STATE_DIR"]))
    session = json.loads(pool.ask("GET", "/api/sessions").body)["sessionId"]

    def hits():
        return look(pool, "cache", "stats")["hits"]

    def read_hits():
        before = hits()
        assert pool.ask("GET", f"/api/sessions/{session}").status == 200
        return hits() - before == 1

    wait_until(read_hits, "reads are answered from copies")
    wait_until(lambda: look(pool, "cache", "stats")["coherent"], "coherent")
    assert read_hits()
    assert ctl(pool, "cache", "flush").code == OK
    assert not read_hits()


# --- the cluster ---

@pytest.fixture
def two_nodes(folder, servers, redis):
    nodes = [servers.enter_context(Coordinator(folder, f"pod-{i}", REDIS_URL=redis.url)) for i in (1, 2)]
    wait_until(lambda: len([n for n in nodes if n.view()["is_leader"]]) == 1, "one leads")
    wait_until(lambda: all(n.view()["leader"] and n.view()["subscribed"] and n.view()["pod_count"] == 2 for n in nodes),
               "all know")
    return sorted(nodes, key=lambda n: not n.view()["is_leader"])


def test_pods_and_leader_as_each_node_knows_them(two_nodes):
    leader, follower = two_nodes
    for node in two_nodes:
        assert {p["podId"] for p in look(node, "pods")["pods"]} == {"pod-1", "pod-2"}
        assert look(node, "leader")["leaderId"] == leader.name
        assert look(node, "leader")["isLeader"] == (node is leader)
    assert ctl(follower, "leader", "--step-down").code == NOT_SO
    assert ctl(follower, "leader", "--wait").code == USAGE


def test_a_leader_that_steps_down_leaves_it_to_the_other(two_nodes):
    leader, follower = two_nodes
    term = look(leader, "leader")["term"]
    started = time.monotonic()
    answer = ctl(leader, "leader", "--step-down", "--wait", "--json")
    took_s = time.monotonic() - started
    assert answer.code == OK and answer.json["leaderId"] == follower.name and answer.json["term"] > term
    assert took_s < 0.8, "followers need not wait for the lease"
    assert follower.view()["is_leader"] and not leader.view()["is_leader"]
    assert "does not lead any more" in leader.log() and leader.process.poll() is None
    assert leader.view()["metrics"]["coordination_leaderships_lost_total"] == 0
    assert ctl(follower, "leader", "--step-down", "--wait").code == OK, "and back again"


def test_who_is_alone_does_not_wait_for_another_to_lead(folder, servers, redis):
    node = servers.enter_context(Coordinator(folder, "node", REDIS_URL=redis.url))
    wait_until(lambda: node.view()["is_leader"] and node.view()["pod_count"] == 1, "it leads")
    term = look(node, "leader")["term"]
    for more in ([], ["--wait"]):
        answer = ctl(node, "leader", "--step-down", *more)
        assert answer.code == NOT_SO and "no other node" in answer.err
    assert look(node, "leader")["isLeader"] and look(node, "leader")["term"] == term


def test_a_message_reaches_all_nodes_or_one(two_nodes):
    payload = json.dumps({"platform": "github", "endpoint": "core", "limit": 10, "remaining": 4})
    sent = look(two_nodes[1], "send", "rate_limit_sync", payload, "--priority", "high")
    assert sent["messageId"].startswith("msg-") and sent["receivers"] == 2
    for node in two_nodes:
        wait_until(lambda n=node: n.view()["messages"]["rate_limit_sync"] == 1, "it has come")
    look(two_nodes[1], "send", "broadcast", '{"type":"hello"}', "--pod", two_nodes[0].name)
    wait_until(lambda: two_nodes[0].view()["messages"]["broadcast"] >= 1, "it has come")


def test_a_cleanup_is_done_when_it_says_so(folder, servers, redis, two_nodes):
    leader, follower = two_nodes
    wait_until(lambda: redis.call("GET", "hyperpage:cleanup") is not None, "the first cleanup of the hour")
    wait_until(lambda: leader.view()["metrics"]["cleanup_runs_total"] == 1, "it is done")
    redis.call("SET", "hyperpage:session:forever", "{}")
    assert ctl(follower, "cleanup", "--now").code == NOT_SO
    elsewhere = {**leader.env, "REDIS_URL": servers.enter_context(Redis(folder, "elsewhere")).url}
    answer = ctl_with(elsewhere, "cleanup", "--now", "--wait", "--timeout", "20")
    assert answer.code == UNREACHABLE and "no coordinator has heard it" in answer.err
    assert ctl(leader, "cleanup", "--now", "--wait", "--timeout", "20").code == OK
    assert redis.call("TTL", "hyperpage:session:forever") > 0


def test_a_node_is_known_by_its_coordinator_s_name_whatever_the_caller_calls_it(redis, two_nodes):
    leader, _ = two_nodes
    wait_until(lambda: leader.view()["metrics"]["cleanup_runs_total"] == 1, "the first cleanup of the hour")
    answer = ctl_with({**leader.env, "POD_NAME": "another-name"}, "cleanup", "--now", "--wait", "--timeout", "20")
    assert answer.code == OK, answer.err
    assert "does not come from the leader" not in leader.log()


# --- jobs ---

def test_jobs_are_listed_and_a_cleanup_becomes_one(folder, servers, redis):
    database = servers.enter_context(Postgres(folder))
    answer = ctl_with({**os.environ, "RUN_DIR": str(folder), "STATE_DIR": str(folder), "DATABASE_URL": database.url}, "jobs")
    assert answer.code == NOT_SO and "no leader has made its tables yet" in answer.err and "relation" not in answer.err
    node = servers.enter_context(Coordinator(folder, "node", REDIS_URL=redis.url, DATABASE_URL=database.url))
    wait_until(lambda: node.view()["metrics"]["cleanup_runs_total"] == 1, "the first cleanup of the hour")
    assert [(j["type"], j["status"]) for j in look(node, "jobs")["jobs"]] == [("cleanup", "completed")]
    assert ctl(node, "cleanup", "--now", "--wait", "--timeout", "20").code == OK
    jobs = look(node, "jobs", "completed")["jobs"]
    assert len(jobs) == 2 and jobs[0]["id"] > jobs[1]["id"]
    at_ms = database.value("SELECT round(extract(epoch FROM completed_at) * 1000)::bigint FROM jobs WHERE id = %s", jobs[0]["id"])
    told = datetime.datetime.fromisoformat(jobs[0]["completedAt"].replace("Z", "+00:00"))
    assert abs(told.timestamp() * 1000 - at_ms) <= 1
    assert look(node, "jobs", "failed")["jobs"] == []
    assert ctl(node, "jobs", "lost").code == USAGE
    database.stop()
    assert ctl(node, "jobs", "--timeout", "2").code in (UNREACHABLE, TIMED_OUT)


# --- options ---

def test_options_are_shown_without_secrets_and_checked_as_the_programs_do(folder):
    for name in ("run", "state"):
        (folder / name).mkdir()
    conf = folder / "hyperpage.conf"
    conf.write_text(f"RUN_DIR={folder}/run\nSTATE_DIR={folder}/state\nADMIN_TOKEN=hush\nWORKERS=3\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith("HYPERPAGE")}
    shown = ctl_with(env, "config", "show", "--config", conf, "--drain-timeout=7")
    assert shown.code == OK and "hush" not in shown.out
    for line in (f"RUN_DIR={folder}/run", "WORKERS=3", "DRAIN_TIMEOUT=7", "ADMIN_TOKEN=(a secret)", "SERVICE_TOKEN=",
                 "SESSION_CACHE_BYTES=67108864"):
        assert f"\n{line}\n" in f"\n{shown.out}"
    assert ctl_with(env, "config", "show", "--json", "--config", conf).json["WORKERS"] == "3"
    assert ctl_with(env, "config", "check", "--config", conf).code == OK
    for wrong in (["--trusted-proxies", "nonsense"], ["--leader-heartbeat-interval", "15000"], ["--redis-url", "x"]):
        answer = ctl_with(env, "config", "check", "--config", conf, *wrong)
        assert answer.code == USAGE and len(answer.err.splitlines()) == 1, wrong


def on_a_machine_with(conf, *words, **env):
    """The tool where this file is /etc/hyperpage/hyperpage.conf."""
    script = 'mount -t tmpfs none /etc && install -D -m 644 "$1" /etc/hyperpage/hyperpage.conf && shift && exec "$@"'
    return Answer(subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", conf, CTL, *map(str, words)], text=True,
                                 capture_output=True, check=False, env={"PATH": os.environ["PATH"], **env}))


def test_the_machine_s_file_is_taken_where_nobody_names_a_node(folder):
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/etc"], capture_output=True, check=False).returncode != 0:
        pytest.skip("mounts of one's own are not permitted here")
    conf, other = folder / "hyperpage.conf", folder / "other.conf"
    conf.write_text("WORKERS=3\nLOG_LEVEL=warn\nADMIN_TOKEN=the-machine-s\n")
    other.write_text("WORKERS=4\n")
    shown = on_a_machine_with(conf, "config", "show", LOG_LEVEL="debug")
    assert shown.code == OK, shown.err
    assert "\nWORKERS=3\n" in shown.out and "\nLOG_LEVEL=debug\n" in shown.out, "and the environment comes after it"
    for words, env in ((["--config", other], {}), (["--run-dir", folder], {}), ([f"--run-dir={folder}"], {}), ([], {"RUN_DIR": str(folder)})):
        assert "\nWORKERS=3\n" not in on_a_machine_with(conf, "config", "show", *words, **env).out, words
    far = on_a_machine_with(conf, "sessions", "list", "ann", "--url", "http://127.0.0.1:1/")
    assert far.code == USAGE and "needs an administrator's token" in far.err, "its token is not for others"
    conf.write_text("WORKERS=many\n")
    wrong = on_a_machine_with(conf, "status")
    assert wrong.code == USAGE and "WORKERS=many" in wrong.err


# --- bash ---

def completions(*words):
    script = ('source "$1"; shift; COMP_WORDS=(hyperpagectl "$@"); COMP_CWORD=$#; _hyperpagectl; '
              'printf "%s\\n" "${COMPREPLY[@]}"')
    done = subprocess.run(["bash", "-c", script, "bash", REPO / "conf/completion/hyperpagectl.bash", *words], check=True,
                          env={**os.environ, "PATH": f"{BUILD}:{os.environ['PATH']}"}, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_and_their_options(folder):
    help_text = subprocess.run([CTL, "--help"], capture_output=True, text=True, check=True).stdout
    first = {line.split()[0] for line in re.findall(r"^  ([a-z].*)$", help_text, re.M)}
    assert set(completions("")) == first and {"status", "sessions", "scale"} <= first
    assert completions("sc") == ["scale"]
    assert completions("sessions", "") == ["count", "list", "revoke", "show"]
    assert completions("sessions", "--timeout", "5", "re") == ["revoke"]
    assert completions("restart", "--r") == ["--rolling", "--run-dir"]
    assert "--rolling" not in completions("reload", "--")
    assert completions("send", "--priority", "") == ["low", "normal", "high"]
    assert completions("scale", "") == []
    assert completions("jobs", "--json", "") == ["cancelled", "completed", "failed", "pending", "running", "timeout"]
    assert completions("send", "--pod", "a", "b") == ["broadcast"] and completions("send", "broadcast", "") == []
    for flag in set(re.findall(r"\[(--[a-z-]+)\]", help_text)):
        assert completions(flag, "sc") == ["scale"], flag
    for name in completions("jobs", ""):
        assert ctl_with({**os.environ, "RUN_DIR": str(folder), "DATABASE_URL": ""}, "jobs", name).err.endswith("there are no jobs\n")
    (folder / "a.conf").touch()
    for words in (["status", "--config"], ["status", "--token-file"], ["store", "import"]):
        assert completions(*words, f"{folder}/a") == [f"{folder}/a.conf"]
    assert completions("store", "import", "--o") == ["--overwrite"]
    assert completions("status", "--url", "x", "--ca") == ["--cacert"]
