"""The density of a guide's draws, with a gradient along the path of the draws only."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .score import score_is_noise

__all__ = ["GradientFactor", "latent_sites", "path_log_probs"]


def latent_sites(trace: Any) -> dict[str, dict[str, Any]]:
    """The sample sites of a guide's trace that were drawn, by name."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def path_log_probs(
    guide: Callable[..., Any],
    trace: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    r"""Log-densities of a guide's draws whose gradient goes along the path only.

    The gradient of :math:`\log q_\phi(z)` at a reparameterised draw :math:`z = z_\phi(\epsilon)` has two parts, along
    the path and the score,

    .. math:: \nabla_\phi \log q_\phi(z_\phi(\epsilon)) =
        \nabla_z \log q_\phi(z) \, \nabla_\phi z_\phi(\epsilon) + (\nabla_\phi \log q_\phi)(z)

    and the second, zero on average, is left out. Where the guide has several latent variables, z is all of them, and
    q the density of all: the guide is run a second time, at the same draws, with its parameters detached, so that what
    a variable's distribution takes from earlier variables keeps its gradient, and what it takes from parameters does
    not. Where it has one, no second run is needed: the score is that of its distribution at a detached draw.

    Args:
        guide: what was run.
        trace: of that run, with the sites of subsamples.
        args: its arguments.
        kwargs: its keyword arguments.
        values: draws to use in place of the trace's, equal to them.

    Returns:
        The unscaled log-density of each latent site whose score is known to be zero on average (see
        ``pyro_vae.infer.score``), by name.

    Raises:
        ValueError: the second run gives other densities: the guide draws what is no sample site, such as dropout.

    Source:
        G. Roeder, Y. Wu, D. Duvenaud (2017), Sticking the Landing: Simple, Lower-Variance Gradient Estimators for
        Variational Inference, equation 8.
    """
    latent = latent_sites(trace)
    noisy = [name for name, site in latent.items() if score_is_noise(site["fn"], site["value"])]
    # New tensors, even where they are the draws: flows keep what they know of their draws, and its gradients, too.
    at = {name: site["value"].view_as(site["value"]) for name, site in latent.items()} | dict(values or {})
    if not noisy:
        return {}
    # A guide that is a handler itself cannot be run again; each variable's score is then left out, given the others.
    if len(latent) == 1 or isinstance(poutine.unwrap(guide), Messenger):
        return {name: _without_score(latent[name], at[name]) for name in noisy}
    replayed = trace.copy()
    for name, value in at.items():
        replayed.nodes[name] = {**latent[name], "value": value}
    with _parameters_detached(trace), poutine.block():
        again = poutine.trace(poutine.replay(guide, trace=replayed)).get_trace(*args, **kwargs)
        again.compute_log_prob()
    found = {name: again.nodes[name]["unscaled_log_prob"] for name in noisy}
    if get_proxy_mode() is None:
        for name, log_q in found.items():
            _require_equal(name, log_q, _log_prob(latent[name], latent[name]["value"]))
    return found


class GradientFactor:
    """Multiplies the gradient that reaches the draws of a guide from elsewhere by a tensor that comes later.

    The factor has the dimensions of the plates, those of the particles leftmost.
    """

    def __init__(self) -> None:
        self.factor: Tensor | None = None

    def values(self, trace: Any) -> dict[str, Tensor]:
        """The draws of a trace, equal and with another gradient, by site."""
        return {name: self._hooked(site) for name, site in latent_sites(trace).items()}

    def _hooked(self, site: dict[str, Any]) -> Tensor:
        value: Tensor = site["value"]
        value = value.view_as(value)
        event_dim = site["fn"].event_dim

        def multiplied(gradient: Tensor) -> Tensor:
            factor = self.factor
            return gradient if factor is None else gradient * factor.reshape(factor.shape + (1,) * event_dim)

        if value.requires_grad:
            value.register_hook(multiplied)
        return value


def _log_prob(site: dict[str, Any], value: Tensor) -> Tensor:
    log_prob: Tensor = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    return log_prob


def _without_score(site: dict[str, Any], value: Tensor) -> Tensor:
    score = _log_prob(site, site["value"].detach())
    return _log_prob(site, value) - (score - score.detach())


@contextlib.contextmanager
def _parameters_detached(trace: Any) -> Iterator[None]:
    """Let no parameter of Pyro's store, nor of the run that was traced, record a gradient."""
    named = [site["value"] for site in trace.nodes.values() if site["type"] == "param"]
    leaves = [*pyro.get_param_store()._params.values(), *(getattr(p, "unconstrained", lambda p=p: p)() for p in named)]
    trained = [leaf for leaf in leaves if leaf is not None and leaf.is_leaf and leaf.requires_grad]
    for leaf in trained:
        leaf.requires_grad_(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*was not registered in the param store")  # it is: in the first run
            yield
    finally:
        for leaf in trained:
            leaf.requires_grad_(True)


def _require_equal(name: str, log_q: Tensor, first: Tensor) -> None:
    with torch.no_grad():
        if torch.allclose(log_q, first, rtol=1e-3, atol=1e-3, equal_nan=True):
            return
    raise ValueError(
        f"guide: expected the same density of {name!r} in a second run at the same draws, got another. The path "
        "gradient of a guide with several latent variables needs it. Leave out what draws without pyro.sample "
        "(dropout), or use the standard gradient: Trace_ELBO, or TraceIWAE_ELBO(gradient='standard')."
    )
