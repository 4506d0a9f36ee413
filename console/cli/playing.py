"""Commands to try things with, without a provider's account: `demo` and `sandbox`."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from console.cli.surroundings import settings_in_force
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY, Sandbox, serve


@click.command()
@click.option("--keep", is_flag=True, help="Keep the demo's folder, with its ledger and logs, and say where it is.")
def demo(*, keep: bool) -> None:
    """Start it all with sandbox providers and example rules, post signed samples, show what became of them.

    Exits 0 only if every promised task was made exactly once. Needs no network, takes free ports and leaves nothing
    running.
    """
    from console.demo import run  # noqa: PLC0415 - heavy, and only needed here

    run(keep=keep)


@click.command()
@click.option("--port", type=click.IntRange(0, 65_535), help="Default: LEADWIRE_SANDBOX_PORT; 0 takes a free one.")
@click.option("--script", type=click.Path(path_type=Path), metavar="FILE", help="Faults to commit, as a JSON list.")
@click.option("--switch", "switches", multiple=True, metavar="NAME=VALUE", help="How to read what no document says.")
def sandbox(port: int | None, script: Path | None, switches: tuple[str, ...]) -> None:
    """Answer like both providers, on 127.0.0.1, with a page that shows what it holds.

    A fault is {"provider": "vambe", "times": 2, "answer": {"status": 503}}; the page lists the switches.
    """
    pairs = [switch.partition("=") for switch in switches]
    for name, equals, _ in pairs:
        if not equals:
            raise click.UsageError(f"--switch {name}: write NAME=VALUE")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    chosen = settings_in_force().sandbox_port if port is None else port
    turned = {name: value for name, _, value in pairs}
    serve("127.0.0.1", chosen, script, turned, announce=_announce, until=ended)


def _announce(running: Sandbox) -> None:
    click.echo(f"page      {running.url}")
    click.echo("To use it, start `leadwire up` with:")
    click.echo(f"  LEADWIRE_MINDHUNTERS_URL={running.mindhunters_url} LEADWIRE_MINDHUNTERS_TOKEN={MINDHUNTERS_TOKEN}")
    click.echo(f"  LEADWIRE_VAMBE_URL={running.vambe_url} LEADWIRE_VAMBE_API_KEY={VAMBE_API_KEY}")
    click.echo("Stop with Ctrl-C.")


commands = (demo, sandbox)
