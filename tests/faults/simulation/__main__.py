"""The long form: `python -m tests.faults.simulation --seeds 0:20000`, or one seed with `--seed N --trace`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.faults.simulation.actors import on_one_core
from tests.faults.simulation.storage import Storage
from tests.faults.simulation.world import World

_STORAGES = []


def simulate(seed, trace=None):
    """Run one seed; returns it, what does not hold, and how far it came: steps, and tasks made."""
    if not _STORAGES:
        _STORAGES.append(Storage())
    world = World(seed, _STORAGES[0], trace=trace)
    with on_one_core():
        said = world.run()
    return seed, said, world.scheduler.steps, len(world.record.effects)


def main(arguments=None):
    """Run what is asked for; returns the exit code: 1 when anything does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:1000", help="from:to, the last not included")
    parser.add_argument("--seed", type=int, help="one seed alone")
    parser.add_argument("--trace", action="store_true", help="print every step of it")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    asked = parser.parse_args(arguments)
    if asked.seed is not None:
        _, said, *_ = simulate(asked.seed, (lambda line: sys.stdout.write(line + "\n")) if asked.trace else None)
        sys.stdout.write("".join(f"seed {asked.seed}: {each}\n" for each in said) or f"seed {asked.seed}: all holds\n")
        return 1 if said else 0
    first, last = (int(part) for part in asked.seeds.split(":"))
    began = time.monotonic()
    failed = steps = made = 0
    with ProcessPoolExecutor(asked.processes) as pool:
        for seed, said, taken, effects in pool.map(simulate, range(first, last), chunksize=20):
            steps += taken
            made += effects
            if said:
                failed += 1
                sys.stdout.write(f"seed {seed}: {said[0]}{f' (and {len(said) - 1} more)' if said[1:] else ''}\n")
    seconds = time.monotonic() - began
    number = last - first
    sys.stdout.write(
        f"{number} seeds, {failed} failed, {steps} steps, {made} tasks made; {seconds:.1f} s, {number / seconds:.0f} a second\n"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
