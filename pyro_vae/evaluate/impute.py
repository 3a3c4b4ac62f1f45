"""Imputation: draws of what is missing, given what is observed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from .._checks import require_float, require_mask, require_positive_int
from ..infer.factorization import PARTICLES
from ..infer.importance import weigh
from .bounds import bytes_created
from .data import Data

__all__ = ["Imputed", "impute"]


class Imputed(NamedTuple):
    """Data whose missing elements are imputed. Observed elements are those of the data everywhere."""

    mean: Tensor  # (N, *E): E[x_missing | x_observed]
    draws: Tensor  # (S, N, *E): draws from p(x_missing | x_observed)
    effective_particles: Tensor  # (N,): how many of the K draws of z count, 1 to K


@torch.no_grad()
def impute(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *given: Any,
    mask: Tensor | None = None,
    num_particles: int = 1000,
    num_samples: int = 10,
    site: str = "x",
    plate: str = "data",
    max_bytes: int = 256 * 2**20,
    **kwargs: Any,
) -> Imputed:
    r"""Impute missing elements by importance resampling: draws from :math:`p(x_m \mid x_o)`, and its mean.

    For each datum, K draws :math:`z_k \sim q(z \mid x_o)` get the weights
    :math:`w_k \propto p(x_o, z_k) / q(z_k \mid x_o)`. A draw takes one of them with probability :math:`w_k`, and then
    :math:`x_m \sim p(x_m \mid z_k)`. The mean is :math:`\sum_k w_k \, E[x_m \mid z_k]`. Both are exact as K grows,
    whatever the guide, and for every K where the guide is the exact posterior.

    Args:
        model: p(x, z), as in ``log_weights``, with one plate, that of the data. It leaves what is missing out of the
            density of ``site``, as ``VAE(..., missing=True).model`` does, and any story with ``observed_elements``.
        guide: q(z|x).
        x: data ``(N, *E)``, NaN where they are missing if no ``mask`` says so.
        *given: handed to both functions after ``x``.
        mask: True where ``x`` is observed, of the shape of ``x``; handed to both functions as ``mask=``. None: NaN
            means missing, and the functions know it by themselves.
        num_particles: K, draws of the latent variables per datum.
        num_samples: S, imputations of each datum.
        site: name of the site of ``x``.
        plate: name of the plate of the data, as in ``log_weights``.
        max_bytes: bound on the tensors that one pass of model and guide creates; at least one datum is computed.
        **kwargs: handed to both functions.

    Returns:
        ``Imputed(mean, draws, effective_particles)``. For class numbers, or any data whose mean says little, take
        ``draws``.

    Raises:
        TypeError: ``x`` is not a float tensor.
        ValueError: a count is below 1; the model has no observed ``site``; there are further plates, or latent
            variables that are summed out; log-weights that are NaN, of a model that does not leave out what is missing;
            a datum of density 0; as ``log_weights``.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.StandardNormalPrior(2),
        ...     pv.GaussianLikelihood(pv.MLP(2, 6, hidden_dims=())),
        ...     pv.DiagonalNormalPosterior(pv.MLP(2 * 6, 4, hidden_dims=())),
        ...     missing=True,
        ... )
        >>> x = torch.randn(5, 6)
        >>> x[0, 2] = float("nan")
        >>> mean, draws, _ = impute(vae.model, vae.guide, x, num_particles=100, num_samples=3)
        >>> mean.shape, draws.shape, bool(draws.isfinite().all())
        (torch.Size([5, 6]), torch.Size([3, 5, 6]), True)

    Source:
        Mattei and Frellsen (2019), MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets, section 4.
    """
    require_float("x", x)
    num_particles = require_positive_int("num_particles", num_particles)
    num_samples = require_positive_int("num_samples", num_samples)
    max_bytes = require_positive_int("max_bytes", max_bytes)
    if mask is not None:
        require_mask("mask", mask, x)
        kwargs = {**kwargs, "mask": mask}
    data = Data((x, *given), kwargs)
    nesting: int | None = None

    def weighted(chunk: list[Tensor], particles: int) -> tuple[Tensor, _Recorder, _Recorder]:
        nonlocal nesting
        args, named = data.arguments(chunk)
        in_model, in_guide = _Recorder(), _Recorder()
        found = weigh(in_model(model), in_guide(guide), args, named, particles, plate=plate, nesting=nesting)
        nesting = found.nesting
        _require_site(in_model, site, nesting)
        return found.log_weights, in_model, in_guide

    per_datum, per_particle = bytes_created(lambda chunk, particles: weighted(chunk, particles)[0], data)
    size = max(1, max_bytes // (per_datum + num_particles * per_particle))
    results = []
    for first in range(0, data.rows, size):
        last = min(first + size, data.rows)
        chunk = data.chunk(first, last)
        log_w, in_model, in_guide = weighted(chunk, num_particles)
        if log_w.isnan().any():
            row = first + int(log_w.isnan().any(0).nonzero()[0])
            raise ValueError(
                f"model: expected log-weights that are not NaN, got NaN at row {row}. "
                "Leave what is missing out of the density: build VAE(..., missing=True), or observe "
                "pyro_vae.observed_elements(p, mask) in a story of your own."
            )
        impossible = log_w.amax(0) == -math.inf
        if impossible.any():
            row = first + int(impossible.nonzero()[0])
            raise ValueError(
                f"model: expected data of positive density, got density 0 for row {row} under all {num_particles} "
                "draws. Is an observed element infinite, or far from what the model can explain?"
            )
        weights = log_w.softmax(0)
        chosen = torch.multinomial(weights.T, num_samples, replacement=True).T  # (S, B)
        values = {name: _chosen(value, chosen) for name, value in in_guide.values.items()}
        args, named = data.arguments(chunk)
        again = _Recorder()
        particles_plate = pyro.plate(PARTICLES, num_samples, dim=-1 - (nesting or 1))
        particles_plate(again(poutine.condition(model, data=values)))(*args, **named)
        draws = again.distributions[site].expand((num_samples, last - first)).sample()
        mean = _mean(in_model.distributions[site], weights)
        results.append((draws.mean(0) if mean is None else mean, draws, 1 / weights.square().sum(0)))
    means, draws_of_chunks, effective = zip(*results, strict=True)
    observed = ~x.isnan() if mask is None else mask & ~x.isnan()
    return Imputed(
        torch.where(observed, x, torch.cat(means)),
        torch.where(observed, x, torch.cat(draws_of_chunks, 1)),
        torch.cat(effective),
    )


class _Recorder(poutine.messenger.Messenger):
    """Keeps the distributions of the observed sites and the values of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.distributions: dict[str, Any] = {}
        self.values: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ == "_Subsample":
            return
        if msg["is_observed"]:
            self.distributions[msg["name"]] = msg["fn"]
        else:
            self.values[msg["name"]] = msg["value"]


def _require_site(recorder: _Recorder, site: str, nesting: int) -> None:
    if site not in recorder.distributions:
        observed = ", ".join(map(repr, recorder.distributions)) or "none"
        raise ValueError(f"site: expected the name of an observed site of the model, got {site!r}. It has: {observed}.")
    shape = recorder.distributions[site].batch_shape
    if nesting > 1 or len(shape) > 2:
        raise ValueError(
            f"site {site!r}: expected batch shape (K, B), particles and data alone, got {tuple(shape)} with {nesting} "
            "plates. Make further plates dimensions of the event (.to_event), and draw in the guide what is summed out."
        )


def _chosen(value: Tensor, chosen: Tensor) -> Tensor:
    """Return of a site's values ``(K, B, *event)`` those of the chosen particles, ``(S, B, *event)``."""
    return value.expand(value.shape[0], chosen.shape[1], *value.shape[2:])[chosen, torch.arange(chosen.shape[1])]


def _mean(p: Any, weights: Tensor) -> Tensor | None:
    """Return E[x | x_observed], ``(B, *E)``; None where p(x|z) has no mean."""
    try:
        mean = p.expand(weights.shape).mean
    except NotImplementedError:
        return None
    weighted = (mean * weights.reshape(*weights.shape, *(1,) * len(p.event_shape))).sum(0)
    return weighted if bool(weighted.isfinite().all()) else None
