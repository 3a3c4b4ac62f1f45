"""Classify MNIST from a few labels: model M2 of Kingma et al. (2014), the generative model as a regularizer.

    python examples/semi_supervised.py --labels 100                  # downloads MNIST once
    python examples/semi_supervised.py --labels 100 --data-dir DIR   # or reads DIR/MNIST/raw/*
    python examples/semi_supervised.py --labels 100 --alone          # without the generative model

Labels are as many of each class. The labelled images stand in the training data often enough to be a tenth of every
batch; all others stand there once, with -1 in place of a label. Prints the test error; with ``--validate 10000`` that
on training images held out, by which to choose options.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv

CLASSES, LATENT_DIM = 10, 30


class Posterior(nn.Module):
    """q(z|x, y), normal, by a network whose first layer sees x once, and not once for each class."""

    def __init__(self, pixels: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.of_x, self.of_y = nn.Linear(pixels, hidden), nn.Linear(CLASSES, hidden, bias=False)
        self.output = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent_dim))

    def forward(self, x: Tensor, y: Tensor) -> dist.Independent:
        """Return q(z|x, y) for data ``(B, pixels)`` and one-hot vectors ``(*, C)``."""
        loc, log_variance = self.output(self.of_x(x) + self.of_y(y)).chunk(2, -1)
        return dist.Normal(loc, 1e-3 + (log_variance / 2).exp()).to_event(1)


def classifier(side: int, hidden: int) -> nn.Sequential:
    """Three convolutions and a hidden layer, with dropout and batch normalization."""

    def conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

    return nn.Sequential(
        *(nn.Unflatten(1, (1, side, side)), nn.Dropout(0.2)),
        *(*conv(1, 16), nn.MaxPool2d(2), *conv(16, 32), nn.MaxPool2d(2), *conv(32, 64), nn.Flatten()),
        *(nn.Dropout(0.5), nn.Linear(64 * (side // 4) ** 2, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
        *(nn.Dropout(0.5), nn.Linear(hidden, CLASSES)),
    )


def build_vae(args: argparse.Namespace, images: Tensor) -> pv.SemiSupervisedVAE:
    """Return the story: likelihood and posterior with two hidden layers, and the classifier."""
    pixels, hidden = images.shape[1], args.hidden
    prior, posterior = pv.StandardNormalPrior(LATENT_DIM), Posterior(pixels, hidden, LATENT_DIM)
    likelihood = pv.BernoulliLikelihood(pv.MLP(LATENT_DIM + CLASSES, pixels, (hidden, hidden)))
    likelihood.initialize_output_bias(pv.data.to_float(images))
    network = classifier(math.isqrt(pixels), hidden)
    return pv.SemiSupervisedVAE(prior, pv.Conditional(likelihood), posterior, network, num_classes=CLASSES)


def training_data(args: argparse.Namespace, images: pv.data.Images) -> tuple[Tensor, Tensor]:
    """Images and labels, -1 where there is none, the labelled ones repeated."""
    x, y = images.train_images, images.train_labels
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(args.seed))
    rows = torch.cat([order[y[order] == c][: args.labels // CLASSES] for c in range(CLASSES)])
    others = torch.ones(len(x), dtype=torch.bool).index_fill(0, rows, False)
    repeated = rows.repeat(max(1, len(x) // (9 * len(rows))))
    if args.alone:
        return x[repeated], y[repeated]
    return torch.cat([x[others], x[repeated]]), torch.cat([torch.full((int(others.sum()),), -1), y[repeated]])


def main(argv: Sequence[str] | None = None) -> float:
    """Train, and return the error in percent."""
    args = parse_arguments(argv)
    pyro.set_rng_seed(args.seed)
    images = pv.data.load(args.dataset, args.data_dir, download=args.data_dir is None)
    if args.smoke:
        images = images._replace(train_images=images.train_images[:1000], train_labels=images.train_labels[:1000])
    if args.validate:
        sizes = len(images.train_images) - args.validate, args.validate
        (x, y), (held_out, truth) = pv.data.split(images.train_images, images.train_labels, sizes=sizes)
        images = images._replace(train_images=x, train_labels=y, test_images=held_out, test_labels=truth)
    x, y = training_data(args, images)
    vae = build_vae(args, images.train_images)
    batches = pv.data.Batches(
        x, y, batch_size=100, shuffle=True, drop_last=True, seed=args.seed, transform=pv.data.binarize
    )
    steps = args.epochs * len(batches)
    one_cycle = functools.partial(OneCycleLR, max_lr=2e-3, total_steps=steps, cycle_momentum=False)
    optimizer = pv.Adam({"lr": 2e-3}, scheduler=one_cycle)
    model, guide = (alone(vae), lambda x, y, alpha: None) if args.alone else (vae.model, vae.guide)
    objective = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    svi = pv.CompiledSVI(model, guide, optimizer, objective, precision=args.precision)
    history = pv.fit(svi, batches, epochs=args.epochs, schedules={"alpha": lambda t: args.alpha})
    error = 100 * (classify(vae.eval(), images.test_images) != images.test_labels).double().mean().item()
    kind, over = "classifier alone" if args.alone else "M2", "validation" if args.validate else "test"
    print(
        f"{kind}, {args.labels} labels, seed {args.seed}: {over} error {error:.2f} % ({sum(history['seconds']):.0f} s)"
    )
    return error


def classify(vae: pv.SemiSupervisedVAE, images: Tensor) -> Tensor:
    """Classes by q(y|x) averaged over 8 draws of binary pixels, as training saw them; grey ones it never saw."""
    probs = [torch.cat([vae.classify(x) for x in pv.data.binarize(images, seed=s).split(1000)]) for s in range(8)]
    return torch.stack(probs).sum(0).argmax(1)


def alone(vae: pv.SemiSupervisedVAE) -> object:
    """The classification term alone, as a model of the labels."""

    def model(x: Tensor, y: Tensor, alpha: Tensor) -> None:
        pv.module(vae.name, vae.classifier)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=vae.classifier(x)), obs=y)

    return model


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--labels", type=int, choices=[100, 600, 1000, 3000], default=100, help="how many labels are known")
    add("--data-dir", type=Path, help="folder with a local copy; without it, download to a cache")
    add("--dataset", choices=pv.data.DATASETS, default="mnist")
    add("--alone", action="store_true", help="train the classifier on the labelled images alone")
    add("--epochs", type=int, default=10)
    add("--hidden", type=int, default=256, help="width of the hidden layers")
    add("--alpha", type=float, default=100.0, help="weight of log q(y|x) of a labelled image")
    add("--precision", choices=["float32", "bf16"], default="bf16", help="of the matrix products in training")
    add("--validate", type=int, default=0, help="hold out so many training images, and print the error on them")
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="a few batches, to see that everything works")
    args = parser.parse_args(argv)
    return argparse.Namespace(**vars(args) | {"epochs": 1, "hidden": 32}) if args.smoke else args


if __name__ == "__main__":
    main()
