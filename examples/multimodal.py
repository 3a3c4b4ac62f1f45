"""MNIST as three modalities, the left half, the right half and the label: any of them from any others.

    python examples/multimodal.py                     # downloads MNIST once
    python examples/multimodal.py --data-dir DIR      # or reads DIR/MNIST/raw/*
    python examples/multimodal.py --all-at-once       # trained without random subsets of the modalities

Prints bounds on what is given what, and the error of the label given an image or half of one, and writes
``missing.png`` to ``--output-dir``. Choose options by ``--validate 5000``, on training images held out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import pyro
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv

CLASSES = 10
HALVES = ("left", "right")


class OneHot(nn.Module):
    """Class numbers ``(B, 1)`` to ``(B, C)``."""

    def forward(self, y: Tensor) -> Tensor:
        """Return 1 for the class, 0 elsewhere."""
        return (y == torch.arange(CLASSES, device=y.device)).to(y.dtype)


def modalities(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Cut images ``(B, H * W)`` into a left and a right half; labels become floats ``(B, 1)``."""
    side = int(images.shape[1] ** 0.5)
    halves = images.unflatten(1, (side, side)).chunk(2, 2)
    return {"left": halves[0].flatten(1), "right": halves[1].flatten(1), "label": labels[:, None].to(images.dtype)}


def build_vae(args: argparse.Namespace, pixels: int) -> pv.MultimodalVAE:
    """A likelihood and an expert for each half and for the label."""
    d, hidden = args.latent_dim, (args.hidden, args.hidden)
    likelihoods: dict[str, nn.Module] = {h: pv.BernoulliLikelihood(pv.MLP(d, pixels // 2, hidden)) for h in HALVES}
    likelihoods["label"] = pv.CategoricalLikelihood(pv.MLP(d, CLASSES, hidden), CLASSES)
    experts: dict[str, nn.Module] = {h: pv.DiagonalNormalPosterior(pv.MLP(pixels // 2, 2 * d, hidden)) for h in HALVES}
    experts["label"] = pv.DiagonalNormalPosterior(nn.Sequential(OneHot(), nn.Linear(CLASSES, 2 * d)))
    return pv.MultimodalVAE(pv.StandardNormalPrior(d), likelihoods, experts)


def train(args: argparse.Namespace, vae: pv.MultimodalVAE, images: Tensor, labels: Tensor) -> None:
    """Train, each datum on another random subset of its modalities in each step."""
    vae.initialize_output_bias(modalities(pv.data.to_float(images), labels))
    batches = pv.data.Batches(
        images, labels, batch_size=args.batch_size, shuffle=True, seed=args.seed, transform=pv.data.binarize
    )
    rate, steps = args.learning_rate, args.epochs * len(batches)
    optimizer = pv.Adam(
        {"lr": rate}, scheduler=lambda adam: OneCycleLR(adam, rate, total_steps=steps, cycle_momentum=False)
    )

    def with_mask(batch: tuple[Tensor, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        x = modalities(*batch)
        every = {name: torch.ones(len(value), dtype=torch.bool) for name, value in x.items()}
        return x, every if args.all_at_once else vae.random_subsets(x)

    svi = pv.CompiledSVI(vae.model, vae.guide, optimizer, pv.TraceSTL_ELBO(), precision=args.precision)
    schedules = {"beta": pv.linear_warmup(args.beta_warmup)}
    pv.fit(svi, batches, epochs=args.epochs, transform=with_mask, keywords=("mask",), schedules=schedules)


def judge(args: argparse.Namespace, vae: pv.MultimodalVAE, x: dict[str, Tensor]) -> dict[str, float]:
    """Bounds on log p of one subset given another, nats per datum, and errors of the label in percent."""

    def log_p(*names: str) -> float:
        given = {name: x[name] for name in names}
        return pv.bounds(vae.model, vae.guide, given, num_particles=args.test_particles).iwae.mean().item()

    def error(*names: str) -> float:
        z = vae.encode({name: x[name] for name in names}).sample((100,))
        guess = vae.decode("label", z).base_dist.probs.mean(0)[:, 0].argmax(-1)
        return 100 * (guess != x["label"][:, 0]).double().mean().item()

    image, left = log_p(*HALVES), log_p("left")
    return {
        "log p(image)": image,
        "log p(image | label)": log_p(*HALVES, "label") - log_p("label"),
        "log p(left half)": left,
        "log p(right half | left half)": image - left,
        "error of the label given the image, %": error(*HALVES),
        "error of the label given the left half, %": error("left"),
        "error of the label given the right half, %": error("right"),
    }


def picture(vae: pv.MultimodalVAE, x: dict[str, Tensor], path: Path) -> None:
    """Draw rows of ten: data, then draws of the halves that are missing from what is there."""
    rows = torch.cat([(x["label"][:, 0] == c).nonzero()[:1, 0] for c in range(CLASSES)])
    x = {name: value[rows] for name, value in x.items()}
    side = int((2 * x["left"].shape[1]) ** 0.5)

    def draw(*names: str) -> dict[str, Tensor]:
        given = {name: x[name] for name in names}
        z = vae.encode(given).sample()
        return {**{half: vae.decode(half, z).mean for half in HALVES}, **given}

    lines = [x, *(draw(name) for name in ("label", "label", "label", "left", "left", "right", "right"))]
    lines += [vae.sample(len(rows), mean=True) for _ in range(2)]
    halves = [torch.cat([line[half].reshape(-1, side, side // 2) for line in lines]) for half in HALVES]
    title = "data; from the label (3 rows), the left half (2), the right half (2), nothing (2)"
    pv.plots.image_grid(torch.cat(halves, 2).flatten(1), (side, side), columns=len(rows), title=title).savefig(path)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, print and return the metrics, and write the picture."""
    args = parse_arguments(argv)
    pyro.set_rng_seed(args.seed)
    images = pv.data.load(args.dataset, args.data_dir, download=args.data_dir is None)
    x, y, test_x, test_y = images.train_images, images.train_labels, images.test_images, images.test_labels
    if args.validate:
        (x, y), (test_x, test_y) = pv.data.split(x, y, sizes=(len(x) - args.validate, args.validate))
    if args.smoke:
        x, y, test_x, test_y = x[:1000], y[:1000], test_x[:200], test_y[:200]
    vae = build_vae(args, x.shape[1])
    started = time.perf_counter()
    train(args, vae, x, y)
    print(f"trained for {time.perf_counter() - started:.0f} s, seed {args.seed}; judged on {len(test_x)} images:")
    vae.eval()
    test = modalities(pv.data.binarize(test_x, seed=1), test_y)
    with torch.no_grad():
        metrics = judge(args, vae, test)
        args.output_dir.mkdir(parents=True, exist_ok=True)
        picture(vae, test, args.output_dir / "missing.png")
    for name, value in metrics.items():
        print(f"  {name:45s} {value:9.2f}")
    return metrics


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data-dir", type=Path, help="folder with a local copy; without it, download to a cache")
    add("--output-dir", type=Path, default=Path("runs/multimodal"))
    add("--dataset", choices=("mnist", "digits"), default="mnist")
    add("--all-at-once", action="store_true", help="train on all modalities of each datum, without random subsets")
    add("--epochs", type=int, default=30)
    add("--batch-size", type=int, default=100)
    add("--hidden", type=int, default=400, help="width of the two hidden layers of each network")
    add("--latent-dim", type=int, default=40)
    add("--learning-rate", type=float, default=2e-3, help="the largest of one cycle")
    add("--beta-warmup", type=float, default=3.0, help="epochs in which beta rises from 0 to 1")
    add("--test-particles", type=int, default=100)
    add("--precision", choices=("float32", "bf16"), default="bf16", help="of the matrix products in training")
    add("--validate", type=int, default=0, help="hold out so many training images, and judge by them")
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="a few batches, to see that everything works")
    args = parser.parse_args(argv)
    if args.smoke:
        args.epochs, args.hidden, args.test_particles = 1, 32, 5
    return args


if __name__ == "__main__":
    main()
