"""A trained decoder as the prior of images in a larger Bayesian model: noise of unknown level, blur, missing pixels.

    python examples/image_restoration.py                           # downloads MNIST once
    python examples/image_restoration.py --data-dir DIR            # reads DIR/MNIST/raw/*

A VAE is trained, and its decoder frozen. Images are drawn from the decoder, so that z and the noise level are known,
damaged, and restored: p(z, noise | y) by NUTS and by an autoguide. Prints how often the credible intervals of 90 %
hold the truth, how the guide differs from NUTS, and the error of the restored images. Writes ``metrics.json`` and
``restoration.png`` (true, seen, posterior mean and standard deviation, three draws) to ``--output-dir``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR

import pyro_vae as pv


def model(y: Tensor | None, vae: pv.VAE, damage: Tensor, size: int = 1) -> Tensor:
    """z ~ p(z), noise ~ LogNormal(log 0.2, 0.5), y ~ N(A E[x|z], noise^2): images y (B, S) seen through A (S, P)."""
    with pyro.plate("images", size if y is None else len(y)):
        noise = pyro.sample("noise", dist.LogNormal(math.log(0.2), 0.5))
        z = pyro.sample("z", vae.prior())
        image = vae.decode(z).mean
        return pyro.sample("y", dist.Normal(image @ damage.T, noise[..., None]).to_event(1), obs=y)


def damages(height: int, width: int) -> dict[str, Tensor]:
    """What is done to a flat image before the noise, as matrices (S, P)."""
    pixels = torch.eye(height * width)
    places = torch.cartesian_prod(torch.arange(float(height)), torch.arange(float(width)))  # row, column
    blur = torch.exp(-(torch.cdist(places, places) ** 2) / (2 * 2.0**2))  # a width of 2 pixels
    return {"noise": pixels, "blur": blur / blur.sum(1, keepdim=True), "mask": pixels[places[:, 1] < width // 2]}


def by_nuts(args: argparse.Namespace, *inputs: object, start: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draws of z and noise by Pyro's NUTS, (draws, B, ...), started at a guide's medians."""
    kernel = NUTS(model, init_strategy=init_to_value(values=start), max_tree_depth=5)
    mcmc = MCMC(kernel, args.draws, warmup_steps=args.draws // 2, disable_progbar=True)
    mcmc.run(*inputs)
    return mcmc.get_samples()


def by_guide(args: argparse.Namespace, kind: type, *inputs: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draws of z and noise from an autoguide, and its medians."""
    pyro.clear_param_store()
    guide = kind(model, init_scale=0.05)
    optimizer = pv.Adam({"lr": 0.1}, scheduler=lambda adam: ExponentialLR(adam, 0.01 ** (1 / args.steps)))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1))
    for _ in range(args.steps):
        svi.step(*inputs)
    with torch.no_grad():
        draws = Predictive(model, guide=guide, num_samples=args.draws, return_sites=["z", "noise"])(*inputs)
        return draws, {name: value.detach() for name, value in guide.median(*inputs).items()}


def judge(draws: dict[str, Tensor], truth: dict[str, Tensor], vae: pv.VAE) -> dict[str, float]:
    """How often the central intervals of 90 % hold the truth, and the error of the mean image, in grey levels of 1."""
    ranks = {site: (values < truth[site]).float().mean(0) for site, values in draws.items()}
    found = {f"coverage_{site}": ((r - 0.5).abs() <= 0.45).float().mean().item() for site, r in ranks.items()}
    error = vae.decode(draws["z"]).mean.mean(0) - vae.decode(truth["z"]).mean
    return found | {"image_error": error.square().mean().sqrt().item()}


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, dict[str, float]]]:
    """Train, damage, restore, and return what ``metrics.json`` holds."""
    args = parse_arguments(argv)
    pyro.set_rng_seed(args.seed)
    data = pv.data.load(args.dataset, args.data_dir, download=args.data_dir is None and args.dataset == "mnist")
    vae = train(args, data.train_images[: 500 if args.smoke else None])
    vae.requires_grad_(False)  # the decoder is given from here on
    metrics, rows = {}, []
    for name, damage in damages(*data.image_shape).items():
        drawn = Predictive(model, num_samples=1)(None, vae, damage, args.images)
        truth = {site: value[0] for site, value in drawn.items()}
        inputs = (truth["y"], vae, damage)
        started = time.perf_counter()
        guide, start = by_guide(args, AutoNormal, *inputs)
        middle = time.perf_counter()
        nuts = by_nuts(args, *inputs, start=start)
        found = {"NUTS": judge(nuts, truth, vae) | {"seconds": time.perf_counter() - middle}}
        found["AutoNormal"] = judge(guide, truth, vae) | {"seconds": middle - started}
        for site, exact in nuts.items():  # how far the guide is from NUTS, in standard deviations, and its own
            found["AutoNormal"] |= {
                f"shift_{site}": ((guide[site].mean(0) - exact.mean(0)) / exact.std(0)).abs().median().item(),
                f"sd_ratio_{site}": (guide[site].std(0) / exact.std(0)).median().item(),
            }
        restored = vae.decode(nuts["z"]).mean
        seen = truth["y"] if len(damage) == damage.shape[1] else truth["y"] @ damage  # what is not seen is black
        spread = 3 * restored.std(0)
        columns = [vae.decode(truth["z"]).mean, seen, restored.mean(0), spread, *restored[:: args.draws // 3][:3]]
        rows.append(torch.stack(columns, 1)[:2].flatten(0, 1))
        for method, values in found.items():
            print(f"{name:6} {method:11}", "  ".join(f"{key} {value:.2f}" for key, value in values.items()), flush=True)
        metrics[name] = found
    figure = pv.plots.image_grid(torch.cat(rows), data.image_shape, columns=7, title="true, seen, mean, 3 sd, 3 draws")
    figure.savefig(args.output_dir / "restoration.png", dpi=120)
    (args.output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def train(args: argparse.Namespace, images: Tensor) -> pv.VAE:
    """Train a VAE on the binarized images."""
    pixels, latent, hidden = images.shape[1], args.latent_dim, (200, 200)
    likelihood = pv.BernoulliLikelihood(pv.MLP(latent, pixels, hidden))
    vae = pv.VAE(
        pv.StandardNormalPrior(latent), likelihood, pv.DiagonalNormalPosterior(pv.MLP(pixels, 2 * latent, hidden))
    )
    likelihood.initialize_output_bias(pv.data.to_float(images))
    batches = pv.data.Batches(images, batch_size=200, shuffle=True, seed=args.seed, transform=pv.data.binarize)
    decay = 0.1 ** (1 / (args.epochs * len(batches)))
    optimizer = pv.Adam({"lr": 2e-3}, scheduler=lambda adam: ExponentialLR(adam, decay))
    svi = pv.CompiledSVI(vae.model, vae.guide, optimizer, pv.TraceSTL_ELBO(), compile="graph")
    pv.fit(svi, batches, epochs=args.epochs)
    return vae.eval()


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=int, default=20, help="images of each kind of damage")
    add("--epochs", type=int, default=5, help="of the VAE")
    add("--latent-dim", type=int, default=8)
    add("--draws", type=int, default=300, help="from each posterior; NUTS warms up for half as many more")
    add("--steps", type=int, default=1500, help="of the autoguide")
    add("--dataset", choices=pv.data.DATASETS, default="mnist")
    add("--data-dir", type=Path, help="folder of the data set; without it, MNIST is downloaded")
    add("--output-dir", type=Path, default=Path("runs/image_restoration"))
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="seconds, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.images, args.epochs, args.latent_dim, args.draws, args.steps = 2, 1, 2, 10, 20
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
