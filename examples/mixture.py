"""Cluster MNIST without labels: a variational autoencoder whose prior is a mixture, y ~ p(y), z ~ p(z|y), x ~ p(x|z).

    python examples/mixture.py                  # downloads MNIST once
    python examples/mixture.py --data-dir DIR   # or reads DIR/MNIST/raw/*

Three trainings of one encoder and decoder, after VaDE (Jiang et al. 2017): a VAE; then, from a Gaussian mixture fitted
to its codes, a MixtureVAE conditioned on the clusters of that fit; then the MixtureVAE with the clusters summed out.
Images are made upright first. In training the encoder sees them turned, moved and stretched a little at random, so that
the code tells a shape more than how it lies. Labels serve for one number, the accuracy that is printed. Writes
``clusters.png``: each cluster's mean, decoded, and its most probable test images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from scipy.optimize import linear_sum_assignment
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv

CLUSTERS, LATENT_DIM = 10, 10
Shape = tuple[int, int]


def affine(x: Tensor, rows: list[Tensor], shape: Shape) -> Tensor:
    """Apply the maps of the plane whose 2 x 3 matrices have these elements, (B,) each, to flat images (B, pixels)."""
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [len(x), 1, *shape], align_corners=False)
    return F.grid_sample(x.view(-1, 1, *shape), grid, align_corners=False).view(x.shape)


def upright(images: Tensor, shape: Shape) -> Tensor:
    """Move the center of mass to the middle, and shear until rows and columns are uncorrelated; uint8 to uint8."""
    x = pv.data.to_float(images)
    p = (x / x.sum(1, keepdim=True)).view(-1, *shape)
    row, column = (torch.linspace(-1, 1, 2 * size + 1)[1::2] for size in shape)  # the coordinates of affine_grid
    top, left = p.sum(2) @ row, p.sum(1) @ column
    down, right = row - top[:, None], column - left[:, None]
    slant = torch.einsum("bij,bi,bj->b", p, down, right) / (p.sum(2) * down**2).sum(1)
    zero, one = torch.zeros_like(slant), torch.ones_like(slant)
    return (255 * affine(x, [one, slant, left, zero, one, top], shape)).round().to(torch.uint8)


class Jitter(nn.Module):
    """In training, turn, shear, stretch and move each image (B, pixels) at random."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        turn, shear, wide, high, right, down = 0.1 * (2 * torch.rand(6, len(x), device=x.device) - 1)
        return affine(x, [1 + wide, 2 * (shear - turn), right, 2 * turn, 1 + high, down], self.shape)


def train(args: argparse.Namespace, model: Any, guide: Any, objective: Any, data: tuple[Tensor, ...], epochs: int,
          rate: float, warmup: float = 0.0) -> None:  # fmt: skip
    """Train with a learning rate that rises to ``rate`` and falls, and a beta that rises to 1 in ``warmup`` epochs."""
    options = {"batch_size": args.batch_size, "shuffle": True, "drop_last": True, "seed": args.seed}
    batches = pv.data.Batches(*data, **options, transform=pv.data.binarize)
    schedule = {"max_lr": rate, "total_steps": epochs * len(batches), "cycle_momentum": False}
    parts = (model, guide, pv.Adam({"lr": rate}, scheduler=lambda adam: OneCycleLR(adam, **schedule)), objective)
    svi = SVI(*parts) if args.no_compile else pv.CompiledSVI(*parts, precision=args.precision)
    pv.fit(svi, batches, epochs=epochs, schedules={"beta": pv.linear_warmup(warmup)})


def initialize(prior: pv.MixturePrior, q: Any, seed: int) -> Tensor:
    """Start the prior from the likeliest of six mixtures fitted to the means of q(z|x), and return their clusters."""
    z = q.mean.double().numpy()
    fits = [GaussianMixture(CLUSTERS, reg_covar=1e-4, max_iter=200, random_state=6 * seed + i) for i in range(6)]
    best = max((fit.fit(z[:15_000]) for fit in fits), key=lambda fit: fit.lower_bound_)
    clusters = torch.as_tensor(best.predict(z))
    within = torch.stack([q.variance[clusters == k].mean(0) for k in range(CLUSTERS)])
    between = torch.as_tensor(best.covariances_.diagonal(axis1=1, axis2=2))
    prior.set_components(best.weights_, best.means_, (within + between).sqrt())
    return clusters


def accuracy(clusters: Tensor, labels: Tensor) -> float:
    """The percentage of images whose cluster is matched with their class, by the best one-to-one matching."""
    counts = torch.zeros(CLUSTERS, CLUSTERS).index_put_((clusters, labels), torch.ones(len(labels)), accumulate=True)
    return 100 * counts[linear_sum_assignment(-counts.numpy())].sum().item() / len(labels)


def main(argv: Sequence[str] | None = None) -> float:
    """Train, draw, and return the accuracy on test images."""
    args = parse_arguments(argv)
    pyro.set_rng_seed(args.seed)
    images = pv.data.load(args.dataset, args.data_dir, download=args.data_dir is None)
    shape, pixels = images.image_shape, images.train_images.shape[1]
    x, test = (
        upright(part, shape) for part in (images.train_images[: 500 if args.smoke else None], images.test_images)
    )
    started = time.perf_counter()
    encoder = nn.Sequential(Jitter(shape), pv.MLP(pixels, 2 * LATENT_DIM, args.hidden_dims))
    likelihood = pv.BernoulliLikelihood(pv.MLP(LATENT_DIM, pixels, args.hidden_dims[::-1]))
    likelihood.initialize_output_bias(pv.data.to_float(x))
    vae = pv.VAE(pv.StandardNormalPrior(LATENT_DIM), likelihood, pv.DiagonalNormalPosterior(encoder))
    mixture = pv.MixtureVAE(pv.MixturePrior(LATENT_DIM, CLUSTERS), likelihood, vae.posterior)

    first, second, third = args.epochs
    train(args, vae.model, vae.guide, pv.TraceSTL_ELBO(), (x,), first, 3e-3, warmup=2.0)
    vae.eval()
    with torch.no_grad():
        y = initialize(mixture.prior, vae.encode(pv.data.to_float(x)), args.seed)
    mixture.train()

    def model(x: Tensor, y: Tensor, beta: Tensor) -> None:
        poutine.condition(mixture.model, data={"y": y})(x, beta=beta)

    def guide(x: Tensor, y: Tensor, beta: Tensor) -> None:
        poutine.block(mixture.guide, hide=["y"])(x, beta=beta)

    train(args, model, guide, pv.TraceSTL_ELBO(), (x, y), second, 2e-3)
    train(args, mixture.model, mixture.guide, TraceEnum_ELBO(max_plate_nesting=1), (x,), third, 1e-3)
    minutes = (time.perf_counter() - started) / 60

    mixture.eval()
    binary = pv.data.binarize(test, seed=1)
    elbo = pv.bounds(mixture.model, mixture.guide, binary, num_particles=10).elbo.mean()
    probs = torch.cat([mixture.cluster(part) for part in binary.split(1000)])
    percent = accuracy(probs.argmax(1), images.test_labels)
    draw(mixture, probs, test, shape, args.output_dir)
    print(f"seed {args.seed}: test ELBO {elbo:.2f} nats per image, {minutes:.1f} minutes of training")
    print(f"seed {args.seed}: cluster accuracy {percent:.2f} % of {len(test)} test images")
    return percent


def draw(mixture: pv.MixtureVAE, probs: Tensor, images: Tensor, shape: Shape, folder: Path) -> None:
    """Draw a row for each cluster: the image decoded from its mean, then its most probable members."""
    members = pv.data.to_float(images[probs.topk(15, dim=0).indices.T])  # (K, 15, pixels)
    with torch.no_grad():
        means = mixture.decode(mixture.prior.loc).mean
    rows = torch.cat([means[:, None], members], 1).flatten(0, 1)
    figure = pv.plots.image_grid(rows, shape, columns=16, title="clusters: decoded mean, most probable test images")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "clusters.png", dpi=120)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data-dir", type=Path, help="folder with a local copy; without it, download to a cache")
    add("--dataset", choices=pv.data.DATASETS, default="mnist")
    add("--output-dir", type=Path, default=Path("runs/mixture"))
    add(
        "--epochs", type=int, nargs=3, default=[10, 3, 6], help="of the VAE, of the conditioned mixture, of the mixture"
    )
    add("--batch-size", type=int, default=200)
    add("--hidden-dims", type=int, nargs="+", default=[400, 400], help="encoder's hidden layers, mirrored")
    add("--precision", choices=["float32", "bf16"], default="bf16", help="of the matrix products in training")
    add("--no-compile", action="store_true", help="train with pyro.infer.SVI, uncompiled")
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="a few batches, to see that everything works")
    args = parser.parse_args(argv)
    if args.smoke:
        args.epochs, args.hidden_dims, args.batch_size = [1, 1, 1], [32], 100
    return args


if __name__ == "__main__":
    main()
