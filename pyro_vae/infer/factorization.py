"""Whether a model and a guide factorise over their data, so that each datum has importance weights of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.infer.inspect import TrackProvenance, get_dependencies
from pyro.ops.provenance import get_provenance
from pyro.poutine.util import site_is_subsample

PARTICLES = "num_particles_vectorized"  # the name Pyro's own objectives give this plate

Site = dict[str, Any]


class DataPlate(NamedTuple):
    """The plate whose elements are the data."""

    name: str
    dim: int  # negative, from the right
    size: int  # B
    scale: float  # N/B


def sites_with_density(trace: Any) -> dict[str, Site]:
    """The sample sites of a trace that add to its log-density, by name."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic", False)
    }


def is_summed_out(site: Site) -> bool:
    """Whether a site of the model was enumerated."""
    return site["infer"].get("_enumerate_dim") is not None and not site["is_observed"]


def plates_of(site: Site) -> list[Any]:
    """The vectorized plates around a site, but for the particles'."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES]


def nesting_of(traces: Iterable[Any]) -> int:
    """How many dimensions plates other than the particles' take, at least one."""
    sites = (site for trace in traces for site in trace.nodes.values() if site["type"] == "sample")
    return max([1, *(-frame.dim for site in sites for frame in plates_of(site))])


def check_match(model_sites: dict[str, Site], guide_sites: dict[str, Site]) -> None:
    """Every latent variable is drawn by the guide, or summed out, and is scored by the model."""
    observed = [name for name, site in guide_sites.items() if site["is_observed"] and name not in model_sites]
    if observed and not any(site["is_observed"] for site in model_sites.values()):
        raise ValueError(
            f"model, guide: the guide observes {observed[0]!r}, and the model observes nothing. Give the model first: "
            "(model, guide, ...)."
        )
    for name, site in model_sites.items():
        if site["is_observed"] or name in guide_sites:
            continue
        if not is_summed_out(site):
            raise ValueError(
                f"latent site {name!r} is in the model but not in the guide. Sample it in the guide; or sum it out, if "
                "it is discrete: infer={'enumerate': 'parallel'} in the model."
            )
        if site["infer"].get("num_samples") is not None:
            raise ValueError(
                f"site {name!r}: expected exact enumeration, got infer={{'num_samples': ...}}. Leave it out."
            )
    for name, site in guide_sites.items():
        auxiliary = site["is_observed"] or site["infer"].get("is_auxiliary", False)
        if name not in model_sites and not auxiliary:
            raise ValueError(
                f"site {name!r} is in the guide but not in the model. Sample it in the model, "
                "or mark it with infer={'is_auxiliary': True}."
            )


def find_data_plate(sites: list[Site], name: str | None) -> DataPlate | None:
    """The plate called ``name``, or the only one; None where there is no plate, or ``name`` is None."""
    found: dict[str, set[tuple[int, int, int]]] = {}
    for site in sites:
        for frame in site["cond_indep_stack"]:
            full_size = int(frame.size if frame.full_size is None else frame.full_size)
            if frame.vectorized and frame.name != PARTICLES:
                found.setdefault(frame.name, set()).add((frame.dim, int(frame.size), full_size))
            elif not frame.vectorized and (frame.name == name or full_size != frame.size):
                raise ValueError(
                    f"plate {frame.name!r} is a loop, and importance weights need the data in a vectorized plate, all "
                    "of them. Write `with pyro.plate(...)` in place of `for ... in pyro.plate(...)`."
                )
    chosen = name if name in found else next(iter(found), None)
    if chosen is None or name is None:
        data = None
    elif name not in found and len(found) > 1:
        raise ValueError(
            f"plate: expected the name of the plate of the data, one of {sorted(found)}, got {name!r}. "
            "Give plate='...', the same in model and guide."
        )
    else:
        if len(found[chosen]) > 1:
            raise ValueError(
                f"plate {chosen!r}: expected one dimension and size in model and guide, got (dim, B, N) in "
                f"{sorted(found[chosen])}."
            )
        dim, size, full_size = next(iter(found[chosen]))
        data = DataPlate(chosen, dim, size, full_size / size)
    for other, places in found.items():
        if (data is None or other != data.name) and any(size != full_size for _, size, full_size in places):
            raise ValueError(
                f"plate {other!r} is subsampled: what is left out of a datum is missing in its weight. Subsample the "
                "data alone, or name their plate: plate='...'."
            )
    return data


def check_shape(site: Site, dims: int) -> None:
    """The log-density has the sizes of its plates, and 1 in all other of the rightmost ``dims`` dimensions."""
    shape = tuple(site["unscaled_log_prob"].shape)
    sizes = [1] * dims
    for frame in site["cond_indep_stack"]:
        if frame.vectorized:
            sizes[frame.dim] = int(frame.size)
    if (1,) * (dims - len(shape)) + shape[-dims:] != tuple(sizes):
        raise ValueError(
            f"site {site['name']!r}: expected a log-density of shape {tuple(sizes)}, the sizes of its plates, got "
            f"{shape}. Put it in a pyro.plate for each dimension of independent variables, or make a dimension part "
            "of the variable: .to_event(...)."
        )


def check_latents(model_sites: dict[str, Site], guide_sites: dict[str, Site], data: DataPlate | None) -> None:
    """Every latent variable belongs to a datum."""
    if data is None:
        return
    for name, site in guide_sites.items():
        if site["is_observed"] and not _within(site, data):
            raise ValueError(
                f"site {name!r} of the guide is observed outside the plate {data.name!r} of the data, and not in the "
                "model: its density belongs to no datum. Move it into that plate, or leave it out."
            )
    for name, site in (*model_sites.items(), *guide_sites.items()):
        if not site["is_observed"] and not _within(site, data):
            raise ValueError(
                f"site {name!r} is global (not in the plate {data.name!r} of the data): the weights do not factorise "
                "over the data. Move it into that plate; or fix its value, by pyro.poutine.condition in the model and "
                "pyro.poutine.block(..., hide=[...]) in the guide, for bounds given that value; or use Trace_ELBO."
            )


def not_given_to_both(model_sites: dict[str, Site], guide_sites: dict[str, Site]) -> dict[str, Site]:
    """The guide's sites without those that are observed in the model too (``poutine.condition``): no draw of q."""
    return {
        name: site
        for name, site in guide_sites.items()
        if not (site["is_observed"] and name in model_sites and model_sites[name]["is_observed"])
    }


def of_the_data(sites: dict[str, Site], data: DataPlate | None) -> dict[str, Site]:
    """The sites that belong to a datum: what is observed outside the plate of the data is a given constant."""
    return {name: site for name, site in sites.items() if data is None or _within(site, data)}


def check_once(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    model_sites: dict[str, Site],
    guide_sites: dict[str, Site],
    data: DataPlate | None,
) -> None:
    """Refuse what shows only in what depends on what: costs a run of a function that has such a site.

    - A global observed site or factor that depends on a latent variable belongs to no single datum.
    - A guide's point mass (``AutoDelta``) has no density. One that is a function of an auxiliary draw has: the density
      of that draw, times the Jacobian that Pyro's autoguides put into the point mass.
    """
    outside = model_sites.keys() - of_the_data(model_sites, data).keys()
    if outside:
        upstream = get_dependencies(model, tuple(args), dict(kwargs))["prior_dependencies"]
        for name in outside:
            latent = [other for other in upstream.get(name, {}) if other != name]
            if latent:
                raise ValueError(
                    f"site {name!r} is observed outside the plate of the data and depends on {sorted(latent)}: the "
                    "weights do not factorise over the data. Move it into that plate, or use Trace_ELBO."
                )
    masses = [name for name, site in guide_sites.items() if _is_point_mass(site, model_sites.get(name))]
    if masses:
        with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False), TrackProvenance():
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
        for name in masses:
            drawn = get_provenance(trace.nodes[name]["value"]) if name in trace else ()
            if not any(other in guide_sites and other not in model_sites for other in drawn):
                raise ValueError(
                    f"site {name!r} of the guide is a point mass (Delta), which has no density: log p - log q would "
                    "be a bound on nothing, and can exceed log p(x). Use a guide with a density, AutoNormal for "
                    "instance; or fix the value by pyro.poutine.condition in the model, if it is a parameter."
                )


def check_reparameterized(guide_sites: dict[str, Site]) -> None:
    """Every latent variable passes gradients to the guide's parameters."""
    for name, site in guide_sites.items():
        if not site["is_observed"] and not site["fn"].has_rsample:
            raise ValueError(
                f"site {name!r}: {type(site['fn']).__name__} has no reparameterised sampler, and this objective has no "
                "score-function term. Use pyro.infer.Trace_ELBO, or pyro.infer.TraceEnum_ELBO with enumeration."
            )


def _within(site: Site, data: DataPlate) -> bool:
    return any(frame.name == data.name for frame in plates_of(site))


def _is_point_mass(site: Site, model_site: Site | None) -> bool:
    """Whether the guide's site is a Delta and its latent variable in the model is continuous and none."""
    if site["is_observed"] or not _is_delta(site["fn"]):
        return False
    if model_site is None:
        return False
    try:
        discrete = bool(model_site["fn"].support.is_discrete)
    except NotImplementedError:
        discrete = False
    return not discrete and not _is_delta(model_site["fn"])


def _is_delta(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)
