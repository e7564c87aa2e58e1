"""Machines made from nothing: Debian by debootstrap in a folder, run by systemd-nspawn, which gives it its own mounts and
processes and takes them away again, however it ends. Needs root and the mirror that this machine's apt uses."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time
import uuid

REPO = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests/system"))

from servers import children, name_of, wait_until  # noqa: E402

SUITE = "bookworm"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "hyperpage"


PREFIX = f"hyperpage-{os.getpid()}"


def nspawn():
    """systemd-nspawn, under a name of its own each time."""
    return ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--resolv-conf=copy-host", "--timezone=off",
            f"--machine={PREFIX}-{uuid.uuid4().hex[:12]}"]


def sweep():
    """Where /run is no tmpfs, systemd-nspawn leaves an empty folder there each time."""
    for left in pathlib.Path("/run/systemd/nspawn/propagate").glob(f"{PREFIX}-*"):
        left.rmdir()


def run(*command, **more):
    """A command that must succeed; returns its standard output."""
    done = subprocess.run([str(word) for word in command], text=True, stdin=subprocess.DEVNULL, capture_output=True,
                          check=False, **more)
    said = (done.stdout + done.stderr)[-10000:]
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{said}"
    return done.stdout


def mirror():
    """Where this machine's apt gets Debian itself from."""
    targets = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages")
    return next(line.split()[0] for line in targets.splitlines() if line.split()[1] == SUITE)


def apt_sources():
    """deb lines for all that this machine's apt gets from Debian: with the security updates."""
    targets = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages")
    return "".join(f"deb {line}\n" for line in sorted(set(targets.splitlines())) if line.split()[1].startswith(SUITE))


def base():
    """A tarball of the smallest Debian; made once, then kept outside of the repository."""
    tarball = CACHE / f"debian-{SUITE}.tar"
    if not tarball.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        half = tarball.with_suffix(f".{os.getpid()}")
        try:
            run("debootstrap", "--variant=minbase", f"--make-tarball={half}.tgz", SUITE, f"{half}.folder", mirror())
            run("debootstrap", "--variant=minbase", f"--unpack-tarball={half}.tgz", SUITE, f"{half}.folder", mirror())
            run("tar", "-C", f"{half}.folder", "-cf", half, ".")
            half.rename(tarball)
        finally:
            shutil.rmtree(f"{half}.folder", ignore_errors=True)
            for left in (half, pathlib.Path(f"{half}.tgz")):
                left.unlink(missing_ok=True)
    return tarball


class Machine:
    """A folder with a Debian in it. call() runs a command in it as it lies there; boot() starts its init, and call()
    goes into that then. Its network is this machine's."""

    def __init__(self, folder):
        self.root = pathlib.Path(folder) / "machine"
        self.booted = None
        self.root.mkdir()
        run("tar", "-C", self.root, "-xf", base())
        (self.root / "etc/apt/sources.list").write_text(apt_sources())
        (self.root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")  # as Debian's installer does

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.halt()
        shutil.rmtree(self.root)
        sweep()

    def command(self, *words):
        words = [str(word) for word in words]
        if self.booted is None:
            return [*nspawn(), "--as-pid2", "--directory", str(self.root), "--", *words]
        return ["nsenter", "--target", str(self.init), "--mount", "--uts", "--ipc", "--pid", "--root", "--wd", *words]

    def call(self, *words, **more):
        """A command that must succeed, in the machine; returns what it says."""
        return run(*self.command(*words), **more)

    def install(self, *packages):
        self.call("apt-get", "update", "-q")
        self.call("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q", "--no-install-recommends", *packages)

    def boot(self):
        log = (self.root.parent / "boot.log").open("wb")
        with contextlib.closing(log):
            self.booted = subprocess.Popen([*nspawn(), "--boot", "--directory", str(self.root)], stdin=subprocess.DEVNULL,
                                           stdout=log, stderr=log)
        self.init = wait_until(lambda: next((p for p in children(self.booted.pid) if name_of(p) == "systemd"), None),
                               "the machine's init runs", 30)
        wait_until(lambda: self.state() in ("running", "degraded"), "the machine is up", 60)

    def state(self):
        return subprocess.run(self.command("systemctl", "is-system-running"), text=True, capture_output=True,
                              check=False).stdout.strip()

    def halt(self):
        if self.booted is not None:
            self.booted.terminate()
            self.booted.wait(timeout=60)
            self.booted = None


@contextlib.contextmanager
def timed(what):
    start = time.monotonic()
    yield
    print(f"\n{what}: {time.monotonic() - start:.1f} s")
