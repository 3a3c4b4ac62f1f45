"""What the tests of training share: a model so small that an epoch takes milliseconds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_vae.train import Callback, fit
from tests.helpers import small_vae


def make(
    seed: int = 0, *, hidden: tuple[int, ...] = (8,), optim: Any = None, batch_norm: bool = False, svi: Any = SVI
) -> Any:
    """A VAE of 6 pixels, seeded, and the SVI that trains it."""
    torch.manual_seed(seed)
    vae = small_vae(hidden_dims=hidden)
    if batch_norm:
        vae.posterior.network = torch.nn.Sequential(torch.nn.BatchNorm1d(6), vae.posterior.network)
    optim = pyro.optim.Adam({"lr": 1e-2}) if optim is None else optim
    return SimpleNamespace(vae=vae, svi=svi(vae.model, vae.guide, optim, Trace_ELBO()))


def images(n: int = 50, seed: int = 0) -> torch.Tensor:
    """Binary data with something to learn in them."""
    generator = torch.Generator().manual_seed(seed)
    probs = torch.tensor([0.9, 0.9, 0.9, 0.1, 0.1, 0.1])
    flip = torch.rand(n, 1, generator=generator) < 0.5
    return (torch.rand(n, 6, generator=generator) < torch.where(flip, probs, 1 - probs)).float()


def parameters_of(vae: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in vae.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def train(callbacks: list[Any], epochs: int = 3, m: Any = None, **keywords: Any) -> Any:
    m = make() if m is None else m
    return fit(m.svi, images().split(16), epochs=epochs, callbacks=callbacks, progress=False, **keywords)


class Figures(Callback):
    """Puts given numbers in place of the validation figures, and a mark of the epoch into a parameter."""

    def __init__(self, figures: list[float]) -> None:
        self.figures = figures

    def epoch_end(self, run: Any) -> None:
        run.history._rows[-1]["validation_elbo"] = self.figures[run.epoch - 1]
        with torch.no_grad():
            next(iter(run.parameters.values())).fill_(run.epoch)
