"""Semi-amortized inference: variational parameters of each datum, optimized from the encoder's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
from .moved import Move

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
    r"""Refine the encoder's answer for each datum by gradient steps on variational parameters of its own.

    .. math:: q_n(z) = \mathcal{N}(z \mid \mu_n, \operatorname{diag} \sigma_n^2), \qquad
        \max_{\mu_n, \sigma_n} \; \mathbb{E}_{q_n} [\log p(x_n, z) - \log q_n(z)]

    starting at the encoder's q(z|x_n). What is gained is the part of the gap between ELBO and log p(x) that is due to
    amortization: one encoder that has to serve all data (Cremer et al. 2018). Any other q is shifted and scaled
    element by element, and keeps its form: a full covariance its correlations, a flow its shape, a layer of a hierarchy
    its mean and scale as functions of the layer before.

    The steps are Adam's on shifts, in standard deviations, and on logarithms of scales, with a learning rate that falls
    to zero along half a cosine. Their gradient leaves out the score, so that an exact posterior stays what it is.
    Neither the parameters of the model and the guide nor their gradients change. As in ``bounds``, a module's
    ``eval()`` is up to the caller.

    The guide that is returned knows its data by their values: call it with them in any order and in batches of any
    size, so that ``pyro_vae.bounds(model, refined.guide, x)`` and ``Predictive`` work. After the model is trained
    further, refine again.

    Args:
        model: p(x, z), as in ``log_weights``.
        guide: q(z|x), the encoder.
        *args: data, handed to both functions: tensors ``(N, ...)``, or tuples, lists and dictionaries of them.
        steps: gradient steps.
        learning_rate: of the first step: means move by up to so many standard deviations, and the logarithms of
            standard deviations by up to so much. A bad encoder needs more or larger steps.
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
        moves = call.optimized(call.start(), options["steps"], learning_rate, options["num_particles"])
        gains.append(call.elbo({name: move.of for name, move in moves.items()}, seed) - before)
        parts.append(moves)
    joined = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    known = KnownRows(data.tensors)

    def refined(*args: Any, **kwargs: Any) -> Any:
        rows, are_known = known.find(Data(args, kwargs).tensors)
        if get_proxy_mode() is None and not are_known.all():
            raise ValueError(
                f"guide: expected data that it was refined for, got {int((~are_known).sum())} of {len(are_known)} rows "
                "of other values. Refine it for these: pyro_vae.refine(model, guide, x)."
            )
        with _Replace({name: move.rows(rows, are_known).of for name, move in joined.items()}):
            return guide(*args, **kwargs)

    return Refined(refined, torch.cat(gains))


class _Call(NamedTuple):
    """A model and a guide on a part of the data."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    plate: str

    @torch.no_grad()
    def elbo(self, replace: Mapping[str, Callable[[Any], Any]], seed: int) -> Tensor:
        """Return the ELBO of each datum ``(B,)``, with distributions of the guide replaced."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found = weigh(
                self.model, _Replace(replace)(self.guide), self.args, self.kwargs, _DRAWS_OF_THE_GAIN, plate=self.plate
            )
        return found.log_weights.mean(0)

    @torch.no_grad()
    def start(self) -> dict[str, Move]:
        """Return moves of the guide's latent variables that change nothing."""
        trace = poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        data = factorization.find_data_plate(list(factorization.sites_with_density(trace).values()), self.plate)
        found = {}
        for name, site in latent_sites(trace).items():
            fn = site["fn"]
            if data is None or not _is_real(fn.support) or not fn.has_rsample:
                raise ValueError(
                    f"site {name!r}: expected a latent variable with real values, in the plate of the data, which can "
                    f"be shifted and scaled, got {type(fn).__name__}. A guide of continuous variables alone can be "
                    "refined. For MixtureVAE, refine VAE(m.prior, m.likelihood, m.posterior), whose bound is the same; "
                    "in a model of your own sum out what is discrete: infer={'enumerate': 'parallel'}."
                )
            zeros = torch.zeros_like(site["value"])
            found[name] = Move(zeros, zeros.clone(), data.dim - fn.event_dim)
        return found

    @torch.no_grad()
    def optimized(
        self, moves: dict[str, Move], steps: int, learning_rate: float, num_particles: int
    ) -> dict[str, Move]:
        """Return the moves after gradient steps on the ELBO of each datum."""
        parameters = [tensor.requires_grad_() for move in moves.values() for tensor in (move.shift, move.log_scale)]
        changes = [torch.zeros_like(tensor) for tensor in parameters]  # of shifts in present standard deviations
        # eps, in nats per sigma: where the gradient is small, Adam takes natural-gradient steps, none at an optimum.
        optimizer = torch.optim.Adam(changes, learning_rate, betas=(0.9, 0.95), eps=0.3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        guide = _Replace({name: move.along_the_path for name, move in moves.items()})(self.guide)
        nesting: int | None = None
        for _ in range(steps):
            with torch.enable_grad():
                found = weigh(
                    self.model, guide, self.args, self.kwargs, num_particles, plate=self.plate, nesting=nesting
                )
                gradients = torch.autograd.grad(-found.log_weights.mean(0).sum(), parameters)
            nesting = found.nesting
            units = [unit for move in moves.values() for unit in (move.log_scale.exp(), 1.0)]
            for change, gradient, unit in zip(changes, gradients, units, strict=True):
                change.grad = gradient * unit
            optimizer.step()
            schedule.step()
            for parameter, change, unit in zip(parameters, changes, units, strict=True):
                parameter.add_(change * unit)
                change.zero_()
        return {
            name: move._replace(shift=move.shift.detach(), log_scale=move.log_scale.detach())
            for name, move in moves.items()
        }


class _Replace(Messenger):
    """Draws latent variables from other distributions than the guide's, which are functions of these."""

    def __init__(self, replace: Mapping[str, Callable[[Any], Any]]) -> None:
        super().__init__()
        self.replace = replace

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.replace:
            msg["fn"] = self.replace[msg["name"]](msg["fn"])


def _joined(moves: list[Move]) -> Move:
    """Return the moves of all data."""
    dim = moves[0].dim
    shift, log_scale = torch.cat([m.shift for m in moves], dim), torch.cat([m.log_scale for m in moves], dim)
    return Move(shift, log_scale, dim)


def _is_real(support: Any) -> bool:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector
