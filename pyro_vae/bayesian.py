"""A part whose parameters are random: a Bayesian decoder, by a prior over its network's weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide.initialization import init_to_feasible
from torch import Tensor, nn

from ._checks import require_positive_number

__all__ = ["Bayesian"]


class Bayesian(nn.Module):
    r"""A likelihood or prior with a prior over its parameters, which become global latent variables.

    .. math:: w \sim p(w), \qquad x \mid z \sim p(x \mid z, w)

    ``pyro_vae.with_globals(vae.model, part.sample_parameters)`` draws w before the plate of the data and passes it on
    as the last of what is given, where ``forward`` takes it. ``pyro_vae.AutoGlobalGuide`` puts a q(w) beside the
    guide of the data. One w is drawn at a time: not in a plate of particles.

    Args:
        part: a likelihood p(x|z) or a prior p(z). Those of its parameters that require gradients get a prior, and
            require none from now on: their values are where inference starts (``init_to_parameters``).
        scale: :math:`s`, the standard deviation of each element under the default prior, which is
            :math:`\mathcal{N}(0, s^2 / n)` for a matrix or kernel, n being the number of inputs of a unit, and
            :math:`\mathcal{N}(0, s^2)` for a vector or number. Networks of any width then have a prior over functions
            of about the same scale.
        prior: a function from a parameter's name (``"network.layers.0.weight"``) and value to its prior, a distribution
            of batch shape ``()`` and of the event shape of the parameter; or to None for a parameter that is to be
            learned as a point. It replaces the default, and is called anew for each draw of w.
        name: prefix of the sites' names; another one for each such part of a model.

    Returns:
        ``forward(input, *given, w)`` returns the distribution of ``part`` with the parameters w, a dictionary.

    Raises:
        TypeError: ``part`` is no module; (from ``forward``) the last of what is given is no dictionary of parameters.
        ValueError: no parameter gets a prior; a prior of another event shape than its parameter; ``scale`` is not
            positive; (from ``forward``) parameters of other shapes, such as several draws at once.

    Example:
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> import pyro_vae as pv
        >>> likelihood = Bayesian(pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=(8,))))
        >>> vae = pv.VAE(pv.StandardNormalPrior(2), likelihood, pv.DiagonalNormalPosterior(nn.Linear(6, 2 * 2)))
        >>> model = pv.with_globals(vae.model, likelihood.sample_parameters)
        >>> guide = pv.AutoGlobalGuide(
        ...     model, vae.guide, lambda m: AutoNormal(m, init_loc_fn=likelihood.init_to_parameters, init_scale=0.01)
        ... )
        >>> svi = SVI(model, guide, pv.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> loss = svi.step(torch.ones(5, 6), size=50)  # 5 of 50 data

    Source:
        Neal (1996), Bayesian Learning for Neural Networks, chapter 2, for the default prior; Kingma and Welling (2014),
        Auto-Encoding Variational Bayes, appendix F, for inference of w and z together.
    """

    def __init__(
        self,
        part: nn.Module,
        *,
        scale: float = 1.0,
        prior: Callable[[str, Tensor], Any] | None = None,
        name: str = "likelihood",
    ) -> None:
        super().__init__()
        if not isinstance(part, nn.Module):
            raise TypeError(f"part: expected a likelihood or prior, a torch.nn.Module, got {part!r}.")
        self.part: Any = part
        self.scale = require_positive_number("scale", scale)
        self.name = name
        if hasattr(part, "event_shape"):
            self.event_shape = part.event_shape
        self._prior = self._normal if prior is None else prior
        self._random: list[str] = []  # names of the parameters that have a prior
        for parameter_name, parameter in part.named_parameters():
            if parameter.requires_grad:
                p = self._prior(parameter_name, parameter.detach())
                if p is not None:
                    _require_prior_of(parameter_name, p, parameter)
                    parameter.requires_grad_(False)
                    self._random.append(parameter_name)
        if not self._random:
            raise ValueError(
                "part: expected parameters that require gradients, each of which gets a prior, got none that does. "
                "Unfreeze them (part.requires_grad_(True)), or use the part as it is."
            )

    def sample_parameters(self) -> dict[str, Tensor]:
        """Draw w ~ p(w), at one site for each parameter, and return it by the parameters' names."""
        values = {name: self.part.get_parameter(name) for name in self._random}
        return {name: pyro.sample(f"{self.name}.{name}", self._prior(name, value)) for name, value in values.items()}

    def init_to_parameters(self, site: dict[str, Any]) -> Any:
        """Start inference at the values of the part's parameters: Pyro's ``init_loc_fn`` or ``init_strategy``."""
        name = site["name"].removeprefix(f"{self.name}.")
        if site["name"] == f"{self.name}.{name}" and name in self._random:
            return self.part.get_parameter(name).detach().clone()
        return init_to_feasible(site)

    def initialize_output_bias(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> None:
        """Set the output bias of the likelihood inside, from which inference starts; the prior stays as it is."""
        self.part.initialize_output_bias(x, *given, mask=mask)

    def forward(self, *args: Any) -> Any:
        """Return the distribution of ``part``; the last argument is w, a dictionary of the parameters by name."""
        *inputs, w = args or (None,)
        if not isinstance(w, dict) or w.keys() != set(self._random):
            raise TypeError(
                "given: expected the part's parameters as the last of what is given, a dictionary with "
                f"{', '.join(self._random)}, got {list(w) if isinstance(w, dict) else type(w).__name__}. Draw them: "
                "with_globals(vae.model, part.sample_parameters), or vae.decode(z, part.sample_parameters())."
            )
        for name, value in w.items():
            shape = self.part.get_parameter(name).shape
            if value.shape != shape:
                raise ValueError(
                    f"given: expected the parameter {name} of shape {tuple(shape)}, got {tuple(value.shape)}. Several "
                    "draws at once are not taken: leave vectorize_particles=True and parallel=True out."
                )
        return torch.func.functional_call(self.part, w, tuple(inputs))

    def _normal(self, name: str, parameter: Tensor) -> Any:
        """The default prior of a parameter."""
        inputs = parameter[0].numel() if parameter.ndim > 1 else 1
        scale = self.scale / math.sqrt(inputs)
        return dist.Normal(torch.zeros_like(parameter), scale).to_event(parameter.ndim)


def _require_prior_of(name: str, prior: Any, parameter: Tensor) -> None:
    """Refuse what is no distribution over a tensor of the parameter's shape."""
    shapes = tuple(tuple(getattr(prior, which, ("no",))) for which in ("batch_shape", "event_shape"))
    if shapes != ((), tuple(parameter.shape)):
        raise ValueError(
            f"prior: expected a distribution of batch shape () and event shape {tuple(parameter.shape)} for {name}, "
            f"got {prior!r}. Write dist.Normal(torch.zeros_like(value), 1.0).to_event(value.ndim)."
        )
