"""Fill in the quadrants of MNIST that are not given: a conditional VAE, as in Sohn et al. (2015), section 5.1.

    python examples/conditional.py                                 # downloads MNIST once; one quadrant is given
    python examples/conditional.py --quadrants 3 --data-dir DIR    # three are given; reads DIR/MNIST/raw/*
    python examples/conditional.py --judge validation              # on held-out training images, to choose options

y is the pixels given (lower left; then upper left; then upper right), x the rest. Prints log p(x|y) in nats per image,
and writes ``metrics.json``, ``weights.pt`` and ``quadrants.png`` (given, draws, truth) to ``--output-dir``. Pixels are
binarized anew each epoch, and once for the test.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv


def quadrants(given: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of the pixels that are given, and of the others."""
    lower, left = (torch.arange(size) for size in (height, width))
    lower, left = (lower >= height // 2)[:, None], (left < width // 2)[None]
    is_given = (lower & left, ~lower & left, ~lower & ~left)  # one, two, three of them
    seen = torch.stack(is_given[:given]).any(0).flatten()
    return seen.nonzero()[:, 0], (~seen).nonzero()[:, 0]


def build(seen: int, rest: int, d: int, hidden: int) -> pv.ConditionalVAE:
    """z ~ p(z|y), x ~ p(x|z, y); z ~ q(z|x, y)."""
    prior = pv.DiagonalNormalPosterior(pv.MLP(seen, 2 * d, (hidden,)))
    likelihood = pv.BernoulliLikelihood(pv.MLP(d + seen, rest, (hidden, hidden)))
    return pv.ConditionalVAE(
        prior, likelihood, pv.DiagonalNormalPosterior(pv.MLP(seen + rest, 2 * d, (hidden, hidden)))
    )


def train(
    args: argparse.Namespace, vae: pv.ConditionalVAE, batches: pv.data.Batches, validation: Tensor, cut: Callable
) -> pv.History:
    """Train by one cycle of the learning rate; ``cut`` makes (x, y) from images."""
    steps, lr = args.epochs * len(batches), args.learning_rate
    optimizer = pv.Adam(
        {"lr": lr, "weight_decay": args.weight_decay},
        scheduler=lambda adam: OneCycleLR(adam, lr, total_steps=steps, cycle_momentum=False),
    )
    objective = pv.TraceIWAE_ELBO(args.particles, "dreg") if args.particles > 1 else pv.TraceSTL_ELBO()
    svi = pv.CompiledSVI(vae.model, vae.guide, optimizer, objective, compile="graph" if args.smoke else True)
    return pv.fit(
        svi,
        batches,
        epochs=args.epochs,
        validation=[validation],
        transform=cut,
        schedules={"beta": pv.linear_warmup(args.beta_warmup)} if args.beta_warmup else None,
    )


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    """Train, judge, and return what ``metrics.json`` holds."""
    args = parse_arguments(argv)
    torch.manual_seed(args.seed)
    data = pv.data.load(args.dataset, args.data_dir, download=args.data_dir is None and args.dataset != "digits")
    held_out = len(data.train_images) // 12
    train_images, held_out_images = pv.data.split(
        data.train_images, sizes=(len(data.train_images) - held_out, held_out), seed=0
    )
    validation, test = pv.data.binarize(held_out_images, seed=1), pv.data.binarize(data.test_images, seed=1)
    seen, rest = quadrants(args.quadrants, *data.image_shape)

    def cut(images: Tensor) -> tuple[Tensor, Tensor]:
        return images[:, rest], images[:, seen]

    vae = build(len(seen), len(rest), args.latent_dim, args.hidden)
    vae.likelihood.initialize_output_bias(pv.data.to_float(train_images)[:, rest])
    batches = pv.data.Batches(
        train_images, batch_size=args.batch_size, shuffle=True, seed=args.seed, transform=pv.data.binarize
    )
    history = train(args, vae, batches, validation, cut)

    vae.eval()
    judged = validation if args.judge == "validation" else test
    elbo, bound = pv.bounds(vae.model, vae.guide, *cut(judged), num_particles=args.test_particles)
    metrics: dict[str, object] = {
        "quadrants": args.quadrants,
        "judged_on": args.judge,
        "epochs": args.epochs,
        "seed": args.seed,
        "train_seconds": round(sum(history["seconds"]), 1),
        "particles": args.test_particles,
        "elbo": elbo.mean().item(),
        "log_likelihood": bound.mean().item(),
        "log_likelihood_standard_error": (bound.std() / math.sqrt(len(bound))).item(),
    }
    print(f"ELBO       {elbo.mean():8.2f} nats per image")
    print(f"log p(x|y) {bound.mean():8.2f} nats per image (at least: {args.test_particles} particles)")
    (args.output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    torch.save(vae.state_dict(), args.output_dir / "weights.pt")
    shown = torch.stack([test[data.test_labels == digit][0] for digit in range(10)])
    rows = fill_in(vae, shown, seen, rest)
    figure = pv.plots.image_grid(
        rows.flatten(0, 1), data.image_shape, columns=rows.shape[1], title="given, six draws of the rest, truth"
    )
    figure.savefig(args.output_dir / "quadrants.png", dpi=120)
    return metrics


def fill_in(vae: pv.ConditionalVAE, images: Tensor, seen: Tensor, rest: Tensor, draws: int = 6) -> Tensor:
    """Return what is given of each image, on grey; E[x|z, y] for draws z ~ p(z|y); the image: (B, draws + 2, P)."""
    y = images[:, seen].repeat_interleave(draws, 0)
    filled = images.repeat_interleave(draws, 0)
    filled[:, rest] = vae.sample(len(y), y, mean=True)
    given = images.index_fill(1, rest, 0.5)
    return torch.cat([given[:, None], filled.unflatten(0, (len(images), draws)), images[:, None]], 1)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quadrants", type=int, choices=(1, 2, 3), default=1, help="how many are given")
    add("--epochs", type=int, default=30)
    add("--latent-dim", type=int, default=50)
    add("--hidden", type=int, default=500, help="width of the hidden layers")
    add("--particles", type=int, default=1, help="of the training objective: 1 is the ELBO")
    add("--batch-size", type=int, default=128)
    add("--learning-rate", type=float, default=2e-3, help="the largest of one cycle")
    add("--weight-decay", type=float, default=0.0)
    add("--beta-warmup", type=float, default=3.0, help="epochs in which beta rises from 0 to 1")
    add("--test-particles", type=int, default=500)
    add("--judge", choices=("test", "validation"), default="test", help="the images that the figures are of")
    add("--dataset", choices=pv.data.DATASETS, default="mnist")
    add("--data-dir", type=Path, help="folder of the data set; without it, MNIST is downloaded")
    add("--output-dir", type=Path, default=Path("runs/conditional"))
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="seconds, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.epochs, args.test_particles, args.latent_dim, args.hidden = 1, 5, 5, 20
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
