"""How long the whole default command takes, phase by phase, with compiled steps kept on disk from before or not.

    python benchmarks/first_run.py --output-dir DIR                            # MNIST, downloaded once
    python benchmarks/first_run.py --output-dir DIR --dataset digits           # or the digits in scikit-learn
    python benchmarks/first_run.py --output-dir DIR --against OTHER_CHECKOUT   # in turns with another version

Runs ``examples/mnist_svi.py`` in a process of its own, ``--repeats`` times *cold* (nothing is kept that torch compiled,
but for its C++ headers, which any compiled program leaves) and as often *warm*. What follows ``--`` is for the example.
Writes ``first_run.json`` and prints a table of medians, in seconds:

start       the interpreter and its imports
data        reading and preparing data, building the model
capture     tracing steps and validation
compile     torch's compiler, its import, the C++ compiler; and looking up what is there already
training    the rest of ``fit``
evaluation  the bounds on the test set (with their own capture and compiling)
pictures    files and pictures, and the interpreter's end
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("start", "data", "capture", "compile", "training", "evaluation", "pictures")
# Where the phases' functions are, in this version and in earlier ones: module, name, phase.
_FUNCTIONS = [
    ("pyro_vae", "fit", "training"),
    ("pyro_vae.infer.distributed", "spread", "evaluation"),
    ("pyro_vae.infer.compiled.capture", "traced_graph", "capture"),
    ("pyro_vae.infer.compiled.capture", "compiled", "compile"),
    ("pyro_vae.infer.compiled", "capture", "capture"),
    ("pyro_vae.infer.compiled", "compiled", "compile"),
    ("pyro_vae.infer.compiled", "inductor", "compile"),
    ("pyro_vae.infer.compiled.svi", "capture", "capture"),
    ("pyro_vae.infer.compiled.svi", "compiled", "compile"),
    ("pyro_vae.infer.compiled.svi", "inductor", "compile"),
]


class Clock:
    """Gives every second to the phase that is running; a phase inside another one stops the outer one's clock."""

    def __init__(self, begun: float) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._running = "start"
        self._since = begun

    def switch(self, phase: str) -> str:
        """Let another phase run, and return the one before."""
        now = time.time()
        before, self._running = self._running, phase
        self.seconds[before] += now - self._since
        self._since = now
        return before

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, ``name`` runs; an evaluation's own capture and compiling is part of it."""
        before = self.switch("evaluation" if self._running == "evaluation" else name)
        try:
            yield
        finally:
            self.switch(before)

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """``function``, whose seconds are ``name``'s."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return run


def run_example(begun: float, arguments: list[str]) -> None:
    """Run the example of the current directory in this process, and print the seconds of its phases as JSON."""
    clock = Clock(begun)
    example = runpy.run_path("examples/mnist_svi.py", run_name="example")
    clock.switch("data")
    for module, name, phase in _FUNCTIONS:
        try:
            owner = importlib.import_module(module)
        except ImportError:
            continue
        function = getattr(owner, name, None)
        if callable(function):
            setattr(owner, name, clock.timed(function, phase))
    main = example["main"]
    main.__globals__["write"] = clock.timed(main.__globals__["write"], "pictures")
    main(arguments)
    clock.switch("pictures")
    print(json.dumps({"seconds": clock.seconds, "ended": time.time()}))


def measured(checkout: Path, folder: Path, arguments: list[str]) -> dict[str, float]:
    """Seconds of each phase of one run; what torch compiles is kept in ``folder``."""
    with tempfile.TemporaryDirectory() as output:
        environment = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "TORCHINDUCTOR_CACHE_DIR": str(folder),
            "MPLBACKEND": "agg",
        }
        begun = time.time()
        command = [sys.executable, str(Path(__file__).resolve()), "--example", str(begun), "--"]
        done = subprocess.run(
            [*command, *arguments, "--output-dir", output],
            env=environment,
            cwd=checkout,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        ended = time.time()
    report = json.loads(done.stdout.splitlines()[-1])
    seconds: dict[str, float] = report["seconds"]
    seconds["pictures"] += ended - report["ended"]
    seconds["total"] = ended - begun
    seconds["waiting"] = seconds["capture"] + seconds["compile"]
    return seconds


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Medians, a row for each version and state of the disk."""
    columns = (*PHASES, "total", "waiting")
    lines = [f"{'seconds':14}" + "".join(f"{name:>12}" for name in columns)]
    for name, runs in results.items():
        medians = [statistics.median(run[column] for run in runs) for column in columns]
        lines.append(f"{name:14}" + "".join(f"{value:12.1f}" for value in medians))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, list[dict[str, float]]]:
    """Measure, write, print; return the seconds of each run by version and state of the disk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, help="where first_run.json goes")
    parser.add_argument("--dataset", default="mnist", help="the example's --dataset")
    parser.add_argument("--data-dir", type=Path, help="the example's --data-dir")
    parser.add_argument("--against", type=Path, help="folder of another checkout of pyro_vae")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kind")
    parser.add_argument("--example", type=float, help=argparse.SUPPRESS)  # in a run's own process: when it began
    parser.add_argument("rest", nargs="*", help="further arguments of the example, after --")
    options = parser.parse_args(argv)
    if options.example is not None:
        run_example(options.example, options.rest)
        return {}
    if options.output_dir is None:
        parser.error("--output-dir: expected a folder for first_run.json.")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    arguments = ["--dataset", options.dataset, *options.rest]
    if options.data_dir is not None:
        arguments += ["--data-dir", str(options.data_dir.resolve())]
    checkouts = {"this": ROOT} | ({"other": options.against.resolve()} if options.against else {})
    results: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as kept:
        for repeat in range(options.repeats):
            for state in ("cold", "warm"):
                for name, checkout in checkouts.items():
                    # What a cold run leaves is what the warm one after it finds.
                    folder = Path(kept, f"{name}{repeat}")
                    seconds = measured(checkout, folder, arguments)
                    results.setdefault(f"{name} {state}", []).append(seconds)
                    print(f"{repeat + 1}/{options.repeats} {name} {state}: {seconds['total']:.1f} s")
            (options.output_dir / "first_run.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    return results


if __name__ == "__main__":
    main()
