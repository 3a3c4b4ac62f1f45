"""Time of one training step of a VAE, side by side: PyTorch by hand, Pyro, NumPyro, pythae, pyro_vae, and the floor.

    python benchmarks/step_time.py --output-dir DIR

One run, every contestant in a process of its own (see contest/worker.py), turns interleaved, the same architecture,
initial weights, batches in memory, Adam(1e-3) and threads for all, and a check that the losses of the first steps agree
(contest/agreement.py). Writes step_time.json, .md and .png. A contestant whose package is missing is left out with a
line that says so; ``file.py:function`` among the contestants adds your own, a function of the problem that returns
``run(first step, number of steps) -> mean loss in nats per datum``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from contest import agreement, report, turns, worker
from contest.problem import Problem


class Contestant(NamedTuple):
    """Where it is, what it is called, how its loss is formed, and on which devices it makes sense."""

    path: str
    label: str
    kl: str = "sampled"  # its Kullback-Leibler term: "closed" form or "sampled"
    same_noise: bool = False  # draws from PyTorch's generator as the reference does
    arithmetic: float = 1e-4  # relative allowance for its arithmetic
    devices: tuple[str, ...] = ("cpu", "cuda")


HERE = "contest.contestants"
CONTESTANTS = {
    "hand_written": Contestant(f"{HERE}.hand_written:hand_written", "PyTorch by hand", "closed", same_noise=True),
    "hand_written_compiled": Contestant(
        f"{HERE}.hand_written:hand_written_compiled", "PyTorch by hand, torch.compile", "closed"
    ),
    "hand_written_graphed": Contestant(
        f"{HERE}.hand_written:hand_written_graphed", "PyTorch by hand, CUDA graph", "closed", True, devices=("cuda",)
    ),
    "pyro_svi": Contestant(f"{HERE}.pyro_svi:pyro_svi", "Pyro SVI", same_noise=True),
    "pyro_svi_unvalidated": Contestant(
        f"{HERE}.pyro_svi:pyro_svi_unvalidated", "Pyro SVI, validation off", same_noise=True
    ),
    "pyro_jit": Contestant(f"{HERE}.pyro_svi:pyro_jit", "Pyro SVI, JitTrace_ELBO", devices=("cpu",)),
    "pythae": Contestant(
        f"{HERE}.pythae_trainer:pythae_trainer", "pythae BaseTrainer", "closed", same_noise=True, devices=("cpu",)
    ),
    "numpyro": Contestant(f"{HERE}.numpyro_svi:numpyro_jit", "NumPyro, jitted lax loop"),
    "compiled_svi": Contestant(f"{HERE}.compiled_svi:compiled_svi", "pyro_vae CompiledSVI", same_noise=True),
    "compiled_svi_bf16": Contestant(
        f"{HERE}.compiled_svi:compiled_svi_bf16", "pyro_vae CompiledSVI, bf16", same_noise=True, arithmetic=2e-3
    ),
    "floor": Contestant(f"{HERE}.floor:floor", "floor: the products alone"),
    "floor_bf16": Contestant(f"{HERE}.floor:floor_bf16", "floor: the products alone, bf16"),
}


def steps_a_turn(batch_size: int) -> int:
    """Steps that take PyTorch by hand about a tenth of a second on two cores."""
    return max(5, 6000 // (batch_size + 60))


def find(name: str, device: str) -> Contestant:
    """A contestant by its name in the table, or by ``file.py:function``."""
    if name in CONTESTANTS:
        return CONTESTANTS[name]
    if ".py:" in name:
        return Contestant(str(Path(name).resolve()), name.rpartition(":")[2])
    known = ", ".join(CONTESTANTS)
    raise SystemExit(f"--contestants: expected file.py:function or one of {known}; got {name!r}.")


def architecture(text: str) -> tuple[tuple[int, ...], int]:
    """``"784-400-50"`` as hidden widths and latent dimension."""
    try:
        pixels, *hidden, latent = (int(part) for part in text.split("-"))
    except ValueError:
        pixels, hidden, latent = 0, [], 0
    if pixels != 784 or min(*hidden, latent, latent) < 1:
        raise SystemExit(f"--architectures: expected 784-HIDDEN-...-LATENT as in 784-400-50, got {text!r}")
    return tuple(hidden), latent


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[20, 100, 256, 1024], help="images a step")
    parser.add_argument(
        "--architectures",
        nargs="+",
        default=["784-400-50", "784-500-500-32"],
        help="pixels, hidden widths of the encoder (the decoder mirrors them), latent dimension",
    )
    parser.add_argument("--repeats", type=int, default=11, help="interleaved turns of each contestant")
    parser.add_argument("--steps", type=int, help="steps a turn; by default about a tenth of a second's worth")
    parser.add_argument("--contestants", nargs="+", help=f"any of {', '.join(CONTESTANTS)}, or file.py:function")
    parser.add_argument("--threads", type=int, default=worker.cores(), help="cores and threads of each contestant")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output-dir", type=Path, required=True, help="where step_time.json, .md and .png go")
    parser.add_argument("--quick", action="store_true", help="the smaller architecture, two batch sizes, few turns")
    options = parser.parse_args(argv)
    if options.quick:
        options.batch_sizes, options.architectures = options.batch_sizes[:2], options.architectures[:1]
        options.repeats = min(options.repeats, 3)
    for name in ("repeats", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected 1 or more, got {getattr(options, name)}")
    return options


def main(argv: list[str] | None = None) -> int:
    """Runs the contest; 0 if every contestant that ran agrees with the reference and none failed."""
    options = arguments(argv)
    kind = options.device.split(":")[0]
    names = options.contestants or [name for name, c in CONTESTANTS.items() if kind in c.devices]
    chosen = {name: find(name, kind) for name in names}
    problems = [
        (text, Problem(*architecture(text), batch_size, options.device))
        for text in options.architectures
        for batch_size in options.batch_sizes
    ]
    begin = time.perf_counter()
    workers = {name: worker.start(contestant.path, options.threads) for name, contestant in chosen.items()}
    left_out: dict[str, str] = {}
    cells = []
    try:
        for text, problem in problems:
            cells.append(cell(text, problem, chosen, workers, left_out, options))
            took = time.perf_counter() - begin
            print(f"{text}, {cells[-1]['column']}: done at {took:.0f} s", file=sys.stderr, flush=True)
    finally:
        worker.stop(*workers.values())
    results = {
        "machine": report.machine(options.threads, options.device),
        "unit": "ms per step",
        "per_unit": 1e3,
        "repeats": options.repeats,
        "baseline": "hand_written" if "hand_written" in chosen else names[0],
        "labels": {name: contestant.label for name, contestant in chosen.items()},
        "left_out": left_out,
        "cells": cells,
        "seconds": time.perf_counter() - begin,
    }
    print(report.write(results, options.output_dir, "step_time"))
    disagree = [name for c in cells for name, check in c["agreement"].items() if not check["agrees"]]
    failed = [name for name, why in left_out.items() if why.startswith("FAILED")]
    if disagree or failed:
        print(f"disagree with the reference: {disagree or 'none'}; failed: {failed or 'none'}", file=sys.stderr)
    return 1 if disagree or failed else 0


def cell(
    text: str,
    problem: Problem,
    chosen: dict[str, Contestant],
    workers: dict[str, worker.Worker],
    left_out: dict[str, str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Prepares every contestant for one problem, checks that they agree, and takes the turns."""
    begin = time.perf_counter()
    losses = turns.prepare(workers, problem, agreement.STEPS, left_out)
    checked = {name: chosen[name] for name in losses if not name.startswith("floor")}
    against = {kl: agreement.reference(problem, kl, options.threads) for kl in {c.kl for c in checked.values()}}
    checks = {
        name: agreement.verdict(losses[name], against[c.kl], c.same_noise, c.arithmetic)._asdict()
        for name, c in checked.items()
    }
    steps = options.steps or steps_a_turn(problem.batch_size)
    print(f"{text}, batch {problem.batch_size}: ready after {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    taken = turns.take(workers, options.repeats, agreement.STEPS, steps, untimed=max(1, steps // 5))
    return {
        "row": text,
        "column": f"batch {problem.batch_size}",
        "batch_size": problem.batch_size,
        "steps": steps,
        "times": turns.seconds(taken),
        "agreement": checks,
    }


if __name__ == "__main__":
    sys.exit(main())
