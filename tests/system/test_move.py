"""hyperpagectl store export and import: from Redis into the embedded store and back every byte and every end is kept, what
is there and newer stays, what was deleted stays gone, and what is wrong is refused by its line."""

import contextlib
import datetime
import fcntl
import json
import os
import re
import sqlite3
import stat
import subprocess
import time

import pytest

from servers import Coordinator, Pool, Redis, wait_until
from test_ctl import CTL, NOT_SO, OK, TIMED_OUT, UNREACHABLE, USAGE, ctl_with

MANY = 10_000
DAY_MS = 86_400_000
KEY = "hyperpage:session:"
# What a store may hold and no JSON library would give back as it was.
ODD = [b'{}', b' \n{ "a" :\t1 ,\r\n"a":2}\n', '{"lone":"\\ud800","n":123456789012345678901234567890,"e":1E+400,"ä€😀":"\x7f"}'.encode(),
       b'{"slash":"\\/\\u0041\\u0000","deep":' + b"[" * 40 + b"]" * 40 + b"}", b'{"long":"' + b'\\"' * 20_000 + b'"}']


class Place:
    """A store without a pool, as hyperpagectl reaches it."""

    def __init__(self, folder, redis=None):
        self.folder, self.redis = folder, redis
        for name in ("run", "state"):
            (folder / name).mkdir(parents=True)
        self.env = {**os.environ, "RUN_DIR": str(folder / "run"), "STATE_DIR": str(folder / "state"),
                    "REDIS_URL": redis.url if redis else "", "REDIS_TIMEOUT_MS": "2000"}

    def ctl(self, *words, code=OK, **more):
        answer = ctl_with(self.env, *words, "--json", **more)
        assert answer.code == code, (answer.code, answer.out, answer.err)
        return answer

    def take(self, lines, *options, code=OK):
        """Imports lines; what is told of it."""
        text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        return self.ctl("store", "import", "-", *options, code=code, stdin=text)

    def give(self, name="out"):
        """Exports; {id: (document, end in ms or None)}."""
        path = self.folder / name
        told = self.ctl("store", "export", path).json
        found = read(path)
        assert told == {"sessions": len(found), "skipped": 0}
        return found


def read(path):
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return {x["id"]: (x["document"].encode(), x["expiresAt"] and of_iso(x["expiresAt"])) for x in lines}


def iso(ms):
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def of_iso(text):
    return round(datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


def now_ms():
    return int(time.time() * 1000)


def document(updated_ms, **more):
    return json.dumps({"lastActivity": iso(updated_ms), "metadata": {"created": iso(0), "updated": iso(updated_ms)}, **more})


def line(session, doc="{}", life_ms=DAY_MS):
    return {"id": session, "expiresAt": life_ms and iso(now_ms() + life_ms), "document": doc}


@pytest.fixture(params=["embedded", "redis"])
def place(request, folder, servers):
    return Place(folder / "place", servers.enter_context(Redis(folder)) if request.param == "redis" else None)


def same_ends(one, other):
    """Redis tells a remaining life, to the millisecond and a moment later."""
    assert one.keys() == other.keys()
    assert all(one[i][0] == other[i][0] for i in one)
    assert max(abs(one[i][1] - other[i][1]) for i in one) < 1000


def test_ten_thousand_sessions_move_to_another_store_and_back(folder, servers, redis):
    def documents():
        for i in range(MANY):
            yield f"session-{i}", ODD[i] if i < len(ODD) else document(i, userId=f"user-{i % 100}").encode()

    was = dict(documents())
    with redis.connection() as r:
        r.pipeline([("SET", KEY + i, doc, "PX", DAY_MS + n) for n, (i, doc) in enumerate(was.items())])
    here, there = Place(folder / "redis", redis), Place(folder / "embedded")
    first = here.give()
    assert {i: doc for i, (doc, _) in first.items()} == was
    path = folder / "redis/out"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and not list(path.parent.glob("*.part"))
    told = there.ctl("store", "import", path).json
    assert told["lines"] == told["created"] >= MANY and told["refused"] == 0
    second = there.give()
    same_ends(first, second)
    assert ctl_with(there.env, "sessions", "list", "user-7", "--json").json["sessions"], "the index of users knows them"
    assert there.ctl("store", "import", path).json["same"] == told["lines"], "again does no harm"
    redis.call("FLUSHALL")
    assert here.ctl("store", "import", folder / "embedded/out").json["created"] == MANY
    same_ends(second, here.give("again"))
    with redis.connection() as r:
        assert r.pipeline([("GET", KEY + i) for i in was]) == list(was.values())
        assert r.call("ZCARD", "hyperpage:user:user-7:sessions") == MANY // 100


def test_a_pipe_is_a_way_too(place, folder):
    place.take([line("a"), line("b")])
    done = subprocess.run([CTL, "store", "export", "-"], env=place.env, capture_output=True, text=True, check=True)
    assert sorted(json.loads(x)["id"] for x in done.stdout.splitlines()) == ["a", "b"]
    assert "sessions: 2" in done.stderr and "sessions" not in done.stdout
    other = Place(folder / "other")
    other.ctl("store", "import", "-", stdin=done.stdout)
    assert other.give().keys() == {"a", "b"}


REFUSED = {
    "no JSON": "{", "nothing": "", "a list": "[]", "two in a line": "{}{}", "cut": '{"id":"x","expiresAt":null,"docum',
    "a member missing": '{"id":"x","document":"{}"}', "one too many": '{"id":"x","expiresAt":null,"document":"{}","more":1}',
    "one twice": '{"id":"x","expiresAt":null,"document":"{}","id":"y"}',
    "an id of no kind": {**line("x"), "id": "../x"}, "an id with blanks": {**line("x"), "id": " x "}, "an empty id": {**line("x"), "id": ""},
    "an id that is long": {**line("x"), "id": "i" * 129}, "an id that is a number": {**line("x"), "id": 1},
    "an end of no kind": {**line("x"), "expiresAt": "tomorrow"}, "an end as a number": {**line("x"), "expiresAt": 1},
    "an end in a thousand years": {**line("x"), "expiresAt": "2999-01-01T00:00:00.000Z"},
    "a document that is raw": {**line("x"), "document": {}}, "a document that is a list": line("x", "[]"),
    "a document that is cut": line("x", '{"a":'), "a document with more behind it": line("x", "{} {}"),
    "half a character": '{"id":"x","expiresAt":null,"document":"{\\"a\\":\\"\\ud800\\"}"}',
    "a NUL": line("x", '{"a":"\0"}'), "a document too large": line("x", json.dumps({"a": "b" * 70_000})),
    "a line too large": line("x", "{" + " " * 1_000_000 + "}"), "deeper than any": line("x", '{"a":' * 2000 + "1" + "}" * 2000),
}


def test_what_is_wrong_is_refused_by_its_line(place):
    lines = [line("first")] + [x if isinstance(x, dict) else x + "\n" for x in REFUSED.values()] + [line("last")]
    answer = place.take(lines, code=NOT_SO)
    told = re.findall(r"^hyperpagectl: line (\d+): (.+)$", answer.err, re.M)
    assert [int(number) for number, _ in told] == list(range(2, 22)), "the first twenty are told, in order"
    assert answer.json["refused"] == len(REFUSED) and answer.json["created"] == 2
    assert place.give().keys() == {"first", "last"}
    for name, wrong in REFUSED.items():
        answer = place.take([wrong if isinstance(wrong, dict) else wrong + "\n"], code=NOT_SO)
        assert "hyperpagectl: line 1: " in answer.err and "\x1b" not in answer.err, name
    assert place.give().keys() == {"first", "last"}


def test_a_file_that_is_cut_says_so_and_its_rest_can_follow(place):
    lines = [json.dumps(line(f"s{i}")) + "\n" for i in range(100)]
    text = "".join(lines)
    cut = len("".join(lines[:60])) + 20
    assert "line 61:" in place.take([text[:cut]], code=NOT_SO).err
    again = place.take([text]).json
    assert (again["same"], again["created"]) == (60, 40)


def test_what_is_newer_stays_unless_told_otherwise(place):
    old, new, none = document(1000, v="old"), document(2000, v="new"), '{"v":"undated"}'
    place.take([line("older", old), line("newer", new), line("equal", new), line("undated", none)])
    back = [line("older", new), line("newer", old), line("equal", new), line("undated", new)]
    expected = {"created": 0, "replaced": 1, "same": 1, "kept": 2}
    assert expected.items() <= place.take(back, "--dry-run").json.items()
    assert place.give()["older"][0] == old.encode(), "a dry run changes nothing"
    assert expected.items() <= place.take(back).json.items()
    assert {i: doc.decode() for i, (doc, _) in place.give().items()} == {"older": new, "newer": new, "equal": new, "undated": none}
    assert {"replaced": 2, "same": 2}.items() <= place.take(back, "--overwrite").json.items()
    assert {i: doc.decode() for i, (doc, _) in place.give().items()} == {"older": new, "newer": old, "equal": new, "undated": new}


def test_ends_are_kept(place):
    told = place.take([line("short", life_ms=60_000), line("long", life_ms=20 * DAY_MS), line("past", life_ms=-1), line("none", life_ms=None)]).json
    assert (told["created"], told["expired"]) == (3, 1)
    left = {i: end - now_ms() for i, (_, end) in place.give().items()}
    assert left.keys() == {"short", "long", "none"}
    assert 50_000 < left["short"] <= 60_000 and 0 <= 20 * DAY_MS - left["long"] < 10_000
    assert 0 <= DAY_MS - left["none"] < 10_000, "a session without an end gets the usual one"
    place.take([line("short", document(5), life_ms=30_000)], "--overwrite")
    assert place.give()["short"][1] - now_ms() <= 30_000
    place.env["SESSION_ABSOLUTE_TTL_SECONDS"] = "3600"
    assert place.take([line("over", document(1, v="made in 1970"))]).json["expired"] == 1


def test_what_is_gone_stays_gone(folder, servers, place):
    pool = servers.enter_context(Pool(folder, **{k: place.env[k] for k in ("RUN_DIR", "STATE_DIR", "REDIS_URL", "REDIS_TIMEOUT_MS")}))
    gone = json.loads(pool.ask("GET", "/api/sessions").body)["sessionId"]
    stays = json.loads(pool.ask("GET", "/api/sessions").body)["sessionId"]
    place.ctl("store", "export", folder / "all")
    assert pool.ask("DELETE", f"/api/sessions/{gone}").status == 200
    for options in (["--dry-run"], [], ["--overwrite"]):
        told = place.ctl("store", "import", folder / "all", *options).json
        assert (told["gone"], told["same"], told["created"]) == (1, 1, 0), options
    assert [pool.ask("GET", f"/api/sessions/{i}").status for i in (gone, stays)] == [401, 200]


def test_a_dry_run_writes_nothing(place):
    assert place.take([line("a")], "--dry-run").json["created"] == 1
    assert place.give() == {}


def test_an_import_that_was_killed_goes_on(place, folder):
    path = folder / "lines"
    path.write_text("".join(json.dumps(line(f"s{i}", document(i))) + "\n" for i in range(MANY // 2)))
    with path.open("rb") as lines:
        process = subprocess.Popen([CTL, "store", "import", "-"], env=place.env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        process.stdin.write(lines.read(path.stat().st_size // 2))
        process.stdin.flush()
        wait_until(lambda: place.ctl("sessions", "count").json["sessions"] > 0, "some are in")
        process.kill()
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    before = place.ctl("sessions", "count").json["sessions"]
    assert 0 < before < MANY // 2
    told = place.ctl("store", "import", path).json
    assert (told["same"], told["created"]) == (before, MANY // 2 - before)


def test_no_session_is_left_out_unsaid(folder, redis):
    place = Place(folder / "place", redis)
    with redis.connection() as r:
        r.pipeline([("SET", KEY + "good", "{}"), ("SET", KEY + "list", "[]"), ("SET", KEY + "bytes", b"\xff"),
                    ("SET", KEY + "a b", "{}"), ("SET", KEY, "{}"), ("SADD", KEY + "set", "x"), ("SET", "other:good", "{}")])
    answer = place.ctl("store", "export", folder / "out", code=NOT_SO)
    assert answer.json == {"sessions": 1, "skipped": 5} and read(folder / "out") == {"good": (b"{}", None)}
    answer = place.take([line("set"), line("other")], code=NOT_SO)
    assert "line 1:" in answer.err and answer.json["created"] == 1


def test_a_store_that_is_away_ends_it_and_leaves_nothing_half(folder, redis):
    place = Place(folder / "place", redis)
    redis.stop()
    place.ctl("store", "export", folder / "out", code=UNREACHABLE)
    assert not list(folder.glob("out*"))
    answer = place.take([line("a")], code=UNREACHABLE)
    assert answer.out == "" and place.ctl("store", "check", code=UNREACHABLE).json["redis"]["status"] == "down"
    with contextlib.closing(sqlite3.connect(folder / "place/state/sessions.db")) as kept:
        assert kept.execute("SELECT count(*) FROM refuge").fetchone() == (0,)


def test_a_wrong_place_for_the_lines_is_said(place, folder):
    assert "No such file" in place.ctl("store", "import", folder / "none", code=USAGE).err
    assert f"{folder}: cannot be read: Is a directory" in place.ctl("store", "import", folder, code=NOT_SO).err
    assert "No such file" in place.ctl("store", "export", folder / "none/out", code=NOT_SO).err
    place.ctl("store", "export", folder / "a", "--dry-run", code=USAGE)


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_what_is_no_file_is_not_replaced_by_one(folder, kind):
    place, path = Place(folder / "place"), folder / "target"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(folder / "elsewhere")
    else:
        path.mkdir()
    before = path.lstat()
    assert "no regular file" in place.ctl("store", "export", path, code=USAGE).err
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert not (folder / "target.part").exists() and not (folder / "elsewhere").exists()


def test_two_exports_do_not_write_one_file(folder):
    place, part = Place(folder / "place"), folder / "out.part"
    place.take([line("a")])
    part.write_text("the rest of an export that was killed")
    with part.open("rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        answer = place.ctl("store", "export", folder / "out", code=NOT_SO)
        assert "another export" in answer.err and answer.out == "" and part.stat().st_size > 0
    place.ctl("store", "export", folder / "out")
    assert read(folder / "out").keys() == {"a"} and not part.exists()
    assert stat.S_IMODE((folder / "out").stat().st_mode) == 0o600


def test_a_full_disk_is_no_export(place):
    place.take([line("a")])
    with open("/dev/full", "wb") as full:
        done = subprocess.run([CTL, "store", "export", "-"], env=place.env, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == NOT_SO and "No space left" in done.stderr and "sessions" not in done.stderr


@pytest.mark.parametrize("way, text", [("-", ""), ("-", '{}\n{"id":'), ("pipe", "")])
def test_who_writes_nothing_is_given_up_at_the_timeout(folder, way, text):
    place, path = Place(folder / "place"), folder / "pipe"
    os.mkfifo(path)
    process = subprocess.Popen([CTL, "store", "import", path if way == "pipe" else "-", "--timeout", "1"], env=place.env, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with process:
        process.stdin.write(text)
        process.stdin.flush()
        assert process.wait(60) == TIMED_OUT
        assert "not within the --timeout" in process.stderr.read()


def test_the_timeout_counts_where_it_is_given(folder):
    place = Place(folder / "place")
    process = subprocess.Popen([CTL, "store", "import", "-", "--timeout", "1"], env=place.env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    text = (json.dumps(line("a")) + "\n").encode()
    with contextlib.suppress(BrokenPipeError):
        end = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < end:
            process.stdin.write(text * 100)
            process.stdin.flush()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    assert process.wait() == TIMED_OUT
    process.stderr.close()


# --- beside a pool that keeps its sessions elsewhere: the tool asks the place it was told of, and touches nothing of the pool's ---

def create(pool):
    answer = pool.ask("GET", "/api/sessions")
    assert answer.status == 200, answer.body
    return json.loads(answer.body)["sessionId"]


def on_node(pool, *words, url, code=OK, **more):
    """hyperpagectl with the node's own folders, and another REDIS_URL."""
    answer = ctl_with({**pool.env, "REDIS_URL": url, "REDIS_TIMEOUT_MS": "2000"}, *words, "--json", **more)
    assert answer.code == code, (answer.code, answer.out, answer.err)
    return answer


def test_looking_into_redis_takes_no_session_from_an_embedded_pool(folder, servers, redis):
    pool = servers.enter_context(Pool(folder))
    ids = [create(pool) for _ in range(3)]
    out = folder / "out"
    for words in (("store", "check"), ("sessions", "count"), ("sessions", "list", "alice"), ("migrate",), ("store", "export", out)):
        on_node(pool, *words, url=redis.url)
    assert out.read_bytes() == b""
    on_node(pool, "store", "export", out, url="")
    assert on_node(pool, "store", "import", out, "--dry-run", url=redis.url).json["created"] == 3
    assert not redis.call("KEYS", KEY + "*"), "a dry run sends nothing"
    assert on_node(pool, "store", "import", out, url=redis.url).json["created"] == 3
    assert len(redis.call("KEYS", KEY + "*")) == 3
    assert [pool.ask("GET", f"/api/sessions/{i}").status for i in ids] == [200] * 3
    answer = on_node(pool, "sessions", "count", url=redis.url)
    assert answer.json == {"sessions": 3} and "in its embedded store; this looks into Redis" in answer.err


def test_another_redis_is_asked_itself_and_its_answers_are_not_the_node_s(folder, servers, redis):
    other = servers.enter_context(Redis(folder, "other"))
    coordinator = servers.enter_context(Coordinator(folder, "node", REDIS_URL=redis.url))
    pool = servers.enter_context(Pool(folder, RUN_DIR=coordinator.run_dir, REDIS_URL=redis.url, STATE_DIR=coordinator.env["STATE_DIR"]))
    wait_until(lambda: "cache is coherent" in coordinator.log(), "reads are answered from copies")
    session_id = create(pool)
    write = lambda v: pool.ask("PATCH", f"/api/sessions/{session_id}", {"v": v})
    read_v = lambda: json.loads(pool.ask("GET", f"/api/sessions/{session_id}").body)["session"]["v"]
    out = folder / "out"
    assert write(1).status == 200 and read_v() == 1
    on_node(pool, "store", "export", out, url=redis.url)
    assert write(2).status == 200
    assert on_node(pool, "store", "import", out, "--dry-run", url=other.url).json["created"] == 1
    assert on_node(pool, "store", "import", out, url=other.url).json["created"] == 1
    assert read_v() == 2
    assert on_node(pool, "sessions", "show", session_id, url=other.url).json["session"]["v"] == 1
    for words in (("sessions", "show", session_id), ("sessions", "count"), ("store", "check")):
        on_node(pool, *words, url="redis://127.0.0.1:1", code=UNREACHABLE)
    answer = pool.ask("GET", f"/api/sessions/{session_id}")
    assert answer.status == 200 and "X-Session-Store" not in answer.headers and "redis lost" not in pool.log()


def test_what_a_pool_on_redis_would_take_is_not_brought_into_its_embedded_store(folder, servers, redis):
    pool = servers.enter_context(Pool(folder, REDIS_URL=redis.url))
    session_id = create(pool)
    out = folder / "out"
    on_node(pool, "store", "export", out, url=redis.url)
    wait_until(lambda: pool.ask("GET", "/api/health/ready").status == 200, "the keeper has looked")
    answer = on_node(pool, "store", "import", out, url="", code=NOT_SO)
    assert "keeps its sessions in Redis, and would take these there" in answer.err
    assert "without its REDIS_URL this looks elsewhere" in on_node(pool, "sessions", "count", url="").err
    pool.stop()
    assert on_node(pool, "store", "import", out, url="").json["created"] == 1
    with Pool(folder, STATE_DIR=pool.env["STATE_DIR"]) as embedded:
        assert embedded.ask("GET", f"/api/sessions/{session_id}").status == 200
