"""Grey levels: logistic distributions, or mixtures of them, rounded to a number of levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from .._checks import require_positive_int, require_positive_number, require_shape
from .observation import Observation, network_output
from .output_bias import mean_over_data, observed_data, set_output_bias, variance_over_data

__all__ = ["DiscretizedLogisticLikelihood"]


class DiscretizedLogisticLikelihood(nn.Module):
    r"""Independent elements, each a grey level out of L equally spaced in [0, 1]: a discretized logistic distribution.

    .. math:: P(x_i = \tfrac{k}{L - 1} \mid z) = \sum_{m=1}^{M} \pi_{im} \left[
        \sigma\!\left(\frac{x_i + h - \mu_{im}}{s_{im}}\right) - \sigma\!\left(\frac{x_i - h - \mu_{im}}{s_{im}}\right)
        \right], \qquad h = \frac{1}{2 (L - 1)}

    The first and the last level get what lies beyond them, so that the levels' probabilities sum to one. ``log_prob``
    is a log-probability of the levels, comparable to that of other models of the same levels.

    Args:
        network: any module that maps ``(*, D)`` to ``2 * M`` numbers for each element of a datum, along the first
            dimension of ``E``: the M means, then the M scales s before softplus; with M > 1 also M logits of
            :math:`\pi`.
        num_levels: L; 256 for 8-bit pixels divided by 255.
        num_components: M.
        event_shape: ``E``, the shape of one datum, for instance ``(1, 28, 28)``; None means a vector.
        min_scale: lower bound of s.

    Returns:
        ``forward(z, *given)`` returns a distribution of batch shape ``*`` and event shape ``E``.

    Raises:
        ValueError: an argument is out of range; the network's output has another length; (from ``log_prob``) data that
            are none of the levels.
        TypeError: data or latent variables that are not floats of the parameters' dtype.

    Example:
        >>> likelihood = DiscretizedLogisticLikelihood(nn.Linear(2, 2 * 3))
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.tensor([0, 128, 255]) / 255).shape
        torch.Size([5])

    Source:
        Salimans et al. (2017), PixelCNN++, equation 2; Kingma et al. (2016), Improved Variational Inference with
        Inverse Autoregressive Flow, section 6.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_levels: int = 256,
        num_components: int = 1,
        event_shape: Sequence[int] | None = None,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        self.network = network
        self.num_levels = require_positive_int("num_levels", num_levels)
        if self.num_levels < 2:
            raise ValueError(f"num_levels: expected at least 2, got {num_levels}.")
        self.num_components = require_positive_int("num_components", num_components)
        self.event_shape = require_shape("event_shape", event_shape)
        self.min_scale = require_positive_number("min_scale", min_scale)

    def forward(self, z: Tensor, *given: Any) -> Observation:
        """Return p(x|z); ``given`` is not used."""
        parts = 3 if self.num_components > 1 else 2
        out = torch.stack(network_output(self.network, z, self.event_shape, parts * self.num_components), -1)
        loc, raw_scale, *logits = out.split(self.num_components, -1)
        return Observation(
            DiscretizedLogistic(loc, self.min_scale + F.softplus(raw_scale), *logits, num_levels=self.num_levels),
            self.event_shape,
            (
                f"levels k / {self.num_levels - 1}, k = 0 to {self.num_levels - 1}, for DiscretizedLogisticLikelihood",
                "Divide 8-bit pixels by 255, set num_levels, or use ContinuousBernoulliLikelihood.",
            ),
            loc.dtype,
        )

    def initialize_output_bias(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> None:
        """Set the network's output bias to the mean and the standard deviation of each element of ``x`` ``(N, *E)``.

        The components are spread over one standard deviation to either side.
        """
        x = observed_data(x, mask, low=0.0, high=1.0)
        mean = mean_over_data(x)
        std = variance_over_data(x).sqrt().clamp(min=max(0.01, 2 * self.min_scale))
        scale = std * math.sqrt(3) / math.pi  # of a logistic distribution with this standard deviation
        components = torch.arange(self.num_components, dtype=x.dtype, device=x.device)
        middle = (self.num_components - 1) / 2
        spread = std[..., None] * (components - middle) / max(middle, 1)
        scales = scale[..., None].expand(spread.shape)
        logits = torch.zeros_like(spread) if self.num_components > 1 else None
        low, high = torch.full_like(mean, -10.0), torch.full_like(mean, 11.0)
        for _ in range(40):  # of the mean of the levels in the center of the components, by bisection
            center = (low + high) / 2
            p = DiscretizedLogistic(center[..., None] + spread, scales, logits, num_levels=self.num_levels)
            below = p.mean < mean
            low, high = torch.where(below, center, low), torch.where(below, high, center)
        raw = (scale - self.min_scale).expm1().log()
        parts = [center[..., None] + spread, raw[..., None].expand(spread.shape), *([] if logits is None else [logits])]
        set_output_bias(self.network, *torch.cat(parts, -1).unbind(-1))


class DiscretizedLogistic(TorchDistribution):
    """Mixtures of logistic distributions rounded to levels in [0, 1].

    Args:
        loc: means of the components, ``(*, M)``.
        scale: their scales, ``(*, M)``.
        logits: of their weights, ``(*, M)``; None where M is 1.
        num_levels: how many levels.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, loc: Tensor, scale: Tensor, logits: Tensor | None = None, *, num_levels: int) -> None:
        self.loc, self.scale, self.logits, self.num_levels = loc, scale, logits, num_levels
        super().__init__(loc.shape[:-1])

    @property
    def support(self) -> Any:
        """The levels."""
        return _Levels(self.num_levels)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DiscretizedLogistic:
        """Return the distribution with this batch shape."""
        shape = (*batch_shape, self.loc.shape[-1])
        logits = None if self.logits is None else self.logits.expand(shape)
        return DiscretizedLogistic(self.loc.expand(shape), self.scale.expand(shape), logits, num_levels=self.num_levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each level."""
        half = 0.5 / (self.num_levels - 1)
        x = value[..., None]
        above, below = (x + half - self.loc) / self.scale, (x - half - self.loc) / self.scale
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - exp(a - b)), without cancellation.
        first, last = x < half, x > 1 - half
        upper = F.logsigmoid(above).masked_fill(last, 0.0)
        lower = F.logsigmoid(-below).masked_fill(first, 0.0)
        width = (-torch.expm1(-2 * half / self.scale)).log()
        log_p = upper + lower + torch.where(first | last, torch.zeros_like(width), width)
        return log_p[..., 0] if self.logits is None else (log_p + self.logits.log_softmax(-1)).logsumexp(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw levels."""
        shape = torch.Size(sample_shape) + self.loc.shape
        with torch.no_grad():
            loc, scale = self.loc.expand(shape), self.scale.expand(shape)
            if self.logits is None:
                loc, scale = loc[..., 0], scale[..., 0]
            else:
                component = torch.distributions.Categorical(logits=self.logits).sample(torch.Size(sample_shape))
                loc, scale = (t.gather(-1, component[..., None])[..., 0] for t in (loc, scale))
            u = torch.rand_like(loc).clamp(min=torch.finfo(loc.dtype).tiny)
            top = self.num_levels - 1
            return ((loc + scale * (u.log() - (-u).log1p())).clamp(0, 1) * top).round() / top

    @property
    def mean(self) -> Tensor:
        """E[x], the sum over levels of the probability of reaching each of them."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """Var[x]."""
        mean, square = self._moments()
        return (square - mean.square()).clamp(min=0.0)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Return E[x] and E[x^2] from P(k >= j), level by level: all at once would take L times the memory."""
        top = self.num_levels - 1
        weights = torch.ones_like(self.loc) if self.logits is None else self.logits.softmax(-1)
        first = torch.zeros_like(self.loc[..., 0])
        second = torch.zeros_like(first)
        for j in range(1, self.num_levels):
            reached = (weights * torch.sigmoid((self.loc - (j - 0.5) / top) / self.scale)).sum(-1)
            first = first + reached / top
            second = second + (2 * j - 1) * reached / top**2
        return first, second


class _Levels(constraints.Constraint):
    """k / (L - 1) for k = 0, ..., L - 1, up to the rounding of float32."""

    is_discrete = True

    def __init__(self, num_levels: int) -> None:
        self.num_levels = num_levels

    def check(self, value: Tensor) -> Tensor:
        top = self.num_levels - 1
        k = value * top
        return (value >= 0) & (value <= 1) & ((k - k.round()).abs() < 1e-3)
