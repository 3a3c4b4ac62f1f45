"""A VAE whose decoder's weights are latent variables with a prior, on few MNIST images, beside point estimates.

    python examples/bayesian_decoder.py                            # downloads MNIST once
    python examples/bayesian_decoder.py --data-dir DIR --seed 1    # reads DIR/MNIST/raw/*; other images, another start

    w ~ p(w),  z ~ p(z),  x ~ p(x|z, w)   and   w ~ q(w),  z ~ q(z|x)

Four ways to fit one architecture to the same binarized images: the weights as a point, trained to the end, or stopped
by the ELBO of further images (validation); their most probable values under the prior (MAP), stopped so as well; and
q(w). Prints of test images the bound on log p(x | w) of the point estimates, and for q(w) that on the log of the mean
of p(x | w) over draws of w, with the same number of particles, and its gain over the first method. Few images overfit
an encoder too, and what is to be compared is the decoders: each bound takes a second encoder, which is trained on draws
of the model itself, of which there is no end. Writes ``metrics.json`` and ``uncertainty.png``, mean and standard
deviation of E[x|z, w] over w as z leaves the codes of the data, to ``--output-dir``.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

import pyro_vae as pv

METHODS = ("point", "point, stopped", "MAP, stopped", "Bayesian")


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Fit in each way, judge, and return what ``metrics.json`` holds."""
    args = parse_arguments(argv)
    images = pv.data.load(args.dataset, args.data_dir, download=args.data_dir is None and args.dataset == "mnist")
    sizes = (args.images, args.validation, len(images.train_images) - args.images - args.validation)
    train, valid, _ = pv.data.split(pv.data.binarize(images.train_images, seed=0), sizes=sizes, seed=args.seed)
    test = pv.data.binarize(images.test_images[-args.test :], seed=1)
    metrics, draws, first = {}, [], None
    for method in args.methods:
        pyro.set_rng_seed(args.seed)
        pyro.clear_param_store()
        started = time.perf_counter()
        vae, draw = fit(args, method, train, valid, images.image_shape)
        seconds = time.perf_counter() - started
        if args.sleep:
            vae.posterior = encoder_of_draws(args, vae, draw, train.shape[1])
        draws = [draw() for _ in range(args.draws if method == "Bayesian" else 1)]
        log_p = torch.stack([bound(vae, w, test, args.particles * args.draws // len(draws)) for w in draws])
        found = pv.iwae(log_p)  # log of the mean over the draws of w, of each image
        first = found if first is None else first
        gain, error = (found - first).mean().item(), (found - first).std().item() / len(found) ** 0.5
        metrics[method] = {"test_log_likelihood": found.mean().item(), "gain": gain, "standard_error": error}
        print(
            f"{method:16} log p(x) {found.mean():8.2f} nats per image, gain {gain:6.2f} ± {error:.2f} ({seconds:.0f} s)"
        )
    if "Bayesian" in args.methods:  # the last one
        picture(vae, draws, train, images.image_shape).savefig(args.output_dir / "uncertainty.png", dpi=120)
    (args.output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def fit(args: argparse.Namespace, method: str, train: Tensor, valid: Tensor, shape: tuple[int, int]) -> tuple:
    """Train the VAE, and return it with a function that gives the decoder's weights: nothing, or a draw of q(w)."""
    point, stopped = method.startswith("point"), method.endswith("stopped")
    likelihood = pv.BernoulliLikelihood(decoder(args.latent_dim, shape))
    likelihood.initialize_output_bias(train)
    if not point:
        likelihood = pv.Bayesian(likelihood, scale=args.scale)
    latent, pixels = args.latent_dim, train.shape[1]
    encoder = nn.Sequential(nn.Dropout(args.dropout), pv.MLP(pixels, 2 * latent, hidden_dims=(200,)))
    vae = pv.VAE(pv.StandardNormalPrior(latent), likelihood, pv.DiagonalNormalPosterior(encoder))
    model, guide = vae.model, vae.guide
    if not point:
        model = pv.with_globals(vae.model, likelihood.sample_parameters)
        kind = functools.partial(AutoNormal, init_scale=0.05) if method == "Bayesian" else AutoDelta
        guide = pv.AutoGlobalGuide(model, vae.guide, lambda m: kind(m, init_loc_fn=likelihood.init_to_parameters))
    batches = pv.data.Batches(train, batch_size=100, shuffle=True, seed=args.seed)
    steps = args.epochs * len(batches)
    optimizer = pv.Adam({"lr": 4e-3}, scheduler=lambda adam: LambdaLR(adam, lambda t: min(1.0, 2.02 - 2 * t / steps)))
    objective = TraceMeanField_ELBO() if method == "Bayesian" else Trace_ELBO()
    svi = pv.CompiledSVI(model, guide, optimizer, objective, compile="graph")
    options = {"validation": [valid], "callbacks": [pv.EarlyStopping(patience=20)]} if stopped else {}
    pv.fit(svi, batches, epochs=args.epochs, size=len(train), progress=False, **options)
    vae.eval()

    @torch.no_grad()
    def draw() -> tuple[dict[str, Tensor], ...]:
        return () if point else (poutine.condition(likelihood.sample_parameters, data=guide.global_guide(train))(),)

    return vae, draw


def encoder_of_draws(args: argparse.Namespace, vae: pv.VAE, draw: Callable[[], tuple], pixels: int) -> nn.Module:
    """q(z|x), trained by -log q(z|x) on draws of z and x from the model: the sleep phase of Hinton et al. (1995)."""
    posterior = pv.DiagonalNormalPosterior(pv.MLP(pixels, 2 * args.latent_dim, hidden_dims=(400,)))
    adam = torch.optim.Adam(posterior.parameters(), 2e-3)
    schedule = CosineAnnealingLR(adam, args.sleep)
    for _ in range(args.sleep):
        with torch.no_grad():
            w, z = draw(), vae.sample_latent(200)
            x = vae.decode(z, *w).sample()
        adam.zero_grad()
        (-posterior(x).log_prob(z).mean()).backward()
        adam.step()
        schedule.step()
    return posterior


def decoder(latent_dim: int, shape: tuple[int, int]) -> nn.Module:
    """Logits at half the resolution, interpolated: few enough weights that 500 images say something about each."""
    coarse = (shape[0] // 2, shape[1] // 2)
    pixels = coarse[0] * coarse[1]
    grid = torch.eye(pixels).unflatten(1, (1, *coarse))
    interpolation = nn.Linear(pixels, shape[0] * shape[1])
    interpolation.weight.data = nn.functional.interpolate(grid, size=shape, mode="bilinear").flatten(1).T.contiguous()
    interpolation.weight.requires_grad_(False)  # no parameter, and so without a prior
    return nn.Sequential(OrderedDict(coarse=pv.MLP(latent_dim, pixels, hidden_dims=(50,)), output=interpolation))


def bound(vae: pv.VAE, w: tuple, x: Tensor, particles: int) -> Tensor:
    """The importance-weighted bound on log p(x | w) of each image."""
    return pv.bounds(lambda x: vae.model(x, *w), vae.guide, x, num_particles=particles, compile=False).iwae


@torch.no_grad()
def picture(vae: pv.VAE, draws: list[tuple], x: Tensor, shape: tuple[int, int]) -> object:
    """Mean over w of E[x|z, w], and below it three standard deviations, from the code of an image outwards."""
    z = torch.tensor([1.0, 1.5, 2.0, 3.0, 5.0])[:, None] * vae.encode(x[:4]).mean[:, None]
    images = torch.stack([vae.decode(z, *w).mean for w in draws])
    title = "mean, 3 sd over w at 1, 1.5, 2, 3, 5 times the code"
    print(title.split(" at")[1], [round(sd, 3) for sd in images.std(0).mean((0, 2)).tolist()], "sd over w")
    rows = torch.cat([images.mean(0), 3 * images.std(0)], 1)
    return pv.plots.image_grid(rows.flatten(0, 1), shape, columns=10, title=title)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=int, default=500, help="for training")
    add("--validation", type=int, default=500, help="further images, which stop the point estimates")
    add("--test", type=int, default=500, help="test images")
    add("--epochs", type=int, default=300)
    add("--latent-dim", type=int, default=10)
    add("--scale", type=float, default=4.0, help="of the prior, N(0, scale^2 / n) for a unit with n inputs")
    add("--dropout", type=float, default=0.5, help="share of the pixels that the encoder does not see in training")
    add("--sleep", type=int, default=3000, help="steps of the encoder that is trained on draws; 0: none")
    add("--draws", type=int, default=200, help="of w in the test")
    add("--particles", type=int, default=10, help="of z for each draw of w; a point estimate has as many in all")
    add("--methods", nargs="+", choices=METHODS, default=METHODS)
    add("--dataset", choices=pv.data.DATASETS, default="mnist")
    add("--data-dir", type=Path, help="folder of the data set; without it, MNIST is downloaded")
    add("--output-dir", type=Path, default=Path("runs/bayesian_decoder"))
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="seconds, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.images, args.validation, args.test, args.epochs, args.draws, args.particles = 200, 50, 20, 2, 2, 2
        args.sleep = 5
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
