"""The other way that lighttpd.conf offers in a comment: lighttpd starts the pool and ends it."""

import os
import signal

import pytest

from servers import BUILD, KEEPERS, Front, alive, children, edited_tree, name_of, wait_until

EDITS = [('\nfastcgi.server = ( "/api/" => ( var.pool + var.fastcgi ) )', ""),
         ("\n#fastcgi.server =", "\nfastcgi.server ="), ('\n#  "bin-path"', '\n  "bin-path"'),
         ("/usr/local/bin/hyperpage-fcgi", str(BUILD / "hyperpage-fcgi"))]


@pytest.fixture
def web(folder, servers):
    tree = edited_tree(folder, lighttpd=EDITS)
    return servers.enter_context(Front(folder, "lighttpd", f"unix:{folder}/started.sock", tree,
                                       WORKERS=2, REDIS_URL=""))


def create(web):
    reply = web.ask("GET", "/api/sessions")
    assert reply.status == 200
    return reply.json["sessionId"]


def master_of(web):
    return next((pid for pid in children(web.pid) if name_of(pid) == "hyperpage-fcgi"), None)


def test_lighttpd_starts_the_pool_and_ends_it(web):
    session_id = create(web)
    assert web.ask("PATCH", f"/api/sessions/{session_id}", {"uiState": {"dashboardLayout": "wide"}}).status == 200
    assert web.ask("GET", f"/api/sessions/{session_id}").json["session"]["uiState"]["dashboardLayout"] == "wide"
    pool = children(web.pid)
    assert len(pool) == 1 + KEEPERS + 2
    web.stop()  # its exit code is its own: 1 where a child of its ended a moment earlier
    wait_until(lambda: not [pid for pid in pool if alive(pid)], "the pool has left with lighttpd")


def test_lighttpd_starts_a_pool_again_that_has_left(web):
    """By TERM: after a kill -9 lighttpd may find the last workers still listening and start none (lighttpd.conf)."""
    session_id = create(web)
    first = master_of(web)
    os.kill(first, signal.SIGTERM)
    wait_until(lambda: web.ask("GET", f"/api/sessions/{session_id}").status == 200 and master_of(web) != first,
               "another pool answers")
