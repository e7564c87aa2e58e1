"""Two nodes, each with its pool, its own state and its own refuge, on one Redis from which one of them is cut off while
both go on: afterwards both have the same sessions, with what either wrote."""

import json
import time

import pytest

from ledger import Ledger
from servers import Pool, wait_until
from test_cluster import PREFIX, metric
from test_faults import create, status as status_of
from test_outage import Single, dirty, is_normal, read_over, stored

SESSIONS = 6


class TwoNodes(Single):
    """`connected` is always with Redis; `cut` is behind a proxy."""

    def __init__(self, folder, servers, workers=2):
        super().__init__(folder, servers)
        # Long timeouts: a busy machine is no outage.
        self.connected, self.cut = (servers.enter_context(Pool(
            folder, name, WORKERS=workers, REDIS_URL=url, REDIS_TIMEOUT_MS=1000, RUN_DIR=folder / f"{name} run", STATE_DIR=folder / f"{name} state"))
            for name, url in (("connected", self.redis.url), ("cut", self.proxy.url)))

    def make_known(self, count):
        """Sessions that both nodes have read."""
        sessions = [create(self.connected) for _ in range(count)]
        assert [status_of(self.cut, i) for i in sessions] == [200] * count
        return sessions

    def apart(self, session_id, silently=False):
        if silently:
            self.proxy.hold()
        else:
            self.proxy.refuse()
        wait_until(lambda: in_refuge(self.cut, session_id), "the node that is cut off serves from its refuge")

    def unheard(self, session_id, body):
        """The node that is about to be cut off, by its only worker, sends a change that Redis makes, but hears nothing."""
        self.proxy.hold_replies()
        answer = self.cut.ask("PATCH", f"/api/sessions/{session_id}", body)
        assert answer.status in (200, 503), answer.body
        assert stored(self)[session_id].items() >= body.items()

    def together(self, session_id):
        self.proxy.release()
        if not self.proxy.accepts():
            self.proxy.accept_again()
        wait_until(lambda: is_normal(self.cut, session_id), "it is with Redis again")
        wait_until(lambda: dirty(self.cut) == 0, "what it wrote is in Redis")


@pytest.fixture
def nodes(folder, servers):
    return TwoNodes(folder, servers)


def in_refuge(pool, session_id):
    answer = pool.ask("GET", f"/api/sessions/{session_id}")
    return answer.status == 200 and answer.headers["X-Session-Store"] == "refuge"


def patch(pool, session_id, body):
    answer = pool.ask("PATCH", f"/api/sessions/{session_id}", body)
    assert answer.status == 200, answer.body


def session(pool, session_id):
    answer = pool.ask("GET", f"/api/sessions/{session_id}")
    assert answer.status == 200, answer.body
    return json.loads(answer.body)["session"]


@pytest.mark.parametrize("silently", [False, True])
def test_what_both_wrote_while_apart_is_one_afterwards(nodes, servers, silently):
    quiet, *shared = nodes.make_known(1 + SESSIONS)  # of one that is being written there may be no copy
    ledgers = [servers.enter_context(Ledger(pool.address, 6, shared, name))
               for pool, name in ((nodes.connected, "x"), (nodes.cut, "y"))]
    nodes.apart(quiet, silently)
    time.sleep(1)
    nodes.together(quiet)
    time.sleep(0.3)
    books = [ledger.stop() for ledger in ledgers]
    wait_until(lambda: dirty(nodes.cut) == 0, "what it wrote is in Redis")

    held = stored(nodes)
    for book in books:
        assert book.wrong == []
        for read in (held.get, read_over(nodes.connected), read_over(nodes.cut)):
            assert book.missing(read) == []
    for session_id in shared:
        document = session(nodes.connected, session_id)
        assert document == session(nodes.cut, session_id)
        assert {name[0] for name in document} >= {"x", "y"}, "both have written it"
    apart = sum(refuge and status == 200 for _, _, _, status, refuge in books[1].answers)
    print(f"apart: {apart} requests served by the node that was cut off; {books[0].acknowledged} and "
          f"{books[1].acknowledged} writes acknowledged, none lost; {metric(nodes.cut, 'replay_conflicts_total')} conflicts")
    assert apart > 0


def test_a_deletion_counts_on_its_node_at_once_and_on_the_other_from_the_replay_on(nodes):
    stays, deleted = nodes.make_known(2)
    nodes.apart(stays)
    patch(nodes.cut, deleted, {"a": 1})
    assert nodes.cut.ask("DELETE", f"/api/sessions/{deleted}").status == 200
    assert status_of(nodes.cut, deleted) == 401
    assert status_of(nodes.connected, deleted) == 200
    patch(nodes.connected, deleted, {"b": 1})
    nodes.together(stays)
    assert [status_of(pool, deleted) for pool in (nodes.cut, nodes.connected)] == [401, 401]
    assert nodes.redis.call("EXISTS", f"{PREFIX}{deleted}") == 0
    assert nodes.redis.call("GET", f"hyperpage:gone:{{{PREFIX}{deleted}}}") == b"-"


def test_what_the_other_node_has_deleted_stays_deleted(nodes):
    stays, deleted = nodes.make_known(2)
    nodes.apart(stays)
    assert nodes.connected.ask("DELETE", f"/api/sessions/{deleted}").status == 200
    patch(nodes.cut, deleted, {"a": 1})  # which nobody told
    nodes.together(stays)
    assert [status_of(pool, deleted) for pool in (nodes.cut, nodes.connected)] == [401, 401]
    assert nodes.redis.call("EXISTS", f"{PREFIX}{deleted}") == 0
    assert metric(nodes.cut, "replay_dropped_total") == 1
    assert "replay: session dropped, it has ended in Redis" in nodes.cut.log()


def test_a_session_that_was_born_apart_is_everybodys_afterwards(nodes):
    stays, = nodes.make_known(1)
    nodes.apart(stays)
    born = create(nodes.cut)
    patch(nodes.cut, born, {"a": 1})
    assert status_of(nodes.connected, born) == 401, "nobody can know of it there"
    nodes.together(stays)
    assert session(nodes.connected, born)["a"] == 1
    patch(nodes.connected, born, {"b": 2})
    assert session(nodes.cut, born)["b"] == 2


@pytest.mark.parametrize("later", ["connected", "cut"])
def test_of_a_member_that_both_have_changed_the_later_document_counts(nodes, later):
    session_id, = nodes.make_known(1)
    nodes.apart(session_id)
    order = ["cut", "connected"] if later == "connected" else ["connected", "cut"]
    for name in order:
        patch(getattr(nodes, name), session_id, {"who": name, name: True})
        time.sleep(0.005)  # in another millisecond
    nodes.together(session_id)
    for pool in (nodes.cut, nodes.connected):
        document = session(pool, session_id)
        assert (document["who"], document["cut"], document["connected"]) == (later, True, True)
    assert metric(nodes.cut, "replay_conflicts_total") == 1

def test_a_change_that_redis_has_made_unheard_does_not_win_over_what_followed_it(folder, servers):
    """Though by then the other node has written the later document."""
    nodes = TwoNodes(folder, servers, workers=1)
    session_id, = nodes.make_known(1)
    nodes.unheard(session_id, {"a": 1})
    nodes.apart(session_id)
    patch(nodes.cut, session_id, {"a": 2})
    time.sleep(0.005)  # in another millisecond
    patch(nodes.connected, session_id, {"b": 1})
    nodes.together(session_id)
    for pool in (nodes.cut, nodes.connected):
        document = session(pool, session_id)
        assert (document["a"], document["b"]) == (2, 1)
    assert metric(nodes.cut, "replay_conflicts_total") == 0


def test_a_session_that_redis_has_made_unheard_is_nobodys_and_ends(folder, servers):
    nodes = TwoNodes(folder, servers, workers=1)
    stays, = nodes.make_known(1)
    nodes.proxy.hold_replies()
    born = create(nodes.cut)
    unheard, = stored(nodes).keys() - {stays}
    assert unheard != born, "Redis may make it again at any time"
    nodes.apart(stays)
    patch(nodes.cut, born, {"preferences": {"theme": "dark"}})
    nodes.together(stays)
    assert session(nodes.connected, born)["preferences"] == {"theme": "dark"}
    assert stored(nodes).keys() == {stays, born}
    assert metric(nodes.cut, "replay_conflicts_total") == 0


def test_a_creation_that_reaches_redis_after_all_brings_no_deleted_session_back(folder, servers):
    nodes = TwoNodes(folder, servers, workers=1)
    stays, = nodes.make_known(1)
    nodes.proxy.hold()  # on its way when the connection is given up, and for longer than the outage
    born = create(nodes.cut)
    nodes.proxy.make_late()
    assert nodes.cut.ask("DELETE", f"/api/sessions/{born}").status == 200
    assert in_refuge(nodes.cut, stays)
    nodes.together(stays)
    assert status_of(nodes.cut, born) == 401
    nodes.proxy.catch_up()
    wait_until(lambda: len(stored(nodes)) == 2, "Redis has executed it")
    assert [status_of(pool, born) for pool in (nodes.cut, nodes.connected)] == [401, 401]
