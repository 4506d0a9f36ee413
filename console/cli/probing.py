"""The command for probes: `healthcheck`, which says by its exit code whether the process beside it works.

Made for containers, which hold no other program that could ask: 0 it works, 1 it does not, with the reason.
"""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Final

import click

from rules.vocabulary import Problem
from worker.runtime import HealthReport
from worker.settings import Settings, environment_of

#: A probe that waits longer is given up by those who run it.
PATIENCE_SECONDS: Final = 5.0
#: Addresses that mean every address, and so the loopback one too.
EVERYWHERE: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - a comparison


@click.command()
@click.argument("role", type=click.Choice(["ingress", "worker", "flower"]))
@click.option("--alive", is_flag=True, help="Ask only whether the process lives, not whether it can do its work now.")
@click.option(
    "--file",
    "report",
    type=click.Path(path_type=Path),
    help="For worker: the file that `leadwire worker --health-file` keeps.",
)
def healthcheck(role: str, report: Path | None, *, alive: bool) -> None:
    """Say by the exit code whether an ingress, worker or Flower on this machine works: for the probes of containers.

    The ingress and Flower are asked on the ports of the settings; a worker is judged by the file it keeps. Without --alive
    a broker or ledger that is away counts too: restart nothing because of that.
    """
    if (role == "worker") != (report is not None):
        raise click.UsageError("--file goes with worker, and worker with --file: `leadwire worker --health-file FILE`")
    if report is not None:
        said = HealthReport.read(report)
        if not (said.works or alive):
            raise Problem(f"the worker does not work: {said.reason}")
        return
    settings = Settings.from_environment(environment_of(Path.cwd()))
    if role == "ingress":
        _ask(settings.host, settings.port, "/healthz" if alive else "/readyz")
    else:
        _ask(settings.operator_host, settings.flower_port, "/healthcheck")


def _ask(host: str, port: int, path: str) -> None:
    """Raise Problem unless this address answers with 200."""
    connection = http.client.HTTPConnection("127.0.0.1" if host in EVERYWHERE else host, port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.read(1000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise Problem(f"http://{host}:{port}{path} does not answer: {type(error).__name__}") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise Problem(f"http://{host}:{port}{path} answers {answer.status}: {said}")


commands = (healthcheck,)
