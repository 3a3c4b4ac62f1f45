"""Reweighted wake-sleep for mini-batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..._checks import require_number, require_positive_int
from ..importance import weigh
from ..path_gradient import latent_sites
from .differentiable import DifferentiableELBO

__all__ = ["TraceWakeSleep"]


class TraceWakeSleep(DifferentiableELBO):
    r"""Reweighted wake-sleep: model and guide each have an objective of their own, and no gradient passes a draw.

    With K draws :math:`z_{kb} \sim q(z \mid x_b)` and normalised weights :math:`\tilde w_{kb} = w_{kb} / \sum_j
    w_{jb}`, a step ascends

    .. math:: \frac{N}{B} \sum_b \sum_k \tilde w_{kb} \left[ \nabla_\theta \log p_\theta(x_b, z_{kb}) +
        c \, \nabla_\phi \log q_\phi(z_{kb} \mid x_b) \right] +
        (1 - c) \frac{N}{B} \sum_b \nabla_\phi \log q_\phi(z'_b \mid x'_b), \qquad x'_b, z'_b \sim p_\theta

    the wake phase of model and guide, and the sleep phase of the guide. The guide is fitted to :math:`KL(p \| q)`, so
    that it covers the posterior. Latent variables need no reparameterised sampler: discrete ones train without a score
    function. The gradient is biased, as the weights are normalised, by a term that falls as 1/K; for the guide's sleep
    phase it is unbiased. The value of the loss is minus the importance-weighted bound; it is not what the guide
    descends.

    What is asked of model and guide, but for reparameterised samplers, is as in :class:`TraceIWAE_ELBO`. In the sleep
    phase the model draws what it would observe, and each argument that it observes is replaced by what was drawn.

    Args:
        num_particles: K; above 1, or all weights are 1.
        wake: c, between 0 (the guide learns in the sleep phase alone) and 1 (in the wake phase alone).
        plate: name of the plate of the data. Where there is one plate alone, it is taken, whatever its name.

    Raises:
        ValueError: an argument out of range; on a step as :class:`TraceIWAE_ELBO`; in the sleep phase, if no argument
            is an observed value.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> pyro.clear_param_store()
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         k = pyro.sample("k", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(4 * k - 2, 1.0), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("k", dist.Bernoulli(logits=slope * x))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), TraceWakeSleep(num_particles=10))
        >>> losses = [svi.step(torch.tensor([-2.0, -1.0, 1.0, 2.0])) for _ in range(100)]
        >>> bool(pyro.param("slope") > 1)  # the posterior's is 4
        True

    Source:
        J. Bornschein, Y. Bengio (2015), Reweighted Wake-Sleep, equations 5 to 7; T. A. Le, A. Kosiorek, N. Siddharth,
        Y. W. Teh, F. Wood (2019), Revisiting Reweighted Wake-Sleep, section 3.
    """

    def __init__(self, num_particles: int = 5, wake: float = 1.0, *, plate: str | None = "data") -> None:
        if require_positive_int("num_particles", num_particles) < 2:
            raise ValueError(f"num_particles: expected an integer >= 2 (one weight alone is 1), got {num_particles}.")
        wake = require_number("wake", wake, 0.0, 1.0)
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
        self.wake = wake
        self.plate = plate

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the importance-weighted bound in nats, summed over the data (0-dim), with the gradient above."""
        with _Detached():
            found = weigh(model, guide, args, kwargs, self.num_particles, plate=self.plate, tempered=True)
        bound = torch.logsumexp(found.log_weights, dim=0) - math.log(self.num_particles)
        value = -found.scale * bound.sum().detach()
        if not torch.is_grad_enabled():
            return value
        normalized = torch.softmax(found.log_weights.detach(), dim=0)
        log_p = found.log_weights + found.log_q
        ascended = found.scale * (normalized * (log_p + self.wake * found.log_q)).sum()
        if self.wake < 1:
            ascended = ascended + (1 - self.wake) * self._asleep(model, guide, args, kwargs)
        return value - (ascended - ascended.detach())

    def _asleep(self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The guide's log-density of latent variables that the model drew, given data that it drew with them."""
        with torch.no_grad():
            dreamt = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
        sites = [site for site in dreamt.nodes.values() if site["type"] == "sample"]
        drawn = [(site["infer"]["obs"], site["value"]) for site in sites if "obs" in site["infer"]]

        def replaced(value: Any) -> Any:
            return next((new for observed, new in drawn if observed is value), value)

        new_args = tuple(map(replaced, args))
        new_kwargs = {name: replaced(value) for name, value in kwargs.items()}
        pairs = zip((*new_args, *new_kwargs.values()), (*args, *kwargs.values()), strict=True)
        if all(new is old for new, old in pairs):
            raise ValueError(
                "model: expected an argument that it observes as it is (obs=x), for the sleep phase to replace by what "
                "the model draws. Pass the data as such an argument, or leave the sleep phase out: wake=1."
            )
        for site in sites:
            if site_is_subsample(site):  # that of the data which were replaced
                dreamt.remove_node(site["name"])
        trace = poutine.trace(poutine.replay(guide, trace=dreamt)).get_trace(*new_args, **new_kwargs)
        for name in latent_sites(trace):
            if name not in dreamt:
                raise ValueError(
                    f"site {name!r} of the guide is not in the model, and the sleep phase needs the model's draw of "
                    "every latent variable. Leave the sleep phase out: wake=1."
                )
        log_q: Tensor = torch.as_tensor(trace.log_prob_sum())
        return log_q


class _Detached(Messenger):
    """Let no gradient pass a draw. Around the handler that records a trace, whose turn comes after."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["value"], Tensor) and not msg["is_observed"]:
            msg["value"] = msg["value"].detach()
