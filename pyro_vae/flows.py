"""Normalizing flows, which come from zuko: the networks, and the distribution that Pyro is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor, nn
from torch.distributions import constraints

from ._checks import require_one_of, require_positive_int

__all__ = ["FlowDistribution", "autoregressive_flow"]


def autoregressive_flow(
    latent_dim: int,
    *,
    transform: str = "affine",
    context_dim: int = 0,
    num_transforms: int = 2,
    hidden_dims: Sequence[int] = (64, 64),
    inverse: bool = False,
) -> nn.Module:
    r"""Return an autoregressive normalizing flow of zuko: a module that maps a context to a distribution over z.

    .. math:: z = f^{-1}(u), \quad u \sim \mathcal{N}(0, I_D), \qquad f_i(z) = t(z_i; \theta_i(z_1, \ldots, z_{i-1}, c))

    with a masked network for :math:`\theta`, and the order of the elements reversed from each transform to the next.
    One direction takes one pass of the networks, the other D: the density of given values is fast, or with ``inverse``
    drawing samples and the density of what was drawn. A prior needs the first, a posterior the second.

    Args:
        latent_dim: :math:`D`.
        transform: t: ``"affine"``, or ``"spline"``, a monotonic rational-quadratic one that is the identity beyond
            [-5, 5].
        context_dim: the number of elements of the context c; 0 for none.
        num_transforms: how many autoregressive transforms follow one another.
        hidden_dims: widths of the hidden layers of each masked network.
        inverse: whether drawing is to be fast.

    Raises:
        ImportError: zuko is not installed.
        ValueError: an argument is out of range.

    Example:
        >>> flow = autoregressive_flow(2, transform="spline")
        >>> flow(None).log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])

    Source:
        Papamakarios, Pavlakou and Murray (2017), Masked Autoregressive Flow for Density Estimation; with ``inverse``
        Kingma et al. (2016), Improved Variational Inference with Inverse Autoregressive Flow; splines: Durkan et al.
        (2019), Neural Spline Flows.
    """
    require_one_of("transform", transform, "affine", "spline")
    for name, value in (("latent_dim", latent_dim), ("num_transforms", num_transforms)):
        require_positive_int(name, value)
    if context_dim:
        require_positive_int("context_dim", context_dim)
    try:
        zuko = _import_zuko()
    except ImportError as error:
        raise ImportError(
            "autoregressive_flow needs zuko, which is not installed. Install it: pip install 'pyro_vae[flows]'."
        ) from error
    kind = zuko.flows.MAF if transform == "affine" else zuko.flows.NSF
    flow: Any = kind(
        latent_dim, context_dim, transforms=num_transforms, hidden_features=tuple(hidden_dims), activation=nn.SiLU
    )
    if inverse:
        steps = reversed(flow.transform.transforms)
        flow = zuko.lazy.Flow([step.inv for step in steps], flow.base)
    flow.latent_dim, flow.context_dim = latent_dim, context_dim  # for FlowPosterior's checks
    made: nn.Module = flow
    return made


def _import_zuko() -> Any:
    """Import zuko, which switches off the validation of all distributions of torch as it is imported: undo that."""
    validate = torch.distributions.Distribution._validate_args
    import zuko

    torch.distributions.Distribution.set_default_validate_args(validate)
    return zuko


class FlowDistribution(ZukoToPyro):
    """A distribution of zuko as one of Pyro that can also be sampled by ``sample`` and ``rsample``.

    What is drawn by ``rsample`` brings its log-density, which costs another D passes for some flows.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    @property
    def mean(self) -> Tensor:
        """Refuse: a flow has no mean in closed form."""
        raise NotImplementedError(
            "mean: expected a distribution with a mean in closed form, got a flow, which has none. Average draws: "
            "q.sample((1000,)).mean(0)."
        )

    @property
    def variance(self) -> Tensor:
        """Refuse: a flow has no variance in closed form."""
        raise NotImplementedError(
            "variance: expected a distribution with a variance in closed form, got a flow, which has none. Take that "
            "of draws: q.sample((1000,)).var(0)."
        )

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw with gradients, and keep the log-density of the draw."""
        return self(sample_shape)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw without gradients."""
        with torch.no_grad():
            return self.dist.sample(sample_shape)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> FlowDistribution:
        """Return the distribution with more leading dimensions."""
        return FlowDistribution(self.dist.expand(batch_shape))
