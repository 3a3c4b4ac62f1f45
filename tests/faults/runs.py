"""A training run in a process of its own, that can be killed; and what it must end with."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.train import Checkpoint, EarlyStopping, LearningRate, fit, linear_warmup, one_cycle

# A server that has imported everything, and is forked for each run: real processes, in milliseconds.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch", "numpy", "pyro", "pyro_vae"])

N, EPOCHS = 120, 6


def images(n: int = N, seed: int = 0) -> torch.Tensor:
    return (torch.rand(n, 12, generator=torch.Generator().manual_seed(seed)) * 255).to(torch.uint8)


def batches(kind: str) -> Any:
    if kind == "loader":
        return DataLoader(TensorDataset(pv.data.binarize(images(), seed=1)), batch_size=16, shuffle=True)
    if kind in ("fork", "forkserver"):
        dataset = TensorDataset(pv.data.binarize(images(), seed=1))
        return DataLoader(dataset, batch_size=16, shuffle=True, num_workers=2, multiprocessing_context=kind)
    return pv.data.Batches(images(), batch_size=16, shuffle=True, seed=3, transform=pv.data.binarize)


def train(
    directory: str,
    *,
    data: str = "batches",
    every: float = 0.0,
    callbacks: Callable[[], list[Any]] = list,
    validation: Callable[[], Any] | None = None,
    checkpoint: bool = True,
    epochs: int = EPOCHS,
    prepare: Callable[[], None] | None = None,
    on_error: str = "continue",
    log: str | None = None,
    hidden: int = 32,
    outcome: bool = True,
) -> None:
    """Train, resuming where there is something to resume, and write the digest of all that came out."""
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    pyro.set_rng_seed(os.getpid() if checkpoint and any(Path(directory).glob("step-*.pt")) else 0)
    vae = pv.VAE(
        pv.StandardNormalPrior(4),
        pv.BernoulliLikelihood(pv.MLP(4, 12, hidden_dims=(hidden,))),
        pv.DiagonalNormalPosterior(pv.MLP(12, 8, hidden_dims=(hidden,))),
    )
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    saving = [Checkpoint(directory, every=every, on_error=on_error)] if checkpoint else []
    if prepare is not None:
        prepare()
    history = fit(
        svi,
        batches(data),
        epochs=epochs,
        validation=validation()
        if validation is not None
        else pv.data.Batches(images(50, seed=9), batch_size=20, transform=pv.data.binarize),
        schedules={"beta": linear_warmup(3)},
        callbacks=[EarlyStopping(patience=4), LearningRate(one_cycle(epochs)), *callbacks(), *saving],
        resume=directory if checkpoint else None,
        progress=False,
    )
    if outcome:
        Path(directory).mkdir(exist_ok=True)
        (Path(directory) / "outcome.json").write_text(json.dumps(all_that_came_out(vae, svi, history)))


def all_that_came_out(vae: Any, svi: Any, history: Any) -> dict[str, Any]:
    """Weights, optimiser and the next random numbers as digests; figures to the bit; a test metric."""
    metric = svi.evaluate_loss(pv.data.binarize(images(40, seed=11), seed=0))
    return {
        "history": [{k: float(v).hex() for k, v in row.items() if k != "seconds"} for row in history],
        "weights": digest(vae.state_dict().values()),
        "optimiser": digest(
            state[key]
            for optim in svi.optim.get_state().values()
            for _, state in sorted(optim["state"].items())
            for key in state
        ),
        "metric": float(metric).hex(),
        "next": [torch.rand(2).tolist(), np.random.rand(2).tolist()],
    }


def digest(tensors: Any) -> str:
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def start(directory: Path, **keywords: Any) -> Any:
    process = context.Process(target=train, args=(str(directory),), kwargs=keywords)
    process.start()
    return process


def finish(process: Any, seconds: float = 120.0) -> int:
    process.join(seconds)
    assert not process.is_alive(), "the run hangs"
    return process.exitcode


def wait_for(condition: Callable[[], bool], process: Any, seconds: float = 60.0) -> None:
    """Until the run has come to a point, or has ended."""
    deadline = time.monotonic() + seconds
    while not condition() and process.is_alive():
        assert time.monotonic() < deadline, "the run does not come to where it is awaited"
        time.sleep(0.002)


def steps(directory: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in directory.glob("step-*.pt"))


def result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "outcome.json").read_text())
