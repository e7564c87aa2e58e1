"""Five coordinators whose world goes wrong at random: killed, stopped for a while, cut off from Redis, Redis restarted with and
without its data. Every act as leader is written down by the node that does it, at the moment of its lease check, with its
term (the programs of build/faults do that). Never may an act of an older leader lie behind the first of a newer one, and
terms only grow; but if Redis has lost its counter, and all who have seen a term are dead or cut off, it may come again:
that is what the fence in PostgreSQL is for.

    nemesis.py [SECONDS [SEED]]     prints what happened and ends with 1 if the rule was broken
"""

import contextlib
import pathlib
import random
import signal
import statistics
import sys
import tempfile
import time

import servers
from proxy import Proxy
from servers import Coordinator, Redis, wait_until

NODES, LEASE_S, HEARTBEAT_S = 5, 1.0, 0.25


class World:
    def __init__(self, folder, stack, seed):
        self.random, self.stack, self.acts_file = random.Random(seed), stack, folder / "acts"
        self.redis = stack.enter_context(Redis(folder, appendonly="yes", appendfsync="always"))
        self.proxies = [stack.enter_context(Proxy(self.redis.port)) for _ in range(NODES)]
        program = servers.BUILD / "faults/hyperpage-coordinator"
        self.nodes = []
        for i, proxy in enumerate(self.proxies):
            node = Coordinator(folder, f"pod-{i}", REDIS_URL=proxy.url, HYPERPAGE_ACTS=self.acts_file)
            node.command[0] = str(program)
            self.nodes.append(stack.enter_context(node))
        self.later = []  # (when, what)
        self.counts, self.kills, self.losses, self.cut = {}, [], [], {}  # cut: {node: how it gets back}

    def at(self, seconds, what):
        self.later.append((time.monotonic() + seconds, what))

    def do_what_is_due(self):
        for item in [item for item in self.later if item[0] <= time.monotonic()]:
            self.later.remove(item)
            item[1]()

    # --- what goes wrong ---

    def kill(self, node):
        if self.acts() and self.acts()[-1][1] == node.name:
            self.kills.append(time.monotonic())
        node.stop(signal.SIGKILL)
        self.at(self.random.uniform(0.1, 2), node.launch)

    def stop_still(self, node):
        node.pause()
        self.at(self.random.uniform(0.5, 5), lambda: node.process.poll() is None and node.resume())

    def cut_off(self, node):
        proxy = self.proxies[self.nodes.index(node)]
        if node.name in self.cut:
            return
        how, back = self.random.choice([(proxy.hold, proxy.release), (proxy.hold_replies, proxy.release),
                                        (proxy.refuse, proxy.accept_again)])
        how()
        self.cut[node.name] = back
        self.at(self.random.uniform(0.3, 3), lambda: self.heal(node))

    def heal(self, node):
        self.cut.pop(node.name, lambda: None)()

    def leave(self, node):
        node.signal(signal.SIGCONT)
        node.stop()
        self.at(self.random.uniform(0.1, 1), node.launch)

    def restart_redis(self, _):
        self.redis.stop(self.random.choice([signal.SIGTERM, signal.SIGKILL]))
        self.redis.start()

    def empty_redis(self, _):
        self.losses.append(time.monotonic())
        self.redis.call("FLUSHALL")

    def strike(self):
        what = self.random.choices([self.kill, self.stop_still, self.cut_off, self.leave, self.restart_redis, self.empty_redis],
                                   [4, 4, 4, 2, 1, 3])[0]
        acts = self.acts()
        leader = [n for n in self.nodes if acts and n.name == acts[-1][1]]
        node = self.random.choice(leader * 4 + self.nodes)  # mostly who leads
        if node.process.poll() is not None:
            return
        self.counts[what.__name__] = self.counts.get(what.__name__, 0) + 1
        what(node)

    def settle(self):
        for node in self.nodes:
            self.heal(node)
            if node.process.poll() is None:
                node.resume()
            else:
                node.launch()
        count = len(self.acts())
        wait_until(lambda: len(self.acts()) > count, "somebody leads when all is well again", 20)

    # --- what they did ---

    def acts(self):
        """[(monotonic s, node, process, term), ...] in the order in which they were written."""
        if not self.acts_file.exists():
            return []
        lines = self.acts_file.read_text().splitlines()
        return [(int(us) / 1e6, node, pid, int(term)) for us, node, pid, term in (line.split() for line in lines)]

    def judge(self):
        acts = sorted(self.acts())
        spans = {}  # of each leadership: first and last act
        for at, node, pid, term in acts:
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
        if again:
            print(f"terms that came again after Redis had lost them: {again}")
        gaps = [after[1][0] - before[1][1] for before, after in zip(order, order[1:])]
        after_kill = [min(first for _, (first, _) in order if first > at) - at
                      for at in self.kills if any(first > at for _, (first, _) in order)]
        return len(acts), len(order), gaps, after_kill, wrong


def run(folder, seconds, seed):
    with contextlib.ExitStack() as stack:
        world = World(folder, stack, seed)
        wait_until(world.acts, "somebody leads")
        end = time.monotonic() + seconds
        strike_at = 0
        while time.monotonic() < end:
            world.do_what_is_due()
            if time.monotonic() >= strike_at:
                world.strike()
                strike_at = time.monotonic() + world.random.uniform(0.2, 1.2)
            time.sleep(0.01)
        world.settle()
        acts, leaderships, gaps, after_kill, wrong = world.judge()
    print(f"seed {seed}, {seconds} s: {world.counts}; {acts} acts in {leaderships} leaderships")
    if gaps:
        print(f"without a leader between two: median {statistics.median(gaps):.2f} s, longest {max(gaps):.2f} s")
    if after_kill:
        print(f"after kill -9 of the leader: median {statistics.median(after_kill):.2f} s until another acts ({len(after_kill)} times)")
    return wrong


if __name__ == "__main__":
    duration = float(sys.argv[1]) if len(sys.argv) > 1 else 120
    with tempfile.TemporaryDirectory(prefix="hp-") as path:
        broken = run(pathlib.Path(path), duration, int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 100000)
    print("\n".join(broken) or "never two leaders at once")
    sys.exit(bool(broken))
