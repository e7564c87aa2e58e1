"""The ways to PostgreSQL: TLS whose certificate is checked, a password that stands in a file, and pgbouncer, which hands a
connection of its own on from one transaction to the next."""

import contextlib
import os
import pathlib
import pwd
import shutil
import subprocess
import urllib.parse

import psycopg2
import pytest

from postgres import Postgres, unprivileged
from servers import Coordinator, Server, free_port, wait_until
from test_postgres import LEASE, add_job, clean_again, history, job, wait_for_cleanup

PASSWORD = "se:cr@t/ %ü"


@pytest.fixture
def start(folder, servers):
    def begin(name="node", **options):
        return servers.enter_context(Coordinator(folder, name, **{**LEASE, **options}))
    return begin


# --- TLS and passwords ---

def make_certificate(folder, name, *more):
    """A key and a certificate, name.key and name.crt; signed by itself unless `more` says by whom."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt", *more],
                   cwd=folder, check=True, stderr=subprocess.DEVNULL)


@pytest.fixture
def secured(folder, servers):
    """A server called localhost, with a certificate of our "ca", that lets the user hyperpage in with TLS and PASSWORD only."""
    for ca in ("ca", "other-ca"):
        make_certificate(folder, ca)
    make_certificate(folder, "server", "-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "subjectAltName=DNS:localhost")
    database = Postgres(folder, ssl="on", ssl_cert_file="server.crt", ssl_key_file="server.key",
                        access=["hostssl all hyperpage 127.0.0.1/32 scram-sha-256", "host all hyperpage 127.0.0.1/32 reject"])
    for name in ("server.crt", "server.key"):
        path = shutil.copy(folder / name, f"{database.home}/data")
        os.chmod(path, 0o600)
        if unprivileged():
            os.chown(path, pwd.getpwnam(unprivileged()).pw_uid, -1)
    servers.enter_context(database)
    database.ask("CREATE ROLE hyperpage LOGIN PASSWORD %s", PASSWORD)
    database.ask("GRANT ALL ON SCHEMA public TO hyperpage")
    return database


def url_of(database, folder, host="localhost", password=PASSWORD, ca="ca.crt"):
    return (f"postgresql://hyperpage:{urllib.parse.quote(password, safe='')}@{host}:{database.port}/postgres"
            f"?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={folder / ca}")


def test_tls_that_checks_the_servers_name_and_a_password_from_a_file(folder, secured, start):
    path = folder / "database-url"
    path.write_text(url_of(secured, folder) + "\n")
    node = start(DATABASE_URL_FILE=path)
    wait_for_cleanup(secured)
    assert secured.ask("SELECT DISTINCT ssl, usename FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
                       "WHERE application_name = 'hyperpage-coordinator'") == [(True, "hyperpage")]
    assert "secr" not in node.log() + "".join(pathlib.Path(f"/proc/{node.pid}/{part}").read_text() for part in ("cmdline", "environ"))


def test_a_server_that_must_not_be_trusted_is_told_of_and_given_nothing(folder, secured, start):
    """Each line of the log names what an operator has to mend."""
    mistakes = {
        "wrong-ca": ({"ca": "other-ca.crt"}, "certificate verify failed"),
        "no-ca": ({"ca": "nowhere.crt"}, "does not exist"),
        "wrong-name": ({"host": "127.0.0.1"}, "does not match host name '127.0.0.1'"),
        "wrong-password": ({"password": "wrong"}, "password authentication failed for user 'hyperpage'"),
    }
    nodes = {name: start(name, DATABASE_URL=url_of(secured, folder, **change)) for name, (change, _) in mistakes.items()}
    for name, node in nodes.items():
        said = wait_until(lambda: [line for line in node.log().splitlines() if "postgres cannot be reached" in line], name)
        assert mistakes[name][1] in said[0]
        assert "secr" not in node.log() and "wrong@" not in node.log()
    assert not secured.ask("SELECT 1 FROM pg_stat_activity WHERE usename = 'hyperpage'")


def test_a_server_without_tls_is_not_spoken_to(folder, servers, start):
    database = servers.enter_context(Postgres(folder))
    node = start(DATABASE_URL=database.url + "?sslmode=require")
    wait_until(lambda: "server does not support SSL, but SSL was required" in node.log(), "it says why")


# --- pgbouncer ---

class PgBouncer(Server):
    """Has `size` connections to `database` and hands each on after every transaction. `url` is what DATABASE_URL takes."""

    def __init__(self, database, size, mode="transaction"):
        self.port, self.database = free_port(), database
        config = pathlib.Path(database.home) / "pgbouncer.ini"
        config.write_text(f"[databases]\npostgres = host=127.0.0.1 port={database.port} user=test\n"
                          f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
                          f"auth_type = any\npool_mode = {mode}\ndefault_pool_size = {size}\n")
        user = ["-u", unprivileged()] if unprivileged() else []
        super().__init__(database.folder, "pgbouncer", ["/usr/sbin/pgbouncer", *user, config])
        self.url = f"postgresql://test@127.0.0.1:{self.port}/postgres"

    def connect(self):
        return psycopg2.connect(self.url, connect_timeout=5)

    def is_ready(self):
        with contextlib.suppress(psycopg2.OperationalError):
            self.connect().close()
            return True
        return False


@pytest.fixture
def database(folder, servers):
    return servers.enter_context(Postgres(folder))


def test_behind_pgbouncer_the_schema_is_applied_once_and_nothing_of_a_transaction_stays(database, servers, start):
    """On the only connection, which the test gets next, are no limits, no lock and no name of ours."""
    bouncer = servers.enter_context(PgBouncer(database, size=1))
    nodes = [start(f"node-{n}", DATABASE_URL=bouncer.url) for n in range(3)]
    wait_for_cleanup(database)
    clean_again(database)
    assert sum("schema of the database changed: step=001" in node.log() for node in nodes) == 1
    with contextlib.closing(bouncer.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid() = ANY (array_agg(pid)), count(*) FROM pg_stat_activity "
                       "WHERE application_name = 'hyperpage-coordinator' OR pid = pg_backend_pid()")
        assert cursor.fetchone() == (True, 1)
        cursor.execute("SELECT name, setting FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout', "
                       "'idle_in_transaction_session_timeout') AND setting <> '0'")
        assert cursor.fetchall() == []
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert cursor.fetchone() == (0,)
    assert all("ERROR" not in line for line in database.log().splitlines())


def test_behind_pgbouncer_a_lock_and_a_statement_end_in_time(database, servers, redis, start):
    bouncer = servers.enter_context(PgBouncer(database, size=2))
    redis.call("SET", "{hyperpage:leader}:term", 1)  # else the first leader waits before it acts
    start(DATABASE_URL=bouncer.url, REDIS_URL=redis.url)  # whose lease is the limit
    wait_for_cleanup(database)
    with contextlib.closing(database.connect()) as locker:
        locker.cursor().execute("LOCK TABLE rate_limits")
        waiting = add_job(database, "cleanup")
        wait_until(lambda: job(database, waiting, "last_error"), "it has failed")
        assert "lock timeout" in job(database, waiting, "last_error")
    database.ask("CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); RETURN NULL; END'")
    database.ask("CREATE TRIGGER slow BEFORE DELETE ON rate_limits FOR EACH STATEMENT EXECUTE FUNCTION sleep()")
    hanging = add_job(database, "cleanup")
    wait_until(lambda: job(database, hanging, "last_error"), "it has failed")
    assert history(database, hanging) == ["running", "pending"]
    wait_until(lambda: not database.ask("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"), "the server has given it up")


def test_pgbouncer_that_knows_no_transactions_is_refused(database, servers, start):
    bouncer = servers.enter_context(PgBouncer(database, size=1, mode="statement"))
    node = start(DATABASE_URL=bouncer.url)
    wait_until(lambda: "transaction blocks not allowed in statement pooling mode" in node.log(), "it says why")
