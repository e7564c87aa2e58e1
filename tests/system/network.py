"""Machines on networks, with cables that can be cut. A machine is a network namespace without a name: it ends with us and
with the last process in it, however that came about, so nothing needs to be cleared away. All cables end in a switch,
which is one more. Where they are not permitted, is_permitted() says so."""

import contextlib
import ctypes
import functools
import os
import pathlib
import signal
import subprocess

from servers import wait_until

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def check(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def here():
    """The namespace of this thread. What it starts, and the sockets that it makes, lie in it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def inside(namespace):
    """In that namespace until the end of the `with`; None: in a new one."""
    before = here()
    try:
        check(libc.unshare(CLONE_NEWNET) if namespace is None else libc.setns(namespace, CLONE_NEWNET))
        yield
    finally:
        check(libc.setns(before, CLONE_NEWNET))
        os.close(before)


@functools.cache
def is_permitted():
    try:
        with Switch("probe") as switch, Host(switch, "host", probe="10.0.0.1"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


class Space:
    """A network with nothing in it but 127.0.0.1."""

    def __init__(self):
        with inside(None):
            self.namespace = here()
        self.ip("link set lo up")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        os.close(self.namespace)

    def inside(self):
        """What the test itself asks, and whom it starts, is here until the end of the `with`."""
        return inside(self.namespace)

    def ip(self, *commands):
        """Commands of ip(8), without their first word."""
        with self.inside():
            subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)

    def processes(self):
        """All that run here but ourselves, whoever started them."""
        name, found = os.readlink(f"/proc/self/fd/{self.namespace}"), []
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                if os.readlink(path / "ns/net") == name and int(path.name) != os.getpid():
                    found.append(int(path.name))
        return found

    def kill(self):
        """As if its power had failed."""
        def is_empty():
            left = self.processes()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left
        wait_until(is_empty, "all that ran there is dead")


class Switch(Space):
    def __init__(self, *networks):
        super().__init__()
        self.ip(*(f"link {what}" for net in networks for what in (f"add {net} type bridge", f"set {net} up")))


class Host(Space):
    """A machine with an address in each of its networks: Host(switch, "node1", front="10.0.1.11", back="10.0.2.11")."""

    def __init__(self, switch, name, **addresses):
        super().__init__()
        self.switch, self.name, self.addresses = switch, name, addresses
        for net, address in addresses.items():
            cable = self.cable(net)
            switch.ip(f"link add {cable} type veth peer name {net} netns /proc/{os.getpid()}/fd/{self.namespace}",
                      f"link set {cable} master {net}", f"link set {cable} up")
            self.ip(f"address add {address}/24 dev {net}", f"link set {net} up")

    def cable(self, net):
        return f"{self.name}-{net}"

    def cut(self, *nets):
        """Nothing comes or goes, and nobody is told; what was sent is sent again once it is mended."""
        self.switch.ip(*(f"link set {self.cable(net)} down" for net in nets))

    def mend(self, *nets):
        self.switch.ip(*(f"link set {self.cable(net)} up" for net in nets))

    def deafen(self, net, other):
        """The machine `other` does what it is asked for from here, and its replies are lost."""
        other.ip(f"route add blackhole {self.addresses[net]}")

    def hear(self, net, other):
        other.ip(f"route delete blackhole {self.addresses[net]}")

    def run(self, server):
        """`server`, not yet started, is one of this machine."""
        launch = server.launch

        def launch_here():
            with self.inside():
                return launch()
        server.launch = launch_here
        return server
