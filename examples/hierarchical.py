"""One or two layers of latent variables on MNIST: the architectures of the IWAE paper (Burda et al. 2016, table 1).

    python examples/hierarchical.py --layers 2                     # downloads MNIST once
    python examples/hierarchical.py --layers 1 --data-dir DIR      # the twin with one layer; reads DIR/MNIST/raw/*
    python examples/hierarchical.py --layers 2 --guide top-down    # the ladder's guide (Sonderby et al. 2016)
    python examples/hierarchical.py --layers 2 --particles 5       # trains the importance-weighted bound
    python examples/hierarchical.py --layers 2 --resume            # goes on where the last run was stopped

Prints the importance-weighted bound on log p(x) of the test images with 5,000 particles, and writes ``metrics.json``,
``weights.pt``, ``log_likelihoods.pt`` (the bound of each image, to compare two runs image by image) and checkpoints to
``--output-dir``. Pixels are binarized anew each epoch, and once for the test.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    """Train, judge, and return what ``metrics.json`` holds."""
    args = parse_arguments(argv)
    torch.manual_seed(args.seed)
    images = pv.data.load(args.dataset, args.data_dir, download=args.data_dir is None and args.dataset != "digits")
    train_images, test_images = images.train_images, images.test_images
    if args.smoke:
        train_images, test_images = train_images[:1000], test_images[:100]
    test = pv.data.binarize(test_images, seed=1)[: args.test_images].to(args.device)
    train = pv.data.Batches(
        train_images, batch_size=args.batch_size, shuffle=True, seed=args.seed, transform=pv.data.binarize,
        device=args.device,
    )  # fmt: skip
    vae = build(args.layers, args.guide, pixels=test.shape[1])
    vae.likelihood.initialize_output_bias(pv.data.to_float(train_images))
    vae.to(args.device)

    steps = args.epochs * len(train)
    optimizer = pv.Adam(
        {"lr": args.learning_rate, "betas": (0.9, 0.99)},
        scheduler=lambda adam: OneCycleLR(
            adam,
            args.learning_rate,
            total_steps=steps,
            pct_start=0.1 if steps > 10 else 0.3,
            anneal_strategy="linear",
            cycle_momentum=False,
        ),
    )
    objective = pv.TraceIWAE_ELBO(args.particles, gradient="dreg") if args.particles > 1 else pv.TraceSTL_ELBO()
    svi = pv.CompiledSVI(vae.model, vae.guide, optimizer, objective, compile="graph" if args.no_compile else True)
    checkpoints = args.output_dir / "checkpoints"
    history = pv.fit(
        svi,
        train,
        epochs=args.epochs,
        schedules={"beta": pv.linear_warmup(args.beta_warmup)} if args.beta_warmup else None,
        callbacks=[pv.Checkpoint(checkpoints, keep_best=False)],
        resume=checkpoints if args.resume else None,
    )

    vae.eval()
    elbo, bound = pv.bounds(vae.model, vae.guide, test, num_particles=args.test_particles, progress=True)
    metrics: dict[str, object] = {
        "dataset": images.name,
        "layers": args.layers,
        "guide": args.guide,
        "particles": args.particles,
        "epochs": args.epochs,
        "seed": args.seed,
        "train_seconds": round(sum(history["seconds"]), 1),
        "test_particles": args.test_particles,
        "test_elbo": elbo.mean().item(),
        "test_log_likelihood": bound.mean().item(),
        "test_log_likelihood_standard_error": (bound.std() / math.sqrt(len(bound))).item(),
        "active_units": active_units(vae, test),
    }
    print(f"test ELBO    {elbo.mean():9.2f} nats per image")
    print(f"test log p(x){bound.mean():9.2f} nats per image (at least: {args.test_particles} particles)")
    print(f"active units of each layer, nearest to x first: {metrics['active_units']}")
    (args.output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    torch.save(vae.state_dict(), args.output_dir / "weights.pt")
    torch.save(bound.cpu(), args.output_dir / "log_likelihoods.pt")
    return metrics


def build(layers: int, guide: str, pixels: int = 784) -> pv.HierarchicalVAE:
    """784-200-200-50 with one layer; 784-200-200-100, 100-100-100-50 with two."""
    if layers == 1:
        widths, prior, conditionals, latent_dims = [200], pv.StandardNormalPrior(50), [], [50]
    else:
        widths, latent_dims, prior = [200, 100], [100, 50], pv.StandardNormalPrior(50)
        conditionals = [normal(50, 100, 100)]
    likelihood = pv.BernoulliLikelihood(pv.MLP(latent_dims[0], pixels, (200, 200), nn.Tanh))
    if guide == "bottom-up":
        inputs = [pixels, *latent_dims]
        posteriors = [normal(*sizes) for sizes in zip(inputs, latent_dims, widths, strict=False)]
        return pv.HierarchicalVAE(prior, conditionals, likelihood, posteriors)
    inputs = [pixels, *widths]
    networks = [nn.Sequential(pv.MLP(n, w, (w,), nn.Tanh), nn.Tanh()) for n, w in zip(inputs, widths, strict=False)]
    heads = [pv.DiagonalNormalPosterior(nn.Linear(w, 2 * d)) for w, d in zip(widths, latent_dims, strict=True)]
    return pv.HierarchicalVAE(prior, conditionals, likelihood, heads, networks)


def normal(inputs: int, outputs: int, hidden: int) -> pv.DiagonalNormalPosterior:
    """A normal distribution from a network with two hidden layers."""
    return pv.DiagonalNormalPosterior(pv.MLP(inputs, 2 * outputs, (hidden, hidden), nn.Tanh))


@torch.no_grad()
def active_units(vae: pv.HierarchicalVAE, x: torch.Tensor) -> list[int]:
    """Latent dimensions of each layer whose posterior means vary by more than 0.01 over the data (their section 5)."""
    return [int((z.var(0) > 0.01).sum()) for z in vae.latents(x, draw=lambda name, q: q.mean)]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, choices=(1, 2), default=2)
    parser.add_argument("--guide", choices=("bottom-up", "top-down"), default="bottom-up")
    parser.add_argument("--particles", type=int, default=1, help="of the training objective: 1 is the ELBO")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the largest of one cycle")
    parser.add_argument("--beta-warmup", type=float, default=10.0, help="epochs in which beta rises from 0 to 1")
    parser.add_argument("--test-particles", type=int, default=5000)
    parser.add_argument("--test-images", type=int, help="only that many, the first; default: all")
    parser.add_argument("--dataset", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--data-dir", type=Path, help="folder of the data set; without it, MNIST is downloaded")
    parser.add_argument("--output-dir", type=Path, help="default: runs/hierarchical-LAYERS")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true", help="run the captured graph without a C++ compiler")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="a minute, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.epochs, args.test_particles = min(args.epochs, 2), min(args.test_particles, 50)
    args.output_dir = args.output_dir or Path(f"runs/hierarchical-{args.layers}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
