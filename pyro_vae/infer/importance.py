"""Log importance weights per particle and per datum, read off the traces of a model and a guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

PARTICLES = "num_particles_vectorized"  # the name Pyro's own objectives give this plate


def trace_log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_particles: int = 1,
) -> Tensor:
    r"""Log importance weights of every particle and datum, in nats; differentiable.

    .. math:: \log w_{kb} = \log p(x_b, z_{kb}) - \log q(z_{kb} \mid x_b), \qquad z_{kb} \sim q(z \mid x_b)

    where :math:`k` counts the particles and :math:`b` the data of the plate at ``dim=-1``. The particles are a plate at
    ``dim=-2`` around both functions. Densities are unscaled: neither ``poutine.scale`` (a :math:`\beta`) nor the N/B of
    a subsampled plate changes a weight; ``poutine.mask`` does.

    Args:
        model: callable with Pyro primitives, :math:`p(x, z)`.
        guide: callable with Pyro primitives, :math:`q(z \mid x)`.
        args: positional arguments of both functions.
        kwargs: keyword arguments of both functions.
        num_particles: K, how many times each latent variable is drawn.

    Returns:
        ``(K, B)``; ``(K, 1)`` if no site sits in a plate (the data set as a whole is then the one datum).

    Raises:
        ValueError: if the weights are not per datum: a global latent variable or factor beside a data plate, a plate at
            another dimension than -1, two data plates of different sizes, a latent variable of the model that the
            guide does not sample (enumerated ones included).

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
        Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance Weighted Autoencoders, equation 7.
    """
    return weigh(model, guide, args, kwargs, num_particles)[0]


def weigh(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_particles: int = 1,
    *,
    tempered: bool = False,
    reparameterised: bool = False,
) -> tuple[Tensor, float]:
    """The log-weights ``(K, B)`` and the data plate's scale N/B.

    Args:
        model: as in :func:`trace_log_weights`, and so the next four.
        guide: see ``model``.
        args: see ``model``.
        kwargs: see ``model``.
        num_particles: see ``model``.
        tempered: keep what ``poutine.scale`` multiplies (a beta that warms up); the plate's N/B stays out all the same.
        reparameterised: refuse latent variables that pass no gradient to the guide.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles: expected an integer >= 1, got {num_particles}.")
    kwargs = {} if kwargs is None else kwargs
    guide_trace = poutine.trace(_over_particles(guide, num_particles)).get_trace(*args, **kwargs)
    replayed = poutine.replay(_over_particles(model, num_particles), trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)

    model_sites = {name: site for name, site in model_trace.nodes.items() if _has_density(site)}
    guide_sites = {name: site for name, site in guide_trace.nodes.items() if _has_density(site)}
    _check_match(model_sites, guide_sites)
    sites = [*model_sites.values(), *guide_sites.values()]
    width, plate_scale = _data_plate(sites)
    if reparameterised:
        _check_reparameterised(guide_sites)

    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()

    def total(trace_sites: dict[str, Any]) -> Tensor | float:
        return sum(_log_density(site, plate_scale, tempered) for site in trace_sites.values())

    log_weights = torch.as_tensor(total(model_sites) - total(guide_sites))
    return log_weights.expand(num_particles, width), plate_scale


def _over_particles(fn: Callable[..., Any], num_particles: int) -> Callable[..., Any]:
    return pyro.plate(PARTICLES, num_particles, dim=-2)(fn)


def _has_density(site: Any) -> bool:
    if site["type"] != "sample" or site_is_subsample(site):
        return False
    return not site["infer"].get("_deterministic", False)


def _log_density(site: Any, plate_scale: float, tempered: bool) -> Tensor:
    scale = 1.0
    if tempered and not (isinstance(site["scale"], float) and site["scale"] == plate_scale):
        scale = site["scale"] / plate_scale
    return scale_and_mask(site["unscaled_log_prob"], scale, site["mask"])


def _check_match(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """Every latent variable is drawn by the guide, once, and is scored by the model."""
    for name, site in (*model_sites.items(), *guide_sites.items()):
        if not site["is_observed"] and site["infer"].get("enumerate"):
            raise ValueError(
                f"site {name!r} is marked for enumeration, and importance weights need a draw of every latent "
                "variable. Train with pyro.infer.TraceEnum_ELBO, or sample the site in the guide without the mark."
            )
    for name, site in model_sites.items():
        if not site["is_observed"] and name not in guide_sites:
            raise ValueError(f"latent site {name!r} is in the model but not in the guide. Sample it in the guide.")
    for name, site in guide_sites.items():
        auxiliary = site["is_observed"] or site["infer"].get("is_auxiliary", False)
        if name not in model_sites and not auxiliary:
            raise ValueError(
                f"site {name!r} is in the guide but not in the model. Sample it in the model, "
                "or mark it with infer={'is_auxiliary': True}."
            )


def _data_plate(sites: list[Any]) -> tuple[int, float]:
    """Size B of the data plate and its scale N/B; ``(1, 1.0)`` where no site sits in one."""
    plates = {}
    outside = []
    for site in sites:
        frames = [frame for frame in site["cond_indep_stack"] if frame.name != PARTICLES]
        for frame in frames:
            subsampled = not frame.vectorized and frame.full_size not in (None, frame.size)
            if subsampled or (frame.vectorized and frame.dim != -1):
                raise ValueError(
                    f"site {site['name']!r} sits in plate {frame.name!r} at dim={frame.dim}: expected the data plate "
                    "at dim=-1 alone (the particles take dim=-2). Make further dimensions part of the event: "
                    ".to_event(...)."
                )
        data = [frame for frame in frames if frame.vectorized]
        plates.update({frame.name: frame for frame in data})
        if not data:
            outside.append(site)
    if not plates:
        for site in outside:
            if tuple(site["fn"].batch_shape)[-1:] not in ((), (1,)):
                raise ValueError(
                    f"site {site['name']!r} has batch_shape {tuple(site['fn'].batch_shape)} but sits in no plate. "
                    "Put it in pyro.plate('data', len(x), dim=-1)."
                )
        return 1, 1.0
    if outside:
        raise ValueError(
            f"site {outside[0]['name']!r} is global (in no plate at dim=-1) while others sit in the data plate "
            f"{next(iter(plates))!r}: the weights do not factorise over the data. Move the site into the plate, make "
            "it a parameter, or use Trace_ELBO."
        )
    sizes = {name: (int(frame.size), int(frame.full_size or frame.size)) for name, frame in plates.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"expected one data plate at dim=-1, got plates of sizes (B, N) {sizes}.")
    batch, full = next(iter(sizes.values()))
    return batch, full / batch


def _check_reparameterised(guide_sites: dict[str, Any]) -> None:
    for name, site in guide_sites.items():
        if not site["is_observed"] and not site["fn"].has_rsample:
            raise ValueError(
                f"site {name!r}: {type(site['fn']).__name__} has no reparameterised sampler, and this objective has no "
                "score-function term. Use pyro.infer.Trace_ELBO, or pyro.infer.TraceEnum_ELBO with enumeration."
            )
