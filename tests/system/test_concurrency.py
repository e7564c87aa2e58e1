"""No update is lost, and nothing comes back after its DELETE was acknowledged: many requests at once on one session,
over 8 workers and both stores."""

import contextlib
import json
import random

import pytest

import fcgi
from servers import Pool, Redis, metric

WORKERS = 8
PATCHES = 200
ROUNDS = 500


@pytest.fixture(params=["redis", "embedded"])
def pool(request, folder, servers):
    url = servers.enter_context(Redis(folder)).url if request.param == "redis" else ""
    return servers.enter_context(Pool(folder, REDIS_URL=url, WORKERS=WORKERS, REDIS_TIMEOUT_MS=4000))  # Redis is here, however busy


def create(pool):
    return json.loads(pool.ask("GET", "/api/sessions").body)["sessionId"]


@pytest.mark.parametrize("media_type", ["application/json", "application/merge-patch+json"])
def test_200_patches_of_different_members_at_once_are_all_there(pool, media_type):
    session_id = create(pool)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(pool.connect()) for _ in range(PATCHES)]
        requests = [fcgi.request("PATCH", f"/api/sessions/{session_id}", b'{"m%d":%d}' % (n, n),
                                 headers={"Content-Type": media_type}) for n in range(PATCHES)]
        for client, request in zip(clients, requests):  # none waits for another's answer
            client.send(request)
        answers = [client.receive() for client in clients]
    assert [answer.status for answer in answers] == [200] * PATCHES
    assert len({answer.headers["ETag"] for answer in answers}) > 1
    session = json.loads(pool.ask("GET", f"/api/sessions/{session_id}").body)["session"]
    present = [n for n in range(PATCHES) if session.get(f"m{n}") == n]
    print(f"{len(present)} of {PATCHES} present, {metric(pool, 'cas_retries_total')} writes repeated")
    assert len(present) == PATCHES


def test_updates_with_if_match_are_made_once_each(pool):
    """Of many that name the same version one wins; the others hear of it."""
    session_id = create(pool)
    path = f"/api/sessions/{session_id}"
    for n in range(20):
        tag = pool.ask("GET", path).headers["ETag"]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(pool.connect()) for _ in range(10)]
            for i, client in enumerate(clients):
                client.send(fcgi.request("PATCH", path, b'{"winner":"%d.%d"}' % (n, i), headers={"If-Match": tag}))
            statuses = [client.receive().status for client in clients]
        assert sorted(statuses) == [200] + [412] * 9
        winner = json.loads(pool.ask("GET", path).body)["session"]["winner"]
        assert winner == f"{n}.{statuses.index(200)}"


def test_no_session_is_there_after_its_delete_was_acknowledged(pool):
    orders = random.Random(2)
    updated = 0
    for n in range(ROUNDS):
        session_id = create(pool)
        path = f"/api/sessions/{session_id}"
        body = json.dumps({"sessionId": session_id, "updates": {"a": 1}}).encode()
        racers = [("PATCH", path, b'{"a":1}'), ("POST", "/api/sessions", body), ("PATCH", path, b'{"b":1}'),
                  ("DELETE", path, b""), ("DELETE", path, b"")]
        if n % 2:  # else some updates are on their way when one of them has been answered
            orders.shuffle(racers)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(pool.connect()) for _ in racers]
            answers = {}
            for i, (method, uri, body) in enumerate(racers):
                if n % 2 == 0 and i == 3:
                    answers[0] = clients[0].receive()
                clients[i].send(fcgi.request(method, uri, body))
            delete = next(i for i, racer in enumerate(racers) if racer[0] == "DELETE")
            answers[delete] = clients[delete].receive()  # either of the two may be the one that finds it gone
            assert answers[delete].status in (200, 401)
            assert pool.ask("GET", path).status == 401, "there after its DELETE was acknowledged"
            answers.update({i: c.receive() for i, c in enumerate(clients) if i not in answers})
        statuses = {kind: [answers[i].status for i, racer in enumerate(racers) if racer[0] == kind]
                    for kind in ("PATCH", "POST", "DELETE")}
        assert set(statuses["PATCH"] + statuses["POST"]) <= {200, 401}
        assert sorted(statuses["DELETE"]) == [200, 401], "exactly one of them deleted it"
        assert pool.ask("GET", path).status == 401
        updated += (statuses["PATCH"] + statuses["POST"]).count(200)
    print(f"{ROUNDS} rounds: {updated} of {3 * ROUNDS} updates came before the DELETE, 0 sessions came back")
    assert 0 < updated < 3 * ROUNDS, "there was no race"
