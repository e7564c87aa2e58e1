"""Three nodes behind a balancer, on Redis with Sentinels and on PostgreSQL, each on a machine of its own: what is restarted,
lost and cut off there, while clients that remember every acknowledgement go on through the balancer. Nothing is lost.

The scenes follow each other in one place, each leaves it whole, but the last. HYPERPAGE_LONG=1 has the long ones, and
prints a table (`make hosts`)."""

import contextlib
import http.client
import os
import pathlib
import pwd
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Callable

import pytest

import network
from ledger import Ledger
from servers import REPO, Reply, Server, free_port, metric, wait_until
from test_outage import dirty, stored
from topology import Balancer, Place

LONG = os.environ.get("HYPERPAGE_LONG") == "1"
CLIENTS = 12
OUTAGE_S = 10 if LONG else 0.5
ROUNDS = 5 if LONG else 1
ANSWERED = (200, 201, 401)


@pytest.fixture(scope="module")
def whole_place():
    if not network.is_permitted():
        pytest.skip("network namespaces are not permitted here")
    with tempfile.TemporaryDirectory(prefix="hp-") as path, contextlib.ExitStack() as stack:
        pathlib.Path(path).chmod(0o755)
        yield Place(pathlib.Path(path), stack)


@pytest.fixture
def place(whole_place):
    Server.started[:] = whole_place.servers()
    wait_until(whole_place.is_whole, "all serve, and the balancer knows it", 10)
    return whole_place


STRANGER = "203.0.113.7"


@pytest.fixture
def stranger(place):
    """Asks the balancer from an address that belongs to no private network."""
    def ask_from_there(method, path):
        with contextlib.closing(http.client.HTTPConnection(place.balancer.host, place.balancer.port, 10, (STRANGER, 0))) as c:
            c.request(method, path)
            return Reply(c.getresponse())

    place.client.ip(f"address replace {STRANGER}/32 dev front")
    place.balancer_host.ip(f"route replace {STRANGER}/32 dev front")
    return ask_from_there


# --- what happens: each returns when it is over ---

def restarted(place):
    """By the operator's script; in place of ssh and systemctl stands a command that ends the pool, and we start it again. As
    systemctl's it returns when the pool says that it serves, not when its first worker does."""
    run = place.folder / "run"
    run.write_text("#!/bin/sh\ncase $1 in\n" + "".join(
        f"{node.front.host}) pid={node.master()}; kill $pid; while kill -0 $pid 2> /dev/null; do sleep 0.02; done; "
        f"until [ -s {node.run_dir}/pool.pid ]; do sleep 0.02; done ;;\n"
        for node in place.nodes) + "esac\n")
    run.chmod(0o755)
    script = subprocess.Popen([REPO / "conf/ops/rolling-restart.sh", *(node.front.host for node in place.nodes)],
                              env={**os.environ, "RUN": run}, stdout=subprocess.DEVNULL)
    while script.poll() is None:
        for node in place.nodes:
            node.keep_running()
        time.sleep(0.005)
    assert script.returncode == 0


def restarted_again_and_again(place):
    before = [node.master() for node in place.nodes]
    for _ in range(ROUNDS):
        restarted(place)
    assert not set(before) & {node.master() for node in place.nodes}


def upgraded(place):
    for n in range(ROUNDS):
        for node in place.nodes:
            node.upgrade((n + 1) % 2)  # and back; at the end they have the newer one


def fronts_restarted(place):
    """Nodes leave the balancer before anything is done to them."""
    for node in place.nodes if LONG else place.nodes[:1]:
        (node.run_dir / "maintenance").touch()
        wait_until(lambda: place.balancer.has_left(node), "the balancer leaves it")
        node.restart_front()
        (node.run_dir / "maintenance").unlink()
        wait_until(lambda: place.balancer.uses(node), "the balancer is back")


def node_lost(place):
    node = place.leader()
    node.lose()
    place.await_leader_after(node)
    wait_until(lambda: place.balancer.has_left(node), "the balancer leaves it")
    time.sleep(OUTAGE_S)
    node.come_back()


def cut_off_from_data(place):
    node = place.leader()
    node.host.cut("back")
    wait_until(lambda: dirty(node.pool) > 0, "its refuge is used")
    place.await_leader_after(node)
    wait_until(lambda: not place.balancer.is_up("makers", node), "sessions are made elsewhere")
    time.sleep(OUTAGE_S)
    assert place.balancer.is_up("nodes", node), "whose sessions it has goes there"
    node.host.mend("back")
    wait_until(lambda: dirty(node.pool) == 0, "what was written there is in Redis")


def cut_off_from_balancer(place):
    node = place.nodes[1]
    node.host.cut("front")
    wait_until(lambda: place.balancer.has_left(node), "the balancer leaves it")
    time.sleep(OUTAGE_S)
    node.host.mend("front")
    wait_until(lambda: place.balancer.uses(node), "the balancer is back")


def database_cut_off(place):
    place.postgres_host.cut("back")
    user = {"userId": "anna"}
    session_id = place.balancer.ask("POST", "/api/sessions?create=1", {"sessionData": user}).json["sessionId"]
    wait_until(lambda: any(node.health()["database"]["status"] == "down" for node in place.nodes), "it is missed", 30)
    place.postgres_host.mend("back")
    wait_until(lambda: place.postgres.ask("SELECT 1 FROM user_sessions WHERE session_token = %s", session_id),
               "what happened meanwhile is known", 30)


def primary_lost(place):
    old = place.primary()
    old.lose()
    wait_until(lambda: place.primary() is not old, "the Sentinels have agreed")
    wait_until(lambda: all(node.health()["store"] == "redis" for node in place.nodes), "the nodes have followed")
    time.sleep(OUTAGE_S)


@dataclass
class Scene:
    do: Callable[[Place], None]
    most_failed: int = 0      # requests without an answer of the pool: those that were in flight
    refuses: bool = False     # may known sessions be 503?


SCENES = {
    "rolling restart": Scene(restarted_again_and_again),
    "rolling upgrade": Scene(upgraded),
    "web servers restarted, node by node": Scene(fronts_restarted),
    "PostgreSQL cut off": Scene(database_cut_off),
    "node cut off from the balancer": Scene(cut_off_from_balancer, most_failed=CLIENTS),
    "leader's node cut off from Redis": Scene(cut_off_from_data, refuses=True),
    "leader's node lost": Scene(node_lost, most_failed=CLIENTS),
    "Redis' primary lost": Scene(primary_lost, refuses=True),
}


# --- what is seen ---

def read_over(place):
    """As a client reads."""
    def read(session_id):
        answer = place.balancer.ask("GET", f"/api/sessions/{session_id}")
        assert answer.status in (200, 401), answer.body
        return answer.json["session"] if answer.status == 200 else None
    return read


def longest_wait_s(book):
    """The longest that a client went without an answer."""
    last, waits = {}, [0]
    for at, connection, *_ in book.answers:
        waits.append(at - last.get(connection, at))
        last[connection] = at
    return max(waits)


def judge(scene, place, book, record_property, name):
    wait_until(lambda: not any(dirty(node.pool) for node in place.nodes), "what was written in a refuge is in Redis")
    statuses = [status for _, _, _, status, _ in book.answers]
    failed = [answer for answer in book.answers if answer[3] not in (*ANSWERED, 503)]
    missing = book.missing(stored(place).get) + book.missing(read_over(place))
    record_property("outage", {
        "scene": name, "requests": len(statuses), "acknowledged": book.acknowledged, "failed": len(failed),
        "503": book.refused(), "of known, %": f"{book.refused_of_known(0, float('inf')) * 100:.1f}", "refuge": sum(answer[4] for answer in book.answers),
        "slowest, ms": f"{longest_wait_s(book) * 1000:.0f}", "wrong": len(book.wrong), "lost": len(missing)})
    assert book.wrong == [] and missing == []
    assert len(failed) <= scene.most_failed, failed
    assert scene.refuses or book.refused() <= scene.most_failed


@pytest.mark.parametrize("remembers", [True, False])
def test_a_session_is_asked_for_at_one_node_wherever_its_id_stands(folder, servers, place, remembers):
    """By the balancer that has seen it made, and by one that has not."""
    made = place.balancer.ask("GET", "/api/sessions").json
    assert made["session"]["metadata"]["ipAddress"] == place.client.addresses["front"]
    balancer, i = place.balancer, made["sessionId"]
    if not remembers:
        balancer = servers.enter_context(place.balancer_host.run(Balancer(folder, place.nodes, balancer.host, 8090)))
    forms = [("GET", f"/api/sessions/{i}", None, {}), ("POST", f"/api/sessions/{i}/extend", {}, {}),
             ("GET", f"/api/sessions?a=b&sessionId={i}", None, {}), ("GET", "/api/sessions", None, {"X-Session-Id": i}),
             ("POST", "/api/sessions", {"updates": {"note": "x" * 60000}, "sessionId": i}, {}),
             ("GET", "/api/sessions", None, {"Cookie": f"a=b; hyperpage-session={i}"})]
    before = asked_for_sessions(place)
    for form in forms:
        assert balancer.ask(*form).status == 200
    more = [after - then for after, then in zip(asked_for_sessions(place), before)]
    assert sorted(more) == [0, 0, len(forms)]


def asked_for_sessions(place):
    return [metric(node.pool, "requests_total", endpoint="/api/sessions.*") for node in place.nodes]


@pytest.mark.parametrize("path", ["/api/metrics", "/api/status", "/api/coordination", "/status", "/status/", "/api//metrics", "//api/metrics",
                                  "/api/%6detrics", "/api/%2e/metrics", "/api/sessions/../metrics", "/api/sessions/%2E%2e%2Fmetrics",
                                  "/api/metrics/", "/api/status%3Fa"])
def test_the_inside_is_told_to_private_networks_only(place, stranger, path):
    """Through the balancer, as the nodes' web servers do it for who comes to them directly."""
    refused = stranger("GET", path)
    assert refused.status == 403 and refused.json["error"]["code"] == "FORBIDDEN" and refused.headers["Cache-Control"] == "no-store"
    assert place.balancer.ask("GET", path).status != 403


def test_a_stranger_is_served_all_else(stranger):
    made = stranger("GET", "/api/sessions")
    assert made.json["session"]["metadata"]["ipAddress"] == STRANGER
    for path in (f"/api/sessions/{made.json['sessionId']}", "/api/health", "/api/health/live"):
        assert stranger("GET", path).status == 200
    assert stranger("GET", "/api/sessions/.hidden..id").status == 401


def test_without_a_node_the_balancer_says_so_as_the_service_would(folder, servers):
    nobody = SimpleNamespace(front=SimpleNamespace(host=Server.host, port=1))
    answer = servers.enter_context(Balancer(folder, [nobody] * 3, Server.host, free_port())).ask("GET", "/api/sessions/x")
    assert answer.status == 503 and answer.headers["Retry-After"] == "1"
    assert answer.json["error"]["code"] == "SERVICE_UNAVAILABLE"


def test_a_balancer_that_root_has_started_is_somebody_else_s(folder, servers):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    nobody = SimpleNamespace(front=SimpleNamespace(host=Server.host, port=1))
    balancer = servers.enter_context(Balancer(folder, [nobody] * 3, Server.host, free_port(), RUN_AS="haproxy"))
    ids = re.findall(r"^[UG]id:((?:\t\d+)+)$", pathlib.Path(f"/proc/{balancer.pid}/status").read_text(), re.M)
    haproxy = pwd.getpwnam("haproxy")
    assert [set(line.split()) for line in ids] == [{str(haproxy.pw_uid)}, {str(haproxy.pw_gid)}]


@pytest.mark.parametrize("name", SCENES)
def test_nothing_acknowledged_is_lost(place, record_property, name):
    with Ledger(place.balancer.url, CLIENTS, patience_s=30) as ledger:
        SCENES[name].do(place)
        book = ledger.stop()
    judge(SCENES[name], place, book, record_property, name)


def test_there_were_never_two_leaders(whole_place):
    """From the first act of a newer one on there is none of an older one."""
    terms = [(term, node, pid) for _, node, pid, term in sorted(whole_place.acts())]
    order = list(dict.fromkeys(terms))
    assert terms == sorted(terms) and len({term for term, _, _ in order}) == len(order) >= 3, order
