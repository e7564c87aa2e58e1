"""Machines on networks, with cables that can be cut. A machine is a network namespace that a process of ours holds open:
when we have ended, however that came about, nothing is left of it. All cables end in a switch, which is one more."""

import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess

from servers import wait_until

CLONE_NEWNET = 0x40000000


class NotPermitted(Exception):
    pass


def namespace(pid):
    return os.readlink(f"/proc/{pid}/ns/net")


def move_to(namespace_file):
    """This thread, and what it starts from now on, is in another network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace_file.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Space:
    """A network namespace."""

    def __init__(self):
        self.holder = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"],
                                       stderr=subprocess.DEVNULL)
        wait_until(lambda: self.holder.poll() is not None or namespace(self.holder.pid) != namespace("self"), "it is made")
        if self.holder.poll() is not None:
            raise NotPermitted("network namespaces are not permitted here")
        self.file = f"/proc/{self.holder.pid}/ns/net"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.holder.kill()
        self.holder.wait()

    def ip(self, *commands):
        """Commands of ip(8), without their first word."""
        with self.entered():
            subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)

    @contextlib.contextmanager
    def entered(self):
        """What the test itself asks, and whom it starts, is here."""
        with open("/proc/self/ns/net") as home, open(self.file) as here:
            move_to(here)
            try:
                yield self
            finally:
                move_to(home)

    def processes(self):
        """All that run here, whoever started them."""
        ours, found = os.readlink(self.file), []
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                if namespace(path.name) == ours and int(path.name) not in (self.holder.pid, os.getpid()):
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
            switch.ip(f"link add {cable} type veth peer name {net} netns {self.holder.pid}",
                      f"link set {cable} master {net}", f"link set {cable} up")
            self.ip(f"addr add {address}/24 dev {net}", f"link set {net} up")
        self.ip("link set lo up")

    def cable(self, net):
        return f"{self.name}-{net}"

    def cut(self, *nets):
        """Nothing comes or goes, and nobody is told."""
        self.switch.ip(*(f"link set {self.cable(net)} down" for net in nets))

    def mend(self, *nets):
        self.switch.ip(*(f"link set {self.cable(net)} up" for net in nets))

    def run(self, server):
        """`server`, not yet started, is one of this machine."""
        launch = server.launch

        def launch_here():
            with self.entered():
                return launch()
        server.launch = launch_here
        return server
