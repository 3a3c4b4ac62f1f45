"""Whether compiling a step in another process, beside uncompiled steps, saves time on this machine.

    python benchmarks/background_compile.py --output-dir DIR

Three measurements, in turns: a process that compiles alone, with an empty cache; one that takes uncompiled steps alone;
both at once. Saved is the time that waiting for the compiler and taking the same steps compiled would need, less the
time of both at once. Writes background_compile.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

# Elements, hidden layers, latent dimensions, batch.
STORIES = {"mnist": (784, (500, 500), 32, 200), "digits": (64, (64,), 8, 64)}


def make_step(story: str, compile: Any) -> Any:
    """Return a function that takes one step of a VAE on random binary data."""
    import pyro
    import torch
    from pyro.infer import Trace_ELBO

    import pyro_vae as pv

    elements, hidden_dims, latent_dim, batch = STORIES[story]
    pyro.set_rng_seed(0)
    vae = pv.VAE(
        pv.StandardNormalPrior(latent_dim),
        pv.BernoulliLikelihood(pv.MLP(latent_dim, elements, hidden_dims=hidden_dims)),
        pv.DiagonalNormalPosterior(pv.MLP(elements, 2 * latent_dim, hidden_dims=hidden_dims)),
    )
    svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-3}), Trace_ELBO(), compile=compile, compile_after=4)
    x = torch.bernoulli(torch.full((batch, elements), 0.3))

    def step() -> float:
        start = time.perf_counter()
        svi.step(x)
        return time.perf_counter() - start

    return step


def compile_one(story: str) -> dict[str, float]:
    """Compile a step; return the seconds that this took, and those of a compiled step."""
    step = make_step(story, True)
    first = max(step() for _ in range(20))  # one of them compiles
    print("compiled", flush=True)
    return {"compile": first, "compiled_step": median(step() for _ in range(60))}


def take_steps(story: str, until: str) -> dict[str, float]:
    """Take uncompiled steps until a file exists, or for 3 s without one."""
    step = make_step(story, "graph")
    for _ in range(20):
        step()
    print("running", flush=True)
    start, times = time.perf_counter(), []
    while not Path(until).exists() if until else time.perf_counter() - start < 3:
        times.append(step())
    return {"steps": len(times), "seconds": time.perf_counter() - start, "graph_step": median(times)}


def start(*args: str) -> Any:
    """Start this script in a role, with an empty cache of the compiler."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": tempfile.mkdtemp()}
    return subprocess.Popen([sys.executable, __file__, *args], stdout=subprocess.PIPE, text=True, env=env)


def result(process: Any) -> dict[str, float]:
    """Wait for a process; return what it measured."""
    out, _ = process.communicate()
    return json.loads(out.splitlines()[-1])


def turn(story: str) -> dict[str, float]:
    """Measure once alone and once at once."""
    alone = result(start("--compile", story))
    graph = result(start("--steps", story, ""))
    with tempfile.TemporaryDirectory() as folder:
        flag = Path(folder, "compiled")
        steps = start("--steps", story, str(flag))
        steps.stdout.readline()
        compiler = start("--compile", story)
        compiler.stdout.readline()
        flag.touch()
        beside, compiled = result(steps), result(compiler)
    taken = beside["steps"] / beside["seconds"] * compiled["compile"]  # while the compiler ran
    return {
        "compile": alone["compile"],
        "compile_beside": compiled["compile"],
        "graph_step": graph["graph_step"],
        "graph_step_beside": beside["graph_step"],
        "compiled_step": alone["compiled_step"],
        "steps": taken,
        "saved": alone["compile"] + taken * alone["compiled_step"] - compiled["compile"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each story")
    parser.add_argument("--compile", choices=STORIES, help=argparse.SUPPRESS)
    parser.add_argument("--steps", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        print(json.dumps(compile_one(args.compile)))
    elif args.steps:
        print(json.dumps(take_steps(*args.steps)))
    elif args.output_dir is None:
        parser.error("--output-dir: expected a folder for background_compile.json.")
    else:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        found = {}
        for story in STORIES:
            turns = [turn(story) for _ in range(args.repeats)]
            found[story] = {name: median(one[name] for one in turns) for name in turns[0]}
            print(story, {name: round(value, 4) for name, value in found[story].items()}, flush=True)
            (args.output_dir / "background_compile.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
