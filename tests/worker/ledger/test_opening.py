from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from contextlib import closing

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from rules.vocabulary import LedgerBusyError, LedgerError
from worker.ledger import migrate, open_ledger
from worker.ledger.database import BUSY_TIMEOUT, database_of, is_safe, reading, sqlite_module
from worker.ledger.migrations import FOLDER
from worker.ledger.schema import REVISIONS, metadata


def test_a_ledger_is_made_for_its_owner_only(tmp_path):
    """Migrating makes the folder 0700 and the file 0600, and the ledger opens."""
    file = tmp_path / "deep" / "home" / "ledger.sqlite3"
    before = os.umask(0)
    try:
        migrate(f"sqlite:///{file}")
    finally:
        os.umask(before)
    assert 0o700 == stat.S_IMODE(file.parent.stat().st_mode)
    open_ledger(f"sqlite:///{file}").close()
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)


def test_migrating_again_changes_nothing(url, ledger, post):
    """A ledger in use can be migrated; what it holds stays."""
    post(ledger, "ev_1")
    migrate(url)
    migrate(url)
    assert "ev_1" == ledger.queries.last_event().id


def test_several_processes_migrate_at_once(tmp_path):
    """Of three processes that make the same ledger at the same moment none fails."""
    url = f"sqlite:///{tmp_path}/new/ledger.sqlite3"
    program = f"from worker.ledger import migrate, open_ledger; migrate({url!r}); open_ledger({url!r}).close()"
    processes = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(3)]
    said = [process.communicate(timeout=30)[1] for process in processes]
    assert [b""] * 3 == said
    open_ledger(url).close()


def test_odd_characters_in_the_path(tmp_path):
    """A percent sign or a space in the path is only a character."""
    url = f"sqlite:///{tmp_path}/50% of all/ledger %(here)s.sqlite3"
    migrate(url)
    open_ledger(url).close()


def test_a_missing_ledger_is_refused(tmp_path):
    """Opening makes nothing; the message says what makes it."""
    with pytest.raises(LedgerError, match=r"no ledger at .* leadwire migrate"):
        open_ledger(f"sqlite:///{tmp_path}/none.sqlite3")
    assert [] == list(tmp_path.iterdir())


def test_a_ledger_without_schema_is_refused(tmp_path):
    """An empty file is not taken for a ledger."""
    (tmp_path / "empty.sqlite3").touch()
    with pytest.raises(LedgerError, match="leadwire migrate"):
        open_ledger(f"sqlite:///{tmp_path}/empty.sqlite3")


@pytest.mark.parametrize(("revision", "word"), [("9999", "newer"), (None, "older")])
def test_a_ledger_of_another_version_is_refused(url, elsewhere, revision, word):
    """A schema that this version does not know is neither used nor changed, and the message says so."""
    elsewhere.execute("DELETE FROM alembic_version")
    if revision:
        elsewhere.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    with pytest.raises(LedgerError, match=f"{word}.*leadwire migrate"):
        open_ledger(url)


def test_a_newer_ledger_is_not_migrated(url, elsewhere):
    """Migrating goes forward only."""
    elsewhere.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(LedgerError, match="newer Leadwire"):
        migrate(url)
    assert [("9999",)] == elsewhere.execute("SELECT version_num FROM alembic_version").fetchall()


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    """Neither opening nor migrating touches somebody else's file."""
    file = tmp_path / "letter.txt"
    file.write_text("Dear Sir or Madam, " * 500)
    for act in (open_ledger, migrate):
        with pytest.raises(LedgerError, match="not a database"):
            act(f"sqlite:///{file}")
    assert file.read_text().startswith("Dear Sir")


def test_a_ledger_that_cannot_be_made(tmp_path):
    """A path through a file is refused with the path."""
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="cannot be made"):
        migrate(f"sqlite:///{tmp_path}/file/ledger.sqlite3")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://h/d",
        "postgresql+asyncpg://h/d",
        "postgres://user:p@ss@h/d",
        "nosuch://x",
        "sqlite:///file:x",
    ],
)
def test_a_url_that_no_ledger_can_have_is_refused(url):
    """The message says which form a URL has."""
    with pytest.raises(LedgerError, match=r"URL|sqlite:////absolute"):
        open_ledger(url)


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 51, 3), True),
        ((3, 51, 2), False),
        ((3, 53, 0), True),
        ((4, 0, 0), True),
        ((3, 50, 7), True),
        ((3, 50, 6), False),
        ((3, 44, 6), True),
        ((3, 44, 5), False),
        ((3, 45, 0), False),
        ((3, 40, 1), False),
    ],
)
def test_libraries_with_the_corruption_bug_are_not_safe(version, safe):
    """Safe are 3.51.3 and later, and the two lines that got the fix."""
    assert safe == is_safe(version)


def test_the_library_in_use_is_safe():
    """What is chosen here is free of the bug."""
    assert is_safe(sqlite_module().sqlite_version_info)


def test_without_a_safe_library_the_remedy_is_named():
    """No safe library: the message says what was met and what to install."""
    with pytest.raises(LedgerError, match=r"no_such_module is not installed.*pip install 'pysqlite3"):
        sqlite_module(("no_such_module",))


def test_reads_cannot_write(url):
    """Connections for reading refuse to write, and say so as a fault of ours."""
    engine = database_of(url).readers(BUSY_TIMEOUT)
    with pytest.raises(LedgerBusyError, match="readonly"), reading(engine) as connection:
        connection.execute(text("DELETE FROM events"))
    engine.dispose()


def test_the_revision_known_here_is_the_last_one():
    """What opening asks for is what migrating makes."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    script = ScriptDirectory.from_config(config)
    assert list(REVISIONS) == [revision.revision for revision in reversed(list(script.walk_revisions()))]


def test_the_migrated_schema_is_the_declared_one(elsewhere):
    """Migrations and tables.py describe the same schema, word for word, partial indexes included."""
    with closing(sqlite_module().connect(":memory:")) as memory:
        engine = create_engine("sqlite://", module=sqlite_module(), creator=lambda: memory)
        metadata.create_all(engine)
        asked = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name <> 'alembic_version' ORDER BY name"
        declared = [" ".join(sql.split()) for (sql,) in memory.execute(asked)]
        engine.dispose()
    assert declared == [" ".join(sql.split()) for (sql,) in elsewhere.execute(asked)]


def test_a_copy_of_a_ledger_is_a_ledger(url, file, ledger, post, tmp_path):
    """What was recorded and closed can be copied and opened elsewhere."""
    post(ledger, "ev_1")
    ledger.close()
    copy = shutil.copy(file, tmp_path / "copy.sqlite3")
    opened = open_ledger(f"sqlite:///{copy}")
    assert "ev_1" == opened.queries.last_event().id
    opened.close()
