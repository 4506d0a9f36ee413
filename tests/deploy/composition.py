"""docker-compose.yml as an engine sees it: variables put in, .env files read, overriding files laid over it."""

import re
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
OPERATOR_FILE = ROOT / "deploy" / "compose" / "operator.yml"
EXAMPLES = {
    ".env": ROOT / "deploy" / "compose" / "example.env",
    "sources.env": ROOT / "deploy" / "compose" / "sources.example.env",
    "rules.env": ROOT / "deploy" / "compose" / "rules.example.env",
}
EXAMPLE_RULES = ROOT / "deploy" / "kubernetes" / "example" / "rules"

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<how>:?[-?])(?P<rest>[^}]*))?\})")


class MissingVariableError(Exception):
    """A variable that must be set is not; the message is what the file says of it."""


def variables_of(file: Path) -> dict[str, str]:
    """Return what a .env file sets."""
    return {name: value or "" for name, value in dotenv_values(file, interpolate=False).items()}


def services(variables: dict[str, str], folder: Path, file: Path = COMPOSE_FILE) -> dict[str, dict[str, Any]]:
    """Return the services with `variables` put in and the env files of `folder` beneath each `environment`."""
    document = _put_in(yaml.safe_load(file.read_text()), variables)
    for service in document["services"].values():
        below: dict[str, str] = {}
        for name in service.pop("env_file", ()):
            below |= variables_of(folder / name)
        service["environment"] = {**below, **{key: str(value) for key, value in service.get("environment", {}).items()}}
    return document["services"]


def with_examples(folder: Path) -> Path:
    """Do in a folder what docs/deployment.md says first: copy the examples. Returns the folder."""
    for name, example in EXAMPLES.items():
        (folder / name).write_text(example.read_text())
    (folder / "rules.d").mkdir()
    for rules in EXAMPLE_RULES.glob("*.yaml"):
        (folder / "rules.d" / rules.name).write_text(rules.read_text())
    (folder / COMPOSE_FILE.name).write_text(COMPOSE_FILE.read_text())
    return folder


def _put_in(value: Any, variables: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _put_in(one, variables) for key, one in value.items()}
    if isinstance(value, list):
        return [_put_in(one, variables) for one in value]
    return _VARIABLE.sub(lambda found: _value(found, variables), value) if isinstance(value, str) else value


def _value(found: re.Match[str], variables: dict[str, str]) -> str:
    if found["dollar"]:
        return "$"
    value, how = variables.get(found["name"]), found["how"] or ""
    if value or (value is not None and not how.startswith(":")):
        return value
    if how.endswith("?"):
        raise MissingVariableError(f"{found['name']}: {found['rest']}")
    return found["rest"] or ""
