"""MNIST as three modalities, the left half, the right half and the label: any of them from any others.

    python examples/multimodal.py                   # downloads MNIST once; --data-dir DIR reads DIR/MNIST/raw/*
    python examples/multimodal.py --all-at-once     # trained without random subsets of the modalities

Prints bounds and the error of the label given an image or half of one, and writes ``missing.png`` to ``--output-dir``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pyro
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv

CLASSES, HALVES = 10, ("left", "right")


class OneHot(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        """Return class numbers ``(B, 1)`` as one-hot vectors ``(B, C)``."""
        return (y == torch.arange(CLASSES, device=y.device)).to(y.dtype)


def modalities(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Cut images ``(B, H * W)`` into a left and a right half; labels become floats ``(B, 1)``."""
    side = int(images.shape[1] ** 0.5)
    halves = images.unflatten(1, (side, side)).chunk(2, 2)
    return {"left": halves[0].flatten(1), "right": halves[1].flatten(1), "label": labels[:, None].to(images.dtype)}


def build_vae(pixels: int, d: int = 20, hidden: Sequence[int] = (200, 200)) -> pv.MultimodalVAE:
    """A likelihood and an expert for each half and for the label."""
    likelihoods: dict[str, nn.Module] = {h: pv.BernoulliLikelihood(pv.MLP(d, pixels // 2, hidden)) for h in HALVES}
    likelihoods["label"] = pv.CategoricalLikelihood(pv.MLP(d, CLASSES, hidden), CLASSES)
    experts: dict[str, nn.Module] = {h: pv.DiagonalNormalPosterior(pv.MLP(pixels // 2, 2 * d, hidden)) for h in HALVES}
    experts["label"] = pv.DiagonalNormalPosterior(nn.Sequential(OneHot(), nn.Linear(CLASSES, 2 * d)))
    return pv.MultimodalVAE(pv.StandardNormalPrior(d), likelihoods, experts)


def train(args: argparse.Namespace, vae: pv.MultimodalVAE, images: Tensor, labels: Tensor) -> float:
    """Train, each datum on another random subset of its modalities in each step; return the seconds."""
    vae.initialize_output_bias(modalities(pv.data.to_float(images), labels))
    batches = pv.data.Batches(images, labels, batch_size=200, shuffle=True, seed=args.seed, transform=pv.data.binarize)
    steps = args.epochs * len(batches)
    optimizer = pv.Adam({"lr": 2e-3}, scheduler=lambda adam: OneCycleLR(adam, 2e-3, steps, cycle_momentum=False))

    def with_mask(batch: tuple[Tensor, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        x = modalities(*batch)
        return x, {} if args.all_at_once else vae.random_subsets(x)

    svi = pv.CompiledSVI(vae.model, vae.guide, optimizer, pv.TraceSTL_ELBO())
    options = {"transform": with_mask, "keywords": ("mask",), "schedules": {"beta": pv.linear_warmup(3)}}
    return sum(pv.fit(svi, batches, epochs=args.epochs, **options)["seconds"])


def posterior(vae: pv.MultimodalVAE, x: dict[str, Tensor], particles: int) -> tuple[Tensor, Tensor]:
    """Draw z from q(z|x), ``(K, B, D)``, with weights ``(K, B)`` that make them draws from p(z|x) as K grows."""
    q = vae.encode(x)
    z = q.sample((particles,))
    log_p = sum(vae.decode(name, z).log_prob(value) for name, value in x.items())
    return z, (log_p + vae.prior().log_prob(z) - q.log_prob(z)).softmax(0)


@torch.no_grad()
def judge(vae: pv.MultimodalVAE, x: dict[str, Tensor], particles: int) -> dict[str, float]:
    """Bounds in nats per datum, and errors of the label in percent."""

    def log_p(*names: str) -> float:
        given = {name: x[name] for name in names}
        return pv.bounds(vae.model, vae.guide, given, num_particles=particles).iwae.mean().item()

    def error(*names: str) -> float:
        wrong = 0
        for rows in torch.arange(len(x["label"])).split(200):
            z, weights = posterior(vae, {name: x[name][rows] for name in names}, particles)
            probs = (weights[..., None] * vae.decode("label", z).base_dist.probs[..., 0, :]).sum(0)
            wrong += int((probs.argmax(-1) != x["label"][rows, 0]).sum())
        return 100 * wrong / len(x["label"])

    label = log_p("label")
    return {
        "log p(image)": log_p(*HALVES),
        "log p(left half)": log_p("left"),
        "log p(label)": label,
        "log p(image | label), a difference": log_p(*HALVES, "label") - label,
        "error of the label given the image, %": error(*HALVES),
        "error of the label given the left half, %": error("left"),
        "error of the label given the right half, %": error("right"),
    }


@torch.no_grad()
def picture(vae: pv.MultimodalVAE, x: dict[str, Tensor], path: Path) -> None:
    """Draw rows of ten: data, then draws of the halves that are missing given what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = torch.cat([(x["label"][:, 0] == c).nonzero()[:1, 0] for c in range(CLASSES)])
    x = {name: value[rows] for name, value in x.items()}
    side = int((2 * x["left"].shape[1]) ** 0.5)

    def draw(name: str) -> dict[str, Tensor]:
        z, weights = posterior(vae, {name: x[name]}, 1000)
        z = z[torch.multinomial(weights.T, 1)[:, 0], torch.arange(len(rows))]
        return {**{half: vae.decode(half, z).mean for half in HALVES}, name: x[name]}

    lines = [x, *(draw(name) for name in ("label", "label", "label", "left", "left", "right", "right"))]
    lines += [vae.sample(len(rows), mean=True) for _ in range(2)]
    halves = [torch.cat([line[half].reshape(-1, side, side // 2) for line in lines]) for half in HALVES]
    title = "data; from the label (3 rows), the left half (2), the right half (2), nothing (2)"
    pv.plots.image_grid(torch.cat(halves, 2).flatten(1), (side, side), columns=len(rows), title=title).savefig(path)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, print and return the metrics, and write the picture."""
    args = parse_arguments(argv)
    pyro.set_rng_seed(args.seed)
    images = pv.data.load("digits" if args.smoke else "mnist", args.data_dir, download=args.data_dir is None)
    vae = build_vae(pixels=images.train_images.shape[1])
    seconds = train(args, vae, images.train_images, images.train_labels)
    print(f"seed {args.seed}, trained for {args.epochs} epochs in {seconds:.0f} s; on the test images:")
    test = modalities(pv.data.binarize(images.test_images, seed=1), images.test_labels)
    metrics = judge(vae, test, 5 if args.smoke else 100)
    print(*(f"  {name:45s} {value:9.2f}" for name, value in metrics.items()), sep="\n")
    picture(vae, test, args.output_dir / "missing.png")
    return metrics


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data-dir", type=Path, help="folder with a local copy; without it, download to a cache")
    add("--output-dir", type=Path, default=Path("runs/multimodal"))
    add("--all-at-once", action="store_true", help="train on all modalities of each datum, without random subsets")
    add("--epochs", type=int, default=12)
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="a few batches, to see that everything works")
    args = parser.parse_args(argv)
    args.epochs = 1 if args.smoke else args.epochs
    return args


if __name__ == "__main__":
    main()
