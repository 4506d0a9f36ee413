"""`leadwire` as a program: how it starts, which commands it has, and how it ends when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import astuple
from importlib import metadata

import httpx
import pytest

from console.cli import COMMANDS

PROGRAM = (sys.executable, "-m", "console.cli")


def _start(folder, *arguments, **options):
    return subprocess.Popen(
        [*PROGRAM, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_the_version_is_that_of_the_package(run):
    """`--version` prints the installed version."""
    assert f"leadwire {metadata.version('leadwire')}\n" == run("--version").out


def test_help_lists_every_command_with_a_whole_sentence(run):
    """`--help` lists every command, and no sentence is cut."""
    said = run("--help")

    assert 0 == said.code
    assert all(f"  {name} " in said.out for name in COMMANDS)
    assert "..." not in said.out.partition("Commands:")[2]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(run, name):
    """Every command explains itself."""
    said = run(name, "--help")

    assert 0 == said.code
    assert f"Usage: leadwire {name}" in said.out


@pytest.mark.parametrize("arguments", [("nonsense",), ("tasks", "--nonsense"), ("show",), ("sandbox", "--switch", "x")])
def test_wrong_use_is_exit_code_two(run, arguments):
    """What the command line does not understand ends with 2 and a message."""
    said = run(*arguments)

    assert 2 == said.code
    assert "Usage:" in said.err


def test_faulty_settings_are_told_all_at_once(run, monkeypatch):
    """Every faulty setting is named in one run, without a traceback."""
    monkeypatch.setenv("LEADWIRE_PORT", "many")
    monkeypatch.setenv("LEADWIRE_LOG_LEVEL", "loud")

    said = run("events")

    assert 1 == said.code
    assert "LEADWIRE_PORT" in said.err
    assert "LEADWIRE_LOG_LEVEL" in said.err


def test_up_says_all_that_is_missing(run):
    """`up` without settings names every one it needs and the way to try it without them."""
    said = run("up")

    assert 1 == said.code
    assert all(name in said.err for name in ("LEADWIRE_RULES", "LEADWIRE_MINDHUNTERS_TOKEN", "leadwire demo"))


def test_ctrl_c_is_quiet(run, rules, monkeypatch):
    """An interrupted command ends with 130 and says nothing."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("console.cli.rules.read_files", interrupted)

    assert (130, "", "\n") == astuple(run("check"))


def test_a_reader_that_has_seen_enough_is_no_fault(folder, history):
    """When whoever reads the output goes away, nothing complains."""
    with _start(folder, "schema") as process:
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=20)

    assert "" == err


@pytest.mark.parametrize("arguments", [("schema",), ("check", "rules")])
def test_a_full_disk_is_one_line(folder, arguments):
    """Output that cannot be written ends with 1 and one line that says why."""
    (folder / "rules").mkdir()
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, *arguments], check=False, cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True
        )

    assert (1, "cannot read or write: No space left on device\n") == (done.returncode, done.stderr)


def test_what_the_system_refuses_is_one_line_with_the_name(run, folder, monkeypatch):
    """A data folder that cannot be made is named, without a traceback."""
    (folder / "file").touch()
    monkeypatch.setenv("LEADWIRE_HOME", str(folder / "file" / "home"))

    said = run("migrate")

    assert (1, "") == (said.code, said.out)
    assert f"{folder / 'file' / 'home'}: cannot be read or written: Not a directory\n" == said.err


def test_the_sandbox_serves_until_it_is_told_to_stop(folder):
    """`sandbox` prints how to use it, shows its page, misbehaves by script, and ends well on SIGTERM."""
    (folder / "faults.json").write_text(json.dumps([{"provider": "vambe", "answer": {"status": 503}}]))
    arguments = ("sandbox", "--port", "0", "--script", "faults.json", "--switch", "vambe.users=u-1")
    with _start(folder, *arguments) as process:
        told = [process.stdout.readline() for _ in range(5)]
        url = told[0].split()[1]
        state = httpx.get(f"{url}/_sandbox/state", trust_env=False).json()
        process.terminate()
        err = process.stderr.read()
        process.wait(timeout=20)

    assert 0 == process.returncode, err
    assert "LEADWIRE_MINDHUNTERS_URL=" in "".join(told)
    assert 1 == len(state["faults"])


@pytest.mark.parametrize("arguments", [("--switch", "no.such=1"), ("--script", "nowhere.json")])
def test_a_sandbox_that_is_not_understood_does_not_start(run, arguments):
    """An unknown switch or a script that cannot be read is a message."""
    said = run("sandbox", "--port", "0", *arguments)

    assert 1 == said.code
    assert said.err.strip()
