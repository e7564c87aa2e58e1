"""Machines of their own for the nodes of a test: Network() is the machine of the servers and of the test itself; each
Machine is another, with a cable of its own to each server. All are network namespaces without a name, which end with
their last process, so nothing needs to be cleared away. Where they are not permitted, is_permitted() says so."""

import contextlib
import ctypes
import os
import subprocess

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


def ip(*words, pass_fds=()):
    subprocess.run(["ip", *map(str, words)], check=True, pass_fds=pass_fds, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@contextlib.contextmanager
def network():
    """For the `with` this thread stands in a network of its own, with nothing in it but 127.0.0.1."""
    with inside(None):
        ip("link", "set", "lo", "up")
        yield


def is_permitted():
    try:
        with network(), Machine("probe", 0, cables=1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


class Machine:
    """A machine beside the network that this thread stands in, the number-th of its kind: `server[n]` is where it finds
    the servers through its nth cable. Without a cable it has nothing but itself."""

    def __init__(self, name, number, cables):
        with inside(None):
            self.namespace = here()
            ip("link", "set", "lo", "up")
        self.cables = [Cable(f"{name}-{n}", f"10.{n}.{number}", self.namespace) for n in range(cables)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.namespace)

    def inside(self):
        return inside(self.namespace)


class Cable:
    """A link to the servers' machine, which has the address `server` at its end."""

    def __init__(self, name, subnet, namespace):
        self.name, self.server, self.client = name, f"{subnet}.1", f"{subnet}.2"
        ip("link", "add", name, "type", "veth", "peer", "name", name, "netns", f"/proc/self/fd/{namespace}", pass_fds=[namespace])
        ip("address", "add", f"{self.server}/30", "dev", name)
        ip("link", "set", name, "up")
        with inside(namespace):
            ip("address", "add", f"{self.client}/30", "dev", name)
            ip("link", "set", name, "up")

    def pull(self):
        """Nothing arrives; what was sent is sent again once it is plugged in."""
        ip("link", "set", self.name, "down")

    def plug(self):
        ip("link", "set", self.name, "up")

    def deafen(self):
        """The servers do what they are asked for, and nobody hears of it."""
        ip("route", "add", "blackhole", self.client)

    def hear(self):
        ip("route", "delete", "blackhole", self.client)
