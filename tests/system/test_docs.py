"""README.md and docs/*.md: what they name exists, what they quote is measured, and what they show works.

How to write a page that is held to its word:
- A block of shell that begins with ```sh test is run by bash (-e, pipefail) in an empty folder, all of a page in one shell,
  against what `make run` starts, with a Redis, SERVICE_TOKEN and ADMIN_TOKEN; the programs are in PATH, their options in the
  environment. Other ```sh blocks are not run here.
- A ```text block right behind it is what it prints; … there stands for anything.
- 38,927<!-- get-kept / pool-coherent / requests/s --> is a figure of docs/benchmarks.md: heading, row and column (where
  a table has one column of values: heading and row).
"""

import functools
import json
import os
import re
import subprocess
import textwrap

import pytest

import openapi
from postgres import Postgres
from servers import BUILD, PATIENCE_S, REPO, Coordinator, wait_until
from test_run import Run

PAGES = {str(path.relative_to(REPO)): path for path in [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]}
GENERATED = {"conf/reference.md": REPO / "conf/reference.md"}
TOKENS = {"SERVICE_TOKEN": "a-service", "ADMIN_TOKEN": "an-administrator"}
SHELL = re.compile(r"^ *```sh test\n(.*?)^ *```\n(?:\n *```text\n(.*?)^ *```\n)?", re.M | re.S)


@functools.cache
def text_of(page):
    return {**PAGES, **GENERATED}[page].read_text()


def prose_of(page):
    """Without blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", text_of(page), flags=re.M | re.S)


def words_of(page):
    """What stands in backticks."""
    return re.findall(r"`([^`\n]+)`", prose_of(page))


@pytest.fixture(params=PAGES)
def page(request):
    return request.param


# --- what is shown works ---

def shell_of(page):
    """(script, answer) of the blocks that are to be run; in a list they are indented."""
    return [(textwrap.dedent(script), textwrap.dedent(answer))
            for script, answer in SHELL.findall(text_of(page))]


def one_line(text):
    """Ends of lines do not count: curl prints none."""
    return text.replace("\n", "")


def expected(text):
    """The text as a regular expression."""
    return ".*".join(re.escape(part) for part in one_line(text).split("…"))


@pytest.mark.parametrize("page", [page for page in PAGES if SHELL.search(text_of(page))])
def test_the_commands_print_what_the_page_says(folder, servers, redis, page):
    run = servers.enter_context(Run(folder, REDIS_URL=redis.url, REDIS_TIMEOUT_MS=2000, RUN_DIR=folder / "run", STATE_DIR=folder / "state", **TOKENS))
    blocks = [(script.replace("localhost:8080", f"localhost:{run.port}"), answer)
              for script, answer in shell_of(page)]
    (folder / "here").mkdir()
    script = "".join(f"{block}echo; echo '=== {n} ==='\n" for n, (block, _) in enumerate(blocks))
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=folder / "here", text=True,
                          capture_output=True, timeout=60, env={**run.env, "PATH": f"{BUILD}:{os.environ['PATH']}"})
    printed = re.split(r"\n?=== \d+ ===\n", done.stdout)
    for (block, answer), text in zip(blocks, printed):
        assert re.fullmatch(expected(answer), one_line(text)), f"{block}printed:\n{text}\n{done.stderr}"
    assert done.returncode == 0, f"{blocks[min(len(printed), len(blocks)) - 1]}: {done.stderr}"


def test_the_roll_back_of_the_database_leaves_the_original_s_tables(folder, servers):
    database = servers.enter_context(Postgres(folder))
    with Coordinator(folder, "node", DATABASE_URL=database.url):
        wait_until(lambda: database.value("SELECT to_regclass('hyperpage_schema') IS NOT NULL") and database.ask(
            "SELECT 1 FROM app_state WHERE key = 'coordinator.cleanup'"), "the leader has written", PATIENCE_S * 3)
    database.ask(re.search(r"^```sql\n(.*?)^```", text_of("docs/migration.md"), re.M | re.S).group(1).replace("%", "%%"))
    assert database.ask("SELECT * FROM app_state") == []
    assert {name for name, in database.ask("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")} == {
        "app_state", "rate_limits", "jobs", "job_history", "user_sessions"}


# --- what is named exists ---

def heading_anchors(page):
    """As GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", (REPO / page).read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert there.exists(), f"{page}: {target}"
        assert not anchor or anchor in heading_anchors(there.relative_to(REPO)), f"{page}: {target}"


@functools.cache
def files():
    return {str(path.relative_to(REPO)) for top in REPO.iterdir() if top.name not in (".git", "build", "var")
            for path in ([top] if top.is_file() else top.rglob("*")) if path.is_file()}


@functools.cache
def folders():
    return {"/".join(path.split("/")[:n]) for path in files() for n in range(1, path.count("/") + 1)}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What `make install` puts where, as a package does."""
    root = tmp_path_factory.mktemp("root")
    subprocess.run(["make", "-C", REPO, "-s", f"BUILD={BUILD}", "install", f"DESTDIR={root}", "PREFIX=/usr", "SYSCONFDIR=/etc"],
                   check=True, capture_output=True)
    return {f"/{path.relative_to(root)}" for path in root.rglob("*")}


SUFFIX = re.compile(r"\w\.(c|h|def|md|py|sh|js|conf|json|yml|sql|awk|html|css|lua|mdoc|bash)$")
OF_THE_MACHINE = re.compile(r"/(run|var/lib|var/log|tmp|etc/(hyperpage/(prod|staging)|ssl|stunnel))(/|$)")


def is_there(path, installed):
    path = re.sub(r":\d+$", "", path).rstrip("/")
    if path.startswith("/"):
        return re.sub("^/usr/local", "/usr", path) in installed or OF_THE_MACHINE.match(path)
    path = re.sub(r"\b[A-Z]{4,}\b", "*", path)  # NAME stands for a name
    if "*" in path:
        return any(re.fullmatch(re.escape(path).replace(r"\*", "[^/]*"), there) for there in files())
    return path in files() | folders() or any(there.endswith(f"/{path}") for there in files() | installed)


def test_paths_are_there(page, installed):
    top = "|".join(sorted({path.split("/")[0] for path in files() if "/" in path}))
    for words in words_of(page):
        for word in words.split():
            word = word.rstrip(",.:")
            if re.match(rf"({top}|/usr|/etc)/\w", word) or re.fullmatch(r"[\w.-]+", word) and SUFFIX.search(word):
                assert is_there(word, installed), f"{page}: `{word}`"


@functools.cache
def options():
    """{name: is it a secret?}"""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", GENERATED["conf/reference.md"].read_text(), re.M)
    return {name: allowed == "a secret" for name, allowed in rows}


OF_OTHERS = {  # of systemd and CGI, of the tests, of the original, and what an operator puts in
    "LISTEN_FDS", "REMOTE_ADDR", "HYPERPAGE_LONG", "DB_POOL_MAX", "SENTINEL_HOST", "SENTINEL_PORT"}
FOR_CHANGERS = {"docs/architecture.md", "docs/libraries.md"}  # which speak of C: of names in the source, and...
OF_LIBRARIES = {"GET_VALUES", "SECURE_DELETE", "SQLITE_BUSY"}


@functools.cache
def names_in_source():
    return set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", "".join(
        path.read_text() for folder in ("lib", "fcgi-app") for path in (REPO / folder).rglob("*.c")))) | OF_LIBRARIES


@functools.cache
def other_names():
    """Names in capitals that are no options: variables of the Makefile, of `make run` and the balancer, error codes, and..."""
    makefile = (REPO / "Makefile").read_text() + (REPO / "conf/run.sh").read_text()
    return (set(re.findall(r"^(?:export )?([A-Z][A-Z_]+)\b ?[?:]?=", makefile, re.M)) | set(re.findall(r"\$\(([A-Z_]+)\)", makefile))
            | set(openapi.document()["x-error-codes"])
            | set(re.findall(r"\bdefined\((\w+)\)", (REPO / "conf/balancer.conf").read_text()))
            | {f"{name}_FILE" for name, secret in options().items() if secret}
            | OF_OTHERS)


def test_options_are_options(page):
    for name in re.findall(r"(?<![\w{])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?![\w*{])", text_of(page)):
        known = name in options() or name in other_names() or page in FOR_CHANGERS and name in names_in_source()
        assert known, f"{page}: {name}"


def test_each_option_is_told_of_by_somebody():
    told = "".join(text_of(page) for page in PAGES)
    assert " ".join(name for name in options() if not re.search(rf"\b{name}\b", told)) == ""


def test_make_targets_are_targets(page):
    targets = set(re.findall(r"^([a-z-]+)[a-z ]*:", (REPO / "Makefile").read_text(), re.M)) | {"uninstall", "tsan"}
    for target in re.findall(r"(?:`|^|&& )make ((?:[a-z][a-z-]*)?)", text_of(page), re.M):
        assert target in targets | {""}, f"{page}: make {target}"


@functools.cache
def tool():
    """{command: its flags} of the operator's tool, and the flags that all know, as --help has them."""
    text = subprocess.run([BUILD / "hyperpagectl", "--help"], text=True, capture_output=True, check=True).stdout
    usage, commands = text.split("\nCommands:\n")
    known = {"--" + name.lower().replace("_", "-") for name in options()}
    common = set(re.findall(r"--[a-z-]+", usage)) | known | {f"{name}-file" for name in known}
    return {name.strip(): set(re.findall(r"--[a-z-]+", rest))
            for name, rest in re.findall(r"^  ((?:[a-z]+ ?)+)(.*)$", commands, re.M)}, common


def calls_of_the_tool(page):
    """What stands behind its name, in backticks and in blocks of shell."""
    blocks = "".join(re.findall(r"^ *```sh\b.*?\n(.*?)^ *```$", text_of(page), re.M | re.S))
    shown = [*words_of(page), *(part for line in blocks.splitlines() for part in re.split(r"[|&;]+|\$\(", line))]
    return [match[1] for match in (re.match(r"(?:.*\s)?hyperpagectl\s+(.*)", text.strip()) for text in shown) if match]


def test_commands_of_the_tool_are_commands(page):
    commands, common = tool()
    for call in calls_of_the_tool(page):
        words = [word.strip("[]") for word in call.split("#")[0].split()]
        name = next((name for name in (" ".join(words[:2]), words[0]) if name in commands), None)
        assert name or words[0].startswith(("-", "…")), f"{page}: hyperpagectl {call}"
        for word in words:
            flag = re.match("--[a-z-]+", word)
            assert not flag or flag[0] in common | commands.get(name, set()), f"{page}: hyperpagectl {call}"


def test_the_check_of_commands_sees_one_that_is_none(monkeypatch):
    tool()
    for shown in ("`hyperpagectl statos`", "`hyperpagectl reload --rolling`", "```sh\na | hyperpagectl sessions kill x\n```\n"):
        monkeypatch.setitem(globals(), "text_of", lambda page, shown=shown: shown)
        with pytest.raises(AssertionError):
            test_commands_of_the_tool_are_commands("README.md")


def test_there_is_something_to_do_about_each_alert():
    alerts = re.findall(r"^ +- alert: (\w+)$", (REPO / "conf/prometheus/hyperpage.rules.yml").read_text(), re.M)
    section = text_of("docs/operations.md").partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert alerts and [row[0].strip("`") for row in table_rows(section)][2:] == alerts


def test_lines_of_the_log_that_are_told_to_be_looked_for_are_written():
    section = text_of("docs/operations.md").partition("\n## Alerts\n")[2].partition("\n## ")[0]
    source = "".join(path.read_text() for folder in ("lib", "fcgi-app") for path in (REPO / folder).rglob("*.c"))
    source = source.replace("%s died", "worker died")
    lines = {words for words in re.findall(r"`([a-z]+(?: [a-z:]+)+)`", re.sub("replay: ", "", section))
             if not re.match(r"(hyperpagectl|systemctl|journalctl|curl|signal) ", words)}
    assert len(lines) >= 5
    for line in lines:
        assert line in source, line


def test_metrics_are_exported(page):
    source = "".join(path.read_text() for path in (REPO / "lib/metrics.def", REPO / "lib/exposition.c",
                                                   *(REPO / "fcgi-app/pool").glob("api_metrics*.c")))
    for word in words_of(page):
        for name in braced(word.split("{platform")[0].split("{endpoint")[0].split("{cause")[0]):
            if re.match(r"((hyperpage|process|http_connection_pool|rate_limit|api_requests)_[a-z_]+|cache_[a-z]+_total)$", name):
                if name == "hyperpage_schema":  # a table
                    continue
                short = re.sub(r"^hyperpage_", "", name)
                assert re.search(rf'["( ,]({name}|{short})\b', source), f"{page}: {name}"


def braced(word):
    """a_{b,c} as a_b and a_c."""
    match = re.match(r"(.*)\{([\w,]+)\}(.*)", word)
    return [match[1] + part + match[3] for part in match[2].split(",")] if match else [word]


def test_the_table_of_errors_is_that_of_openapi():
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \| (.*) \|$", text_of("docs/api.md"), re.M)
    codes = openapi.document()["x-error-codes"]
    assert rows == [(code, str(entry["status"]), entry["meaning"]) for code, entry in codes.items()]


# --- what is quoted is what was measured ---

def table_rows(text):
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


@functools.cache
def benchmarks():
    """{(heading, row, column): cell}, and {(heading, row): cell} of tables with one column of values."""
    found = {}
    for heading, section in re.findall(r"^### ([^\n]*)\n(.*?)(?=^##|\Z)", text_of("docs/benchmarks.md"), re.M | re.S):
        head = None
        for row in table_rows(section):
            if row[0].startswith("---"):
                continue
            if head is None or len(row) != len(head):
                head = row
                continue
            for column, cell in zip(head[1:], row[1:]):
                found[heading, row[0], column] = cell
            if len(row) == 2:
                found[heading, row[0]] = row[1]
    return found


FIGURE = re.compile(r"(\S+?)<!-- ([^>]+?) / ([^>]+?)(?: / ([^>]+?))? -->")


def test_figures_are_those_of_the_benchmarks(page):
    for figure, *place in FIGURE.findall(text_of(page)):
        cell = benchmarks().get(tuple(step for step in place if step))
        assert cell is not None, f"{page}: no such figure: {place}"
        assert cell.split(" [")[0].split(" (")[0] == figure, f"{page}: {figure} is {cell} of {place}"


def test_sizes_are_those_that_are_measured(page):
    """tests/system/test_scaling.py measures those of docs/scaling.md."""
    measured = {name: figure for figure, name in re.findall(r"([\d,]+)<!-- measured: ([\w-]+) -->", text_of("docs/scaling.md"))}
    for figure, name in re.findall(r"(\S+?)<!-- measured: ([\w-]+) -->", text_of(page)):
        assert measured.get(name) == figure, f"{page}: {name}"


@pytest.mark.parametrize("page, source, names, columns", [
    ("docs/operations.md", "tests/system/hosts/test_hosts.py", r'^    "([^"\n]+)": Scene\(', r'"outage", \{(.*?)\}\)')])
def test_tables_that_a_run_prints_have_its_rows_and_columns(page, source, names, columns):
    """So a scene that was added, or called otherwise, is missed here."""
    text = (REPO / source).read_text()
    head = re.findall(r'"([^"{}]+)":', re.search(columns, text, re.S)[1])
    rows = list(table_rows(text_of(page)))
    at = next((i for i, row in enumerate(rows) if row == head), None)
    assert at is not None, head
    assert [row[0] for row in rows[at + 2:at + 2 + len(re.findall(names, text, re.M))]] == re.findall(names, text, re.M)
