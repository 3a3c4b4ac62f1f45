"""Every contestant lives in a process of its own, and only the one whose turn it is runs.

PyTorch and XLA keep thread pools that compete for the cores, Pyro's validation is a switch of the whole process, and
compilers leave caches behind. One process each keeps all of that apart, while turns are still interleaved in one run:
a process that is not asked to run sleeps in a read on its pipe, and so do its pools.

Threads are pinned alike: each process is bound to the same ``threads`` cores before any library is loaded. PyTorch is
told the number (``OMP_NUM_THREADS``, ``torch.set_num_threads``); XLA sizes its pool by the cores that the process may
use.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import sys
import time
import traceback
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from contest.problem import Run, Unavailable


class Worker(NamedTuple):
    """The parent's end of a contestant's process."""

    process: BaseProcess
    pipe: Connection

    def ask(self, *message: Any) -> None:
        """Sends ``("prepare", problem, steps)`` or ``("time", first, count, untimed)``; `answer` has the reply."""
        self.pipe.send(message)

    def answer(self) -> Any:
        """The reply to the last question.

        Raises:
            Unavailable: The contestant cannot take part here.
            RuntimeError: The contestant failed.
        """
        try:
            outcome, value = self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"its process ended with exit code {self.process.exitcode}") from None
        if outcome == "unavailable":
            raise Unavailable(value)
        if outcome == "failed":
            raise RuntimeError(value)
        return value


def stop(*workers: Worker) -> None:
    """Ends the processes, by force those that do not end by themselves."""
    for each in workers:
        each.pipe.close()  # it reads the end of its questions
    for each in workers:
        each.process.join(timeout=10)
        if each.process.is_alive():
            each.process.kill()
            each.process.join()


def start(contestant: str, threads: int) -> Worker:
    """Starts the process of the contestant at ``module:function``, or ``file.py:function``."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, contestant, threads), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(pipe: Connection, contestant: str, threads: int) -> None:
    _pin(threads)
    run: Run | None = None
    while True:
        try:
            question, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            if question == "prepare":
                problem, steps = arguments
                run = None  # the last cell's networks go before the next one's come
                build = _load(contestant)
                _settle_torch(threads)
                run = build(problem)
                reply: Any = _first_losses(run, steps)
            else:
                assert run is not None
                reply = _seconds(run, *arguments)
            pipe.send(("done", reply))
        except (Unavailable, ModuleNotFoundError) as error:
            pipe.send(("unavailable", str(error)))
        except Exception:
            pipe.send(("failed", traceback.format_exc()))


def _pin(threads: int) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):
        os.environ[name] = str(threads)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # a GPU's memory is for the other contestants too
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _settle_torch(threads: int) -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
        sys.modules["torch"].manual_seed(0)


def _load(contestant: str) -> Any:
    module, _, function = contestant.rpartition(":")
    if module.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(module).stem, module)
        if spec is None or spec.loader is None:
            raise ValueError(f"--contestants: expected file.py:function, got {contestant!r}.")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    else:
        loaded = importlib.import_module(module)
    return getattr(loaded, function)


def _first_losses(run: Run, steps: int) -> list[float]:
    """The loss of each of the first steps; before each, PyTorch's generator is seeded by the step's number."""
    losses = []
    for i in range(steps):
        if "torch" in sys.modules:
            sys.modules["torch"].manual_seed(i)
        losses.append(run(i, 1))
    return losses


def _seconds(run: Run, first: int, count: int, untimed: int) -> tuple[float, float]:
    """Wall-clock seconds per step and the mean loss, after untimed steps that bring the data and the clock back up."""
    if untimed:
        run(first, untimed)
    _synchronise()
    begin = time.perf_counter()
    loss = run(first, count)
    _synchronise()
    return (time.perf_counter() - begin) / count, loss


def _synchronise() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
