"""Five coordinators whose world goes wrong at random: killed, stopped for a while, cut off from Redis or from PostgreSQL,
Redis restarted with and without its data. Each stands on a machine of its own where that is permitted (network.py), else
behind proxies.

Two records say what they did. Every act as leader is written down by the node that does it, at the moment of its lease
check, with its term (the programs of build/faults do that): never may an act of an older leader lie behind the first of a
newer one, and terms only grow; but if Redis has lost its counter, and all who have seen a term are dead or cut off, it may
come again. That is what the fence in PostgreSQL is for, so there no exception is made: triggers write down each row that a
node changes, with the term under which the fence has let it in. Whoever is let in holds the lock on the fence's row until
its transaction is over, so the order of that record is the order of the commits, and in it no term ever falls.

    nemesis.py [SECONDS [SEED]]     prints what happened and ends with 1 if a rule was broken
"""

import contextlib
import itertools
import json
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from functools import partial

import network
import servers
from network import Host, Switch
from postgres import ORIGINAL, Postgres
from proxy import Proxy
from servers import Coordinator, Redis, wait_until

NODES, LEASE_S, HEARTBEAT_S = 5, 1.0, 0.25
FEED_EVERY_S = 0.05
STREAM = "hyperpage:session-events"

# `locked`: the transaction that writes holds the fence's row, locked (xmax) or written (xmin) by itself. `claimed`: the
# term that the leader itself believes in, where it writes one.
RECORD = """
CREATE TABLE record (seq bigserial PRIMARY KEY, node text, what text, term bigint, leader text, claimed bigint, locked boolean);
CREATE FUNCTION write_down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO record (node, what, term, leader, claimed, locked)
        SELECT current_setting('application_name'), TG_OP || ' ' || TG_TABLE_NAME, (value->>'term')::bigint, value->>'leaderId',
               (to_jsonb(NEW)->'details'->>'term')::bigint, pg_current_xact_id()::xid::text IN (mark.xmin::text, mark.xmax::text)
        FROM (SELECT) nothing LEFT JOIN app_state mark ON key = 'coordinator.term';
    RETURN NULL;
END $$;
CREATE TRIGGER record AFTER UPDATE ON app_state FOR EACH ROW
    WHEN (starts_with(current_setting('application_name'), 'pod-')) EXECUTE FUNCTION write_down();
""" + "".join(f"""
CREATE TRIGGER record AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW
    WHEN (starts_with(current_setting('application_name'), 'pod-')) EXECUTE FUNCTION write_down();
""" for table in ("jobs", "job_history", "rate_limits", "user_sessions"))


def addresses(number):
    """Of a machine: Redis and PostgreSQL are reached through a network each, so that either can be cut off."""
    return {"redis": f"10.77.1.{number}", "postgres": f"10.77.2.{number}"}


Cable = namedtuple("Cable", "pull plug deafen hear")  # what can be done to a node's way to a server


def cable(host, net, data):
    """The way of `host` to the servers' machine `data`."""
    return Cable(partial(host.cut, net), partial(host.mend, net), partial(host.deafen, net, data), partial(host.hear, net, data))


def wire(proxy):
    """The same where machines are not permitted."""
    return Cable(proxy.hold, proxy.release, proxy.hold_replies, proxy.release)


class Node(Coordinator):
    """A coordinator on a machine of its own: `cables` to Redis and to PostgreSQL."""

    def __init__(self, world, stack, number):
        name, ports = f"pod-{number}", (world.redis.port, world.database.port)
        if world.data:
            host = stack.enter_context(Host(world.switch, name, **addresses(2 + number)))
            self.cables = [cable(host, net, world.data) for net in host.addresses]
            places = list(zip(world.data.addresses.values(), ports))
        else:
            proxies = [stack.enter_context(Proxy(port)) for port in ports]
            self.cables = [wire(proxy) for proxy in proxies]
            places = [("127.0.0.1", proxy.port) for proxy in proxies]
        super().__init__(world.folder, name, HYPERPAGE_ACTS=world.acts_file, REDIS_URL="redis://%s:%d/0" % places[0],
                         DATABASE_URL="postgresql://test@%s:%d/postgres?application_name=%s" % (*places[1], name),
                         LEADER_ELECTION_TIMEOUT=int(LEASE_S * 1000), LEADER_HEARTBEAT_INTERVAL=int(HEARTBEAT_S * 1000),
                         SESSION_CLEANUP_INTERVAL_MINUTES=1)
        self.command[0] = str(servers.BUILD / "faults/hyperpage-coordinator")
        if world.data:
            host.run(self)
        self.mends = {}  # of each cable that is cut: what makes it whole

    def is_running(self):
        return self.process.poll() is None

    def launch_again(self):
        if not self.is_running():
            self.launch()

    def forget(self):
        """Killed, and nothing is left of it but its name."""
        self.stop(signal.SIGKILL)
        for path in (self.run_dir, self.run_dir.parent / "state"):
            shutil.rmtree(path)
            path.mkdir()

    def cut(self, cable, how):
        """`how`: "pull" or "deafen"."""
        if cable not in self.mends:
            getattr(cable, how)()
            self.mends[cable] = {"pull": cable.plug, "deafen": cable.hear}[how]

    def mend(self, cable):
        self.mends.pop(cable, lambda: None)()


class World:
    def __init__(self, folder, stack, seed):
        self.data = None  # the machine of the servers, and of ourselves
        if network.is_permitted():
            self.switch = stack.enter_context(Switch(*addresses(1)))
            self.data = stack.enter_context(Host(self.switch, "data", **addresses(1)))
            stack.enter_context(self.data.inside())
        self.random, self.folder, self.acts_file = random.Random(seed), folder, folder / "acts"
        self.acts_file.touch()
        heard = {"bind": "0.0.0.0", "protected_mode": "no"} if self.data else {}
        self.redis = stack.enter_context(Redis(folder, appendonly="yes", appendfsync="always", **heard))
        heard = {"listen_addresses": "*", "access": ["host all all samenet trust"]} if self.data else {}
        self.database = stack.enter_context(Postgres(folder, **heard))
        self.database.ask(ORIGINAL + RECORD)
        self.client = stack.enter_context(contextlib.closing(self.database.connect()))
        self.client.autocommit = True
        self.nodes = [Node(self, stack, i) for i in range(NODES)]
        for node in self.nodes:
            stack.enter_context(node.launch())
        self.later = []  # (when, what)
        self.counts, self.losses, self.fed = {}, [], itertools.count()
        print("each node has " + ("a machine of its own" if self.data else "proxies before its servers"))

    def at(self, seconds, what):
        self.later.append((time.monotonic() + seconds, what))

    def do_what_is_due(self):
        for item in [item for item in self.later if item[0] <= time.monotonic()]:
            self.later.remove(item)
            item[1]()

    # --- what goes wrong ---

    def kill(self, node):
        node.stop(signal.SIGKILL)
        self.at(self.random.uniform(0.1, 2), node.launch_again)

    def stop_still(self, node):
        node.pause()
        self.at(self.random.uniform(0.5, 5), lambda: node.is_running() and node.resume())

    def cut_off(self, node, cable):
        node.cut(cable, self.random.choice(["pull", "deafen"]))
        self.at(self.random.uniform(0.3, 3), lambda: node.mend(cable))

    def cut_off_redis(self, node):
        self.cut_off(node, node.cables[0])

    def cut_off_postgres(self, node):
        self.cut_off(node, node.cables[1])

    def leave(self, node):
        node.stop()
        self.at(self.random.uniform(0.1, 1), node.launch_again)

    def restart_redis(self, _):
        self.redis.stop(self.random.choice([signal.SIGTERM, signal.SIGKILL]))
        self.redis.start()

    def empty_redis(self, _):
        self.losses.append(time.monotonic())
        self.redis.stop(signal.SIGKILL)
        shutil.rmtree(self.folder / "appendonlydir")
        self.redis.start()

    def empty_all(self, _):
        """Only PostgreSQL knows that there has ever been a term."""
        for node in self.nodes:
            node.forget()
        self.empty_redis(_)
        for node in self.nodes:
            node.launch()

    def strike(self):
        what = self.random.choices([self.kill, self.stop_still, self.cut_off_redis, self.cut_off_postgres, self.leave,
                                    self.restart_redis, self.empty_redis, self.empty_all], [8, 8, 8, 8, 4, 2, 4, 1])[0]
        node = self.random.choice(self.leader() * 4 + self.nodes)  # mostly who leads
        if node.is_running():
            self.counts[what.__name__] = self.counts.get(what.__name__, 0) + 1
            what(node)

    def settle(self):
        self.later.clear()
        for node in self.nodes:
            for cable in node.cables:
                node.mend(cable)
            if node.is_running():
                node.resume()
            node.launch_again()
        self.wait_for_calm()

    # --- what they have to do ---

    def feed(self):
        """Something for each kind of a leader's writes: jobs, expired rows, events, limits."""
        n = next(self.fed)
        with self.client.cursor() as cursor:
            cursor.execute("INSERT INTO jobs (type, payload) VALUES (%s, '{}')", ["cleanup" if n % 20 == 0 else "bg_job_balance"])
            cursor.execute("INSERT INTO user_sessions (user_id, session_token, expires_at) "
                           "VALUES (gen_random_uuid(), %s, now() - interval '1 hour')", [f"dead-{n}"])
        limit = {"id": f"msg-{n}", "type": "rate_limit_sync", "timestamp": int(time.time() * 1000), "sourcePod": "another",
                 "payload": {"platform": "gitlab", "limit": 1 << 20, "remaining": n}, "priority": "normal"}
        with contextlib.suppress(OSError, EOFError, RuntimeError), self.redis.connection() as r:
            r.pipeline([("SET", f"hyperpage:session:s{n}", json.dumps({"userId": f"u{n}"}), "EX", 100),
                        ("XADD", STREAM, "*", "type", "created", "sessionId", f"s{n}", "userId", f"u{n}", "expiresAt", 0),
                        ("PUBLISH", "hyperpage:coord:all", json.dumps(limit))])

    # --- what they did ---

    def acts(self):
        """[(monotonic s, node, process, term), ...] in the order in which they were written."""
        lines = self.acts_file.read_text().splitlines()
        return [(int(us) / 1e6, node, int(pid), int(term)) for us, node, pid, term in (line.split() for line in lines)]

    def last_act(self):
        """(monotonic s, node, process); a line is shorter than 100 bytes."""
        with self.acts_file.open("rb") as file:
            file.seek(max(0, self.acts_file.stat().st_size - 200))
            lines = file.read().decode().splitlines()
        us, node, pid, _ = lines[-1].split() if lines else ("0", "", "0", "")
        return int(us) / 1e6, node, int(pid)

    def leader(self):
        """[the node that acted last], or []."""
        return [node for node in self.nodes if node.name == self.last_act()[1]]

    def wait_for_calm(self):
        """All hear of an election, and one leads."""
        since = time.monotonic()
        wait_until(lambda: self.redis.call("PUBSUB", "NUMSUB", "hyperpage:coord:election")[1] == NODES, "all listen", 20)
        wait_until(lambda: self.last_act()[0] > since, "somebody leads when all is well", 20)

    def time_without_leader(self, sig):
        """The leader is ended when all is well: seconds until another acts."""
        self.wait_for_calm()
        (node,) = self.leader()
        pid, at = node.pid, time.monotonic()
        node.signal(sig)
        first, _, _ = wait_until(lambda: (act := self.last_act())[2] != pid and act, "another leads")
        node.process.wait()
        node.launch()
        return first - at

    def judge_acts(self):
        spans = {}  # of each leadership: first and last act
        for at, node, pid, term in sorted(self.acts()):
            first, _ = spans.get((node, pid, term), (at, at))
            spans[node, pid, term] = (first, at)
        order = sorted(spans.items(), key=lambda item: item[1])
        wrong, again = [], 0
        for (who, (begun, last)), (then, (first, _)) in zip(order, order[1:]):
            if last >= first:
                wrong.append(f"{who} acted {(last - first) * 1000:.1f} ms after the first act of {then}")
            if then[2] <= who[2]:
                again += 1
                if not any(begun < loss < first for loss in self.losses):
                    wrong.append(f"the term of {then} is not above that of {who}")
        gaps = [after[1][0] - before[1][1] for before, after in zip(order, order[1:])] or [0]
        print(f"{len(self.acts())} acts in {len(order)} leaderships; terms that came again after Redis had lost them: {again}; "
              f"without a leader between two: median {statistics.median(gaps):.2f} s, longest {max(gaps):.2f} s")
        return wrong

    def judge_writes(self):
        rows = self.database.ask("SELECT node, what, term, leader, claimed, locked FROM record ORDER BY seq")
        wrong, before = [], (0, None)
        for node, what, term, leader, claimed, locked in rows:
            if not locked or leader != node or claimed not in (None, term):
                wrong.append(f"{what} of {node} passed the fence by: {leader}, term {term}, claimed {claimed}, locked {locked}")
            elif term < before[0] or (term == before[0] and node != before[1]):
                wrong.append(f"{what} of {node} with term {term} after {before}")
            before = (term or 0, node)
        kinds = {what: sum(row[1] == what for row in rows) for what in sorted({row[1] for row in rows})}
        terms = len({row[2] for row in rows})
        refused = sum(node.log().count("leader refused by the database") for node in self.nodes)
        print(f"{len(rows)} rows written under {terms} terms: {kinds}; refused by the fence: {refused}")
        if terms < 2 or refused == 0:
            wrong.append("nobody has written after another, or the fence has refused nobody")
        return wrong


def median_ms(world, sig, rounds):
    return statistics.median(world.time_without_leader(sig) for _ in range(rounds)) * 1000


def run(folder, seconds, seed, rounds=2):
    """What was wrong. `rounds`: how often each way of losing a leader is timed when all is well."""
    with contextlib.ExitStack() as stack:
        world = World(folder, stack, seed)
        world.wait_for_calm()
        end = time.monotonic() + seconds
        strike_at = feed_at = 0
        while (now := time.monotonic()) < end:
            world.do_what_is_due()
            if now >= feed_at:
                world.feed()
                feed_at = now + FEED_EVERY_S
            if now >= strike_at:
                world.strike()
                strike_at = now + world.random.uniform(0.2, 1.2)
            time.sleep(0.01)
        world.empty_all(None)
        world.settle()
        killed_ms, left_ms = median_ms(world, signal.SIGKILL, rounds), median_ms(world, signal.SIGTERM, rounds)
        print(f"seed {seed}, {seconds} s: {world.counts}")
        print(f"without a leader after kill -9: median {killed_ms:.0f} ms; after TERM: median {left_ms:.0f} ms; {rounds} times each")
        wrong = world.judge_acts() + world.judge_writes()
        if rounds >= 5 and killed_ms > (LEASE_S + HEARTBEAT_S) * 1000:  # fewer say nothing about a median
            wrong.append("a killed leader was replaced too late")
        if rounds >= 5 and left_ms > 200:
            wrong.append("a leader that left was replaced too late")
        return wrong


if __name__ == "__main__":
    duration = float(sys.argv[1]) if len(sys.argv) > 1 else 120
    with tempfile.TemporaryDirectory(prefix="hp-") as path:
        broken = run(pathlib.Path(path), duration, int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 100000, rounds=9)
    print("\n".join(broken[:50]) or "never two leaders at once, no write of an older term")
    sys.exit(bool(broken))
