"""Log importance weights per particle and per datum, read off the traces of a model and a guide."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide import AutoGuide
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from . import factorization
from .factorization import PARTICLES, DataPlate, Site
from .path_gradient import GradientFactor, latent_sites, path_log_probs

__all__ = ["trace_log_weights"]


def trace_log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_particles: int = 1,
    *,
    plate: str | None = "data",
) -> Tensor:
    r"""Log importance weights of every particle and datum, in nats; differentiable.

    .. math:: \log w_{kb} = \log p(x_b, z_{kb}) - \log q(z_{kb} \mid x_b), \qquad z_{kb} \sim q(z \mid x_b)

    where :math:`k` counts the particles and :math:`b` the data. The particles are a plate left of all others around
    both functions. Further plates (time, pixels, views) are summed into their datum. A discrete latent variable that
    the model marks with ``infer={"enumerate": "parallel"}`` and the guide leaves out is summed out exactly, so that its
    value belongs to :math:`x_b`'s likelihood. Densities are unscaled: neither ``poutine.scale`` (a :math:`\beta`) nor
    the N/B of a subsampled plate changes a weight; ``poutine.mask`` does.

    What is observed outside the plate of the data, a conditioned global variable for instance, is given: the weights
    are those of :math:`x_b` given its value, and its own log-density is left out.

    Args:
        model: callable with Pyro primitives, :math:`p(x, z)`.
        guide: callable with Pyro primitives, :math:`q(z \mid x)`.
        args: positional arguments of both functions.
        kwargs: keyword arguments of both functions.
        num_particles: K, how many times each latent variable is drawn.
        plate: name of the plate of the data. Where there is one plate alone, it is taken, whatever its name. None: the
            arguments are one datum, and all plates belong to it.

    Returns:
        ``(K, B)``; ``(K, 1)`` if no site sits in a plate, or ``plate`` is None.

    Raises:
        ValueError: if the weights are not per datum: a global latent variable, or a global factor that depends on a
            latent variable; several plates, none of them called ``plate``; a subsampled plate within a datum; a latent
            variable of the model that the guide does not sample and the model does not enumerate; a guide's point mass
            on a continuous latent variable, which has no density.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> log_w = trace_log_weights(model, guide, (torch.tensor([0.0, 1.0]),), num_particles=3)
        >>> log_w.shape
        torch.Size([3, 2])
        >>> bool(torch.allclose(log_w, dist.Normal(0.0, 2**0.5).log_prob(torch.tensor([0.0, 1.0]))))  # exact posterior
        True

    Source:
        Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance Weighted Autoencoders, equation 7; for the enumeration
        F. Obermeyer et al. (2019), Tensor Variable Elimination for Plated Factor Graphs.
    """
    return weigh(model, guide, args, kwargs, num_particles, plate=plate).log_weights


class Weights(NamedTuple):
    """What :func:`weigh` returns."""

    log_weights: Tensor  # (K, B)
    scale: float  # N/B of the plate of the data
    nesting: int  # dimensions of the plates
    shape: tuple[int, ...]  # of the plates, K first: what the log-weights were flattened from
    log_q: Tensor  # (K, B)
    tempering: Any  # what poutine.scale multiplies log q by, that of the first latent variable


def weigh(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_particles: int = 1,
    *,
    plate: str | None = "data",
    tempered: bool = False,
    reparameterized: bool = False,
    path: bool = False,
    factor: GradientFactor | None = None,
    nesting: int | None = None,
) -> Weights:
    """The log-weights ``(K, B)`` and what an objective needs beside them.

    Args:
        model: as in :func:`trace_log_weights`, and so the next five.
        guide: see ``model``.
        args: see ``model``.
        kwargs: see ``model``.
        num_particles: see ``model``.
        plate: see ``model``.
        tempered: keep what ``poutine.scale`` multiplies (a beta that warms up), and sites that the model marks with
            ``infer={"is_regularizer": True}``; the plate's N/B stays out all the same.
        reparameterized: refuse latent variables that pass no gradient to the guide.
        path: leave the score out of the gradient of log q (see :func:`pyro_vae.infer.path_gradient.path_log_probs`).
        factor: multiplies the gradient that the draws get from both densities; every score must be left out then.
        nesting: that of an earlier call with the same model and guide, which need not be checked again then.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles: expected an integer >= 1, got {num_particles}.")
    kwargs = {} if kwargs is None else kwargs
    model_trace, guide_trace, found, values = _traces(model, guide, args, kwargs, num_particles, factor, nesting)
    model_sites = factorization.sites_with_density(model_trace)
    guide_sites = factorization.sites_with_density(guide_trace)
    if not tempered:
        model_sites = {name: site for name, site in model_sites.items() if not site["infer"].get("is_regularizer")}
    factorization.check_match(model_sites, guide_sites)
    guide_sites = factorization.not_given_to_both(model_sites, guide_sites)
    data = factorization.find_data_plate([*model_sites.values(), *guide_sites.values()], plate)
    factorization.check_latents(model_sites, guide_sites, data)
    if reparameterized:
        factorization.check_reparameterized(guide_sites)
    if nesting is None and get_proxy_mode() is None:  # a call that is captured is no first call
        factorization.check_once(model, guide, args, kwargs, model_sites, guide_sites, data)

    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    tempering: Any = 1.0
    if path:
        in_particles = pyro.plate(PARTICLES, num_particles, dim=-1 - found)(guide)
        along = path_log_probs(in_particles, guide_trace, args, kwargs, values)
        if factor is not None:
            tempering = _tempering(guide_trace, along.keys(), data, tempered)
        for name, log_q in along.items():
            guide_sites[name]["unscaled_log_prob"] = log_q
    of_the_data = factorization.of_the_data(model_sites, data)
    for site in (*of_the_data.values(), *guide_sites.values()):
        factorization.check_shape(site, found + 1)

    of_guide = [_log_density(site, data, tempered) for site in guide_sites.values()]
    terms = [-term for term in of_guide]
    # What is summed out, and all that depends on it, is one term.
    summed, others = _split(of_the_data, found)
    terms += [_log_density(site, data, tempered) for site in others.values()]
    if summed:
        terms.append(_sum_out(model_trace, summed, data, tempered))
    shape = [1] * (found + 1)
    shape[0] = num_particles
    if data is not None:
        shape[data.dim] = data.size
    log_weights, total_log_q = (
        torch.as_tensor(sum(parts)).expand(shape).reshape(num_particles, -1) for parts in (terms, of_guide)
    )
    scale = 1.0 if data is None else data.scale
    return Weights(log_weights, scale, found, tuple(shape), total_log_q, tempering)


def _traces(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    num_particles: int,
    factor: GradientFactor | None,
    nesting: int | None,
) -> tuple[Any, Any, int, dict[str, Tensor]]:
    """Traces with the particles in a plate left of all others, the number of the others' dimensions, draws to score."""
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        guide(*args, **kwargs)  # its parameters have the shapes of one particle

    def run(nesting: int) -> tuple[Any, Any, dict[str, Tensor]]:
        particles = pyro.plate(PARTICLES, num_particles, dim=-1 - nesting)
        guide_trace = poutine.trace(particles(guide)).get_trace(*args, **kwargs)
        values = {} if factor is None else factor.values(guide_trace)
        drawn = guide_trace.copy()
        for name, value in values.items():
            drawn.nodes[name] = {**drawn.nodes[name], "value": value}
        enumerated = poutine.enum(particles(model), first_available_dim=-2 - nesting)
        model_trace = poutine.trace(poutine.replay(enumerated, trace=drawn)).get_trace(*args, **kwargs)
        return model_trace, guide_trace, values

    first = nesting or 1  # most stories have one plate
    try:
        model_trace, guide_trace, values = run(first)
        if factorization.nesting_of([model_trace, guide_trace]) <= first:
            return model_trace, guide_trace, first, values
    except ValueError as error:
        if "collide at dim" not in str(error):  # of the particles with another plate
            raise
    with torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    deepest = factorization.nesting_of([model_trace, guide_trace])
    model_trace, guide_trace, values = run(deepest)
    return model_trace, guide_trace, deepest, values


def _tempering(guide_trace: Any, without_score: Collection[str], data: DataPlate | None, tempered: bool) -> Any:
    """What log q is multiplied by, the same for all latent variables; and refuse scores that must stay in."""
    found: list[Any] = []
    for name, site in latent_sites(guide_trace).items():
        if name not in without_score:
            raise ValueError(
                f"site {name!r}: expected a distribution whose score is known to be zero on average, got "
                f"{type(site['fn']).__name__}. The doubly reparameterised gradient needs it of all latent variables: "
                "use gradient='standard' or 'stl'."
            )
        scale = _scale(site, data, tempered)
        found.append(scale if not isinstance(site["mask"], Tensor) else scale * site["mask"])
    if get_proxy_mode() is None:
        for other in found[1:]:
            if not torch.equal(*torch.broadcast_tensors(torch.as_tensor(other), torch.as_tensor(found[0]))):
                raise ValueError(
                    "poutine.scale or poutine.mask: expected the same around all latent variables of the guide, as the "
                    "doubly reparameterised gradient needs it. Use gradient='standard'."
                )
    return found[0] if found else 1.0


def _log_density(site: Site, data: DataPlate | None, tempered: bool) -> Tensor:
    """A site's log-density, unscaled, summed over its plates within a datum."""
    density = scale_and_mask(site["unscaled_log_prob"], _scale(site, data, tempered), site["mask"])
    within = [frame.dim for frame in factorization.plates_of(site) if data is None or frame.name != data.name]
    return density.sum(within, keepdim=True) if within else density


def _scale(site: Site, data: DataPlate | None, tempered: bool) -> Any:
    """What the log-density is multiplied by: 1, or that of ``poutine.scale``."""
    plate_scale = 1.0 if data is None else data.scale
    if not tempered or (isinstance(site["scale"], float) and site["scale"] == plate_scale):
        return 1.0
    return site["scale"] / plate_scale


def _split(sites: dict[str, Site], nesting: int) -> tuple[dict[str, Site], dict[str, Site]]:
    """The sites that are summed out or depend on one that is, and the others."""
    summed = {
        name: site
        for name, site in sites.items()
        if factorization.is_summed_out(site) or site["unscaled_log_prob"].dim() > nesting + 1
    }
    return summed, {name: site for name, site in sites.items() if name not in summed}


def _sum_out(trace: Any, sites: dict[str, Site], data: DataPlate | None, tempered: bool) -> Tensor:
    """The logarithm of a sum over all values of the enumerated sites, in each datum and particle."""
    if tempered and any(not _is_one(_scale(site, data, tempered)) for site in sites.values()):
        raise ValueError(
            f"poutine.scale multiplies one of {sorted(sites)}, which are summed out: the sum of a tempered density is "
            "no tempered bound. Leave these sites unscaled (beta=1)."
        )
    trace.pack_tensors()
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    sizes: dict[str, int] = {}  # packed tensors lack dimensions of size 1
    for site in sites.values():
        own = site["packed"]
        # The mask of an enumerated site itself would leave its probabilities unnormalised.
        mask = None if factorization.is_summed_out(site) else own["mask"]
        factor = packed.scale_and_mask(own["unscaled_log_prob"], mask=mask)
        sizes.update(zip(factor._pyro_dims, factor.shape, strict=True))
        plates = {trace.plate_to_symbol[f.name]: int(f.size) for f in site["cond_indep_stack"] if f.vectorized}
        sizes.update(plates)
        factors.setdefault(frozenset(plates), []).append(factor)
    kept = {trace.plate_to_symbol[name] for name in (PARTICLES, *([] if data is None else [data.name]))}
    symbols = {site["infer"]["_enumerate_symbol"] for site in sites.values() if factorization.is_summed_out(site)}
    total = contract_to_tensor(factors, symbols, target_ordinal=frozenset(kept), ring=LogRing(dim_to_size=sizes))
    unpacked: Tensor = packed.unpack(total, trace.symbol_to_dim)
    return unpacked


def _is_one(scale: Any) -> bool:
    return isinstance(scale, float) and scale == 1.0
