"""Time of a whole epoch on MNIST, input pipeline included: Pyro's example recipe, pythae, NumPyro, pyro_vae.

    python benchmarks/epoch_time.py --data-dir DIR --output-dir DIR

One run, every recipe in a process of its own, epochs interleaved, threads pinned alike (contest/worker.py). What each
recipe does is in contest/recipes. Writes epoch_time.json, .md and .png; the loss beside each time is that of the last
timed epoch, after the same number of epochs for all. A recipe whose package is missing is left out with a line that
says so.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from contest import report, turns, worker
from contest.problem import EpochProblem

HERE = "contest.recipes"
RECIPES = {
    "pyro_example": (f"{HERE}.pyro_example:pyro_example", "Pyro's example (DataLoader, SVI)"),
    "pythae": (f"{HERE}.pythae_loader:pythae_loader", "pythae (its DataLoader and trainer)"),
    "numpyro": (f"{HERE}.numpyro_epoch:numpyro_epoch", "NumPyro (epoch in a lax loop)"),
    "pyro_vae": (f"{HERE}.pyro_vae_fit:pyro_vae_fit", "pyro_vae (Batches, CompiledSVI, fit)"),
    "pyro_vae_bf16": (f"{HERE}.pyro_vae_fit:pyro_vae_fit_bf16", "pyro_vae, bf16"),
}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with MNIST/raw/train-images-idx3-ubyte")
    parser.add_argument("--subset", type=int, default=12_800, help="training images in an epoch; 60000 is all of them")
    parser.add_argument("--repeats", type=int, default=5, help="timed epochs of each recipe, after an untimed one")
    parser.add_argument("--contestants", nargs="+", choices=RECIPES, default=list(RECIPES), help="which recipes")
    parser.add_argument("--threads", type=int, default=worker.cores(), help="cores and threads of each recipe")
    parser.add_argument("--output-dir", type=Path, required=True, help="where epoch_time.json, .md and .png go")
    options = parser.parse_args(argv)
    if not 256 <= options.subset <= 60_000:
        parser.error(f"--subset: expected 256 to 60000 images, got {options.subset}")
    for name in ("repeats", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected 1 or more, got {getattr(options, name)}")
    if not (options.data_dir / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        parser.error(f"--data-dir: expected a folder with MNIST/raw/train-images-idx3-ubyte, got {options.data_dir}")
    return options


def main(argv: list[str] | None = None) -> int:
    """Runs the recipes; 0 if none failed."""
    options = arguments(argv)
    begin = time.perf_counter()
    workers = {name: worker.start(RECIPES[name][0], options.threads) for name in options.contestants}
    left_out: dict[str, str] = {}
    problem = EpochProblem(options.data_dir.resolve(), options.subset)
    try:
        turns.prepare(workers, problem, 1, left_out)
        taken = turns.take(workers, options.repeats, first=1, count=1, untimed=0)
    finally:
        worker.stop(*workers.values())
    results = {
        "machine": report.machine(options.threads, "cpu"),
        "unit": "s per epoch",
        "per_unit": 1.0,
        "repeats": options.repeats,
        "baseline": options.contestants[0],
        "labels": {name: RECIPES[name][1] for name in options.contestants},
        "left_out": left_out,
        "cells": [
            {
                "row": f"784-{problem.hidden_dim}-{problem.latent_dim}, batch {problem.batch_size}",
                "column": f"{options.subset:,} images",
                "times": turns.seconds(taken),
                "agreement": {},
            }
        ],
        "losses": {name: each[-1][1] for name, each in taken.items()},
        "seconds": time.perf_counter() - begin,
    }
    print(report.write(results, options.output_dir, "epoch_time"))
    return 1 if any(why.startswith("FAILED") for why in left_out.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
