"""Each way in which Redis can fail, under load on four workers, with a ledger of all that was acknowledged: nothing of it
is lost, no live session is unknown, no deleted one is back. Prints the table of docs/reliability.md.

Short outages here; HYPERPAGE_LONG=1 has the long ones (`make reliability`)."""

import contextlib
import json
import os
import pathlib
import re
import signal
import sqlite3
import subprocess
import time
from dataclasses import dataclass, field
from typing import Callable

import pytest

from ledger import Ledger
from proxy import Proxy
from servers import Pool, alive, wait_until
from test_cluster import PREFIX, Cluster, move
from test_faults import KeptRedis
from test_sentinel import SENTINEL_PASSWORD, Watched

LONG = os.environ.get("HYPERPAGE_LONG") == "1"
CI_FACTOR = 5  # a bound in a test is so many times the figure that is promised
FIRST_REFUGE_S, BACK_S = 0.3, 1
MOST_REFUSED = 0.2  # of the requests for live sessions: those that two workers were writing when Redis went have no copy
WORKERS = 4


# --- where it happens ---

class Single:
    """One Redis that keeps all it has acknowledged."""

    database = 0

    def __init__(self, folder, servers):
        self.redis = servers.enter_context(KeptRedis(folder))
        self.proxy = servers.enter_context(Proxy(self.redis.port))
        self.options = {"REDIS_URL": self.redis.url}

    def holders(self):
        return [self.redis]


class Proxied(Single):
    def __init__(self, folder, servers):
        super().__init__(folder, servers)
        self.options = {"REDIS_URL": self.proxy.url}


class OnFullDisk(Single):
    """With a STATE_DIR of its own, which can be full. The WAL alone may take 32 MiB."""

    def __init__(self, folder, servers):
        super().__init__(folder, servers)
        self.disk = folder / "disk"
        self.disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", self.disk], check=True)
        servers.callback(subprocess.run, ["umount", self.disk], check=True)
        self.options = {"REDIS_URL": self.redis.url, "STATE_DIR": self.disk}


class Sentinels(Watched):
    database = 1

    def __init__(self, folder, servers):
        super().__init__(folder, servers, replicas=2)
        self.options = {"REDIS_URL": self.url(), "REDIS_SENTINEL_PASSWORD": SENTINEL_PASSWORD}

    def holders(self):
        return [self.primary()]


class Nodes(Cluster):
    database = 0

    def __init__(self, folder, servers):
        super().__init__(folder, servers)
        self.options = {"REDIS_URL": self.url}

    def holders(self):
        return self.primaries()


ALL = """redis.call('SELECT', ARGV[1])
local found = {}
for _, key in ipairs(redis.call('KEYS', ARGV[2])) do
    found[#found + 1] = key
    found[#found + 1] = redis.call('GET', key)
end
return found"""


def stored(place):
    """What Redis holds: {id: document}."""
    words = [word for redis in place.holders() for word in redis.call("EVAL", ALL, 0, place.database, PREFIX + "*")]
    return {key.decode()[len(PREFIX):]: json.loads(value) for key, value in zip(words[::2], words[1::2])}


# --- what happens: each returns when it is over ---

def killed(place, seconds):
    place.redis.stop(signal.SIGKILL)
    time.sleep(seconds)
    place.redis.start()


def stopped(place, seconds):
    place.redis.pause()
    time.sleep(seconds)
    place.redis.resume()


def slow(place, seconds):
    place.proxy.delay(0.4)
    time.sleep(seconds)
    place.proxy.delay(0)


def halved(place, seconds):
    place.proxy.cut(50)
    time.sleep(seconds)
    place.proxy.cut(0)


def refused(place, seconds):
    place.proxy.refuse()
    time.sleep(seconds)
    place.proxy.accept_again()


def comes_and_goes(place, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        refused(place, 0.1)
        time.sleep(0.4)  # the pool looks four times a second whether it is back


def cut_off(place, seconds):
    place.proxy.hold()
    time.sleep(seconds)
    place.proxy.release()


def killed_with_pool(place, seconds):
    place.redis.stop(signal.SIGKILL)
    time.sleep(seconds / 2)
    pids = [place.pool.pid, *place.pool.processes()]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # one that has seen its master die
            os.kill(pid, signal.SIGKILL)
    place.pool.process.wait()
    wait_until(lambda: not any(map(alive, pids)), "all of it is gone")
    place.pool.start()
    time.sleep(seconds / 2)
    place.redis.start()


def read_only(place, seconds):
    place.redis.call("REPLICAOF", "127.0.0.1", "1")
    time.sleep(seconds)
    place.redis.call("REPLICAOF", "NO", "ONE")


def out_of_memory(place, seconds):
    place.redis.call("CONFIG", "SET", "maxmemory", "1")
    time.sleep(seconds)
    place.redis.call("CONFIG", "SET", "maxmemory", "0")


def password_changed(place, seconds):
    place.redis.call("CONFIG", "SET", "requirepass", "new")
    place.redis.password = "new"
    place.redis.call("CLIENT", "KILL", "TYPE", "normal")
    time.sleep(seconds)
    place.redis.call("CONFIG", "SET", "requirepass", "")
    place.redis.password = None


def scripts_flushed(place, seconds):
    repeat(seconds, lambda: place.redis.call("SCRIPT", "FLUSH"))


def data_flushed(place, _):
    place.redis.call("FLUSHALL")


def connections_killed(place, seconds):
    """One after the other."""
    repeat(seconds, lambda: place.redis.call("CLIENT", "KILL", "ID", connections_of_pool(place.redis)[0]))


def connections_of_pool(redis):
    """The one that has been silent for the longest time first."""
    clients = [dict(f.split("=", 1) for f in line.split()) for line in redis.call("CLIENT", "LIST").decode().splitlines()]
    return [c["id"] for c in sorted(clients, key=lambda c: -int(c["age"])) if c["name"].startswith("hyperpage")]


def repeat(seconds, do):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        do()
        time.sleep(0.1)


def killed_on_full_disk(place, seconds):
    place.redis.stop(signal.SIGKILL)
    time.sleep(seconds / 2)
    with contextlib.suppress(OSError), open(place.disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(65536))
    time.sleep(seconds / 2)
    (place.disk / "filler").unlink()
    place.redis.start()


def primary_killed(place, _):
    old = place.primary()
    old.stop(signal.SIGKILL)
    wait_until(lambda: place.primary() is not old, "the Sentinels have agreed")


def node_killed(place, _):
    old = place.primaries()[0]
    old.stop(signal.SIGKILL)
    wait_until(lambda: len(place.primaries()) == 3, "its replica has taken over")
    old.start()  # as the replica that WAIT 1 needs


def slots_moved(place, _):
    source, target = place.primaries()[:2]
    keys = source.call("KEYS", PREFIX + "*")
    for slot in sorted({source.call("CLUSTER", "KEYSLOT", key) for key in keys[:20]}):
        move(place, slot, source, target, 0.02)


# --- the table ---

@dataclass
class Fault:
    place: type
    do: Callable
    seconds: float = 1           # how long it lasts
    long_seconds: float = 5      # with HYPERPAGE_LONG
    refuge: bool = True          # is there an outage, which the refuge bridges?
    refuses: bool = False        # must there be answers of 503 beyond its beginning?
    forgets: bool = False        # Redis says that it has lost all, which counts as deletion
    loses: bool = False          # Redis may lose what it has acknowledged
    says: str = ""               # what must be in the log
    options: dict = field(default_factory=dict)


PATIENT = {"REDIS_TIMEOUT_MS": 2000}  # where no outage is to be seen: a busy machine's disk may take its time

FAULTS = {
    "killed -9, started again": Fault(Single, killed),
    "killed -9, the pool too and started again": Fault(Single, killed_with_pool),
    "killed -9, SESSION_FALLBACK_TO_MEMORY=false": Fault(Single, killed, refuge=False, refuses=True, options={
        "SESSION_FALLBACK_TO_MEMORY": "false"}),
    "stopped for a moment": Fault(Single, stopped, 1, 1),
    "stopped": Fault(Single, stopped, 3, 10),
    "slow by 400 ms": Fault(Proxied, slow),
    "half of a reply now and then": Fault(Proxied, halved, refuge=False, options=PATIENT),
    "refuses connections": Fault(Proxied, refused),
    "comes and goes": Fault(Proxied, comes_and_goes, 2, 10),
    "cut off": Fault(Proxied, cut_off),
    "read-only": Fault(Single, read_only),
    "out of memory": Fault(Single, out_of_memory),
    "password changed": Fault(Single, password_changed, refuge=False, refuses=True, says="error .*NOAUTH",
                              options=PATIENT),
    "script cache flushed": Fault(Single, scripts_flushed, refuge=False, options=PATIENT),
    "FLUSHALL": Fault(Single, data_flushed, refuge=False, forgets=True, says="redis has lost its data", options=PATIENT),
    "connections killed one by one": Fault(Single, connections_killed, refuge=False, options=PATIENT),
    "killed -9, disk full under STATE_DIR": Fault(OnFullDisk, killed_on_full_disk, 2, 6, refuses=True),
    "Sentinel: primary killed, WAIT 1": Fault(Sentinels, primary_killed, options={"SESSION_REDIS_WAIT_REPLICAS": 1}),
    "Sentinel: primary killed": Fault(Sentinels, primary_killed, loses=True),
    "cluster: primary killed, WAIT 1": Fault(Nodes, node_killed, options={"SESSION_REDIS_WAIT_REPLICAS": 1}),
    "cluster: primary killed": Fault(Nodes, node_killed, loses=True),
    "cluster: slots moved": Fault(Nodes, slots_moved, refuge=False, options=PATIENT),
}
ONLY_LONG = {"comes and goes", "Sentinel: primary killed", "cluster: primary killed"}


@dataclass
class Outcome:
    seconds: float
    book: object
    began: float
    returned: float
    missing: list

    def row(self, name):
        book, wrong = self.book, len(self.book.wrong)
        first, last = book.first_from_refuge(self.began), book.last_disturbed()
        return {"fault": name, "s": f"{self.seconds:.1f}", "requests": len(book.answers),
                "acknowledged": book.acknowledged, "503": book.refused(),
                "503 of known, %": f"{100 * book.refused_of_known(first or self.began, self.returned):.1f}",
                "wrong": wrong, "lost": len(self.missing),
                "first from the refuge, ms": f"{(first - self.began) * 1000:.0f}" if first else "",
                "back, ms": f"{max(last - self.returned, 0) * 1000:.0f}" if last else ""}


def is_normal(pool, session_id):
    answer = pool.ask("GET", f"/api/sessions/{session_id}")
    return answer.status in (200, 401) and "X-Session-Store" not in answer.headers


def dirty(pool):
    """Sessions that wait in the refuge for their replay."""
    path = pathlib.Path(pool.env["STATE_DIR"], "sessions.db")
    if not path.exists():  # SESSION_FALLBACK_TO_MEMORY=false
        return 0
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        return db.execute("SELECT count(*) FROM refuge").fetchone()[0]


def read_over(pool):
    def read(session_id):
        answer = pool.ask("GET", f"/api/sessions/{session_id}")
        assert answer.status in (200, 401), answer.body
        return json.loads(answer.body)["session"] if answer.status == 200 else None
    return read


def suffer(fault, place, pool):
    """The fault under load, and what was seen."""
    seconds = fault.long_seconds if LONG else fault.seconds
    session_id = json.loads(pool.ask("GET", "/api/sessions").body)["sessionId"]
    with Ledger(pool.address) as ledger:
        began = time.monotonic()
        fault.do(place, seconds)
        returned = time.monotonic()
        wait_until(lambda: is_normal(pool, session_id), "serving is normal")
        time.sleep(0.5)  # a pool that fell back would show
        book = ledger.stop()
    wait_until(lambda: dirty(pool) == 0, "all is back in Redis", 60)
    since = returned if fault.forgets else 0
    held = stored(place)
    missing = book.missing(held.get, since) + book.missing(read_over(pool), since)
    if fault.forgets:
        book.wrong = [w for w in book.wrong if "401" not in w[2] or book.sessions[w[1]]["born"] >= since]
    return Outcome(returned - began, book, began, returned, missing)


def judge(fault, seen, pool):
    book = seen.book
    first, last = book.first_from_refuge(seen.began), book.last_disturbed()
    assert book.wrong == []
    assert fault.loses or seen.missing == []
    if fault.refuge:
        assert first and first - seen.began < FIRST_REFUGE_S * CI_FACTOR
        assert last - seen.returned < BACK_S * CI_FACTOR
    else:
        assert not any(answer[-1] for answer in book.answers), "there was no outage to bridge"
    if not fault.refuses:
        assert book.refused_of_known(first or seen.began, seen.returned) <= (MOST_REFUSED if fault.refuge else 0)
    wait_until(lambda: re.search(fault.says, pool.log()), f"the log says: {fault.says}", 30)


@pytest.mark.parametrize("name", [name for name in FAULTS if LONG or name not in ONLY_LONG])
def test_nothing_acknowledged_is_lost(folder, servers, record_property, name):
    fault = FAULTS[name]
    if fault.place is OnFullDisk and os.geteuid() != 0:
        pytest.skip("only root may mount")
    place = fault.place(folder, servers)
    pool = place.pool = servers.enter_context(Pool(folder, **{"WORKERS": WORKERS, **place.options, **fault.options}))
    seen = suffer(fault, place, pool)
    record_property("outage", seen.row(name))
    judge(fault, seen, pool)


def test_the_ledger_notices_what_is_missing(folder, servers):
    """What the others rely on: behind the pool's back one session goes, one loses a change, one comes back."""
    place = Single(folder, servers)
    pool = servers.enter_context(Pool(folder, WORKERS=WORKERS, **{**place.options, "REDIS_TIMEOUT_MS": 2000}))
    with Ledger(pool.address) as ledger:
        book = ledger.stop()
    assert book.wrong == [] and book.missing(stored(place).get) == [] and book.missing(read_over(pool)) == []
    changed = [i for i, s in book.sessions.items() if s["life"] == "live" and s["members"]]
    dead = next(i for i, s in book.sessions.items() if s["life"] == "deleted")
    document = stored(place)[changed[0]]
    place.redis.call("DEL", PREFIX + changed[1])
    place.redis.call("SET", PREFIX + dead, json.dumps(document))
    document[next(iter(book.sessions[changed[0]]["members"]))] -= 1
    place.redis.call("SET", PREFIX + changed[0], json.dumps(document))
    for read in (stored(place).get, read_over(pool)):
        faults = sorted(fault.partition(": ")[0] for fault in book.missing(read))
        assert faults == sorted([changed[0], changed[1], dead])
