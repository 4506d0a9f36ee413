"""The command line `leadwire`: which commands exist, where each lives, and how a fault ends one.

A command's module is imported when the command is called, so that `leadwire check` never waits for Celery. A fault that
is the operator's to mend (`Problem`, or what the operating system refuses) is its message on standard error and exit
code 1, a wrong use is exit code 2, and neither is ever a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module, metadata
from typing import Final, NoReturn

import click

from console.cli.output import printable, shortened
from rules.vocabulary import Problem

#: Every command and the module of this package that holds it, in the order of `leadwire --help`.
COMMANDS: Final[Mapping[str, str]] = {
    "demo": "run",
    "up": "run",
    "ingress": "run",
    "worker": "run",
    "flower": "run",
    "celery": "run",
    "sandbox": "run",
    "check": "rules",
    "explain": "rules",
    "schema": "rules",
    "send": "send",
    "events": "events",
    "tasks": "tasks",
    "show": "tasks",
    "retry": "tasks",
    "cancel": "tasks",
    "settle": "tasks",
    "replay": "events",
    "providers": "providers",
    "pause": "providers",
    "resume": "providers",
    "migrate": "run",
    "healthcheck": "run",
}
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141


class Commands(click.Group):
    """The commands of `COMMANDS`, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of help."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, or None when there is none."""
        del ctx
        module_name = COMMANDS.get(cmd_name)
        if module_name is None:
            return None
        module = import_module(f"console.cli.{module_name}")
        return next(one for one in vars(module).values() if isinstance(one, click.Command) and one.name == cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with the whole first sentence of its help; click would cut it."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(limit=300)) for name, one in commands if one])


@click.group(
    cls=Commands,
    help="From CRM event to a lawful, single, explained touch: webhooks become calls, WhatsApp templates and team tasks.",
    epilog="Settings are environment variables that begin with LEADWIRE_; README.md lists them.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(metadata.version("leadwire"), prog_name="leadwire", message="%(prog)s %(version)s")
def leadwire() -> None:
    """Hold the commands; what is shown as help is above."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `leadwire` with these arguments (the process's, when None) and exit: 0 done, 1 fault, 2 wrong use."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a stream that a test or a parent put in its place
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # TextIO has it in practice
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = leadwire.main(args=arguments, prog_name="leadwire", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:
        what = (
            f"{shortened(str(error.filename))}: cannot be read or written" if error.filename else "cannot read or write"
        )
        with suppress(OSError):
            click.echo(f"{what}: {error.strerror or error}", err=True)
        _drop_output()
        return 1
    except Problem as problem:
        click.echo("\n".join(printable(line) for line in str(problem).split("\n")), err=True)
        return 1
    return code if isinstance(code, int) else 0


def _drop_output() -> None:
    """Send what is still buffered nowhere, so that it does not complain at the interpreter's end."""
    with suppress(OSError, ValueError):  # a stream that a test put in its place has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
