"""Fixtures: real servers in the test's own folder, ended with the test. When a test fails, their logs are shown."""

import contextlib
import pathlib
import tempfile

import pytest

from servers import Front, Pool, Redis, Server


@pytest.fixture
def folder():
    """A folder for one test, with a short name: the path of a unix socket has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="hp-") as path:
        yield pathlib.Path(path)


@pytest.fixture
def servers():
    """Whatever a test starts through this is ended with it, the last first: servers.enter_context(Pool(folder))."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def redis(folder, servers):
    return servers.enter_context(Redis(folder))


@pytest.fixture
def pool(folder, servers):
    """A pool on its embedded store, with two workers."""
    return servers.enter_context(Pool(folder))


@pytest.fixture(params=["lighttpd", "nginx"])
def front(request, folder, servers, pool):
    """Each web server in turn, before the pool."""
    return servers.enter_context(Front(folder, request.param, f"unix:{pool.address}"))


outages = []  # rows of the table that test_outage.py makes: {column: value}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    outages.extend(value for name, value in item.user_properties if name == "outage" and report.when == "call")
    if report.failed:
        report.sections += [(f"log of {server.name}", server.log()[-20000:]) for server in Server.started]
    if report.when == "teardown":
        Server.started.clear()


def pytest_terminal_summary(terminalreporter):
    """The table of outages, as docs/reliability.md keeps it."""
    if outages:
        head = list(outages[0])
        for cells in (head, ["---"] * len(head), *(row.values() for row in outages)):
            terminalreporter.write_line("| " + " | ".join(map(str, cells)) + " |")
