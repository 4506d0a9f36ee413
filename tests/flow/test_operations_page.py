"""docs/operations.md says only what is so: its commands are run as they are printed, on a real line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from console.cli import COMMANDS
from console.flower import MAX_TASKS
from console.metrics import FAMILIES
from rules.vocabulary import TaskState
from tests.flow.conftest import Line
from tests.servers.postgres import programs
from worker.flower_events import LATEST, LATEST_OF_STATE
from worker.ledger import open_ledger
from worker.settings import PREFIX, VARIABLES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()


def blocks(heading):
    """Return the commands of each console block below a heading: a list of (command, expected output)."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(heading + "\n")]
    return [commands(block) for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)]


def commands(block):
    """Return the commands of a block, with the lines of their here-document and the output that the page shows."""
    found = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append([line[2:], ""])
        elif "<<'END'" in found[-1][0] and not found[-1][0].endswith("\nEND"):
            found[-1][0] += "\n" + line
        else:
            found[-1][1] += line + "\n"
    return [tuple(each) for each in found]


class Terminal:
    """Runs a page's commands in the folder of a line; its comments stop and start the line."""

    def __init__(self, line):
        self.line = line
        self.folder = line.home.parent
        self.more = {"PATH": f"{programs()}:{os.environ['PATH']}"}
        (self.folder / ".venv").symlink_to(sys.prefix)

    def run(self, block):
        """Run a block; returns what was printed."""
        said = ""
        for command, expected in block:
            if command.startswith("#"):
                {"# stop leadwire up": self.line.stop, "# start leadwire up": self.line.start}[command]()
                continue
            done = subprocess.run(
                ["bash", "-c", command],
                env={**self.line.environment, **self.more},
                cwd=self.folder,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert 0 == done.returncode, (command, done.stderr)
            assert expected in done.stdout
            said += done.stdout
        return said


@pytest.fixture
def terminal(tmp_path):
    """Give a terminal on a line in whose ledger something has happened, the data folder in its usual place."""
    line = Line(tmp_path)
    line.home = tmp_path / ".leadwire"
    try:
        yield Terminal(line)
    finally:
        line.close()


def states(line):
    """Return the state of each contact's task."""
    return {task.contact.name: task.state for task in line.tasks()}


def happen(line):
    """Make a call that is delivered, one that is refused and one that waits for six seconds."""
    refused = {"status": 422, "body": {"success": False, "message": "no", "error": {"code": "VALIDATION_ERROR"}}}
    busy = {"status": 503, "headers": {"Retry-After": "6"}}
    for name, answer in (("fine", None), ("refused", refused), ("waits", busy)):
        if answer:
            match = {"title": f"Quick {name}"}
            line.sandbox.script([{"provider": "mindhunters", "match": match, "times": 1, "answer": answer}])
        line.post(line.event("lead.updated", name=name))
    expected = {"fine": TaskState.DELIVERED, "refused": TaskState.DEAD, "waits": TaskState.WAITING}
    assert line.until(lambda: expected == states(line)), states(line)


def titles(line):
    """Return the titles of what the provider has, each as often as it has it."""
    return sorted(task["title"] for task in line.sandbox.tasks("mindhunters"))


def test_a_sqlite_ledger_is_backed_up_restored_and_moved(terminal, postgres):
    """The page's own commands, in its order; nothing that was sent after a backup is sent again by what is restored."""
    line = terminal.line
    line.start()
    happen(line)
    terminal.run(blocks("Backup")[0])
    assert line.until(lambda: TaskState.DELIVERED is states(line)["waits"])
    line.sandbox.turn({"mindhunters.listing": "status_500"})  # what the backup does not know stays in doubt

    said = terminal.run(blocks("Restore")[0])
    assert "restored from a backup" in said
    assert {"fine": "delivered", "refused": "dead", "waits": "unknown"} == states(line)
    doubtful = next(task for task in line.tasks() if task.contact.name == "waits")
    assert 0 == line.cli("settle", doubtful.id, "--delivered").returncode

    (move,) = blocks("From SQLite to PostgreSQL")
    line.settings["LEADWIRE_DATABASE_URL"] = postgres.fresh()
    assert move[1][0].startswith("export LEADWIRE_DATABASE_URL=")
    assert "refused" in terminal.run([move[0], *move[2:]])
    line.post(line.event("lead.updated", name="after"))
    assert line.until(lambda: TaskState.DELIVERED is states(line).get("after"))
    assert ["Quick after", "Quick fine", "Quick waits"] == titles(line)


def test_a_postgresql_ledger_is_backed_up_and_restored(terminal, postgres):
    """The page's own commands against another empty database; doubts are made there too."""
    line = terminal.line
    first, second = postgres.fresh(), postgres.fresh()
    line.settings["LEADWIRE_DATABASE_URL"] = first
    line.start()
    happen(line)
    terminal.more |= variables(first)
    terminal.run(blocks("Backup")[1])
    assert line.until(lambda: TaskState.DELIVERED is states(line)["waits"])
    line.sandbox.turn({"mindhunters.listing": "status_500"})
    line.stop()

    terminal.more |= variables(second)
    line.settings["LEADWIRE_DATABASE_URL"] = second
    terminal.run(blocks("Restore")[1])
    line.start()
    assert {"fine": "delivered", "refused": "dead", "waits": "unknown"} == states(line)
    line.post(line.event("lead.updated", name="after"))
    assert line.until(lambda: TaskState.DELIVERED is states(line).get("after"))
    assert ["Quick after", "Quick fine", "Quick waits"] == titles(line)
    ledger = open_ledger(second)
    assert 4 == len(list(ledger.queries.list_tasks()))
    ledger.close()


def test_what_went_wrong_is_put_right(terminal):
    """The page's own commands: the dead touch is made, the waiting one ended, and a replay makes nothing twice."""
    line = terminal.line
    line.start()
    happen(line)
    dead, wrong, missing = blocks("When something went wrong")
    terminal.run(wrong)  # first: the touch that waits is tried again after six seconds
    terminal.run(dead)
    ended = {"fine": TaskState.DELIVERED, "refused": TaskState.DELIVERED, "waits": TaskState.CANCELLED}
    assert line.until(lambda: ended == states(line)), states(line)
    terminal.run(missing)
    assert line.until(lambda: [] == received(line)), received(line)
    assert ended == states(line)
    assert ["Quick fine", "Quick refused"] == titles(line)


def received(line):
    """Return the events that are still to be decided."""
    return json.loads(line.cli("events", "--state", "received", "--json").stdout)


def variables(url):
    """Return a database's URL as the variables that PostgreSQL's own programs read."""
    parts = urlsplit(url)
    return {
        "PGHOST": parts.hostname,
        "PGPORT": str(parts.port),
        "PGUSER": parts.username,
        "PGPASSWORD": unquote(parts.password),
        "PGDATABASE": parts.path[1:],
    }


def test_the_numbers_are_asked_for_as_the_page_says(terminal):
    """Status and metrics answer to the page's commands."""
    terminal.line.start()
    (asked,) = blocks("The ten metrics that matter")
    port = terminal.line.state["operator_url"].rpartition(":")[2]
    said = terminal.run([(command.replace("8081", port), expected) for command, expected in asked])
    assert '"ready":true' in said
    assert "leadwire_due_work" in said


def test_what_the_page_names_is_there():
    """Commands, settings, metrics, alarms, pictures and other pages, and numbers that are those in force."""
    assert set(re.findall(r"`leadwire ([a-z]+)", PAGE)) <= set(COMMANDS)
    assert set(re.findall(rf"\b{PREFIX}\w+", PAGE)) <= {PREFIX + variable.name for variable in VARIABLES}
    metrics = {family.name for family in FAMILIES}
    named = set(re.findall(r"`(leadwire_[a-z_]+)", PAGE))
    assert [] == sorted(name for name in named if name not in metrics)
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus" / "leadwire-alerts.yaml").read_text())
    alarms = {rule["alert"] for group in alerts["groups"] for rule in group["rules"]}
    assert set(re.findall(r"`(Leadwire\w+)`", PAGE)) <= alarms
    for place in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE):
        assert (ROOT / "docs" / place).exists(), place
    assert f"{MAX_TASKS:,} rows" in PAGE
    assert f"latest {LATEST:,} touches" in PAGE
    assert f"latest {LATEST_OF_STATE} of each state" in " ".join(PAGE.split())


def test_pictures_are_small():
    """Every picture of the pages is under 150 kB."""
    pictures = list((ROOT / "docs" / "images").glob("*.png"))
    assert pictures
    assert [] == [picture.name for picture in pictures if picture.stat().st_size > 150_000]
