"""The compose files, as docker-compose understands them. That the services run as these say, tests/fresh shows."""

import functools
import os
import re
import subprocess

import pytest
import yaml  # docker-compose brings it

from servers import REPO, Redis

KINDS = ["prod", "staging"]
PORTS = {"prod": (8080, 8081), "staging": (8090, 8091)}
OURS = ("hyperpage-fcgi", "hyperpage-coordinator")


@functools.cache
def text_of(kind):
    done = subprocess.run(["docker-compose", "--file", REPO / f"docker-compose.{kind}.yml", "--profile", "two-nodes", "config"],
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
    for port in zip(PORTS["staging"], PORTS["prod"]):
        staging = staging.replace("127.0.0.1:{}:".format(port[0]), "127.0.0.1:{}:".format(port[1]))
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
    assert [name for name, service in composed["services"].items() if "ports" in service] == ["web", "web-2"]
    assert composed["networks"]["data"]["internal"]


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
            assert {key.removesuffix("_FILE") for key in service["environment"]} <= known, name


def test_a_node_shares_what_it_must(composed):
    """The coordinator works on its pool's folders, and sees the pool's processes; the web server only the socket."""
    for n in ("", "-2"):
        web, workers, coordinator = (composed["services"][name + n] for name in ("web", "workers", "coordinator"))
        assert coordinator["volumes"] == workers["volumes"] and coordinator["pid"] == f"service:workers{n}"
        assert web["volumes"] == [volume for volume in workers["volumes"] if ":/run/hyperpage:" in volume]
        assert coordinator["environment"]["POD_NAME"] == workers["environment"]["POD_NAME"]
    names = [service["environment"]["POD_NAME"] for service in composed["services"].values() if "pid" in service]
    assert len(set(names)) == len(names) == 2


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
