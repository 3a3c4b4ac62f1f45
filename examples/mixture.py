"""Cluster MNIST without labels: a variational autoencoder whose prior is a mixture, y ~ p(y), z ~ p(z|y), x ~ p(x|z).

    python examples/mixture.py                  # downloads MNIST once
    python examples/mixture.py --data-dir DIR   # or reads DIR/MNIST/raw/*

Three trainings of one encoder and decoder, after VaDE (Jiang et al. 2017): a VAE; from a Gaussian mixture fitted to its
codes, a MixtureVAE conditioned on the clusters of that fit; the MixtureVAE with its clusters summed out. Images are set
upright first. In training the encoder sees them turned, moved and stretched a little at random. Labels serve for one
number, the accuracy. Writes ``clusters.png``: each cluster's mean, decoded, and its most probable test images.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from scipy.optimize import linear_sum_assignment
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv

CLUSTERS, LATENT_DIM, HIDDEN_DIMS = 10, 10, (400, 400)


def affine(x: Tensor, rows: list[Tensor]) -> Tensor:
    """Apply the maps of the plane whose 2 x 3 matrices have these elements, (B,) each, to square images (B, pixels)."""
    side = math.isqrt(x.shape[1])
    grid = nn.functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [len(x), 1, side, side], align_corners=False)
    return nn.functional.grid_sample(x.view(-1, 1, side, side), grid, align_corners=False).view(x.shape)


def upright(images: Tensor) -> Tensor:
    """Move the center of mass to the middle, and shear until rows and columns are uncorrelated; uint8 to uint8."""
    x = pv.data.to_float(images)
    side = math.isqrt(x.shape[1])
    p = (x / x.sum(1, keepdim=True)).view(-1, side, side)
    axis = torch.linspace(-1, 1, 2 * side + 1)[1::2]  # the coordinates of affine_grid
    top, left = p.sum(2) @ axis, p.sum(1) @ axis
    down, right = axis - top[:, None], axis - left[:, None]
    slant = torch.einsum("bij,bi,bj->b", p, down, right) / (p.sum(2) * down**2).sum(1)
    one = torch.ones_like(slant)
    return (255 * affine(x, [one, slant, left, 0 * one, one, top])).round().to(torch.uint8)


class Jitter(nn.Module):
    """In training, turn, shear, stretch and move each image (B, pixels) at random."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        turn, shear, wide, high, right, down = 0.1 * (2 * torch.rand(6, len(x), device=x.device) - 1)
        return affine(x, [1 + wide, 2 * (shear - turn), right, 2 * turn, 1 + high, down])


def train(args: argparse.Namespace, model: Any, guide: Any, objective: Any, data: tuple[Tensor, ...], epochs: int,
          rate: float, warmup: float = 0.0) -> None:  # fmt: skip
    """Train with a learning rate that rises to ``rate`` and falls, and a beta that rises to 1 in ``warmup`` epochs."""
    options = {"batch_size": 200, "shuffle": True, "drop_last": True, "seed": args.seed}
    batches = pv.data.Batches(*data, **options, transform=pv.data.binarize)
    schedule = {"max_lr": rate, "total_steps": epochs * len(batches), "cycle_momentum": False}
    parts = (model, guide, pv.Adam({"lr": rate}, scheduler=lambda adam: OneCycleLR(adam, **schedule)), objective)
    svi = SVI(*parts) if args.smoke else pv.CompiledSVI(*parts, precision=args.precision)
    pv.fit(svi, batches, epochs=epochs, schedules={"beta": pv.linear_warmup(warmup)})


def initialize(prior: pv.MixturePrior, q: Any, seed: int) -> Tensor:
    """Start the prior from the likeliest of six mixtures fitted to the means of q(z|x), and return their clusters."""
    z = q.mean.double().numpy()
    fits = [GaussianMixture(CLUSTERS, reg_covar=1e-4, max_iter=200, random_state=6 * seed + i) for i in range(6)]
    best = max((fit.fit(z[:15_000]) for fit in fits), key=lambda fit: fit.lower_bound_)
    clusters = torch.as_tensor(best.predict(z))
    within = torch.stack([q.variance[clusters == k].mean(0) for k in range(CLUSTERS)])
    between = best.covariances_.diagonal(axis1=1, axis2=2)  # of full covariances; those of the prior are diagonal
    prior.set_components(best.weights_, best.means_, (within.numpy() + between) ** 0.5)
    return clusters


def accuracy(clusters: Tensor, labels: Tensor) -> float:
    """The percentage of images whose cluster is matched with their class, by the best one-to-one matching."""
    counts = torch.zeros(CLUSTERS, CLUSTERS).index_put_((clusters, labels), torch.ones(len(labels)), accumulate=True)
    return 100 * counts[linear_sum_assignment(-counts.numpy())].sum().item() / len(labels)


def main(argv: Sequence[str] | None = None) -> float:
    """Train, evaluate, draw, and return the accuracy on test images."""
    args = parse_arguments(argv)
    pyro.set_rng_seed(args.seed)
    images = pv.data.load(args.dataset, args.data_dir, download=args.data_dir is None)
    x, test = upright(images.train_images), upright(images.test_images)
    x, pixels = x[: 500 if args.smoke else None], x.shape[1]
    started = time.perf_counter()
    encoder = nn.Sequential(Jitter(), pv.MLP(pixels, 2 * LATENT_DIM, HIDDEN_DIMS))
    likelihood = pv.BernoulliLikelihood(pv.MLP(LATENT_DIM, pixels, HIDDEN_DIMS))
    likelihood.initialize_output_bias(pv.data.to_float(x))
    vae = pv.VAE(pv.StandardNormalPrior(LATENT_DIM), likelihood, pv.DiagonalNormalPosterior(encoder))
    mixture = pv.MixtureVAE(pv.MixturePrior(LATENT_DIM, CLUSTERS), likelihood, vae.posterior)
    first, second, third = (1, 1, 1) if args.smoke else args.epochs
    train(args, vae.model, vae.guide, pv.TraceSTL_ELBO(), (x,), first, 3e-3, warmup=2.0)
    vae.eval()
    with torch.no_grad():
        y = initialize(mixture.prior, vae.encode(pv.data.to_float(x)), args.seed)
    mixture.train()

    def model(x: Tensor, y: Tensor, beta: Tensor) -> None:
        pyro.condition(mixture.model, data={"y": y})(x, beta=beta)

    def guide(x: Tensor, y: Tensor, beta: Tensor) -> None:
        pyro.poutine.block(mixture.guide, hide=["y"])(x, beta=beta)

    train(args, model, guide, pv.TraceSTL_ELBO(), (x, y), second, 2e-3)
    train(args, mixture.model, mixture.guide, TraceEnum_ELBO(max_plate_nesting=1), (x,), third, 1e-3)
    minutes = (time.perf_counter() - started) / 60
    mixture.eval()
    binary = pv.data.binarize(test, seed=1)
    elbo = pv.bounds(mixture.model, mixture.guide, binary, num_particles=10).elbo.mean()
    probs = torch.cat([mixture.cluster(part) for part in binary.split(1000)])
    percent = accuracy(probs.argmax(1), images.test_labels)
    print(f"seed {args.seed}: test ELBO {elbo:.2f} nats, cluster accuracy {percent:.2f} %, {minutes:.1f} minutes")
    members = pv.data.to_float(test[probs.topk(15, dim=0).indices.T])  # (K, 15, pixels)
    rows = torch.cat([mixture.decode(mixture.prior.loc).mean.detach()[:, None], members], 1).flatten(0, 1)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    pv.plots.image_grid(rows, images.image_shape, columns=16).savefig(args.output_dir / "clusters.png")
    return percent


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data-dir", type=Path, help="folder with a local copy; without it, download to a cache")
    add("--dataset", choices=pv.data.DATASETS, default="mnist")
    add("--output-dir", type=Path, default=Path("runs/mixture"))
    add("--epochs", type=int, nargs=3, default=[4, 2, 1], help="of the three trainings")
    add("--precision", choices=["float32", "bf16"], default="bf16", help="of the matrix products in training")
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="a few batches, to see that everything works")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
