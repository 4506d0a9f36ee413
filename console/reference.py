"""The parts of the manual that are made from the code: `docs/settings.md`, `docs/cli.md` and `docs/sandbox.md`.

`make docs` writes them; a test compares them with the code, so that they cannot fall behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click

from console.cli import leadwire
from worker.sandbox.faults import NAMED
from worker.sandbox.switches import SWITCHES
from worker.settings import PREFIX, VARIABLES

#: How wide the help texts of commands are shown, in characters.
WIDTH: Final = 100

_SETTINGS: Final = """# Settings

Environment variables; a file `.env` in the working folder is read too, and the environment wins. An empty variable counts as
absent. All faults are reported at once when a command starts, and nothing is started. `${NAME}` in rules and `{env: NAME}` in
sources read any other variable, never these. Ports of 0 mean: choose a free one and print it.

| Variable | Default | Decides |
| --- | --- | --- |
"""
_COMMANDS: Final = """# The command line

`leadwire` stands for `.venv/bin/leadwire` in a checkout. `leadwire COMMAND --help` prints what stands here.

- Exit codes: 0 done, 1 a fault that a message explains, 2 wrong use.
- With `--json`, standard output is one JSON document with everything (unless `--limit`) and nothing else;
  moments are ISO 8601 UTC.
- Settings are environment variables: [settings.md](settings.md).

| Command | Does |
| --- | --- |
"""
_SANDBOX: Final = """# The provider sandbox

`leadwire sandbox` is a local server that answers like both providers and keeps what it is given in memory. Try rules, outages
and refusals against it before anything real is called. It never calls anybody, takes only obviously fake credentials, and listens
on 127.0.0.1.

```console
$ .venv/bin/leadwire sandbox
page      http://127.0.0.1:8090
To use it, start `leadwire up` with:
  LEADWIRE_MINDHUNTERS_URL=http://127.0.0.1:8090/api/v1 LEADWIRE_MINDHUNTERS_TOKEN=...
  LEADWIRE_VAMBE_URL=http://127.0.0.1:8090/api/public LEADWIRE_VAMBE_API_KEY=...
Stop with Ctrl-C.
```

Start `leadwire up` in a second terminal with the variables that it prints, post a sample with `leadwire send`, and look at the
page: it lists the tasks, requests and refusals, and the faults and switches in force. `leadwire demo` does all of this by itself.

## Make it misbehave

`--script FILE` takes a JSON list of faults; each acts on the requests that it matches, once unless told otherwise:

```json
[
  {"provider": "vambe", "times": 2, "answer": {"status": 503, "headers": {"Retry-After": "3"}}},
  {"provider": "mindhunters", "match": {"title": {"contains": "Ana"}}, "answer": "hang_up_after"},
  {"provider": "mindhunters", "method": "GET", "path": "/tasks", "times": null, "answer": {"delay_seconds": 40}}
]
```

| Key | Means | Without it |
| --- | --- | --- |
| `provider` | `mindhunters` or `vambe` | both |
| `method`, `path` | of the request; the path is below the provider's URL | any `POST` |
| `match` | dotted paths of the JSON body, each with a value or `{"contains": "text"}` | any body |
| `times` | how often it acts; `null`: always | once |
| `every` | act on each nth request that matches | on each |
| `answer` | one of the names below, or `status headers body store delay_seconds hang_up reset drip_seconds` | required |

In `answer`, `status` replaces the proper answer and nothing is stored, unless `store` is true. `hang_up: before` closes the
connection without storing, `after` once it is stored; `reset` does so with a TCP reset. `delay_seconds` passes before the answer,
`drip_seconds` before each byte of it. NAMES

What became of a request that was stored and never answered is the question that Leadwire exists for: try `hang_up_after` and see
the call in the sandbox once, `unknown` in `leadwire tasks`, and `delivered` when it was looked up.

A running sandbox can be told, too: `POST` the same JSON list to `/_sandbox/faults`, or a mapping of
switches to `/_sandbox/switches`; `DELETE /_sandbox/faults` ends all faults, and `GET /_sandbox/state` is all that
it holds, as JSON.

## Switches

What the providers' documents leave open stands here, with what the sandbox assumes: `--switch NAME=VALUE` assumes otherwise. A
behaviour without a switch is documented by the provider. The first value is the default.

| Switch | Decides | Values | From |
| --- | --- | --- | --- |
"""


def settings_page() -> str:
    """Return `docs/settings.md`: every variable with its default and what it decides."""
    rows = (
        f"| `{PREFIX}{each.name}` | {f'`{each.default}`' if each.default else 'none'} | {each.meaning} |\n"
        for each in VARIABLES
    )
    return _SETTINGS + "".join(rows)


def commands_page() -> str:
    """Return `docs/cli.md`: every command with the first sentence of its help, then each one's whole help."""
    # As when it runs: a command keeps the help options of the first context that asked for them.
    context = click.Context(leadwire, info_name="leadwire", **leadwire.context_settings)
    commands = [
        (name, command)
        for name in leadwire.list_commands(context)
        if (command := leadwire.get_command(context, name)) is not None
    ]
    rows = (f"| [`leadwire {name}`](#leadwire-{name}) | {_summary(command)} |\n" for name, command in commands)
    helps = (f"\n## leadwire {name}\n\n```text\n{_help(command, name, context)}\n```\n" for name, command in commands)
    return _COMMANDS + "".join(rows) + "".join(helps)


def sandbox_page() -> str:
    """Return `docs/sandbox.md`: how to use the sandbox, its faults, and every switch with its values."""
    names = "The names are " + ", ".join(f"`{name}`" for name in NAMED) + "."
    rows = (
        f"| `{each.name}` | {each.about} | {', '.join(f'`{one}`' for one in each.choices or (each.default,))}"
        f"{'' if each.choices else ' ...'} | {each.basis} |\n"
        for each in SWITCHES.values()
    )
    return _SANDBOX.replace("NAMES", names) + "".join(rows)


def _summary(command: click.Command) -> str:
    return (command.help or "").split("\n\n")[0].replace("\n", " ")


def _help(command: click.Command, name: str, parent: click.Context) -> str:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH)
    return "\n".join(line.rstrip() for line in command.get_help(context).splitlines())


#: Each page of the folder `docs` that is made here.
PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "settings.md": settings_page,
    "cli.md": commands_page,
    "sandbox.md": sandbox_page,
}


def main() -> None:
    """Write the pages into the folder `docs` of the checkout."""
    docs = Path(__file__).resolve().parents[1] / "docs"
    for name, page in PAGES.items():
        (docs / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
