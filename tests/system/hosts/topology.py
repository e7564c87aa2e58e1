"""The machines of a real place: a client, a balancer (conf/balancer.conf), three nodes each with web server, pool and
coordinator, three Redis servers with a Sentinel each, PostgreSQL. Clients reach only the balancer, the balancer only the
nodes' web servers ("front"); the nodes reach the data ("back")."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time

from network import Host, Switch
from postgres import Postgres
from servers import (BUILD, REPO, Coordinator, Front, Pool, Redis, Sentinel, Server, accepts, alive, ask, free_port,
                     wait_until)

PASSWORD, SENTINEL_PASSWORD = "data", "watch"
POOL, COORDINATOR = "hyperpage-fcgi", "hyperpage-coordinator"
BUILDS = (BUILD, BUILD / "faults")  # whose shared state differs, and the second one's leaders write down what they do
FRONTS = ("lighttpd", "nginx", "lighttpd")  # of the nodes


def front_address(n):
    return f"10.77.1.{n}"


def back_address(n):
    return f"10.77.2.{n}"


class Balancer(Server):
    """HAProxy before `nodes`."""

    def __init__(self, folder, nodes, host, port=8080, **options):
        self.host, self.port, self.url = host, port, f"http://{host}:{port}"
        env = {f"NODE{i}": f"{node.front.host}:{node.front.port}" for i, node in enumerate(nodes, 1)}
        super().__init__(folder, f"balancer{port}", ["haproxy", "-db", "-f", REPO / "conf/balancer.conf"],
                         {"LISTEN": f"{host}:{port}", **env, **options})

    def is_ready(self):
        return accepts((self.host, self.port))

    def ask(self, method, path, body=None, headers=None):
        return ask(self.port, method, path, body, headers, self.host)

    def is_up(self, backend, node):
        """As its last look says; before the first change it takes all for up."""
        said = re.findall(rf"Server {backend}/{node.name} is (UP|DOWN)", self.log())
        return not said or said[-1] == "UP"

    def has_left(self, node):
        return not self.is_up("nodes", node) and not self.is_up("makers", node)

    def uses(self, node):
        return self.is_up("nodes", node) and self.is_up("makers", node)


class Node:
    """Its pool runs on a socket that is kept for it, as systemd does, and from a program file of its own."""

    def __init__(self, place, number):
        self.name, n = f"node{number}", 10 + number
        self.host = place.machine(self.name, front=front_address(n), back=back_address(n))
        self.folder = place.folder / self.name
        self.run_dir = self.folder / "run"
        self.run_dir.mkdir(parents=True)
        options = {"RUN_DIR": self.run_dir, "STATE_DIR": self.folder / "state", "POD_NAME": self.name,
                   "SESSION_CACHE_BYTES": 1 << 22, "TRUSTED_PROXIES": place.balancer_host.addresses["front"],
                   "REDIS_TIMEOUT_MS": 1000, **place.options}
        self.pool = Pool(self.folder, f"{self.name}-pool", **options)
        self.socket = self.pool.stdin = socket.socket(socket.AF_UNIX)
        self.socket.bind(self.pool.address)
        self.socket.listen(1024)
        self.coordinator = Coordinator(self.folder, self.name, HYPERPAGE_ACTS=place.acts_file, **options)
        self.front = Front(self.folder, FRONTS[number - 1], f"unix:{self.pool.address}", port=8080,
                           host=self.host.addresses["front"])
        self.install(0)
        for server, program in ((self.pool, POOL), (self.coordinator, COORDINATOR), (self.front, None)):
            self.host.run(server)
            server.command[0] = str(self.folder / program) if program else server.command[0]

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        """An upgraded pool is no child of ours any more, and ends with the machine."""
        for server in (self.front, self.coordinator, self.pool):
            server.stop()
        self.socket.close()

    def start(self):
        self.forget_log()
        for server in (self.pool, self.coordinator, self.front):
            server.launch()
        for server in (self.pool, self.coordinator, self.front):
            wait_until(server.is_ready, f"{server.name} of {self.name} is ready")
        return self

    def lose(self):
        """Its power fails: nobody hears it go."""
        self.host.cut("front", "back")
        self.host.kill()
        for server in (self.pool, self.coordinator, self.front):
            server.process.wait()

    def come_back(self):
        self.host.mend("front", "back")
        self.start()

    def forget_log(self):
        """By which the coordinator is known to be ready."""
        if self.coordinator.log_path.exists():
            self.coordinator.log_path.rename(f"{self.coordinator.log_path}.{time.monotonic_ns()}")

    def master(self):
        return int((self.run_dir / "pool.pid").read_text())

    def install(self, build):
        """As dpkg does: what runs keeps its file."""
        self.build = build
        for program in (POOL, COORDINATOR):
            shutil.copy(BUILDS[build] / program, self.folder / "new")
            (self.folder / "new").rename(self.folder / program)

    def upgrade(self, build):
        """As the package does: the pool takes over from itself, the coordinator is restarted."""
        ctl = BUILDS[self.build] / "hyperpagectl"
        self.install(build)
        subprocess.run([ctl, "restart", "--wait"], env=self.pool.env, check=True, stdout=subprocess.DEVNULL)
        assert os.path.samefile(f"/proc/{self.master()}/exe", self.folder / POOL)
        self.coordinator.stop()
        self.forget_log()
        self.coordinator.start()

    def leads(self):
        """As it believes itself; and in which term."""
        leader = self.front.ask("GET", "/api/coordination").json["leader"]
        return leader["isSelf"] and leader["term"]

    def keep_running(self):
        """As systemd: a pool that was told to end, and has, is started again on its socket."""
        if self.pool.process.poll() is not None:
            self.pool.launch()

    def restart_front(self):
        self.front.stop(signal.SIGINT if self.front.kind == "lighttpd" else signal.SIGQUIT)
        self.front.start()

    def health(self):
        return self.front.ask("GET", "/api/health").json


class Data:
    """A Redis and its Sentinel."""

    def __init__(self, place, number, primary=None):
        self.host = place.machine(f"redis{number}", back=back_address(20 + number))
        self.address = self.host.addresses["back"]
        login = {"requirepass": PASSWORD, "masterauth": PASSWORD, "repl-diskless-sync-delay": 0, "repl-timeout": 5}
        if primary:
            login["replicaof"] = f"{primary.address} 6379"
        self.redis = self.host.run(Redis(place.folder, f"redis{number}", 6379, self.address, **login))
        self.sentinel = self.host.run(Sentinel(place.folder, f"sentinel{number}", (primary or self).redis, SENTINEL_PASSWORD,
                                               port=26379, host=self.address))

    def __enter__(self):
        self.redis.start()
        return self

    def __exit__(self, *_):
        self.sentinel.stop()
        self.redis.stop()

    def lose(self):
        self.host.cut("back")
        self.host.kill()
        for server in (self.redis, self.sentinel):
            server.process.wait()


class Place:
    """All of it. `stack` ends it."""

    database = 0  # for test_outage.stored()

    def __init__(self, folder, stack):
        self.folder, self.stack, self.acts_file = folder, stack, folder / "acts"
        self.switch = stack.enter_context(Switch("front", "back"))
        self.client = self.machine("client", front=front_address(1), back=back_address(1))
        stack.enter_context(self.client.inside())
        self.balancer_host = self.machine("balancer", front=front_address(2))
        self.postgres_host = self.machine("postgres", back=back_address(30))
        self.postgres = self.postgres_host.run(Postgres(folder, port=5432, host=back_address(30), access=["host all all 10.77.2.0/24 trust"]))
        stack.enter_context(self.postgres.launch())
        self.start_data()
        wait_until(self.postgres.is_ready, "PostgreSQL is ready")
        sentinels = ",".join(f"{data.address}:26379" for data in self.data)
        self.options = {"REDIS_URL": f"redis-sentinel://:{PASSWORD}@{sentinels}/main/0", "SESSION_REDIS_WAIT_REPLICAS": 1,
                        "REDIS_SENTINEL_PASSWORD": SENTINEL_PASSWORD, "DATABASE_URL": self.postgres.url,
                        "SESSION_PROTECTED_MEMBERS": ""}
        self.nodes = [stack.enter_context(Node(self, i)) for i in (1, 2, 3)]
        self.balancer = stack.enter_context(self.balancer_host.run(Balancer(folder, self.nodes, front_address(2))))

    def machine(self, name, **addresses):
        return self.stack.enter_context(Host(self.switch, name, **addresses))

    def start_data(self):
        first = self.stack.enter_context(Data(self, 1))
        self.data = [first, *(self.stack.enter_context(Data(self, i, first)) for i in (2, 3))]
        wait_until(lambda: all(data.redis.call("ROLE")[3] == b"connected" for data in self.data[1:]), "replicas are in step")
        for data in self.data:  # not sooner: Sentinels ask only every 10 s who the replicas are
            data.sentinel.launch()
        wait_until(lambda: all(data.sentinel.is_ready() and data.sentinel.facts()["num-other-sentinels"] == "2"
                               and data.sentinel.facts()["num-slaves"] == "2" for data in self.data),
                   "the Sentinels know each other")

    def servers(self):
        return [self.balancer, self.postgres, *(data.redis for data in self.data), *(data.sentinel for data in self.data),
                *(server for node in self.nodes for server in (node.pool, node.coordinator, node.front))]

    def primary(self):
        """As most Sentinels see it."""
        seen = [data.sentinel.facts()["ip"] for data in self.data if data.sentinel.process.poll() is None]
        return next(data for data in self.data if data.address == max(seen, key=seen.count))

    def holders(self):
        return [self.primary().redis]

    def acts(self):
        """What leaders did: [(monotonic us, node, process, term), ...] in the order in which it was written down."""
        if not self.acts_file.exists():
            return []
        return [(int(at), node, pid, int(term)) for at, node, pid, term in map(str.split, self.acts_file.read_text().splitlines())]

    def leader(self):
        """The node that leads."""
        return wait_until(lambda: next(filter(Node.leads, self.nodes), None), "somebody leads")

    def await_leader_after(self, lost):
        wait_until(lambda: any(node.leads() for node in self.nodes if node is not lost), "another node leads")

    def is_whole(self):
        """Everybody serves, from Redis."""
        return all(node.health()["status"] == "healthy" and self.balancer.uses(node)
                   for node in self.nodes)
