"""make install: what it puts where, and that this works: the units, the pool as its unit starts it, lighttpd's
configuration, the man pages. On a machine with systemd and dpkg it is tests/fresh that looks (`make fresh`)."""

import contextlib
import grp
import os
import pwd
import re
import shlex
import signal
import subprocess

import pytest

from servers import BUILD, REPO, Coordinator, Pool, Server, accepts, ask, free_port, wait_until

PAGES = {path.name for path in (REPO / "docs/man").glob("*.8")} | {"hyperpage.conf.5"}


def make(goal, **variables):
    words = [f"{name}={value}" for name, value in {"BUILD": BUILD, **variables}.items()]
    done = subprocess.run(["make", "-s", "-C", REPO, goal, *words], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Installed:
    """Installed for real, below the test's folder: no DESTDIR, so that what the files say about each other is true."""

    def __init__(self, folder):
        self.where = {"PREFIX": folder / "usr", "SYSCONFDIR": folder / "etc"}
        self.prefix, self.etc = self.where.values()
        self.conf = self.etc / "hyperpage/hyperpage.conf"
        self.units = self.prefix / "lib/systemd/system"
        make("install", **self.where)

    def files(self):
        return sorted(str(path.relative_to(self.prefix.parent)) for path in self.prefix.parent.rglob("*") if path.is_file())

    def unit(self, name, key):
        """The values of a key of a unit."""
        return re.findall(rf"^{key}=(.*)$", (self.units / name).read_text(), re.M)


@pytest.fixture
def installed(folder):
    return Installed(folder)


def test_installs_what_a_machine_needs_and_takes_it_away_again(folder, installed):
    files = installed.files()
    for name in ("etc/hyperpage/hyperpage.conf", "etc/hyperpage/lighttpd.conf", "etc/hyperpage/nginx.conf",
                 "etc/hyperpage/balancer.conf", "etc/logrotate.d/hyperpage",
                 "usr/bin/hyperpage-fcgi", "usr/bin/hyperpage-coordinator", "usr/lib/systemd/system/hyperpage-fcgi.socket",
                 "usr/lib/systemd/system/hyperpage-coordinator.service", "usr/lib/sysusers.d/hyperpage.conf",
                 "usr/lib/tmpfiles.d/hyperpage.conf", "usr/share/hyperpage/errors/503.html",
                 "usr/share/hyperpage/grafana/hyperpage.json", "usr/share/hyperpage/prometheus/hyperpage.rules.yml",
                 "usr/share/hyperpage/status/index.html", "usr/share/hyperpage/status/status.js",
                 "usr/share/man/man5/hyperpage.conf.5", "usr/share/man/man8/hyperpage-fcgi.8"):
        assert name in files
    assert not [name for name in files if name.endswith(".new")]
    make("uninstall", **installed.where)
    assert installed.files() == []
    assert not (installed.etc / "hyperpage").exists() and not (installed.prefix / "share/hyperpage").exists()


def test_destdir_stands_before_everything(folder):
    make("install", DESTDIR=folder / "root")
    assert (folder / "root/usr/local/bin/hyperpage-fcgi").exists() and (folder / "root/etc/hyperpage/hyperpage.conf").exists()
    assert str(folder) not in (folder / "root/etc/hyperpage/lighttpd.conf").read_text()
    make("uninstall", DESTDIR=folder / "root")
    assert not [path for path in (folder / "root").rglob("*") if path.is_file()]


def test_a_configuration_that_was_changed_is_kept(installed):
    installed.conf.write_text("WORKERS=3\n")
    assert "stays as it is" in make("install", **installed.where)
    assert installed.conf.read_text() == "WORKERS=3\n"
    assert (installed.etc / "hyperpage/hyperpage.conf.new").read_text().startswith("# hyperpage.conf")
    make("uninstall", **installed.where)
    assert installed.files() == ["etc/hyperpage/hyperpage.conf"]


def test_systemd_has_nothing_to_say_about_the_units(installed):
    units = [path for path in installed.units.iterdir() if path.is_file()]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_services_are_left_nothing_that_they_do_not_need(installed):
    names = [path.name for path in installed.units.glob("*.service")]
    assert names
    root = installed.prefix.parent / "root"
    make("install", DESTDIR=root)
    levels = {}
    for name in names:
        done = subprocess.run(["systemd-analyze", "security", "--offline=true", f"--root={root}", "--threshold=20", name],
                              text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout
        levels[name] = re.search(r"Overall exposure level for \S+: ([\d.]+) ", done.stdout)[1]
    told = re.search(r"security --offline=true`: pool ([\d.]+), coordinator ([\d.]+), lighttpd ([\d.]+);", (REPO / "docs/operations.md").read_text())
    assert dict(zip(("hyperpage-fcgi.service", "hyperpage-coordinator.service", "lighttpd-hyperpage.service"), told.groups())) == levels


def test_the_pool_serves_as_its_unit_starts_it(folder, servers, installed):
    """The command of the unit, and the socket as systemd passes it: LISTEN_FDS."""
    for key, value in {"RUN_DIR": folder / "run", "STATE_DIR": folder / "state", "WORKERS": 2}.items():
        with installed.conf.open("a") as f:
            f.write(f"{key}={value}\n")
    command = shlex.split(installed.unit("hyperpage-fcgi.service", "ExecStart")[0])
    assert command[0] == str(installed.prefix / "bin/hyperpage-fcgi")
    assert os.stat(installed.conf).st_mode & 0o777 == 0o640
    pool = Pool(folder, "unit", LISTEN=f"unix:{folder}/fcgi.sock")
    pool.command = ["systemd-socket-activate", f"--listen={folder}/fcgi.sock", *command]
    pool.env = {"PATH": os.environ["PATH"]}
    servers.enter_context(pool)
    wait_until(lambda: "pool serves: listen=\"descriptor 3\" workers=2" in pool.log(), "the pool serves on what it was given")
    assert pool.ask("GET", "/api/sessions").status == 200


class Lighttpd(Server):
    def __init__(self, folder, installed, pool):
        self.port = free_port()
        super().__init__(folder, "lighttpd", ["/usr/sbin/lighttpd", "-D", "-f", installed.etc / "hyperpage/lighttpd.conf"],
                         {"PORT": self.port, "BIND": "127.0.0.1", "LISTEN": f"unix:{pool.address}", "LOG_DIR": folder})

    def is_ready(self):
        return accepts(("127.0.0.1", self.port))


def test_lighttpd_serves_from_its_installed_configuration(folder, servers, installed, pool):
    front = servers.enter_context(Lighttpd(folder, installed, pool))
    assert ask(front.port, "GET", "/api/sessions").status == 200
    assert ask(front.port, "GET", "/elsewhere").json["error"]["code"] == "NOT_FOUND"  # conf/errors, wherever it lies now
    assert b"status.js" in ask(front.port, "GET", "/status/").body


def test_the_man_pages_have_no_fault_and_name_each_other(installed):
    pages = {path.name: path for path in (installed.prefix / "share/man").rglob("*.[1-8]")}
    assert set(pages) == PAGES
    done = subprocess.run(["mandoc", "-Tlint", *pages.values()], text=True, capture_output=True, check=False)
    faults = [line for line in done.stdout.splitlines() if "referenced manual not found" not in line]
    assert faults == []
    for page in pages.values():
        for name, section in re.findall(r"^\.Xr (hyperpage\S*) (\d)", page.read_text(), re.M):
            assert f"{name}.{section}" in pages


def test_the_man_page_of_the_file_holds_every_option(installed):
    page = (installed.prefix / "share/man/man5/hyperpage.conf.5").read_text()
    options = re.findall(r"^\| `([A-Z_]+)`", (REPO / "conf/reference.md").read_text(), re.M)
    assert options and re.findall(r"^\.It Ev (\S+)$", page, re.M) == options


def test_after_a_rotation_the_pool_writes_a_new_file(folder, servers, installed):
    (folder / "log").mkdir(mode=0o750)
    log, conf = folder / "log/hyperpage.log", folder / "logrotate.conf"
    text = (installed.etc / "logrotate.d/hyperpage").read_text().partition("/var/log/hyperpage-web")[0]
    user = f"su {pwd.getpwuid(os.geteuid()).pw_name} {grp.getgrgid(os.getegid()).gr_name}"
    for old, new in ("/var/log/hyperpage", folder / "log"), ("/run/hyperpage", folder / "run"), ("su hyperpage hyperpage", user):
        assert old in text
        text = text.replace(old, str(new))
    conf.write_text(text)
    pool = servers.enter_context(Pool(folder, LOG_FILE=log))
    wait_until(lambda: "pool serves" in log.read_text(), "the file has something in it")
    with stranger(folder / "run/coordinator.pid") as other:
        subprocess.run(["/usr/sbin/logrotate", "--force", "--state", folder / "rotated", conf], check=True)
        assert other.poll() is None
    pool.signal(signal.SIGTTIN)
    wait_until(lambda: "number of workers changed" in log.read_text(), "the new file is written")
    assert "pool serves" in log.with_suffix(".log.1").read_text() and "pool serves" not in log.read_text()


@contextlib.contextmanager
def stranger(pid_file):
    """A process that has the number which is left in a pid file."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        pid_file.write_text(f"{process.pid}\n")
        try:
            yield process
        finally:
            process.kill()


def removal(folder):
    """What dpkg runs before it removes the package, where there is no systemd."""
    text = (REPO / "conf/debian/prerm").read_text()
    for old, new in ("/run/hyperpage", folder / "run"), ("/run/systemd/system", folder / "no-systemd"):
        assert old in text
        text = text.replace(old, str(new))
    done = subprocess.run(["sh", "-s", "remove"], input=text, text=True, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_without_systemd_removal_ends_what_runs_and_nobody_else(folder, servers):
    pool = servers.enter_context(Pool(folder))
    coordinator = servers.enter_context(Coordinator(folder, "coordinator", RUN_DIR=folder / "run", STATE_DIR=folder / "state"))
    pids = folder / "run/pool.pid", folder / "run/coordinator.pid"
    wait_until(lambda: [path.exists() and path.read_text() for path in pids] == [f"{pool.pid}\n", f"{coordinator.pid}\n"], "both have said who they are")
    removal(folder)
    assert (pool.process.poll(), coordinator.process.poll()) == (0, 0)
    for path in pids:
        with stranger(path) as other:
            removal(folder)
            assert other.poll() is None


def test_the_scripts_have_no_fault():
    scripts = [path for path in REPO.glob("conf/**/*") if path.is_file() and path.read_bytes()[:2] == b"#!"]
    assert len(scripts) >= 6
    scripts += REPO.glob("conf/completion/*.bash")
    # SC2317: it takes functions that are called by name for ones that are not called.
    done = subprocess.run(["shellcheck", "--exclude=SC2317", *scripts], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
