"""The README's two commands, word for word, as somebody with a fresh Debian and a clone of the repository would type
them: they install what they need, so conf/packages.txt is complete. How long each took is printed."""

import re
import subprocess

import pytest

from machine import REPO, Machine, run, timed
from servers import ask, free_port, wait_until

COMMANDS = re.findall(r"^```sh\n(.*?)\n```$", (REPO / "README.md").read_text().partition("## Two commands")[2], re.M | re.S)
RUN, TEST = COMMANDS[0], next(block for block in COMMANDS if block == "make test")
HOUR = 3600


class Fresh(Machine):
    """A machine with nothing but what is committed here."""

    def __init__(self, folder):
        super().__init__(folder)
        clone = self.root / "root/hyperpage"
        clone.mkdir()
        run("sh", "-c", f"git -C '{REPO}' archive HEAD | tar -C '{clone}' -xf -")

    def type(self, line, log, **env):
        """What a user types in the clone, in the background."""
        settings = [f"--setenv={name}={value}" for name, value in env.items()]
        words = self.command("sh", "-c", line)
        words[1:1] = ["--chdir=/root/hyperpage", *settings]
        with log.open("wb") as out:
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    with Fresh(tmp_path_factory.mktemp("fresh")) as machine:
        yield machine


def test_the_first_command_serves(fresh, tmp_path):
    assert RUN.endswith("make run")
    log, port = tmp_path / "run.log", free_port()
    with timed(RUN):
        user = fresh.type(RUN, log, PORT=port)
        try:
            wait_until(lambda: user.poll() is not None or f"curl -i http://localhost:{port}/api/sessions" in log.read_text(),
                       "the last line", HOUR)
            assert user.poll() is None, log.read_text()[-5000:]
        except BaseException:
            user.terminate()
            user.wait()
            raise
    try:
        assert ask(port, "GET", "/api/sessions").status == 200
    finally:
        user.terminate()
        user.wait(timeout=60)


def test_the_second_command_finds_no_fault(fresh, tmp_path):
    log = tmp_path / "test.log"
    with timed(TEST):
        user = fresh.type(TEST, log)
        try:
            code = user.wait(timeout=HOUR)
        finally:
            user.kill()
            user.wait()
    assert code == 0, log.read_text()[-10000:]
