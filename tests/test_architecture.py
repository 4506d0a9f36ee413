"""The house rules that no linter knows: docstrings, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("rules", "worker", "ingress", "console")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _functions(path: Path) -> Iterator[Function]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _called(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_import_contracts_are_kept() -> None:
    """Imports go one way, decisions do no I/O, and every module has been given its place."""
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", _modules(*PACKAGES), ids=_called)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    """A module opens with a docstring."""
    text = path.read_text(encoding="utf-8")

    assert ast.get_docstring(ast.parse(text)), f"{_called(path)} opens without a docstring"


@pytest.mark.parametrize("path", _modules("tests"), ids=_called)
def test_every_test_says_what_holds(path: Path) -> None:
    """Every test function has a docstring that states what holds."""
    silent = [
        function.name
        for function in _functions(path)
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]

    assert [] == silent


def test_test_folders_are_no_packages() -> None:
    """No `__init__.py` below tests: a package `tests/rules` would shadow the package `rules`."""
    assert [] == [_called(path) for path in (ROOT / "tests").rglob("__init__.py")]


def test_the_hooks_before_a_commit_are_the_gates() -> None:
    """`.pre-commit-config.yaml` runs what `make check` runs, in the same order."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    gates = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ncheck:", 1)[1].split("\n\n", 1)[0]
    run = [
        line.strip().removeprefix("@$(BIN)/") for line in gates.splitlines()[1:] if line.strip().startswith("@$(BIN)")
    ]

    assert [hook["entry"].removeprefix(".venv/bin/") for hook in hooks] == [
        command.removesuffix(" || \\") for command in run
    ]
