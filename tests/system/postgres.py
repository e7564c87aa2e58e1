"""PostgreSQL of a test's own: in the test's folder, on a free port, run by an unprivileged user, since it refuses root."""

import atexit
import contextlib
import functools
import glob
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tempfile

import psycopg2

from servers import Server, free_port

# As the original portal's migrations leave them (CONTRACT: names, types and indexes are kept).
ORIGINAL = """
CREATE TABLE "app_state" ("key" varchar(255) PRIMARY KEY NOT NULL, "value" jsonb NOT NULL,
    "updated_at" timestamp with time zone DEFAULT now() NOT NULL);
CREATE TABLE "rate_limits" ("id" bigserial PRIMARY KEY NOT NULL, "key" varchar(255) NOT NULL,
    "remaining" integer NOT NULL, "reset_at" timestamp with time zone NOT NULL, "metadata" jsonb,
    "created_at" timestamp with time zone DEFAULT now() NOT NULL);
CREATE TABLE "jobs" ("id" bigserial PRIMARY KEY NOT NULL, "type" varchar(100) NOT NULL, "payload" jsonb NOT NULL,
    "status" varchar(50) DEFAULT 'pending' NOT NULL, "scheduled_at" timestamp with time zone DEFAULT now() NOT NULL,
    "started_at" timestamp with time zone, "completed_at" timestamp with time zone,
    "attempts" integer DEFAULT 0 NOT NULL, "last_error" text,
    "created_at" timestamp with time zone DEFAULT now() NOT NULL,
    "updated_at" timestamp with time zone DEFAULT now() NOT NULL);
CREATE TABLE "job_history" ("id" bigserial PRIMARY KEY NOT NULL, "job_id" bigserial NOT NULL,
    "status" varchar(50) NOT NULL, "details" jsonb, "created_at" timestamp with time zone DEFAULT now() NOT NULL);
CREATE TABLE "user_sessions" ("id" uuid PRIMARY KEY DEFAULT gen_random_uuid() NOT NULL, "user_id" uuid NOT NULL,
    "session_token" varchar(255) NOT NULL, "expires_at" timestamp with time zone NOT NULL,
    "created_at" timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT "user_sessions_session_token_unique" UNIQUE("session_token"));
CREATE TABLE "users" ("id" uuid PRIMARY KEY DEFAULT gen_random_uuid() NOT NULL);
CREATE INDEX "job_history_job_id_idx" ON "job_history" USING btree ("job_id");
CREATE INDEX "jobs_status_idx" ON "jobs" USING btree ("status");
CREATE INDEX "jobs_scheduled_at_idx" ON "jobs" USING btree ("scheduled_at");
CREATE INDEX "rate_limits_key_idx" ON "rate_limits" USING btree ("key");
CREATE INDEX "user_sessions_user_id_idx" ON "user_sessions" USING btree ("user_id");
"""


def unprivileged():
    """Who may run it: whoever we are, unless that is root."""
    return "nobody" if os.geteuid() == 0 else None


def programs():
    """Debian keeps them out of PATH."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]))
    return pathlib.Path(found[-1]) if found else pathlib.Path(shutil.which("postgres")).parent


@functools.cache
def empty_cluster():
    """What initdb makes, once for all tests of this run."""
    home = tempfile.mkdtemp(prefix="hp-pg-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    if unprivileged():
        os.chown(home, pwd.getpwnam(unprivileged()).pw_uid, -1)
    subprocess.run([programs() / "initdb", "-N", "-A", "trust", "-U", "test", "-D", f"{home}/data", "--locale=C",
                    "-E", "UTF8", "--no-instructions"], check=True, user=unprivileged(), cwd=home, stdout=subprocess.DEVNULL)
    return f"{home}/data"


class Postgres(Server):
    """`url` is what DATABASE_URL takes. Its data outlives stop() and start(); it is ended as in a crash by
    stop(signal.SIGQUIT). `access`: lines of pg_hba.conf for others than this machine, who are let in as they come."""

    def __init__(self, folder, name="postgres", port=None, host=Server.host, access=(), **settings):
        self.port, self.host = port or free_port(), host
        self.home = tempfile.mkdtemp(prefix="hp-pg-")  # the test's folder is the test's own user's alone
        if unprivileged():
            os.chown(self.home, pwd.getpwnam(unprivileged()).pw_uid, -1)
        settings = {"port": self.port, "listen_addresses": host, "unix_socket_directories": self.home,
                    "fsync": "off", "log_lock_waits": "on", **settings}
        super().__init__(folder, name, [programs() / "postgres", "-D", f"{self.home}/data"] + [
            word for key, value in settings.items() for word in ("-c", f"{key}={value}")])
        self.url = f"postgresql://test@{host}:{self.port}/postgres"
        self.cwd = self.home
        subprocess.run(["cp", "-r", empty_cluster(), f"{self.home}/data"], check=True, user=unprivileged())
        with open(f"{self.home}/data/pg_hba.conf", "r+", encoding="utf-8") as hba:
            rest = hba.read()
            hba.seek(0)
            hba.write("".join(f"{line}\n" for line in access) + rest)  # the first line that fits counts

    def launch(self):
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=self.env, cwd=self.home, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, user=unprivileged())
        Server.started.append(self)
        return self

    def stop(self, sig=signal.SIGINT):
        return super().stop(sig)

    def __exit__(self, *_):
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.home, ignore_errors=True)

    def is_ready(self):
        with contextlib.suppress(psycopg2.OperationalError):
            self.connect().close()
            return True
        return False

    def pause(self):
        """Every process of it stands still, as on a hanging machine: connections stay, and are accepted."""
        self.signal_all(signal.SIGSTOP)

    def resume(self):
        self.signal_all(signal.SIGCONT)

    def signal_all(self, sig):
        for path in pathlib.Path(f"/proc/{self.pid}/task/{self.pid}").glob("children"):
            for child in path.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), sig)
        os.kill(self.pid, sig)

    def connect(self):
        return psycopg2.connect(self.url, connect_timeout=5)

    def ask(self, sql, *values):
        """One statement in a transaction of its own; its rows, [] if it has none."""
        with contextlib.closing(self.connect()) as connection, connection, connection.cursor() as cursor:
            cursor.execute(sql, values)
            return cursor.fetchall() if cursor.description else []

    def value(self, sql, *values):
        """The only value of the only row."""
        (row,) = self.ask(sql, *values)
        return row[0]

