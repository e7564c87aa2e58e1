"""A client that remembers every write that was acknowledged, in a process of its own: Ledger(pool.address), which speaks
FastCGI to a pool, or Ledger("http://host:port").

Each connection stays with one worker and has sessions of its own, which it makes, touches, changes and deletes; besides
all connections change and read the same few sessions, each a member of its own in them. Values only grow, so whoever
reads knows what the least is that must be there. What was not answered, or with 502 to 504, may have happened or not."""

import collections
import http.client
import json
import subprocess
import sys
import threading
import time
from datetime import datetime

import fcgi

ROUND = ("touch", "read", "change_shared", "read_shared", "touch", "change", "read_shared", "read", "create", "touch",
         "change_shared", "read_deleted", "touch", "read", "delete", "read_shared")
OWN = 5     # sessions that a connection keeps, at least
SHARED = 8  # that all connections use, unless they are given
REFUGE = "X-Session-Store"


class Ledger:
    """Runs, once each connection has some sessions, until stop(). `shared`: ids of sessions that others use too, else it
    makes some of its own; `name` tells the members of this ledger from those of another one. `patience_s`: so long an
    answer may take."""

    def __init__(self, address, connections=16, shared=(), name="m", patience_s=10):
        order = {"address": address, "connections": connections, "shared": list(shared), "name": name,
                 "patience_s": patience_s}
        self.process = subprocess.Popen([sys.executable, __file__, json.dumps(order)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == "running\n", "the ledger could not begin"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def stop(self):
        out, _ = self.process.communicate("stop\n", timeout=60)
        return Book(**json.loads(out))


class Book:
    """What a ledger wrote down. Times are monotonic seconds, for all processes of the machine.

    sessions  {id: {"life": "live" | "deleted" | "unknown", "born": time, "touched_ms": least lastActivity (wall),
              "members": {name: [least value, greatest]}, "written": {name: when that least value was sent}}}
    wrong     [[time, session, what]]: answers that must not be
    answers   [[time, connection, kind, status, from the refuge?]], oldest first; status 0: none came"""

    def __init__(self, sessions, wrong, answers, acknowledged):
        self.sessions, self.wrong, self.answers, self.acknowledged = sessions, wrong, answers, acknowledged

    def refused(self):
        return sum(status == 503 for _, _, _, status, _ in self.answers)

    def refused_of_known(self, since, until):
        """Which share of the requests for sessions that live, and of those for new ones, was refused."""
        answers = [status for at, _, kind, status, _ in self.answers if kind != "read_deleted" and since <= at < until]
        return answers.count(503) / max(len(answers), 1)

    def first_from_refuge(self, since):
        """When the last of the connections, and so of the workers, had its first 200 from the refuge; None: never."""
        first = {}
        for at, connection, _, status, refuge in self.answers:
            if refuge and 200 <= status < 300 and at >= since:
                first.setdefault(connection, at)
        return max(first.values()) if len(first) == len({answer[1] for answer in self.answers}) else None

    def last_disturbed(self):
        """When the last answer came that was none of normal serving; None: never."""
        return max((at for at, _, _, status, refuge in self.answers if refuge or status in (0, 503)), default=None)

    def missing(self, read, since=0):
        """Looks at every session with `read`, which returns the document or None; says what is not as acknowledged.
        What was written before `since` may be gone."""
        faults = []
        for session_id, session in self.sessions.items():
            document = read(session_id)
            if session["life"] == "deleted" and document is not None:
                faults.append(f"{session_id}: deleted, but there")
            elif session["life"] == "live" and document is None and session["born"] >= since:
                faults.append(f"{session_id}: not there")
            elif session["life"] == "live" and document is not None:
                due = {name: [least if session["written"][name] >= since else 0, most]
                       for name, (least, most) in session["members"].items()}
                faults += [f"{session_id}: {fault}" for fault in lacks(document, due, session["touched_ms"])]
        return faults


def lacks(document, members, touched_ms):
    """What is wrong with a document of which this much is known."""
    faults = [f"{name} is {document.get(name, 0)}, not {least} to {most}" for name, (least, most) in members.items()
              if not least <= document.get(name, 0) <= most]
    active = datetime.fromisoformat(document["lastActivity"].replace("Z", "+00:00")).timestamp() * 1000
    return faults + ([f"touched {touched_ms - active:.0f} ms before the last time"] if active < touched_ms else [])


class Web:
    """What fcgi.Client is, over HTTP."""

    def __init__(self, address, timeout_s):
        self.sock = http.client.HTTPConnection(address.removeprefix("http://"), timeout=timeout_s)

    def request(self, method, path, body, keep_conn):
        headers = {"Content-Type": "application/json"} if body else {}
        self.sock.request(method, path, body or None, headers)
        response = self.sock.getresponse()
        response.body = response.read()
        if not keep_conn:
            self.sock.close()
        return response


class Session:
    def __init__(self, session_id, born):
        self.id, self.born, self.life, self.touched_ms = session_id, born, "live", 0
        self.members, self.written = {}, {}


class Connection:
    """One kept FastCGI connection, one request at a time."""

    def __init__(self, work, number):
        self.work, self.number, self.member, self.client = work, number, f"{work.name}{number}", None
        self.kind, self.own, self.deleted, self.next_shared = "", [], collections.deque(maxlen=20), number
        self.sessions, self.wrong, self.answers, self.acknowledged = [], [], [], 0

    def run(self):
        step = self.number * 5
        while not self.work.stopping.is_set():
            self.kind = "create" if not self.own else ROUND[step % len(ROUND)]
            if self.kind != "delete" or len(self.own) > OWN:
                getattr(self, self.kind)()
            step += 1
            if len(self.own) > OWN:
                self.work.has_begun(self.number)
        self.disconnect()

    def disconnect(self):
        if self.client:
            self.client.sock.close()
        self.client = None

    def ask(self, method, path, body=None, writes=False):
        """The status (0: no answer) and the answer's JSON."""
        data = b"" if body is None else json.dumps(body).encode()
        status, refuge, answer = 0, False, {}
        try:
            if not self.client:
                self.client = self.work.client()
            reply = self.client.request(method, path, data, keep_conn=True)
            status, refuge, answer = reply.status, REFUGE in reply.headers, json.loads(reply.body)
        except (OSError, EOFError, http.client.HTTPException):
            self.disconnect()
            self.work.stopping.wait(0.01)  # not to fill the machine with attempts
        self.answers.append((time.monotonic(), self.number, self.kind, status, refuge))
        if writes and 200 <= status < 300:
            self.acknowledged += 1
        refusals = self.work.refusals
        if status in refusals and "Retry-After" not in reply.headers or status not in (0, 200, 201, 401, *refusals):
            self.note("", f"{method} {path}: {status} {answer}")
        return status, answer

    def note(self, session_id, what):
        self.wrong.append((time.monotonic(), session_id, what))

    def note_unknown(self, status, session, what):
        """A session that lives is not unknown."""
        if status == 401:
            self.note(session.id, f"{what} of a live session: 401")
            if session in self.own:
                self.own.remove(session)

    def shared(self):
        self.next_shared += 1
        return self.work.shared[self.next_shared % len(self.work.shared)]

    def one_of_own(self):
        return self.own[len(self.answers) % len(self.own)]

    def create(self):
        born = time.monotonic()
        status, answer = self.ask("POST", "/api/sessions?create=1", {}, writes=True)
        if status == 201:
            self.own.append(Session(answer["sessionId"], born))
            self.sessions.append(self.own[-1])

    def touch(self):
        session, now_ms = self.one_of_own(), int(time.time() * 1000)
        status, _ = self.ask("POST", "/api/sessions", {"sessionId": session.id, "updates": {
            "lastActivity": "2020-01-01T00:00:00.000Z"}}, writes=True)
        if status == 200:
            session.touched_ms = now_ms
        self.note_unknown(status, session, "touch")

    def change(self):
        self.change_session(self.one_of_own())

    def change_shared(self):
        self.change_session(self.shared())

    def change_session(self, session):
        values = session.members.setdefault(self.member, [0, 0])
        session.written.setdefault(self.member, 0)
        values[1] += 1
        sent = time.monotonic()
        status, _ = self.ask("PATCH", f"/api/sessions/{session.id}", {self.member: values[1]}, writes=True)
        if status == 200:
            values[0], session.written[self.member] = values[1], sent
        self.note_unknown(status, session, "change")

    def read(self):
        self.read_session(self.one_of_own())

    def read_shared(self):
        self.read_session(self.shared())

    def read_session(self, session):
        least = {name: values[0] for name, values in list(session.members.items())}
        touched_ms = session.touched_ms
        status, answer = self.ask("GET", f"/api/sessions/{session.id}")
        if status == 200:
            due = {name: (n, session.members[name][1]) for name, n in least.items()}
            for fault in lacks(answer["session"], due, touched_ms):
                self.note(session.id, f"read: {fault}")
        self.note_unknown(status, session, "read")

    def delete(self):
        session = self.own.pop(0)
        session.life = "unknown"
        status, _ = self.ask("DELETE", f"/api/sessions/{session.id}", writes=True)
        if status == 200:
            session.life = "deleted"
            self.deleted.append(session)
        self.note_unknown(status, session, "deletion")

    def read_deleted(self):
        if self.deleted:
            session = self.deleted[len(self.answers) % len(self.deleted)]
            status, _ = self.ask("GET", f"/api/sessions/{session.id}")
            if status == 200:
                self.note(session.id, "read of a deleted session: 200")


class Work:
    def __init__(self, address, connections, shared, name, patience_s):
        self.address = tuple(address) if isinstance(address, list) else address
        self.name, self.patience_s, self.stopping, self.begun = name, patience_s, threading.Event(), set()
        self.web = str(self.address).startswith("http://")
        self.refusals = (502, 503, 504) if self.web else (503,)  # a balancer has sent the request, and heard nothing
        self.connections = [Connection(self, i) for i in range(connections)]
        self.shared = [Session(i, 0) for i in shared] or self.make_shared()

    def client(self):
        return (Web if self.web else fcgi.Client)(self.address, self.patience_s)

    def make_shared(self):
        first = self.connections[0]
        for _ in range(SHARED):
            first.create()
        made, first.own = first.own, []
        return made

    def has_begun(self, number):
        """The first that says so for the last connection tells whoever started us."""
        if number not in self.begun:
            self.begun.add(number)
            if len(self.begun) == len(self.connections):
                print("running", flush=True)

    def run(self):
        threads = [threading.Thread(target=connection.run) for connection in self.connections]
        for thread in threads:
            thread.start()
        sys.stdin.readline()
        self.stopping.set()
        for thread in threads:
            thread.join()
        sessions = {s.id: vars(s) for s in [*self.shared, *(s for c in self.connections for s in c.sessions)]}
        print(json.dumps({"sessions": sessions, "acknowledged": sum(c.acknowledged for c in self.connections),
                          "wrong": sorted(w for c in self.connections for w in c.wrong),
                          "answers": sorted(a for c in self.connections for a in c.answers)}))


if __name__ == "__main__":
    sys.setswitchinterval(0.0005)  # a connection's answer is looked at soon after it came
    Work(**json.loads(sys.argv[1])).run()
