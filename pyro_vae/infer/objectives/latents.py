"""The latent variables of one run of a model and a guide, for objectives that treat the KL term in their own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.enum import get_importance_trace
from torch import Tensor
from torch.distributions import Independent

from ..factorization import DataPlate, Site, check_match, check_reparameterized, find_data_plate, sites_with_density

__all__ = ["Latents", "elementwise", "latents", "only_latent", "scaled_sum"]


class Latents(NamedTuple):
    """What one run drew."""

    prior: dict[str, Site]  # the model's latent sites
    posterior: dict[str, Site]  # the guide's, of the same names
    log_likelihood: Tensor  # of all that is observed, scaled and summed, nats
    data: DataPlate | None


def latents(
    model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any, plate: str | None, name: str
) -> Latents:
    """Run guide and model.

    Raises:
        ValueError: a latent variable that is not reparameterised, is in one of the two functions only, or is discrete
            and summed out.
    """
    model_trace, guide_trace = get_importance_trace("flat", float("inf"), model, guide, args, kwargs)
    of_model, of_guide = sites_with_density(model_trace), sites_with_density(guide_trace)
    check_match(of_model, of_guide)
    check_reparameterized(of_guide)
    for site_name in of_guide:
        if site_name not in of_model:
            raise ValueError(
                f"site {site_name!r} is in the guide but not in the model: {name} compares q with p variable by "
                "variable. Use a guide without auxiliary variables, or Trace_ELBO."
            )
    observed = [site["log_prob"].sum() for site in of_model.values() if site["is_observed"]]
    data = find_data_plate([*of_model.values(), *of_guide.values()], plate)
    prior = {site_name: of_model[site_name] for site_name in of_guide}
    return Latents(prior, of_guide, torch.as_tensor(sum(observed)), data)


def only_latent(found: Latents, site: str | None, name: str) -> tuple[Site, Site]:
    """The prior's and the posterior's site that is called ``site``, or the only one, of a vector per datum."""
    if site not in found.posterior and (site is not None or len(found.posterior) != 1):
        raise ValueError(
            f"site: expected the name of a latent variable for {name}, one of {sorted(found.posterior)}, got {site!r}."
        )
    chosen = next(iter(found.posterior)) if site is None else site
    p, q = found.prior[chosen], found.posterior[chosen]
    data = found.data
    if data is None or data.dim != -1 or len(q["fn"].batch_shape) != 1:
        raise ValueError(
            f"site {chosen!r}: expected one vector per datum, in the plate of the data alone, for {name}; got batch "
            f"shape {tuple(q['fn'].batch_shape)}."
        )
    return p, q


def elementwise(fn: Any, site: str, name: str) -> Any:
    """The distribution of each element of a variable whose elements are independent."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if fn.event_shape:
        raise ValueError(
            f"site {site!r}: expected independent elements (a distribution with .to_event) for {name}, got "
            f"{type(fn).__name__}."
        )
    return fn


def scaled_sum(term: Tensor, site: Site) -> Tensor:
    """A term per datum, with the scale and the mask of a site, summed."""
    scaled: Tensor = scale_and_mask(term, site["scale"], site["mask"])
    return scaled.sum()
