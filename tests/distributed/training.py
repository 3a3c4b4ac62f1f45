"""A run for the tests to kill: ``training.py DIR [--kill RANK STEP] [--slow SECONDS]``, resumed where it can be."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from pyro.infer import SVI, Trace_ELBO
from scenarios import data, shared, small_vae

import pyro_vae as pv
from pyro_vae.infer import distributed

parser = argparse.ArgumentParser()
parser.add_argument("directory", type=Path)
parser.add_argument("--kill", type=int, nargs=2, default=(-1, -1), help="rank and step, in the first life")
parser.add_argument("--slow", type=float, default=0.0, help="seconds a step takes at least")
args = parser.parse_args()


class Events(pv.Callback):
    """Kills this process, without a word, and makes steps slow enough to be interrupted."""

    essential = True

    def step_end(self, run: Any) -> None:
        os.write(1, f"rank {distributed.rank()} step {run.step}\n".encode())  # in one piece
        time.sleep(args.slow)
        first_life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first_life and (distributed.rank(), run.step) == tuple(args.kill):
            os.kill(os.getpid(), signal.SIGKILL)


torch.set_num_threads(1)
torch.manual_seed(0)
with distributed.processes(timeout=60):
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 0.01}), Trace_ELBO())
    x = data(52)[0]
    history = pv.fit(
        svi,
        shared(pv.data.Batches(x, batch_size=8, shuffle=True)),
        epochs=4,
        validation=x[distributed.rank() :: distributed.world_size()].split(10),
        callbacks=[Events(), pv.Checkpoint(args.directory, every=0.0)],
        resume=args.directory,
        progress=False,
    )
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in history]
    result = {"weights": vae.state_dict(), "history": rows, "generator": torch.get_rng_state()}
    torch.save(result, args.directory / f"result-{distributed.rank()}.pt")
