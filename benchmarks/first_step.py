"""How long the first captured step takes, in a process of its own: tracing, compiling and running it.

    python benchmarks/first_step.py

Three times: with nothing that a compiler left behind; with torch's C++ headers precompiled, as any compiled program
leaves them, but this step new; and with the step compiled before. The step before it, Pyro's own, is told too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STEP = """
import json, sys, time
import torch
import pyro_vae as pv
from pyro.infer import Trace_ELBO

precision, batch_size = sys.argv[1], int(sys.argv[2])
prior = pv.StandardNormalPrior(40)
likelihood = pv.BernoulliLikelihood(pv.MLP(40, 784, hidden_dims=(500, 500)))
posterior = pv.DiagonalNormalPosterior(pv.MLP(784, 80, hidden_dims=(500, 500)))
vae = pv.VAE(prior, likelihood, posterior)
svi = pv.CompiledSVI(
    vae.model, vae.guide, pv.Adam({"lr": 1e-3}), Trace_ELBO(), precision=precision, compile_after=1
)
x = (torch.rand(batch_size, 784) < 0.2).float()
times = [time.perf_counter()]
for _ in range(3):
    svi.step(x)
    times.append(time.perf_counter())
print(json.dumps([after - before for before, after in zip(times, times[1:])]))
"""


def seconds(options: argparse.Namespace, folder: Path, cache: Path) -> list[float]:
    """Seconds of the first three steps; what compilers keep lies in ``folder``, and compiled steps in ``cache``."""
    environment = {**os.environ, "TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", STEP, options.precision, str(options.batch_size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    times: list[float] = json.loads(done.stdout.splitlines()[-1])
    return times


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints, and returns the seconds of the first captured step by what was there before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["float32", "bf16"], default="bf16", help="of the matrix products")
    parser.add_argument("--batch-size", type=int, default=200, help="images a step")
    options = parser.parse_args(argv)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, cache in [("nothing kept", "a"), ("headers kept", "b"), ("all kept", "b")]:
            first, captured, later = seconds(options, Path(folder), Path(folder, cache))
            results[name] = captured
            print(f"{name:13} first step (Pyro's) {first:5.1f} s, captured step {captured:5.1f} s, then {later:.4f} s")
    return results


if __name__ == "__main__":
    main()
