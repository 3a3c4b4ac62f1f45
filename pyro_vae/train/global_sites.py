"""Global latent variables, whose terms each batch would count in full."""

from __future__ import annotations

from typing import Any

from pyro.poutine.util import site_is_subsample

from .._warn import warn
from .feed.rows import data_in

__all__ = ["global_latents", "warn_of_globals"]


def global_latents(model_trace: Any) -> list[str]:
    """The names of latent variables outside every plate that holds observations."""
    sites = [site for site in model_trace.nodes.values() if site["type"] == "sample" and not site_is_subsample(site)]
    of_data = {frame.name for site in sites if site["is_observed"] for frame in site["cond_indep_stack"]}
    return [
        site["name"]
        for site in sites
        if not site["is_observed"] and of_data and of_data.isdisjoint(f.name for f in site["cond_indep_stack"])
    ]


def warn_of_globals(model_trace: Any, batches: int | None) -> None:
    """Warn of global latent variables where several batches pass for all data each.

    Args:
        model_trace: of the first batch.
        batches: of an epoch; None where that is not known.
    """
    data = data_in(model_trace)
    names = global_latents(model_trace)
    if batches is None or batches < 2 or not names or data is None or data.whole > data.rows:
        return
    warn(
        f"latent variable {names[0]!r} is global (outside the plate of the data), and each of {batches} batches counts "
        "as all data beside its prior: its posterior would be that of a single batch. Give fit(size=...), the number "
        'of all data, to a model with size= and pyro.plate("data", size, subsample=x).'
    )
