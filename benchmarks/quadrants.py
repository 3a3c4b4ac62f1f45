"""Quadrants of MNIST filled in: examples/conditional.py side by side with the method of Pyro's tutorial on CVAEs.

    python benchmarks/quadrants.py --data-dir DIR --output-dir DIR
    python benchmarks/quadrants.py --data-dir DIR --output-dir DIR --pixels grey --methods tutorial   # its own protocol

The tutorial's method (https://pyro.ai/examples/cvae.html), written anew: a network guesses the pixels that are not given;
then a CVAE of 200 latent dimensions is trained by ``Trace_ELBO``, whose prior network sees the given pixels and that
guess, whose posterior network sees the whole image, and whose decoder sees z alone. All networks have two hidden layers
of 500 ReLUs; Adam at 1e-3, batches of 128, at most 101 epochs, stopped 3 epochs after the best one on held-out images.

Both methods get the same training images (held-out ones set aside), the same binary pixels and the same estimator,
``pv.bounds`` with the same number of particles. With ``--pixels grey`` the grey levels themselves are the data, as in
the tutorial; sum_i x_i log p_i + (1 - x_i) log(1 - p_i) is then no log-probability, but comparable among methods. Writes
quadrants.json and quadrants.md, nats per image of the pixels not given.
"""

from __future__ import annotations

import argparse
import json
import math
import runpy
import time
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import pyro_vae as pv

METHODS = ("tutorial", "example")
COLUMNS = ("guess", "elbo", "log_likelihood", "standard_error", "epochs", "minutes")


class Tutorial(nn.Module):
    """y: the pixels given, x: the others. z ~ N(prior(y, guess(y))), x ~ Bernoulli(decoder(z))."""

    def __init__(self, seen: Tensor, rest: Tensor, d: int, hidden: int) -> None:
        super().__init__()
        pixels, widths = len(seen) + len(rest), (hidden, hidden)
        self.register_buffer("rest", rest)
        self.register_buffer("order", torch.cat([seen, rest]).argsort())
        self.guess = pv.MLP(pixels, pixels, widths, nn.ReLU)
        self.prior = pv.MLP(pixels, 2 * d, widths, nn.ReLU)
        self.posterior = pv.MLP(pixels, 2 * d, widths, nn.ReLU)
        self.decoder = pv.MLP(d, pixels, widths, nn.ReLU)

    def whole(self, x: Tensor, y: Tensor) -> Tensor:
        """Put the pixels in their places."""
        return torch.cat([y, x], -1)[..., self.order]

    def guess_x(self, y: Tensor) -> Tensor:
        """Logits of the pixels not given, which the network sees as -1."""
        unknown = y.new_full((*y.shape[:-1], len(self.rest)), -1.0)
        return self.guess(self.whole(unknown, y))[..., self.rest]

    def guess_model(self, x: Tensor, y: Tensor) -> None:
        """x ~ Bernoulli(guess(y)): no latent variable."""
        pv.module("guess", self.guess)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", pixels(self.guess_x(y)), obs=x)

    def guess_guide(self, x: Tensor, y: Tensor) -> None:
        """Nothing is latent."""

    def model(self, x: Tensor, y: Tensor) -> None:
        """z ~ p(z|y), x ~ p(x|z)."""
        pv.module("prior", self.prior)
        pv.module("decoder", self.decoder)
        with torch.no_grad():
            guess = self.guess_x(y).sigmoid()
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal(self.prior(self.whole(guess, y))))
            pyro.sample("x", pixels(self.decoder(z)[..., self.rest]), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """z ~ q(z|x, y)."""
        pv.module("posterior", self.posterior)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", normal(self.posterior(self.whole(x, y))))


def normal(moments: Tensor) -> dist.Distribution:
    """Normal distributions from means and logarithms of standard deviations."""
    loc, log_scale = moments.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def pixels(logits: Tensor) -> dist.Distribution:
    """Bernoulli distributions that also take grey levels."""
    return dist.Bernoulli(logits=logits, validate_args=False).to_event(1)


def train_tutorial(args: argparse.Namespace, data: dict[str, Any], seed: int) -> tuple[Tutorial, int]:
    """Train the guess, then the CVAE, each with early stopping; return the epochs of the latter."""
    method = Tutorial(data["seen"], data["rest"], args.latent_dim, args.hidden)

    def fit(model: Any, guide: Any) -> int:
        svi = (SVI if args.no_compile else pv.CompiledSVI)(model, guide, pv.Adam({"lr": 1e-3}), Trace_ELBO())
        stopping = pv.EarlyStopping(patience=3)
        cut = data["cut"]
        pv.fit(svi, batches(data, 128, seed), epochs=args.max_epochs, validation=[data["validation"]], transform=cut, callbacks=[stopping])
        return stopping.best_epoch

    fit(method.guess_model, method.guess_guide)
    method.guess.requires_grad_(False)
    return method, fit(method.model, method.guide)


def train_example(args: argparse.Namespace, data: dict[str, Any], seed: int) -> tuple[Any, int]:
    """Train the conditional VAE of examples/conditional.py with its options."""
    example = data["example"]
    flags = ["--seed", str(seed), *args.example_flags.split()]
    options = example["parse_arguments"]([*flags, "--output-dir", str(args.output_dir)])
    vae = example["build"](len(data["seen"]), len(data["rest"]), options.latent_dim, options.hidden)
    vae.likelihood.initialize_output_bias(pv.data.to_float(data["train"])[:, data["rest"]])
    example["train"](options, vae, batches(data, options.batch_size, seed), data["validation"], data["cut"])
    return vae, options.epochs
