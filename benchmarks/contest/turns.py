"""Interleaved turns: in every repeat each contestant runs once, in an order drawn anew."""

from __future__ import annotations

import random
import sys
from typing import Any

from contest.problem import Unavailable
from contest.worker import Worker, stop


def prepare(workers: dict[str, Worker], problem: Any, steps: int, left_out: dict[str, str]) -> dict[str, list[float]]:
    """Lets every contestant build and compile its step, all at once, and take its first steps.

    Those that cannot are stopped, taken out of ``workers`` and named in ``left_out`` with the reason.

    Returns:
        The losses of the first steps of each contestant that is ready.
    """
    for worker in workers.values():
        worker.ask("prepare", problem, steps)
    losses = {}
    for name, worker in list(workers.items()):
        try:
            losses[name] = worker.answer()
        except RuntimeError as error:
            print(f"{name} is left out: {error}", file=sys.stderr, flush=True)
            last_line = str(error).strip().splitlines()[-1]
            left_out[name] = last_line if isinstance(error, Unavailable) else f"FAILED: {last_line}"
            stop(workers.pop(name))
    return losses


def take(
    workers: dict[str, Worker], repeats: int, first: int, count: int, untimed: int
) -> dict[str, list[tuple[float, float]]]:
    """Lets each contestant run once in every repeat, in an order drawn from a fixed seed.

    Args:
        workers: Their processes, prepared.
        repeats: How many turns each has.
        first: Number of the first step.
        count: Timed steps in a turn.
        untimed: Steps before them that are not timed.

    Returns:
        Seconds per step and mean loss of each turn of each contestant.
    """
    order = random.Random(0)
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
    for repeat in range(repeats):
        for name in order.sample(sorted(workers), len(workers)):
            workers[name].ask("time", first + repeat * count, count, untimed)
            turns[name].append(workers[name].answer())
    return turns


def seconds(turns: dict[str, list[tuple[float, float]]]) -> dict[str, list[float]]:
    """The times alone."""
    return {name: [time for time, _ in each] for name, each in turns.items()}
