"""Global latent variables beside those of the data: in the model by a function, in the guide by an autoguide."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer.autoguide import AutoGuide, AutoNormal
from torch import Tensor, nn

from . import factorization
from .global_parameters import claim, without_parameters_of_others
from .path_gradient import latent_sites

__all__ = ["AutoGlobalGuide", "with_globals"]


def with_globals(model: Callable[..., Any], globals_fn: Callable[[], Any]) -> Callable[..., Any]:
    """Return the model with global latent variables that are drawn before it runs, outside the plate of the data.

    What ``globals_fn`` returns follows the positional arguments of the model; in ``VAE`` it is the last of ``*given``,
    which every part gets. Arguments before ``*given`` that are left out get their defaults. The story itself is not
    rewritten.

    Args:
        model: takes the data, then what is given, then what ``globals_fn`` returns.
        globals_fn: takes nothing, draws with ``pyro.sample``, and returns a dictionary or tuple of the draws (a tensor
            alone would pass for rows of the data). If it returns None, no argument is added.

    Returns:
        A function of the model's other arguments. Positional ones must not be left out: give ``None`` for the data, to
        draw them.

    Raises:
        TypeError: (from the function) no positional argument; a tensor with dimensions from ``globals_fn``; a model
            that takes no further argument.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> import pyro_vae as pv
        >>> class Scaled(nn.Module):  # p(x|z, w) = N(w z, 1)
        ...     def forward(self, z, draws):
        ...         return dist.Normal(draws["w"] * z, 1.0).to_event(1)
        >>> vae = pv.VAE(pv.StandardNormalPrior(2), Scaled(), pv.DiagonalNormalPosterior(nn.Linear(2, 4)))
        >>> model = with_globals(vae.model, lambda: {"w": pyro.sample("w", dist.LogNormal(0.0, 1.0))})
        >>> guide = AutoGlobalGuide(model, vae.guide)
        >>> svi = pv.CompiledSVI(model, guide, pv.Adam({"lr": 1e-2}), pyro.infer.Trace_ELBO())
        >>> history = pv.fit(svi, torch.randn(50, 2).split(10), epochs=1, size=50, progress=False)
        >>> sorted(guide.median(torch.zeros(10, 2)))
        ['w']
    """

    takes = _positional_parameters(model)
    takes_given = bool(takes and takes[-1].kind is inspect.Parameter.VAR_POSITIONAL)

    @functools.wraps(model)
    def with_draws(*args: Any, **kwargs: Any) -> Any:
        draws = globals_fn()
        if draws is None:
            return model(*args, **kwargs)
        if not args:
            raise TypeError(
                "with_globals: expected the data as a positional argument, which the global variables follow, got "
                "none. Give None to draw data: model(None, size=5)."
            )
        if isinstance(draws, Tensor) and draws.dim():
            raise TypeError(
                f"globals_fn: expected a dictionary or tuple of draws, got a tensor of shape {tuple(draws.shape)}, "
                "which would pass for rows of the data. Return {'name': value}."
            )
        if takes is not None:
            left_out = takes[len(args) :]
            if not left_out and not takes_given:
                raise TypeError(
                    f"model: expected one that takes what globals_fn returns after {len(args)} positional arguments, "
                    f"got {getattr(model, '__qualname__', model)}, which takes no more. Write a model that draws the "
                    "global variables itself."
                )
            if takes_given:
                args = (*args, *(parameter.default for parameter in left_out[:-1]))
        return model(*args, draws, **kwargs)

    return with_draws


def _positional_parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Return the parameters that positional arguments go to; None where Python does not know them."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return [p for p in parameters if p.kind not in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)]


class AutoGlobalGuide(nn.Module):
    r"""An amortised guide for the variables of the data, beside an autoguide for the global ones.

    .. math:: q(w, z \mid x) = q(w) \prod_n q(z_n \mid x_n)

    The autoguide takes the latent variables of the model that ``guide`` does not sample, which is found out on the
    first call. They lie outside the plate of the data and are counted once, while the terms of a mini-batch are scaled
    by N/B: give the model, and ``fit``, the number of all data as ``size``. Each instance has parameters of its own,
    though under the same names in Pyro's store.

    Args:
        model: p(x, z, w).
        guide: q(z|x), a function of the model's arguments. Sites that are in no model are its own matter, as elsewhere.
        kind: makes the autoguide from a model of the global variables alone: a class of ``pyro.infer.autoguide``, or a
            function such as ``lambda model: AutoMultivariateNormal(model, init_scale=0.01)``.

    Raises:
        TypeError: ``kind`` makes no autoguide.
        ValueError: (on the first call) the guide samples all latent variables of the model; or it leaves one out that
            is in a subsampled plate, and so belongs to a datum.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> pyro.clear_param_store()
        >>> def model(x, size=None):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", size or len(x), subsample=x):
        ...         z = pyro.sample("z", dist.Normal(w, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x, size=None):
        ...     slope = pyro.param("slope", torch.tensor(0.5))
        ...     with pyro.plate("data", size or len(x), subsample=x):
        ...         pyro.sample("z", dist.Normal(slope * x, 1.0))
        >>> svi = SVI(model, AutoGlobalGuide(model, guide), pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        >>> loss = svi.step(torch.randn(10), size=100)

    Source:
        M. D. Hoffman, D. M. Blei, C. Wang, J. Paisley (2013), Stochastic Variational Inference, section 2.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        kind: Callable[[Callable[..., Any]], AutoGuide] = AutoNormal,
    ) -> None:
        super().__init__()
        self._functions = (model, guide)  # in a tuple, so that a module among them is no part of this one
        self._kind = kind
        self._global_guide: Any = None  # made on the first call

    @property
    def global_guide(self) -> Any:
        """The autoguide of the global variables, q(w); None before the first call."""
        if self._global_guide is not None:
            claim(self._global_guide)
        return self._global_guide

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Draw the global variables, then run the guide, and return the former by name."""
        if self._global_guide is None:
            self._make(args, kwargs)
        draws: dict[str, Any] = self.global_guide(*args, **kwargs)
        self._functions[1](*args, **kwargs)
        return draws

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of each global variable under q, by name, after a first step or call on these arguments."""
        if self._global_guide is None:
            self._make(args, kwargs)
        medians: dict[str, Tensor] = self.global_guide.median(*args, **kwargs)
        return medians

    def _make(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        model, guide = self._functions
        # Not in the particles' plate, which may be around this call: parameters have the shapes of one particle.
        with torch.no_grad(), poutine.block():
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        local = latent_sites(guide_trace)
        names = [
            name
            for name, site in latent_sites(model_trace).items()
            if name not in local and not site["infer"].get("enumerate")
        ]
        if not names:
            raise ValueError(
                "guide: expected one that leaves the global variables of the model to the autoguide, got one that "
                "samples every latent variable. Use it as the guide by itself."
            )
        for name in names:
            for frame in factorization.plates_of(model_trace.nodes[name]):
                if frame.full_size is not None and frame.full_size != frame.size:
                    raise ValueError(
                        f"guide: expected a draw of {name!r}, which lies in the subsampled plate {frame.name!r} and so "
                        "belongs to a datum. Sample it in the guide."
                    )

        def given_the_rest(*args: Any, **kwargs: Any) -> Any:
            """The model with draws of the guide: its own may lie far from the data, or not exist."""
            with poutine.block():
                drawn = poutine.trace(guide).get_trace(*args, **kwargs)
            return poutine.replay(model, trace=drawn)(*args, **kwargs)

        made = self._kind(poutine.block(given_the_rest, expose=names))
        if not isinstance(made, AutoGuide):
            raise TypeError(f"kind: expected a function that makes an AutoGuide, got a {type(made).__name__} from it.")
        with poutine.block(), without_parameters_of_others():
            made(*args, **kwargs)
        self._global_guide = made
