"""The VAE of examples/mnist_svi.py, trained by one objective or another, and what it is worth in nats.

    python benchmarks/objective_rows.py ROW --data-dir DIR --output-dir DIR   # a row of OBJECTIVES; 15 epochs
    python benchmarks/objective_rows.py ROW ... --minutes 2                   # as many epochs as take 2 minutes

Split, binarization, networks, optimizer and compiled bfloat16 training are the example's; only the objective differs.
Writes ROW-SEED.json, with the test ELBO and the importance-weighted bound of 200 particles. With ``--minutes`` the
second of two epochs of a throwaway model is timed first, so that the learning rate's schedule ends with the training.
``stl_noise`` is the standard deviation of the encoder's gradient by TraceSTL_ELBO over that by Trace_ELBO, on a batch
of 200 images, before and after training.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv

OBJECTIVES: dict[str, Callable[[], Any]] = {
    "elbo": Trace_ELBO,
    "mean-field": TraceMeanField_ELBO,
    "stl": pv.TraceSTL_ELBO,
    "iwae-5": lambda: pv.TraceIWAE_ELBO(5),
    "dreg-5": lambda: pv.TraceIWAE_ELBO(5, "dreg"),
    "stl-iwae-5": lambda: pv.TraceIWAE_ELBO(5, "stl"),
    "renyi": lambda: pv.TraceRenyi_ELBO(0.5, 5),
}
LATENT_DIM, HIDDEN_DIMS, BATCH_SIZE, LEARNING_RATE, BETA_WARMUP = 40, (500, 500), 200, 4e-3, 3.0


def build(train_images: Tensor) -> pv.VAE:
    """The VAE of the example."""
    pixels = train_images.shape[1]
    likelihood = pv.BernoulliLikelihood(pv.MLP(LATENT_DIM, pixels, hidden_dims=HIDDEN_DIMS))
    posterior = pv.DiagonalNormalPosterior(pv.MLP(pixels, 2 * LATENT_DIM, hidden_dims=HIDDEN_DIMS))
    likelihood.initialize_output_bias(pv.data.to_float(train_images))
    return pv.VAE(pv.StandardNormalPrior(LATENT_DIM), likelihood, posterior)


def train(
    objective: Any,
    images: Tensor,
    seed: int,
    epochs: int,
    *,
    build: Callable[[Tensor], pv.VAE] = build,
    precision: Literal["float32", "bf16"] = "bf16",
    progress: bool = True,
) -> tuple[pv.VAE, list[float]]:
    """A trained VAE, and the seconds of each epoch."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    batches = pv.data.Batches(images, batch_size=BATCH_SIZE, shuffle=True, seed=seed, transform=pv.data.binarize)
    vae = build(images)
    optimizer = pv.Adam(
        {"lr": LEARNING_RATE, "betas": (0.9, 0.99)},
        scheduler=lambda adam: OneCycleLR(
            adam,
            LEARNING_RATE,
            total_steps=epochs * len(batches),
            pct_start=0.1,
            anneal_strategy="linear",
            cycle_momentum=False,
        ),
    )
    svi = pv.CompiledSVI(vae.model, vae.guide, optimizer, objective, precision=precision)
    schedules = {"beta": pv.linear_warmup(BETA_WARMUP)}
    history = pv.fit(svi, batches, epochs=epochs, schedules=schedules, progress=progress)
    vae.eval()
    return vae, list(history["seconds"])


def stl_noise(vae: pv.VAE, x: Tensor, draws: int = 40) -> float:
    """The noise of the encoder's gradient by ``TraceSTL_ELBO``, relative to that by ``Trace_ELBO``."""

    def deviation(objective: Any) -> float:
        found = []
        for seed in range(draws):
            pyro.set_rng_seed(seed)
            vae.zero_grad()
            objective.loss_and_grads(vae.model, vae.guide, x)
            found.append(torch.cat([p.grad.flatten() for p in vae.posterior.parameters()]))
        return torch.stack(found).var(0).sum().sqrt().item()

    return round(deviation(pv.TraceSTL_ELBO()) / deviation(Trace_ELBO()), 3)


def measure(row: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one row."""
    mnist = pv.data.load("mnist", args.data_dir)
    sizes = (len(mnist.train_images) - 1000, 1000)
    images, _ = pv.data.split(mnist.train_images, sizes=sizes, seed=args.seed)
    test = pv.data.binarize(mnist.test_images, seed=1)
    epochs = args.epochs
    if args.minutes is not None:
        _, seconds = train(OBJECTIVES[row](), images, args.seed, 2, progress=False)
        epochs = max(1, round(60 * args.minutes / seconds[1]))
    torch.manual_seed(args.seed)
    noise = [stl_noise(build(images), test[:BATCH_SIZE])]
    vae, seconds = train(OBJECTIVES[row](), images, args.seed, epochs)
    noise.append(stl_noise(vae, test[:BATCH_SIZE]))
    elbo, bound = pv.bounds(vae.model, vae.guide, test, num_particles=200)
    return {
        "row": row,
        "seed": args.seed,
        "epochs": epochs,
        "threads": torch.get_num_threads(),
        "train_minutes": round(sum(seconds) / 60, 2),
        "test_elbo": round(elbo.mean().item(), 3),
        "test_log_likelihood": round(bound.mean().item(), 3),
        "stl_noise": noise,
        "standard_error": round(bound.std().item() / math.sqrt(len(bound)), 3),
    }


def main() -> None:
    """Measure one row, or all."""
    parser = argparse.ArgumentParser(description="Train the example's VAE by one objective, and judge it in nats.")
    parser.add_argument("row", choices=[*OBJECTIVES, "all"])
    parser.add_argument("--data-dir", type=Path, default=None, help="folder with MNIST/raw/*; else a cache")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/objective_rows"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--minutes", type=float, default=None, help="of training, in place of --epochs")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for row in OBJECTIVES if args.row == "all" else [args.row]:
        result = measure(row, args)
        kind = "" if args.minutes is None else f"-{args.minutes:g}min"
        (args.output_dir / f"{row}-{args.seed}{kind}.json").write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
