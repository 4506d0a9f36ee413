"""The tests' own PostgreSQL server."""

import os
import signal
import subprocess
import sys
import time

import psycopg

SERVED = """
import signal
from tests.servers.postgres import PostgresServer
server = PostgresServer().start()
print(server.url(), flush=True)
signal.pause()
"""


def test_the_server_dies_with_the_tests():
    """When the process that started it is killed, the server goes too, and the next one removes what it left."""
    with subprocess.Popen([sys.executable, "-c", SERVED], stdout=subprocess.PIPE, text=True) as tests:
        url = tests.stdout.readline().strip()
        with psycopg.connect(url) as connection:
            (pid,) = connection.execute("SELECT pg_read_file('postmaster.pid')::text").fetchone()
        os.kill(tests.pid, signal.SIGKILL)
    give_up_at = time.monotonic() + 10
    while _runs(int(pid.splitlines()[0])):
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def test_every_database_is_fresh(postgres):
    """Each test gets a ledger without anything in it."""
    for empty in (postgres.migrated, postgres.emptied, postgres.emptied):
        with psycopg.connect(empty(), autocommit=True) as connection:
            assert (0,) == connection.execute("SELECT count(*) FROM turns").fetchone()
            connection.execute("INSERT INTO turns VALUES ('a', 1)")


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
