"""A steady load of HTTP requests on kept client connections (kept=False: on one each), in a process of its own: Load(port).

Each connection owns a session and goes round and round: it touches, reads and changes that session and makes a new one.
It remembers what was acknowledged, so that somebody can ask afterwards whether all of it is still there."""

import json
import select
import selectors
import socket
import subprocess
import sys
import time

HEAD = "{} {} HTTP/1.1\r\nHost: load\r\nX-Forwarded-For: {}\r\nConnection: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}"
ROUND = ("touch", "read", "change", "touch", "read", "touch", "create", "read")


def failures(figures):
    return figures["failed"], figures["refused"]


class Load:
    """Runs until stop(), which returns the figures: `requests` (answered 2xx), `failed` (no answer, or another), `refused` (no
    connection), `first_failures`, `sessions`: {id: [number last acknowledged, number last sent]}, `created`: ids."""

    def __init__(self, port, connections=64, kept=True):
        self.process = subprocess.Popen([sys.executable, __file__, str(port), str(connections), "keep-alive" if kept else "close"], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        begun, _, _ = select.select([self.process.stdout], [], [], 10)
        assert begun and self.process.stdout.readline() == "running\n", "the load could not begin"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def stop(self):
        out, _ = self.process.communicate("stop\n", timeout=30)
        return json.loads(out)


def body_of(head, rest):
    """The body, once it has come whole; else None."""
    if b"transfer-encoding: chunked" in head:
        if not rest.endswith(b"\r\n0\r\n\r\n"):
            return None
        body, at = b"", 0
        while size := int(rest[at:rest.index(b"\r\n", at)], 16):
            at = rest.index(b"\r\n", at) + 2
            body += rest[at:at + size]
            at += size + 2
        return body
    at = head.index(b"content-length:") + 15
    size = int(head[at:].split(b"\r\n")[0])
    return rest if len(rest) == size else None


class Client:
    def __init__(self, load, number):
        self.address = f"198.51.100.{number % 256}"  # for a server that believes the one before it
        self.load, self.session, self.step, self.acknowledged, self.sent = load, None, -1, 0, 0
        self.sock, self.answer = None, b""

    def connect(self):
        self.close()
        self.sock = socket.socket()
        try:
            self.sock.connect(("127.0.0.1", self.load.port))
        except OSError as e:
            self.load.note("refused", str(e))
            self.sock.close()
            self.sock = None
            return False
        self.load.selector.register(self.sock, selectors.EVENT_READ, self)
        return True

    def close(self):
        if self.sock:
            self.load.selector.unregister(self.sock)
            self.sock.close()
        self.sock = None

    def send_next(self):
        self.step += 1
        self.kind = ROUND[self.step % len(ROUND)] if self.session else "create"
        if self.kind == "read":
            method, path, body = "GET", f"/api/sessions/{self.session}", ""
        elif self.kind == "create":
            method, path, body = "POST", "/api/sessions?create=1", "{}"
        elif self.kind == "touch":
            method, path = "POST", "/api/sessions"
            body = json.dumps({"sessionId": self.session, "updates": {"lastActivity": "2020-01-01T00:00:00.000Z"}})
        else:
            self.sent += 1
            method, path, body = "PATCH", f"/api/sessions/{self.session}", json.dumps({"n": self.sent})
        self.answer = b""
        if self.sock or self.connect():
            try:
                self.sock.sendall(HEAD.format(method, path, self.address, self.load.connection, len(body), body).encode())
            except OSError as e:
                self.failed(f"{self.kind}: {e}")

    def failed(self, why):
        self.load.note("failed", why)
        self.close()
        self.step = ROUND.index("change") - 1 if self.session else -1

    def receive(self):
        """True when the request is over, one way or the other."""
        try:
            piece = self.sock.recv(65536)
        except OSError as e:
            self.failed(f"{self.kind}: {e}")
            return True
        self.answer += piece
        head, found, rest = self.answer.partition(b"\r\n\r\n")
        if not piece:
            self.failed(f"{self.kind}: closed after {len(self.answer)} bytes: {self.answer[:80]}")
            return True
        if not found:
            return False
        head = head.lower()
        body = body_of(head, rest)
        if body is None:
            return False
        self.answered(int(head[9:12]), head, body)
        return True

    def answered(self, status, head, body):
        if b"connection: close" in head:
            self.close()
        if not 200 <= status < 300:
            self.failed(f"{self.kind}: {status} {body[:120]}")
            return
        self.load.figures["requests"] += 1
        if self.kind == "create":
            created = json.loads(body)["sessionId"]
            self.load.figures["created"].append(created)
            self.session = self.session or created
        elif self.kind == "change":
            self.acknowledged = self.sent


class Run:
    def __init__(self, port, connections, connection):
        self.port, self.connection, self.selector = port, connection, selectors.DefaultSelector()
        self.figures = {"requests": 0, "failed": 0, "refused": 0, "first_failures": [], "created": []}
        self.clients = [Client(self, number) for number in range(connections)]

    def note(self, kind, why):
        self.figures[kind] += 1
        if len(self.figures["first_failures"]) < 10:
            self.figures["first_failures"].append(f"{time.time():.3f} {kind}: {why}")

    def run(self):
        self.selector.register(sys.stdin, selectors.EVENT_READ)
        for client in self.clients:
            client.send_next()
        stopping = said = False
        while not stopping or any(client.sock for client in self.clients):
            for key, _ in self.selector.select(0.05):
                if key.data is None:  # stop: what is on its way comes in, nothing new goes out
                    self.selector.unregister(sys.stdin)
                    stopping = True
                elif key.data.receive():
                    if stopping:
                        key.data.close()
                    else:
                        key.data.send_next()
            for client in self.clients:
                if not client.sock and not stopping:
                    client.send_next()
            if not said and all(client.session for client in self.clients):
                print("running", flush=True)
                said = True
        self.figures["sessions"] = {c.session: [c.acknowledged, c.sent] for c in self.clients if c.session}
        print(json.dumps(self.figures))


if __name__ == "__main__":
    Run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]).run()
