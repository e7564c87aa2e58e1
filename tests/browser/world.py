"""What the status page looks at, for status_page.test.js: Redis, a pool with its coordinator, another node's coordinator,
a web server. Started by the arguments' name of the web server; prints the page's address, then does what each line of its
input names, answers with a line of JSON, and ends with its input."""

import contextlib
import json
import os
import pathlib
import signal
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "system"))
from servers import Coordinator, Front, Pool, Redis, wait_until  # noqa: E402

TOKEN = "t" * 32


class World:
    def __init__(self, folder, servers, front):
        self.redis = servers.enter_context(Redis(folder))
        options = {"RUN_DIR": folder / "node-a/run", "STATE_DIR": folder / "node-a/state", "POD_NAME": "node-a",
                   "REDIS_URL": self.redis.url, "ADMIN_TOKEN": TOKEN, "WORKERS": 3}
        servers.enter_context(Coordinator(folder, "node-a", **options))
        self.pool = servers.enter_context(Pool(folder, **options))
        servers.enter_context(Coordinator(folder, "node-b", REDIS_URL=self.redis.url))
        self.front = servers.enter_context(Front(folder, front, f"unix:{self.pool.address}"))
        wait_until(lambda: self.status()["coordination"]["podCount"] == 2, "both nodes are seen")

    def status(self):
        return json.loads(self.pool.ask("GET", "/api/status").body)

    def create(self, sessions):
        return sum(self.pool.ask("GET", "/api/sessions").status == 200 for _ in range(sessions))

    def report(self, platform, used_percent):
        payload = {"platform": platform, "usage": used_percent, "limit": 1000, "remaining": 1000 - 10 * used_percent}
        return self.pool.ask("POST", "/api/admin/coordination/messages", {"type": "rate_limit_sync", "payload": payload},
                             headers={"Authorization": f"Bearer {TOKEN}"}).status

    def kill(self, pid):
        os.kill(pid, signal.SIGKILL)

    def hang_redis(self):
        self.redis.pause()

    def wake_redis(self):
        self.redis.resume()

    def stop_pool(self):
        return self.pool.stop()

    def start_pool(self):
        self.pool.start()


def main():
    with tempfile.TemporaryDirectory(prefix="hp-") as folder, contextlib.ExitStack() as servers:
        world = World(pathlib.Path(folder), servers, sys.argv[1])
        print(json.dumps(f"http://127.0.0.1:{world.front.port}/status/"), flush=True)
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            print(json.dumps(getattr(world, name)(*arguments)), flush=True)


main()
