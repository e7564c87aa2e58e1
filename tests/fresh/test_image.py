"""What conf/docker/Dockerfile and docker-compose.prod.yml say, without an engine: the image's two stages in folders, from
nothing to a served request; then each service's own command, environment, user, secrets, volumes and limits of rights.
Not seen this way: the engine itself, its networks, limits of memory, and the images of Redis' and PostgreSQL's makers
(Redis is Debian's here)."""

import contextlib
import os
import signal
import subprocess

import pytest
import yaml  # docker-compose brings it

from machine import REPO, Machine, nspawn, run, timed
from servers import accepts, ask, children, free_port, name_of, wait_until

SECRETS = {"redis-url": "redis://:not-so-secret@127.0.0.1:{port}/0", "service-token": "service", "admin-token": "admin",
           "database-url": "postgresql://hyperpage:x@127.0.0.1/hyperpage", "database-password": "x"}
USERS = {"990:990": "hyperpage", "999:999": "redis"}


def composed(name):
    """A compose file, as docker-compose understands it."""
    done = subprocess.run(["docker-compose", "--file", REPO / f"docker-compose.{name}.yml", "config"], text=True,
                          capture_output=True, check=True, env={**os.environ, "SECRETS": "/nonexistent"})
    return yaml.safe_load(done.stdout)


class Image(Machine):
    """The image, by its two stages; and Redis, which has an image of its own there."""

    def __init__(self, folder):
        build = folder / "build"
        build.mkdir()
        with Machine(build) as first:
            clone = first.root / "src"
            clone.mkdir()
            run("sh", "-c", f"git -C '{REPO}' archive HEAD | tar -C '{clone}' -xf -")
            first.call("sh", "-c", "cd /src && conf/docker/stages.sh build")
            package, = (clone / "build/package").glob("hyperpage_*.deb")
            package = package.rename(folder / package.name)
        super().__init__(folder)
        run("cp", package, self.root / "root")
        for script in ("stages.sh", "node.sh", "web.sh"):
            run("cp", REPO / "conf/docker" / script, self.root / "usr/local/bin")
        self.call("stages.sh", "install", f"/root/{package.name}")
        self.install("redis-server")
        (self.root / "data").mkdir()  # what Redis' image has, and what the engine makes for a file that is mounted
        (self.root / "redis.sh").touch()


class Service:
    """A service of the compose file, in the image, confined as the file says."""

    def __init__(self, image, name, what, folder, **changed):
        self.image, self.name, self.what, self.folder, self.changed = image, name, what, folder, changed

    def command(self, *words):
        what = self.what
        env = {**what.get("environment", {}), **self.changed}
        options = [f"--user={USERS[what['user']]}", f"--bind-ro={self.folder}/secrets:/run/secrets"]
        options += [f"--setenv={key}={value}" for key, value in env.items()]
        options += ["--read-only"] if what["read_only"] else []
        options += ["--drop-capability=all"] if what["cap_drop"] == ["ALL"] else []
        options += ["--no-new-privileges=yes"] if "no-new-privileges:true" in what["security_opt"] else []
        options += [f"--tmpfs={place}" for place in what.get("tmpfs", []) if "/tmp" not in place[:4]]
        for volume in what.get("volumes", []):
            source, target, mode = volume.split(":")
            source = source if source.startswith("/") else self.folder / source
            options += [f"--bind{'-ro' if mode == 'ro' else ''}={source}:{target}"]
        return [*nspawn(), "--as-pid2", f"--directory={self.image.root}", *options, "--", *words]

    def __enter__(self):
        with (self.folder / f"{self.name}.log").open("wb") as log:
            self.process = subprocess.Popen(self.command(*self.what["command"]), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: self.process.poll() is not None or self.healthy(), f"{self.name} is healthy", 30)
        assert self.process.poll() is None, self.log()
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)

    def log(self):
        return (self.folder / f"{self.name}.log").read_text()

    def healthy(self):
        kind, *words = self.what["healthcheck"]["test"]
        words = ["sh", "-c", words[0].replace("$$", "$")] if kind == "CMD-SHELL" else words
        words = [word.replace(":8080/", f":{self.changed.get('PORT')}/") for word in words]
        return subprocess.run(self.inside(*words), capture_output=True, check=False, stdin=subprocess.DEVNULL).returncode == 0

    def inside(self, *words):
        """A command in the running container, as the engine runs its health check."""
        found = [pid for pid in children(self.process.pid) if name_of(pid) not in ("systemd-nspawn", "(sd-stubinit)")]
        if not found:
            return ["false"]
        user = self.what["user"].partition(":")[0]
        env = [f"{key}={value}" for key, value in {**self.what.get("environment", {}), **self.changed}.items()]
        return ["nsenter", f"--target={found[0]}", "--mount", "--pid", "--net", "--", "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups",
                "env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin", *env, *words]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    with timed("both stages of the image"):
        made = Image(tmp_path_factory.mktemp("image"))
    with made:
        yield made


@pytest.fixture
def folder(tmp_path, image):
    """The volumes and the secrets."""
    for name, user in (("states", 990), ("redis", None)):
        (tmp_path / name).mkdir()
        owner = user or int(image.call("id", "-u", "redis"))
        os.chown(tmp_path / name, owner, owner)
    (tmp_path / "secrets").mkdir(mode=0o755)
    return tmp_path


def test_serves_as_the_compose_file_says(image, folder):
    services, redis_port, web_port, pool_port = composed("prod")["services"], free_port(), free_port(), free_port()
    for name, text in SECRETS.items():
        (folder / "secrets" / name).write_text(text.format(port=redis_port) + "\n")
    with contextlib.ExitStack() as started:
        def start(name, **changed):
            return started.enter_context(Service(image, name, services[name], folder, **changed))
        start("redis", REDIS_PORT=redis_port)
        start("workers", LISTEN=f"127.0.0.1:{pool_port}")
        start("coordinator")
        web = start("web", PORT=web_port, BIND="127.0.0.1", POOLS=f"localhost:{pool_port}")
        wait_until(lambda: accepts(("127.0.0.1", web_port)), "the web server listens")
        reply = ask(web_port, "GET", "/api/sessions")
        assert reply.status == 200
        cli = ["redis-cli", "-p", redis_port, "-a", "not-so-secret", "--no-auth-warning"]
        assert run(*cli, "exists", f"hyperpage:session:{reply.json['sessionId']}").strip() == "1"
        assert "noeviction" in run(*cli, "config", "get", "maxmemory-policy")
        assert "not-so-secret" not in run("ps", "-eo", "args")
        wait_until(lambda: "GET /api/sessions 200" in web.log(), "the access log is the container's output")
        wait_until(lambda: ask(web_port, "GET", "/api/coordination").json["leader"].get("leaderId") in ("prod-1", "prod-coordinator"),
                   "one of them leads")
        listed = ask(web_port, "GET", "/api/admin/sessions?userId=u", headers={"Authorization": "Bearer admin"})
        assert listed.status == 200, "the secret's file has been read"
