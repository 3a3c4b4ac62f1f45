"""Discrete latent variables: z_i ~ p(z_i), one of C classes each, x ~ p(x|z)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._checks import dtype_of, require_positive_int
from ..likelihoods.output_bias import set_output_bias
from ..posteriors.network_input import network_input
from .classes import MOST_VALUES, one_hot
from .latent_scale import latent_scale
from .module import module
from .vae import VAE, naming_what_is_not_finite

__all__ = ["DiscreteVAE"]


class DiscreteVAE(VAE):
    r"""A variational autoencoder with L discrete latent variables of C classes each.

    .. code-block:: text

        model                            guide
        z_i ~ Categorical(pi_i)          z_i ~ Categorical(network_i(x))
        x   ~ p(x|z_1, ..., z_L)

    The probabilities pi are parameters; they start equal. ``exact=True`` sums over all :math:`C^L` values of z: train
    it with ``TraceEnum_ELBO(max_plate_nesting=1)``, whose loss and gradients then have no noise at all. Where there are
    too many values, ``exact=False`` draws z: train it with ``TraceGraph_ELBO()``, whose gradient is that of the score
    function, less a baseline :math:`b(x)`: a network that learns, in the same step, to predict the bound of a draw (in
    nats; ``initialize_baseline`` lets it start near). Both gradients are the same in the mean.

    Sites ``"z"`` (class numbers ``(B, L)``) and ``"x"`` in the plate ``"data"`` at ``dim=-1``. Everything else is as in
    ``VAE``.

    Args:
        likelihood: ``z`` as one-hot vectors, joined, ``(*, L * C)``, and ``*given`` to p(x|z), as in ``VAE``.
        network: maps ``x`` ``(*, *E)`` to the logits ``(*, L * C)`` of q(z|x).
        num_variables: L.
        num_classes: C.
        exact: whether all values of z are summed out, by ``TraceEnum_ELBO``.
        baseline: with ``exact=False``, a network that maps ``x`` ``(B, *E)`` to ``(B, 1)``. Its parameters belong to
            the model, so that checkpoints hold them. None: no baseline.
        missing: as in ``VAE``; both networks then get the mask too.
        name: as in ``VAE``.

    Raises:
        TypeError: a part that is not callable.
        ValueError: ``exact=True`` with more than 10,000 values of z, or with a baseline; a network of another width.

    Example:
        >>> import pyro_vae as pv
        >>> from pyro.infer import SVI, TraceEnum_ELBO
        >>> vae = pv.DiscreteVAE(
        ...     pv.BernoulliLikelihood(pv.MLP(2 * 3, 6, hidden_dims=(8,))),
        ...     pv.MLP(6, 2 * 3, hidden_dims=(8,)),
        ...     num_variables=2,
        ...     num_classes=3,
        ... )
        >>> svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))
        >>> loss = svi.step(torch.ones(4, 6))  # a sum over 9 values of z
        >>> vae.sample(5).shape, vae.encode(torch.ones(4, 6)).sample()[0].shape
        (torch.Size([5, 6]), torch.Size([2]))

    Source:
        For the score function with a baseline that is a network: Mnih and Gregor (2014), Neural Variational Inference
        and Learning in Belief Networks, sections 2.2 and 2.3.
    """

    def __init__(
        self,
        likelihood: Callable[..., Any],
        network: nn.Module,
        *,
        num_variables: int,
        num_classes: int,
        exact: bool = True,
        baseline: nn.Module | None = None,
        missing: bool = False,
        name: str = "discrete_vae",
    ) -> None:
        shape = require_positive_int("num_variables", num_variables), require_positive_int("num_classes", num_classes)
        for part, value in (("network", network), ("baseline", baseline)):
            if not callable(value) and not (part == "baseline" and value is None):
                raise TypeError(f"{part}: expected a network, a torch.nn.Module, got {value!r}.")
        super().__init__(_Prior(*shape), likelihood, _Posterior(network, *shape), missing=missing, name=name)
        if exact and baseline is not None:
            raise ValueError("baseline: expected None with exact=True, which needs none. Write exact=False to draw z.")
        if exact and shape[0] * math.log(shape[1]) > math.log(MOST_VALUES) + 1e-9:
            raise ValueError(
                f"exact: expected at most {MOST_VALUES:,} values of z to sum over, got num_classes ** num_variables = "
                f"{shape[1]} ** {shape[0]}. Write exact=False, and train with TraceGraph_ELBO."
            )
        self.num_classes = shape[1]
        self.exact = bool(exact)
        self.baseline: Any = baseline

    def model(
        self,
        x: Tensor | None = None,
        *given: Any,
        mask: Tensor | None = None,
        size: int | None = None,
        beta: float | Tensor = 1.0,
    ) -> Tensor:
        """Draw z ~ p(z), then draw or observe x ~ p(x|z). Arguments as in ``VAE.model``."""
        module(self.name, self)
        with self.data_plate(x, *given, size=size):
            with latent_scale(beta):
                z = pyro.sample("z", self.prior(*given))
            observed = self.observed(x, mask)
            with naming_what_is_not_finite(x, observed):
                p = self.decode(z, *given, mask=observed)
            return pyro.sample("x", p, obs=x)

    def guide(
        self,
        x: Tensor,
        *given: Any,
        mask: Tensor | None = None,
        size: int | None = None,
        beta: float | Tensor = 1.0,
    ) -> Tensor:
        """Draw z ~ q(z|x) and return it. Arguments as in ``VAE.model``."""
        module(self.name, self)
        infer: dict[str, Any] = {"enumerate": "parallel"} if self.exact else {}
        baseline: dict[str, Any] = {}
        if self.baseline is not None:
            infer = {"baseline": baseline}
            baseline["nn_baseline_input"] = network_input(self.baseline, x, self.observed(x, mask))
        with self.data_plate(x, *given, size=size), latent_scale(beta):
            z = pyro.sample("z", self.encode(x, *given, mask=mask), infer=infer)
        if self.baseline is not None:
            baseline["nn_baseline"] = lambda seen: self._baseline(seen).expand(z.shape[:-1])  # the same for each draw
        return z

    def decode(self, z: Tensor, *given: Any, mask: Tensor | None = None) -> Any:
        """Return p(x|z), a distribution of batch shape ``*`` for class numbers ``z`` ``(*, L)``."""
        return super().decode(one_hot(z, self.num_classes, dtype_of(self)).flatten(-2), *given, mask=mask)

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, *given: Any, mask: Tensor | None = None, num_particles: int | None = None
    ) -> Tensor:
        """Return the reconstruction of ``x``: E[x|z] at the most probable z, or averaged over draws of z.

        Arguments and result as in ``VAE.reconstruct``.
        """
        if num_particles is not None:
            return super().reconstruct(x, *given, mask=mask, num_particles=num_particles)
        return self.decode(self.encode(x, *given, mask=mask).mode, *given).mean

    @torch.no_grad()
    def initialize_baseline(
        self, x: Tensor, *given: Any, mask: Tensor | None = None, scale: float = 1.0, num_particles: int = 10
    ) -> None:
        """Set the output bias of the baseline so that it starts at the mean bound of ``x``.

        Steps of 0.001, say, would take as many thousands of them as the bound has nats.

        Args:
            x: data ``(B, *E)``.
            *given: as in ``model``.
            mask: as in ``model``.
            scale: what ``size`` multiplies the bound of a datum by in training, size / batch size; 1 without ``size``.
            num_particles: draws of z for each datum.

        Raises:
            ValueError: there is no baseline; it ends with no affine map, whose bias could be set.
        """
        if self.baseline is None:
            raise ValueError("baseline: expected a network whose bias can be set, got None. Give DiscreteVAE one.")
        q = self.encode(x, *given, mask=mask)
        z = q.sample((require_positive_int("num_particles", num_particles),))
        log_p = self.prior(*given).log_prob(z) + self.decode(z, *given, mask=self.observed(x, mask)).log_prob(x)
        set_output_bias(self.baseline, scale * (log_p - q.log_prob(z)).mean()[None])

    def _baseline(self, x: Tensor) -> Tensor:
        """Return the baseline, ``(B,)``."""
        bound: Tensor = self.baseline(x)
        if bound.shape != (len(x), 1):
            raise ValueError(
                f"baseline: expected an output of shape {(len(x), 1)}, got {tuple(bound.shape)}. Give it one output."
            )
        return bound[:, 0]


class _Categoricals(dist.Independent):
    """L independent class numbers, an event ``(L,)``, whose C ** L values can be enumerated."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(dist.Categorical(logits=logits), 1)

    @property
    def has_enumerate_support(self) -> bool:
        return True

    def enumerate_support(self, expand: bool = True) -> Tensor:
        variables, classes = self.base_dist.logits.shape[-2:]
        each = torch.arange(classes, device=self.base_dist.logits.device)
        values = torch.cartesian_prod(*[each] * variables).reshape(-1, *(1,) * len(self.batch_shape), variables)
        return values.expand(-1, *self.batch_shape, -1) if expand else values

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Categoricals:
        return _Categoricals(self.base_dist.logits.expand(*batch_shape, *self.base_dist.logits.shape[-2:]))


class _Prior(nn.Module):
    """p(z) of ``DiscreteVAE``."""

    def __init__(self, num_variables: int, num_classes: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_variables, num_classes))

    def forward(self, *given: Any) -> _Categoricals:
        return _Categoricals(self.logits)


class _Posterior(nn.Module):
    """q(z|x) of ``DiscreteVAE``."""

    def __init__(self, network: nn.Module, num_variables: int, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.shape = num_variables, num_classes

    def forward(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> _Categoricals:
        logits = self.network(network_input(self.network, x, mask))
        if logits.shape[-1] != self.shape[0] * self.shape[1]:
            raise ValueError(
                f"network: expected an output width of {self.shape[0] * self.shape[1]}, num_variables * num_classes, "
                f"got {logits.shape[-1]}. Give the network that many outputs."
            )
        return _Categoricals(logits.unflatten(-1, self.shape))
