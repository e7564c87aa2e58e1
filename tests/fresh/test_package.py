"""The Debian package on a machine with systemd: installed, upgraded and rolled back under load, removed. What cannot be
seen without an init that is process 1: that the units work, and that the pool outlives what happens to it."""

import os
import pathlib
import re
import subprocess

import pytest

from machine import REPO, Machine, run
from servers import BUILD, accepts, alive, ask, children, free_port, name_of, wait_until
from load import Load, failures

UNITS = ["hyperpage-fcgi.socket", "hyperpage-fcgi.service", "hyperpage-coordinator.service"]
MAN = BUILD / "man"
CONF = "etc/hyperpage/hyperpage.conf"
FIRST, NEXT = "1.0", "1.1"


def package(folder, version):
    """The package from the programs that are built already, under another version; in a later one than the first another
    line stands in the configuration."""
    run("make", "-s", "-C", REPO, "all", f"BUILD={BUILD}")
    out = run(REPO / "conf/debian/build.sh", BUILD, *programs(), cwd=REPO, env={**os.environ, "VERSION": version, "MAN": str(MAN)})
    file = pathlib.Path(out.strip()).rename(folder / f"hyperpage_{version}.deb")
    if version != FIRST:
        run("dpkg-deb", "--raw-extract", file, folder / version)
        with (folder / version / CONF).open("a") as conf:
            conf.write(f"# of version {version}\n")
        run("dpkg-deb", "--root-owner-group", "--build", folder / version, file)
    return file


def programs():
    return run("make", "-s", "-C", REPO, f"BUILD={BUILD}", "--eval", "names: ; @echo $(PROGRAMS)", "names").split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("package")


@pytest.fixture(scope="module")
def packages(place):
    return [package(place, version) for version in (FIRST, NEXT)]


class Host(Machine):
    """A machine with lighttpd as the package's own unit runs it, and the versions of the package in its root's home."""

    def __init__(self, folder, packages):
        super().__init__(folder)
        self.port = free_port()
        for file in packages:
            run("cp", file, self.root / "root")
        self.install("systemd-sysv", "lighttpd", "logrotate", f"/root/{packages[0].name}")
        self.call("systemctl", "mask", "lighttpd.service")  # its port is this machine's
        drop_in = self.root / "etc/systemd/system/lighttpd-hyperpage.service.d"
        drop_in.mkdir(parents=True)
        (drop_in / "port.conf").write_text(f"[Service]\nEnvironment=PORT={self.port} BIND=127.0.0.1\n")
        self.call("systemctl", "enable", "lighttpd-hyperpage.service")

    def show(self, unit, what):
        return self.call("systemctl", "show", "--value", "--property", what, unit).strip()

    def master(self):
        """The process that systemd takes for the service, as seen from inside."""
        return int(self.show("hyperpage-fcgi.service", "MainPID"))

    def processes(self):
        """The pool's, as seen from outside."""
        return [pid for pid in children(self.init) if name_of(pid).startswith(("fcgi-", "hyperpage-fcgi"))]

    def change_to(self, file):
        """A configuration that was changed on both sides stays, and nobody is asked."""
        self.call("dpkg", "--force-confold", "--install", f"/root/{file.name}")

    def answers(self):
        return ask(self.port, "GET", "/api/sessions").status == 200


@pytest.fixture(scope="module")
def host(place, packages):
    with Host(place, packages) as machine:
        machine.boot()
        yield machine


def test_lintian_finds_no_error(packages):
    done = subprocess.run(["lintian", "--allow-root", "--fail-on", "error", packages[0]], text=True, capture_output=True,
                          check=False)
    assert done.returncode == 0, done.stdout


def test_serves_after_the_installation(host):
    assert host.processes() != []
    for unit in UNITS:
        assert host.show(unit, "ActiveState") == "active", host.call("systemctl", "status", unit)
    wait_until(lambda: accepts(("127.0.0.1", host.port)), "lighttpd listens")
    assert host.answers()
    conf = (host.root / "etc/hyperpage/hyperpage.conf").stat()
    assert oct(conf.st_mode & 0o777) == "0o640" and conf.st_uid == 0 and conf.st_gid != 0


def test_systemd_has_nothing_to_say_about_the_units(host):
    names = sorted(p.name for p in (host.root / "usr/lib/systemd/system").glob("*hyperpage*.s*") if p.is_file())
    assert "lighttpd-hyperpage.service" in names and set(UNITS) <= set(names)
    verify = " ".join(["systemd-analyze verify --man=no", *(f"/usr/lib/systemd/system/{name}" for name in names)])
    assert host.call("sh", "-c", f"{verify} 2>&1") == ""


@pytest.mark.parametrize("version", [1, 0], ids=["upgrade", "roll back"])
def test_another_version_takes_over_without_a_failed_request(host, packages, version):
    before, coordinator = host.master(), host.show("hyperpage-coordinator.service", "MainPID")
    ours = (host.root / CONF).read_text().replace("#LOG_LEVEL=info", "LOG_LEVEL=info")
    (host.root / CONF).write_text(ours)
    with Load(host.port, 16) as load:
        host.change_to(packages[version])
        wait_until(lambda: host.master() != before, "systemd knows the new master")
        assert host.show("hyperpage-fcgi.service", "ActiveState") == "active"
        figures = load.stop()
    assert failures(figures) == (0, 0), figures["first_failures"]
    assert figures["requests"] > 100
    assert host.call("readlink", f"/proc/{host.master()}/exe").strip() == "/usr/bin/hyperpage-fcgi"
    assert host.show("hyperpage-coordinator.service", "MainPID") not in ("0", coordinator)
    assert (host.root / CONF).read_text() == ours and "\nLOG_LEVEL=info\n" in ours
    theirs = (host.root / f"{CONF}.dpkg-dist").read_text()
    assert (f"# of version {NEXT}\n" in theirs) == (packages[version].name == f"hyperpage_{NEXT}.deb")
    assert oct((host.root / CONF).stat().st_mode & 0o777) == "0o640"


@pytest.mark.parametrize("verb", ["reload", "restart"])
def test_systemctl_costs_no_request(host, verb):
    master = {"restart": None, "reload": next(p for p in host.processes() if name_of(p) == "hyperpage-fcgi")}[verb]
    processes = [pid for pid in host.processes() if pid != master]
    with Load(host.port, 16) as load:
        host.call("systemctl", verb, "hyperpage-fcgi.service")
        wait_until(lambda: not [pid for pid in processes if alive(pid)], "all have been replaced")
        assert host.show("hyperpage-fcgi.service", "ActiveState") in ("active", "reloading")
        figures = load.stop()
    assert failures(figures) == (0, 0), figures["first_failures"]


def test_a_killed_master_is_followed_by_another_one(host):
    before, processes = host.master(), host.processes()
    with Load(host.port, 16) as load:
        host.call("sh", "-c", f"kill -KILL {before}")
        wait_until(lambda: host.master() not in (0, before), "another master")
        wait_until(lambda: not [pid for pid in processes if alive(pid)], "the workers of the first have left")
        figures = load.stop()
    assert failures(figures) == (0, 0), figures["first_failures"]


def test_a_drained_pool_stays_down_until_it_is_started(host):
    with Load(host.port, 16):  # whose connections would start it again
        host.call("hyperpagectl", "drain", "--wait")
        for unit in ("hyperpage-fcgi.socket", "hyperpage-fcgi.service"):
            wait_until(lambda unit=unit: host.show(unit, "ActiveState") == "inactive", f"{unit} is inactive")
        assert ask(host.port, "GET", "/api/sessions").status == 503
    assert host.processes() == [] and host.show("hyperpage-fcgi.service", "Result") == "success"
    assert host.show("hyperpage-coordinator.service", "ActiveState") == "active"
    host.call("systemctl", "start", "hyperpage-fcgi.service")
    wait_until(host.answers, "it serves again")


def test_wrong_options_are_not_taken_over(host):
    conf = host.root / "etc/hyperpage/hyperpage.conf"
    text, before = conf.read_text(), host.master()
    conf.write_text(text + "WORKERS=many\n")
    with pytest.raises(AssertionError, match="reload"):
        host.call("systemctl", "reload", "hyperpage-fcgi.service")
    conf.write_text(text)
    assert host.master() == before and host.answers()


def test_logs_are_rotated_and_written_on(host):
    conf, folder = host.root / "etc/hyperpage/hyperpage.conf", host.root / "var/log/hyperpage"
    with conf.open("a") as f:
        f.write("LOG_FILE=/var/log/hyperpage/hyperpage.log\n")
    host.call("systemctl", "restart", "hyperpage-fcgi.service")
    wait_until(lambda: "pool serves" in (folder / "hyperpage.log").read_text(), "the file has something in it")
    assert host.answers() and wait_until((host.root / "var/log/hyperpage-web/hyperpage.log").read_text, "an access log")
    host.call("logrotate", "--force", "/etc/logrotate.d/hyperpage")
    host.call("systemctl", "kill", "--kill-whom=main", "--signal=TTIN", "hyperpage-fcgi.service")
    wait_until(lambda: "number of workers changed" in (folder / "hyperpage.log").read_text(), "the new file is written")
    assert "pool serves" in (folder / "hyperpage.log.1").read_text()
    assert host.answers()
    wait_until((host.root / "var/log/hyperpage-web/hyperpage.log").read_text, "lighttpd writes its new file")


def test_purge_leaves_nothing(host):
    (host.root / "var/lib/hyperpage/kept").touch()
    host.call("dpkg", "--remove", "hyperpage")
    assert [pid for pid in children(host.init) if name_of(pid).startswith("hyperpage")] == []
    assert (host.root / "etc/hyperpage/hyperpage.conf").exists() and (host.root / "var/lib/hyperpage/kept").exists()
    assert host.processes() == []
    host.call("dpkg", "--purge", "hyperpage")
    left = host.call("find", "/etc", "/run", "/usr", "/var", "-name", "*hyperpage*", "-not", "-path", "/etc/systemd/*",
                     "-not", "-path", "/run/systemd/*", "-not", "-path", "/run/log/*")
    assert left == "", left


def test_without_dpkg_it_serves_as_the_documentation_says(host):
    """On the same machine, which has the libraries."""
    text = (REPO / "docs/operations.md").read_text()
    install, *commands = next(block for block in re.findall(r"^```sh\n(.*?)\n```$", text, re.M | re.S) if "make install" in block).split("\n")
    run("sh", "-c", install.replace("make", f"make -s -C '{REPO}' BUILD='{BUILD}' DESTDIR='{host.root}'"))
    host.call("sh", "-c", "\n".join(["set -e", *commands]))
    for unit in UNITS:
        assert host.show(unit, "ActiveState") == "active", host.call("systemctl", "status", unit)
    host.call("systemctl", "start", "lighttpd-hyperpage.service")
    wait_until(lambda: accepts(("127.0.0.1", host.port)), "lighttpd listens")
    assert host.answers()
    assert host.call("readlink", f"/proc/{host.master()}/exe").strip() == "/usr/local/bin/hyperpage-fcgi"
