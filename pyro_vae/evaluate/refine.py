"""Semi-amortized inference: variational parameters of each datum, optimized from the encoder's answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .._checks import require_positive_int, require_positive_number
from ..infer import factorization
from ..infer.importance import weigh
from ..infer.path_gradient import latent_sites
from .data import Data
from .known_rows import KnownRows

__all__ = ["Refined", "refine"]

_DRAWS_OF_THE_GAIN = 100


class Refined(NamedTuple):
    """A guide with variational parameters for each datum, and what they are worth."""

    guide: Callable[..., Any]  # a Pyro function of the same arguments
    gain: Tensor  # (N,): the ELBO of each datum with this guide less that with the encoder, in nats


def refine(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    steps: int = 100,
    learning_rate: float = 0.2,
    num_particles: int = 8,
    batch_size: int = 500,
    plate: str = "data",
    **kwargs: Any,
) -> Refined:
    r"""Refine the encoder's answer for each datum by gradient steps on a normal distribution of its own.

    .. math:: q_n(z) = \mathcal{N}(z \mid \mu_n, \operatorname{diag} \sigma_n^2), \qquad
        \max_{\mu_n, \sigma_n} \; \mathbb{E}_{q_n} [\log p(x_n, z) - \log q_n(z)]

    starting at mean and standard deviation of the encoder's q(z|x_n). What is gained is the part of the gap between
    ELBO and log p(x) that is due to amortization: an encoder that has to serve all data at once (Cremer et al. 2018).
    Where the encoder is no diagonal normal (a flow, a full covariance, layers that depend on each other), its answer
    can be better than any q_n, and the gain negative.

    The steps are Adam's on mu, in units of sigma, and on log sigma, with a learning rate that falls to zero along half
    a cosine. Their gradient leaves out the score, so that an exact posterior stays what it is. Neither the parameters
    of the model and the guide nor their gradients change. As in ``bounds``, a module's ``eval()`` is up to the caller.

    The guide that is returned knows its data by their values: call it with them in any order and in batches of any
    size, so that ``pyro_vae.bounds(model, refined.guide, x)`` and ``Predictive`` work. After the model is trained
    further, refine again.

    Args:
        model: p(x, z), as in ``log_weights``.
        guide: q(z|x), the encoder.
        *args: data, handed to both functions: tensors ``(N, ...)``, or tuples, lists and dictionaries of them.
        steps: gradient steps.
        learning_rate: of the first step: mu moves by up to so many sigma, and log sigma by up to so much. A bad
            encoder needs more or larger steps.
        num_particles: draws of the latent variables per datum and step.
        batch_size: data that are refined at a time.
        plate: name of the plate of the data, as in ``log_weights``.
        **kwargs: handed to both functions; ``mask`` is cut with the data. Scales (``beta``, ``size``) have no effect.

    Returns:
        ``Refined(guide, gain)``. The gain is estimated from 100 draws, the same random numbers for both guides.

    Raises:
        TypeError, ValueError: as ``bounds``; a latent variable that does not take all real values; an option out of
            range; (from the guide) data that it was not refined for.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.StandardNormalPrior(2),
        ...     pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=())),
        ...     pv.DiagonalNormalPosterior(pv.MLP(6, 4, hidden_dims=())),
        ... )
        >>> x = torch.ones(5, 6)
        >>> guide, gain = pv.refine(vae.model, vae.guide, x, steps=20)
        >>> gain.shape, pv.bounds(vae.model, guide, x, num_particles=10).iwae.shape
        (torch.Size([5]), torch.Size([5]))

    Source:
        Kim et al. (2018), Semi-Amortized Variational Autoencoders, section 3; Cremer, Li and Duvenaud (2018), Inference
        Suboptimality in Variational Autoencoders, section 3.
    """
    options = {"steps": steps, "num_particles": num_particles, "batch_size": batch_size}
    for name, value in options.items():
        options[name] = require_positive_int(name, value)
    learning_rate = require_positive_number("learning_rate", learning_rate)
    data = Data(args, kwargs)
    gains, parts = [], []
    for first in range(0, data.rows, options["batch_size"]):
        chunk_args, chunk_kwargs = data.arguments(data.chunk(first, first + options["batch_size"]))
        call = _Call(model, guide, chunk_args, chunk_kwargs, plate)
        seed = int(torch.randint(2**31, ()))
        before = call.elbo({}, seed)
        normals = call.optimized(call.start(), options["steps"], learning_rate, options["num_particles"])
        after = call.elbo({name: q.distribution() for name, q in normals.items()}, seed)
        gains.append(after - before)
        parts.append(normals)
    normals = {name: Normals.joined([part[name] for part in parts]) for name in parts[0]}
    known = KnownRows(data.tensors)

    def refined(*args: Any, **kwargs: Any) -> Any:
        rows, are_known = known.find(Data(args, kwargs).tensors)
        if get_proxy_mode() is None and not are_known.all():
            raise ValueError(
                f"guide: expected data that it was refined for, got {int((~are_known).sum())} of {len(are_known)} rows "
                "of other values. Refine it for these: pyro_vae.refine(model, guide, x)."
            )
        with _Replace({name: q.rows(rows, are_known).distribution() for name, q in normals.items()}):
            return guide(*args, **kwargs)

    return Refined(refined, torch.cat(gains))


class Normals(NamedTuple):
    """Normal distributions of the data, with independent elements."""

    loc: Tensor  # plates and event, that of the data at dim
    log_scale: Tensor
    dim: int  # negative, from the right of loc
    event_dim: int

    def distribution(self, *, path: bool = False) -> dist.Independent:
        """Return the distribution; with ``path``, its log-density has a gradient along the path of the draws only."""
        family = PathNormal if path else dist.Normal
        return family(self.loc, self.log_scale.exp()).to_event(self.event_dim)

    def rows(self, rows: Tensor, are_known: Tensor) -> Normals:
        """Return those of these rows of the data; NaN where they are not known."""
        shape = (len(are_known),) + (1,) * (-self.dim - 1)
        loc = self.loc.index_select(self.dim, rows).masked_fill(~are_known.reshape(shape), math.nan)
        return self._replace(loc=loc, log_scale=self.log_scale.index_select(self.dim, rows))

    @staticmethod
    def joined(parts: list[Normals]) -> Normals:
        """Return those of all data."""
        loc, log_scale = (torch.cat([part[i] for part in parts], parts[0].dim) for i in (0, 1))  # type: ignore[misc]
        return parts[0]._replace(loc=loc, log_scale=log_scale)


class PathNormal(dist.Normal):
    """A normal distribution whose log-density has no gradient but through the value: the score is left out."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density."""
        log_prob: Tensor = dist.Normal(self.loc.detach(), self.scale.detach()).log_prob(value)
        return log_prob


class _Call(NamedTuple):
    """A model and a guide on a part of the data."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    plate: str

    @torch.no_grad()
    def elbo(self, distributions: Mapping[str, Any], seed: int) -> Tensor:
        """Return the ELBO of each datum ``(B,)``, with these distributions in the guide."""
        guide = _Replace(distributions)(self.guide)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found = weigh(self.model, guide, self.args, self.kwargs, _DRAWS_OF_THE_GAIN, plate=self.plate)
        return found.log_weights.mean(0)

    @torch.no_grad()
    def start(self) -> dict[str, Normals]:
        """Return normal distributions with the means and scales of the guide, each variable given means of others."""
        trace = poutine.trace(_AtMeans()(self.guide)).get_trace(*self.args, **self.kwargs)
        data = factorization.find_data_plate(list(factorization.sites_with_density(trace).values()), self.plate)
        found = {}
        for name, site in latent_sites(trace).items():
            fn = site["fn"]
            if data is None or not _is_real(fn.support) or not fn.has_rsample:
                raise ValueError(
                    f"site {name!r}: expected a latent variable with real values, in the plate of the data, which a "
                    f"normal distribution can refine, got {type(fn).__name__}. Sum out what is discrete, in the model: "
                    "infer={'enumerate': 'parallel'}."
                )
            mean, scale = _moments(fn)
            dim = data.dim - fn.event_dim
            found[name] = Normals(mean.clone(), scale.clamp(min=1e-6).log(), dim, fn.event_dim)
        return found

    @torch.no_grad()
    def optimized(
        self, start: dict[str, Normals], steps: int, learning_rate: float, num_particles: int
    ) -> dict[str, Normals]:
        """Return the distributions after gradient steps on the ELBO of each datum."""
        parameters = [tensor.requires_grad_() for q in start.values() for tensor in (q.loc, q.log_scale)]
        changes = [torch.zeros_like(tensor) for tensor in parameters]  # of mu in units of sigma, of log sigma
        # eps, in nats per sigma: where the gradient is small, Adam takes natural-gradient steps, none at an optimum.
        optimizer = torch.optim.Adam(changes, learning_rate, betas=(0.9, 0.95), eps=0.3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        nesting: int | None = None
        for _ in range(steps):
            with torch.enable_grad():
                guide = _Replace({name: q.distribution(path=True) for name, q in start.items()})(self.guide)
                found = weigh(
                    self.model, guide, self.args, self.kwargs, num_particles, plate=self.plate, nesting=nesting
                )
                gradients = torch.autograd.grad(-found.log_weights.mean(0).sum(), parameters)
            nesting = found.nesting
            scales = [scale for q in start.values() for scale in (q.log_scale.exp(), 1.0)]
            for change, gradient, scale in zip(changes, gradients, scales, strict=True):
                change.grad = gradient * scale
            optimizer.step()
            schedule.step()
            for parameter, change, scale in zip(parameters, changes, scales, strict=True):
                parameter.add_(change * scale)
                change.zero_()
        return {name: q._replace(loc=q.loc.detach(), log_scale=q.log_scale.detach()) for name, q in start.items()}


class _Replace(Messenger):
    """Draws latent variables from other distributions than the guide's."""

    def __init__(self, distributions: Mapping[str, Any]) -> None:
        super().__init__()
        self.distributions = distributions

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.distributions:
            msg["fn"] = self.distributions[msg["name"]]


class _AtMeans(Messenger):
    """Puts every latent variable at its mean."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and type(msg["fn"]).__name__ != "_Subsample":
            msg["value"] = _moments(msg["fn"])[0]


def _moments(fn: Any) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of a distribution, or those of 100 draws where it does not have them."""
    try:
        return fn.mean, fn.stddev
    except NotImplementedError:
        draws = fn.sample((100,))
        return draws.mean(0), draws.std(0)


def _is_real(support: Any) -> bool:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is constraints.real
