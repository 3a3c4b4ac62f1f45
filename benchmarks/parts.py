"""The VAE of examples/mnist_svi.py with one of its parts replaced, and what it is worth in nats.

    python benchmarks/parts.py ROW --data-dir DIR --output-dir DIR    # a row of PARTS; 15 epochs
    python benchmarks/parts.py ROW ... --minutes 2                    # as many epochs as take 2 minutes

Split, binarization, optimizer and compiled bfloat16 training are the example's. The objective is the example's too,
``TraceSTL_ELBO``; but ``Trace_ELBO`` for the flow posteriors, which that would invert at each step. Writes
ROW-SEED.json, with the test ELBO and the importance-weighted bound of 200 particles. The row ``fitted-prior`` trains
the plain VAE, and then fits a mixture of 500 components to its aggregate posterior.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from objective_rows import HIDDEN_DIMS, LATENT_DIM, build, train
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyro_vae as pv

CONTEXT_DIM, COMPONENTS = 64, 500


class Row(NamedTuple):
    """How the VAE is built, and by what it is trained."""

    build: Callable[[Tensor], pv.VAE]
    loss: Callable[[], Any] = pv.TraceSTL_ELBO


def mixture_prior(images: Tensor) -> pv.VAE:
    """A mixture of normal distributions as prior."""
    vae = build(images)
    return pv.VAE(pv.MixturePrior(LATENT_DIM, COMPONENTS), vae.likelihood, vae.posterior)


def vamp_prior(images: Tensor) -> pv.VAE:
    """A VampPrior whose pseudo-inputs start at training images."""
    vae = build(images)
    return pv.VAE(pv.VampPrior(vae.posterior, pv.data.to_float(images[:COMPONENTS])), vae.likelihood, vae.posterior)


def flow_prior(transform: str) -> Callable[[Tensor], pv.VAE]:
    """A masked autoregressive flow as prior."""

    def made(images: Tensor) -> pv.VAE:
        vae = build(images)
        flow = pv.autoregressive_flow(LATENT_DIM, transform=transform, hidden_dims=(128,))
        return pv.VAE(pv.FlowPrior(flow), vae.likelihood, vae.posterior)

    return made


def flow_posterior(transform: str) -> Callable[[Tensor], pv.VAE]:
    """An inverse autoregressive flow on top of the diagonal posterior."""

    def made(images: Tensor) -> pv.VAE:
        vae = build(images)
        network = pv.MLP(images.shape[1], 2 * LATENT_DIM + CONTEXT_DIM, hidden_dims=HIDDEN_DIMS)
        flow = pv.autoregressive_flow(
            LATENT_DIM, transform=transform, context_dim=CONTEXT_DIM, hidden_dims=(128,), inverse=True
        )
        return pv.VAE(vae.prior, vae.likelihood, pv.FlowPosterior(network, flow, context_dim=CONTEXT_DIM))

    return made


def convolutions(images: Tensor) -> pv.VAE:
    """Convolutional encoder and decoder."""
    shape = (1, 28, 28)
    likelihood = pv.BernoulliLikelihood(pv.ConvDecoder(LATENT_DIM, shape), event_shape=shape)
    posterior = pv.DiagonalNormalPosterior(pv.ConvEncoder(shape, 2 * LATENT_DIM))
    likelihood.initialize_output_bias(pv.data.to_float(images).unflatten(1, shape))
    return pv.VAE(pv.StandardNormalPrior(LATENT_DIM), likelihood, posterior)


PARTS = {
    "plain": Row(build),
    "plain-elbo": Row(build, Trace_ELBO),
    "mixture-prior": Row(mixture_prior),
    "vamp-prior": Row(vamp_prior),
    "flow-prior": Row(flow_prior("affine")),
    "spline-prior": Row(flow_prior("spline")),
    "flow-posterior": Row(flow_posterior("affine"), Trace_ELBO),
    "spline-posterior": Row(flow_posterior("spline"), Trace_ELBO),
    "conv": Row(convolutions),
    "fitted-prior": Row(build),
}


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one row."""
    row = PARTS[name]
    mnist = pv.data.load("mnist", args.data_dir)
    sizes = (len(mnist.train_images) - 1000, 1000)
    images, held_out = pv.data.split(mnist.train_images, sizes=sizes, seed=args.seed)
    test = pv.data.binarize(mnist.test_images, seed=1)[: args.test_images]
    if name == "conv":
        images, test = images.unflatten(1, (1, 28, 28)), test.unflatten(1, (1, 28, 28))
    make = (lambda x: row.build(x.flatten(1))) if name == "conv" else row.build
    epochs = args.epochs
    if args.minutes is not None:
        _, seconds = train(row.loss(), images, args.seed, 2, build=make, precision=args.precision, progress=False)
        epochs = max(1, round(60 * args.minutes / seconds[1]))
    vae, seconds = train(row.loss(), images, args.seed, epochs, build=make, precision=args.precision)
    minutes = sum(seconds) / 60
    if name == "fitted-prior":
        start = time.perf_counter()
        binary = pv.data.binarize(images, seed=2)
        prior = pv.MixturePrior(LATENT_DIM, COMPONENTS)
        vae.prior = pv.fit_prior(vae, binary, pv.data.binarize(held_out, seed=3), prior=prior, epochs=20)
        minutes += (time.perf_counter() - start) / 60
    elbo, bound = pv.bounds(vae.model, vae.guide, test, num_particles=200)
    return {
        "row": name,
        "seed": args.seed,
        "epochs": epochs,
        "threads": torch.get_num_threads(),
        "precision": args.precision,
        "train_minutes": round(minutes, 2),
        "test_elbo": round(elbo.mean().item(), 3),
        "test_log_likelihood": round(bound.mean().item(), 3),
        "standard_error": round(bound.std().item() / math.sqrt(len(bound)), 3),
    }


def main() -> None:
    """Measure one row, or all."""
    parser = argparse.ArgumentParser(description="Train the example's VAE with another part, and judge it in nats.")
    parser.add_argument("row", choices=[*PARTS, "all"])
    parser.add_argument("--data-dir", type=Path, default=None, help="folder with MNIST/raw/*; else a cache")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/parts"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--minutes", type=float, default=None, help="of training, in place of --epochs")
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16", help="of products in training")
    parser.add_argument("--test-images", type=int, default=10_000, help="how many of them are evaluated")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for row in PARTS if args.row == "all" else [args.row]:
        result = measure(row, args)
        kind = "" if args.minutes is None else f"-{args.minutes:g}min"
        (args.output_dir / f"{row}-{args.seed}{kind}.json").write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
