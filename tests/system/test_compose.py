"""The compose files, as docker-compose understands them; and their web server before several nodes on one Redis, each with
its own command and environment. That they run so in the image, tests/fresh shows."""

import functools
import json
import os
import re
import signal
import subprocess

import pytest
import yaml  # docker-compose brings it

import fcgi
from load import Load, failures
from servers import BUILD, REPO, Redis, Server, accepts, alive, ask, children, free_port, metric, wait_until

KINDS = ["prod", "staging"]
PORTS = {"prod": 8080, "staging": 8090}
OURS = ("node.sh", "hyperpage-coordinator")


@functools.cache
def text_of(kind):
    done = subprocess.run(["docker-compose", "--file", REPO / f"docker-compose.{kind}.yml", "config"],
                          text=True, capture_output=True, check=False, env={**os.environ, "SECRETS": f"/secrets/{kind}"})
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def composed(kind):
    return yaml.safe_load(text_of(kind))


def test_staging_differs_in_names_ports_data_and_log_level_only():
    prod, staging = (text_of(kind) for kind in KINDS)
    assert prod != staging
    staging = staging.replace("staging", "prod").replace("LOG_LEVEL: debug", "LOG_LEVEL: info")
    staging = staging.replace(f"127.0.0.1:{PORTS['staging']}:", f"127.0.0.1:{PORTS['prod']}:")
    assert staging == prod


def test_nothing_is_shared_by_the_two():
    both = [yaml.safe_load(text_of(kind)) for kind in KINDS]
    for of in (lambda c: {v["name"] for v in c["volumes"].values()}, lambda c: {s["file"] for s in c["secrets"].values()},
               lambda c: {p.rpartition(":")[0] for s in c["services"].values() for p in s.get("ports", ())}):
        assert of(both[0]) and not of(both[0]) & of(both[1])


def test_every_service_has_no_more_than_it_needs(composed):
    for name, service in composed["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"] and not service["user"].startswith("0"), name
        assert service["restart"] == "unless-stopped" and service["logging"]["options"]["max-size"], name
        assert service["mem_limit"] and service["pids_limit"] and service["healthcheck"]["test"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        for key in service.get("environment", {}):
            assert key.endswith("_FILE") or not re.search("PASSWORD|TOKEN|_URL$", key), f"{name} has a secret in its environment"
    assert [name for name, service in composed["services"].items() if "ports" in service] == ["web"]
    assert composed["networks"]["data"]["internal"] and composed["networks"]["pool"]["internal"]


def test_a_secret_that_is_named_is_there(composed):
    for name, service in composed["services"].items():
        given = {f"/run/secrets/{secret['source']}" for secret in service.get("secrets", ())}
        named = {value for key, value in service.get("environment", {}).items() if key.endswith("_FILE")}
        assert named <= given, name
        assert given - named <= {"/run/secrets/redis-url"}, name
    assert {s["source"] for service in composed["services"].values() for s in service.get("secrets", ())} == set(composed["secrets"])


def test_the_environment_holds_options_that_exist(composed):
    known = set(re.findall(r"^\| `([A-Z_]+)`", (REPO / "conf/reference.md").read_text(), re.M))
    for name, service in composed["services"].items():
        if service.get("command", [""])[0] in OURS:
            assert {key.removesuffix("_FILE") for key in service["environment"]} <= known | {"STATES"}, name


@pytest.mark.parametrize("own", [False, True], ids=["as it comes", "another one"])
def test_a_file_holds_the_nodes_options(folder, kind, own):
    """What it says reaches pool and coordinator, and nothing that the services need is changed by it."""
    path = REPO / f"conf/docker/{kind}.env"
    if own:
        path = folder / "options"
        path.write_text("# ours\nWORKERS=7\nLISTEN=127.0.0.1:1\n")
    shown = subprocess.run([BUILD / "hyperpagectl", "config", "show", "--config", path], env={"RUN_DIR": str(folder), "LOG_LEVEL": "warn"},
                           capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    options = {**os.environ, "SECRETS": "/secrets", **({"OPTIONS": str(path)} if own else {})}
    done = subprocess.run(["docker-compose", "--file", REPO / f"docker-compose.{kind}.yml", "config"], text=True, capture_output=True,
                          check=True, env=options)
    services = yaml.safe_load(done.stdout)["services"]
    given = [services[name]["environment"].get("WORKERS" if own else "LOG_LEVEL") for name in ("workers", "coordinator", "web")]
    assert given == (["7", "7", None] if own else [{"prod": "info", "staging": "debug"}[kind]] * 2 + [None])
    assert services["workers"]["environment"]["LISTEN"] == "0.0.0.0:9000"


def test_workers_may_be_many(composed):
    """Of what a node has to itself nothing may be shared: its run folder, its name, its port on this machine."""
    web, workers = composed["services"]["web"], composed["services"]["workers"]
    assert any(place.startswith("/run/hyperpage:") for place in workers["tmpfs"])
    assert [volume.split(":")[1] for volume in workers["volumes"]] == [workers["environment"]["STATES"]]
    assert workers["environment"]["STATE_DIR"].startswith("/run/hyperpage/")
    assert not {"ports", "container_name", "hostname", "pid"} & workers.keys() and "volumes" not in web
    name, port = web["environment"]["POOLS"].split(":")
    assert name in composed["services"] and workers["environment"]["LISTEN"].endswith(f":{port}")
    assert set(web["networks"]) & set(workers["networks"]) == {"pool"}
    assert [n for n, service in composed["services"].items() if "pool" in service.get("networks", ())] == ["web", "workers"]
    assert "postgres" not in web["networks"] and composed["services"]["coordinator"]["environment"]["POD_NAME"] != workers["environment"]["POD_NAME"]


def test_the_image_has_the_version_s_name_unless_told_otherwise(kind, composed):
    version = re.search(r"^VERSION := (\S+)", (REPO / "Makefile").read_text(), re.M)[1]
    ours = ("web", "workers", "coordinator")
    assert {composed["services"][name]["image"] for name in ours} == {f"hyperpage:{version}"}
    assert f"-t hyperpage:{version} " in (REPO / "conf/docker/Dockerfile").read_text()
    done = subprocess.run(["docker-compose", "--file", REPO / f"docker-compose.{kind}.yml", "config"], text=True, capture_output=True,
                          check=True, env={**os.environ, "SECRETS": "/secrets", "IMAGE": "hyperpage:next"})
    services = yaml.safe_load(done.stdout)["services"]
    assert {name: service["image"] for name, service in services.items() if name in ours} == dict.fromkeys(ours, "hyperpage:next")


def test_health_is_what_hyperpagectl_says(composed):
    for name in ("web", "workers", "coordinator"):
        assert composed["services"][name]["healthcheck"]["test"][:2] == ["CMD", "hyperpagectl"]
    image = (REPO / "conf/docker/Dockerfile").read_text()
    assert re.search(r'^HEALTHCHECK .*CMD \["hyperpagectl", "health"\]$', image, re.M)


class Composed(Redis):
    """Redis as conf/docker/redis.sh starts it."""

    def __init__(self, folder, secret):
        super().__init__(folder, requirepass="pass-word")
        (folder / "redis-url").write_text(secret)
        self.command = ["sh", str(REPO / "conf/docker/redis.sh")]
        self.env.update(REDIS_URL_FILE=str(folder / "redis-url"), REDIS_PORT=str(self.port), REDIS_DIR=str(folder))


def test_redis_keeps_what_it_acknowledges_and_throws_nothing_away(folder, servers):
    redis = servers.enter_context(Composed(folder, "redis://:pass-word@redis:6379/0\n"))
    assert redis.call("CONFIG", "GET", "maxmemory-policy")[1] == b"noeviction"
    assert redis.call("CONFIG", "GET", "appendonly")[1] == b"yes"
    redis.password = None
    with pytest.raises(RuntimeError, match="NOAUTH"):
        redis.call("PING")
    assert "pass-word" not in open(f"/proc/{redis.pid}/cmdline").read()


def test_redis_does_not_start_without_a_password(folder, servers):
    redis = servers.enter_context(Composed(folder, "redis://redis:6379/0\n").launch())
    assert redis.process.wait(timeout=10) == 2 and "PASSWORD" in redis.log()


# --- several nodes ---

class Composition:
    """web and workers of the compose file on this machine: their commands, their environments with this place's paths and
    addresses, and a name service that knows who is there, as the engine's does."""

    def __init__(self, folder, servers, redis):
        self.folder, self.servers, self.port, self.there = folder, servers, free_port(), []
        self.services = yaml.safe_load(text_of("prod"))["services"]
        for name in ("secrets", "states", "bin", "web"):
            (folder / name).mkdir()
        for name, text in (("redis-url", redis.url), ("service-token", "service"), ("admin-token", "admin"),
                           ("database-url", f"postgresql://nobody@127.0.0.1:{free_port()}/none")):
            (folder / "secrets" / name).write_text(text + "\n")
        names = folder / "bin/getent"
        names.write_text(f'#!/bin/sh\n[ "$2" = workers ] && sed "s/$/ STREAM workers/" {folder}/names\n[ -s {folder}/names ] || touch {folder}/asked\n')
        names.chmod(0o755)

    def environment(self, name, **changed):
        env = {key: value.replace("/run/secrets", f"{self.folder}/secrets").replace("/var/lib/hyperpage", f"{self.folder}/states")
               for key, value in self.services[name]["environment"].items()}
        return {**env, "PATH": f"{self.folder}/bin:{BUILD}:{REPO}/conf/docker:{os.environ['PATH']}:/usr/sbin", "WORKERS": "2", **changed}

    def tell_names(self):
        (self.folder / "names").write_text("".join(f"{node.host}\n" for node in self.there))

    def node(self, number):
        node = self.servers.enter_context(Node(self, number))
        self.there.append(node)
        self.tell_names()
        return node

    def web(self):
        return self.servers.enter_context(Web(self))


class Node(Server):
    """A replica of `workers`."""

    def __init__(self, composition, number):
        self.host, self.run_dir = f"127.0.0.{number + 1}", composition.folder / f"run-{number}"
        self.run_dir.mkdir()
        self.address = (self.host, composition.port)
        super().__init__(composition.folder, f"workers_{number}", composition.services["workers"]["command"], composition.environment(
            "workers", RUN_DIR=str(self.run_dir), STATE_DIR=str(self.run_dir / "state"), LISTEN=f"{self.host}:{composition.port}", REDIS_TIMEOUT_MS="1000", SESSION_CACHE_BYTES=str(1 << 20),
            LEADER_ELECTION_TIMEOUT="2000", LEADER_HEARTBEAT_INTERVAL="500"))

    def launch(self):
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        Server.started.append(self)
        return self

    def is_ready(self):
        return subprocess.run([BUILD / "hyperpagectl", "health"], env=self.env, capture_output=True, check=False).returncode == 0

    def kill(self):
        """The container is gone, with all that runs in it."""
        os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def tell(self, *words):
        """The operator's tool, as `docker-compose exec` runs it: with the container's environment, not with node.sh's."""
        return subprocess.run([BUILD / "hyperpagectl", *words, "--json"], env=self.env, capture_output=True, text=True, check=False, timeout=90)

    def call(self, *words):
        done = self.tell(*words)
        assert done.returncode == 0, (words, done.stderr)
        return json.loads(done.stdout)

    def leads(self):
        """Once all know of each other; before that the tool may have nothing to say."""
        pods, leader = self.tell("pods"), self.tell("leader")
        return pods.returncode == leader.returncode == 0 and len(json.loads(pods.stdout)["pods"]) == 2 and json.loads(leader.stdout)["isLeader"]

    def ask(self, method, uri, body=b"", **more):
        return fcgi.ask(self.address, method, uri, body, **more)

    def answered(self):
        """Requests to /api/sessions."""
        return metric(self, "requests_total", endpoint="/api/sessions.*")


class Web(Server):
    def __init__(self, composition):
        self.port = free_port()
        super().__init__(composition.folder, "web", [*composition.services["web"]["command"], REPO / "lighttpd.conf"], composition.environment(
            "web", PORT=str(self.port), BIND="127.0.0.1", LOG_DIR=str(composition.folder / "web"), POOLS=f"workers:{composition.port}", FORWARDERS="127.0.0.0/8", LOOK_S="0.1"))

    def is_ready(self):
        return accepts(("127.0.0.1", self.port))

    def ask(self, client, method, path, body=None):
        """As a client of this address, whom the TLS server names."""
        return ask(self.port, method, path, body, {"X-Forwarded-For": client})


@pytest.fixture
def composition(folder, servers, redis):
    return Composition(folder, servers, redis)


CLIENTS = [f"198.51.100.{n}" for n in range(16)]


def test_clients_spread_over_the_nodes_and_each_stays_with_its_own(composition, redis):
    nodes = [composition.node(n) for n in range(2)]
    web = composition.web()
    assert sorted(json.loads(n.ask("GET", "/api/coordination").body)["podId"] for n in nodes) == ["prod-1", "prod-2"]
    sessions = {client: web.ask(client, "GET", "/api/sessions").json["sessionId"] for client in CLIENTS}
    before = [n.answered() for n in nodes]
    assert sum(before) == len(CLIENTS) and min(before) >= 2, "and every one is counted, by one of them"
    assert all(web.ask(client, "GET", f"/api/sessions/{session}").status == 200 for client, session in sessions.items())
    redis.stop()
    born = {}
    for client, session in sessions.items():
        assert web.ask(client, "PATCH", f"/api/sessions/{session}", {"written": "in the outage"}).status == 200
        reply = web.ask(client, "GET", "/api/sessions")
        assert reply.headers["X-Session-Store"] == "refuge"
        born[client] = reply.json["sessionId"]
    assert all(web.ask(client, "GET", f"/api/sessions/{born[client]}").status == 200 for client in CLIENTS)
    for n in nodes:
        n.kill()
        n.start()
    assert all(web.ask(client, "GET", f"/api/sessions/{born[client]}").status in (200, 503) for client in CLIENTS)
    redis.start()
    missing = set(born.values())
    wait_until(lambda: not missing.difference_update([i for i in missing if redis.call("EXISTS", f"hyperpage:session:{i}")]) and not missing,
               f"what was written in the outage is in Redis: {missing}", 20)


def test_a_node_that_leaves_dies_or_comes_costs_what_it_has_in_hand(composition, redis):
    nodes = [composition.node(n) for n in range(2)]
    web = composition.web()
    load = composition.servers.enter_context(Load(web.port, 24, kept=False))
    wait_until(lambda: min(n.answered() for n in nodes) > 20, "both serve")

    assert nodes[0].stop() == 0  # TERM: as docker stop
    then = nodes[1].answered()
    wait_until(lambda: nodes[1].answered() > then + 100, "the other one serves all")
    nodes[0].start()
    wait_until(lambda: nodes[0].answered() > 20, "it is back")
    composition.node(2)
    wait_until(lambda: composition.there[2].answered() > 20, "the third is known")
    figures = load.stop()
    assert failures(figures) == (0, 0), figures["first_failures"]

    load = composition.servers.enter_context(Load(web.port, 24, kept=False))
    nodes[1].kill()
    composition.there.remove(nodes[1])
    composition.tell_names()
    then = [n.answered() for n in composition.there]
    wait_until(lambda: all(n.answered() > t + 100 for n, t in zip(composition.there, then)), "the others serve all")
    figures = load.stop()
    assert figures["refused"] == 0 and figures["failed"] <= 24, figures["first_failures"]
    for session, (acknowledged, sent) in figures["sessions"].items():
        assert acknowledged <= json.loads(redis.call("GET", f"hyperpage:session:{session}")).get("n", 0) <= sent


def test_while_no_node_is_there_the_web_server_says_so_and_waits(composition):
    node = composition.node(0)
    web = composition.web()
    node.stop()
    composition.there.remove(node)
    composition.tell_names()
    for _ in range(2):  # what came of the first time is over at the second
        (composition.folder / "asked").unlink(missing_ok=True)
        wait_until((composition.folder / "asked").exists, "it has asked for the name since")
    refused = web.ask(CLIENTS[0], "GET", "/api/sessions")
    assert refused.status == 503 and refused.json["error"]["code"] == "SERVICE_UNAVAILABLE"
    another = composition.node(1)
    wait_until(lambda: web.ask(CLIENTS[0], "GET", "/api/sessions").status == 200, "it has found the new one")
    assert another.answered() > 0 and web.process.poll() is None


def test_a_web_server_that_waits_for_the_first_node_can_be_stopped(composition):
    """As the first process of its container, which no signal ends that it does not handle."""
    composition.tell_names()
    web = Web(composition)
    web.command[:0] = ["unshare", "--pid", "--fork", "--kill-child"] if os.geteuid() == 0 else []
    composition.servers.enter_context(web.launch())
    wait_until((composition.folder / "asked").exists, "it has asked for the name")
    first = children(web.pid)[0] if os.geteuid() == 0 else web.pid
    os.kill(first, signal.SIGTERM)
    assert web.process.wait(timeout=5) == 0


def test_who_is_called_into_a_container_finds_its_node(composition):
    """The second one, whose number only node.sh knows."""
    nodes = [composition.node(n) for n in range(2)]
    leads = wait_until(lambda: next((n for n in nodes if n.leads()), None), "one leads")
    if leads is nodes[0]:
        assert leads.call("leader", "--step-down", "--wait")["leaderId"] == "prod-2"
        leads = nodes[1]
    leads.call("cleanup", "--now")
    wait_until(lambda: "job that a message asked for cannot be added" in leads.log(), "it is believed; there is no PostgreSQL here")
    states = composition.folder / "states"
    assert {n.call("store", "check")["embedded"]["status"] for n in nodes} == {"up"}
    assert sorted(path.name for path in states.iterdir()) == ["1", "2"], "nothing is made beside the nodes' own folders"


@pytest.mark.parametrize("with_coordinator", [True, False], ids=["whole", "without its coordinator"])
def test_a_container_ends_when_its_pool_has_and_not_sooner(composition, with_coordinator):
    """What still runs when the first process of a container ends is killed by the engine."""
    node = composition.node(0)
    status = node.call("status")
    pids = [status["pool"]["pid"], *(worker["pid"] for worker in status["workers"])]
    node.signal(signal.SIGHUP)
    wait_until(lambda: not {worker["pid"] for worker in node.call("status")["workers"]} & set(pids), "the workers are new ones")
    assert node.process.poll() is None
    wait_until(lambda: "options read again" in node.log(), "the coordinator has heard it, too")
    if not with_coordinator:
        wait_until(lambda: node.call("status")["coordinator"]["running"], "it is there again")
        os.kill(node.call("status")["coordinator"]["pid"], signal.SIGKILL)
        wait_until(lambda: "another one follows" in node.log(), "its end is noticed")
    running = children(node.pid)
    assert node.stop() == 0
    assert [pid for pid in running if alive(pid)] == []


def test_a_pool_that_is_restarted_in_its_container_costs_nothing(composition):
    node = composition.node(0)
    web = composition.web()
    before = node.call("status")["pool"]["pid"]
    with Load(web.port, 8, kept=False) as load:
        after = node.call("restart", "--wait")["pid"]
        wait_until(lambda: not alive(before), "the first one has left")
        assert after != before and node.process.poll() is None
        assert node.call("restart", "--wait")["pid"] not in (before, after)
        wait_until(lambda: not alive(after), "so has the second one")
        figures = load.stop()
    assert failures(figures) == (0, 0), figures["first_failures"]
    last = node.call("status")["pool"]["pid"]
    assert node.stop() == 0 and not alive(last)
