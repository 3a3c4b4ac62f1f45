"""Tables: real, positive, count, binary and categorical columns side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._checks import as_int
from .by_column import ByColumn
from .categorical import FloatCategorical
from .observation import Observation, network_output
from .output_bias import (
    mean_log_rate,
    mean_over_data,
    observed_data,
    set_output_bias,
    share_of_data,
    variance_over_data,
)
from .positive_parameter import PositiveParameter

__all__ = ["MixedLikelihood"]

_KINDS = ("real", "positive", "count", "binary")
_SCALED = ("real", "positive", "count")  # kinds with a second parameter


class MixedLikelihood(nn.Module):
    r"""Independent columns of different kinds, for tables.

    .. math:: p(x \mid z) = \prod_i p_i(x_i \mid z)

    ============ ============================================ =========================================
    a column     its distribution                             what the network gives for it
    ============ ============================================ =========================================
    "real"       normal                                       mean, scale
    "positive"   log-normal                                   mean and scale of log x
    "count"      negative binomial                            log-mean, concentration
    "binary"     Bernoulli                                    logit
    C, a number  categorical of C classes, 0.0 to C - 1       C logits
    ============ ============================================ =========================================

    Scales and concentrations are :math:`\min + \operatorname{softplus}(s)`, s being what the network gives. The network
    learns fastest where real columns are standardized and positive ones divided by their means.

    Args:
        network: maps ``(*, D)`` to ``(*, MixedLikelihood.num_outputs(columns))``: first one number for each real,
            positive, count and binary column, in the order of the table; then, with ``scale="predicted"``, one for each
            real, positive and count column; then the logits of each categorical column.
        columns: the kind of each column, or the number of its classes, at least 2. ``pyro_vae.data.table`` takes them
            from a pandas frame.
        scale: ``"predicted"`` by the network, or ``"per-dimension"``: a learned number for each column.
        min_scale: lower bound of scales and concentrations.

    Returns:
        ``forward(z, *given)`` returns a distribution of batch shape ``*`` and event shape ``(len(columns),)``.

    Raises:
        ValueError: a column of unknown kind; the network's output has another length; (from ``log_prob``) data outside
            a column's support, by the number of the column, from 0.
        TypeError: data or latent variables that are not floats of the parameters' dtype.

    Example:
        >>> columns = ("real", "positive", "count", "binary", 3)
        >>> MixedLikelihood.num_outputs(columns)
        10
        >>> likelihood = MixedLikelihood(nn.Linear(2, 10), columns)
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.tensor([-0.3, 2.5, 4.0, 1.0, 2.0])).shape
        torch.Size([5])

    Source:
        Nazabal, Olmos, Ghahramani and Valera (2020), Handling incomplete heterogeneous data using VAEs, section 3.
    """

    def __init__(
        self, network: nn.Module, columns: Sequence[Any], *, scale: str = "predicted", min_scale: float = 1e-3
    ) -> None:
        super().__init__()
        self.network = network
        self.columns = _require_columns(columns)
        self.event_shape = (len(self.columns),)
        if scale not in ("predicted", "per-dimension"):
            raise ValueError(f'scale: expected "predicted" or "per-dimension", got {scale!r}.')
        scaled = len(self._of(*_SCALED))
        self.scale = PositiveParameter("scale", scale if scaled else "predicted", network, (scaled,), min_scale)

    @staticmethod
    def num_outputs(columns: Sequence[Any], scale: str = "predicted") -> int:
        """Return how many outputs the network of these columns must have."""
        columns = _require_columns(columns)
        classes = sum(column for column in columns if isinstance(column, int))
        numbers = sum(isinstance(column, str) for column in columns)
        return numbers + classes + (sum(column in _SCALED for column in columns) if scale == "predicted" else 0)

    def forward(self, z: Tensor, *given: Any) -> Observation:
        """Return p(x|z); ``given`` is not used."""
        predicted = bool(self.scale.outputs)
        expected = self.num_outputs(self.columns, "predicted" if predicted else "per-dimension")
        output = network_output(self.network, z, None)[0]
        if output.shape[-1:] != (expected,):
            raise ValueError(
                f"network: expected output of shape (*, {expected}) for the columns {self.columns}, got "
                f"{tuple(output.shape)}. Give it MixedLikelihood.num_outputs(columns) outputs, with the scale= of the "
                "likelihood."
            )
        sizes = [len(self._of(*_KINDS)), len(self._of(*_SCALED)) if predicted else 0]
        first, raw, logits = output.split([*sizes, expected - sum(sizes)], -1)
        scale = self.scale([raw])
        kinds, scaled = self._of(*_KINDS), self._of(*_SCALED)
        parts: list[tuple[list[int], Any]] = []
        for kind in _KINDS:
            columns = self._of(kind)
            if not columns:
                continue
            value = first[..., [kinds.index(i) for i in columns]]
            if kind == "binary":
                parts.append((columns, dist.Bernoulli(logits=value)))
                continue
            own = torch.as_tensor(scale)[..., [scaled.index(i) for i in columns]]
            if kind == "count":
                parts.append((columns, dist.NegativeBinomial(own.expand(value.shape), logits=value - own.log())))
            else:
                family = dist.Normal if kind == "real" else dist.LogNormal
                parts.append((columns, family(value, own)))
        for i, part in zip(self._categorical(), logits.split(self._classes(), -1), strict=True):
            parts.append(([i], FloatCategorical(logits=part[..., None, :])))
        return Observation(ByColumn(parts), self.event_shape, self._refusal, output.dtype)

    def initialize_output_bias(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> None:
        """Set the network's output bias so that each column starts with the mean and the scale of ``x`` ``(N, C)``.

        A column without an observed value starts at 0 with scale 1, or with equal classes.
        """
        x = observed_data(x, mask)
        if x.shape[1:] != self.event_shape:
            raise ValueError(f"x: expected {len(self.columns)} columns, got shape {tuple(x.shape)}.")
        self._require_support(x)
        kinds, scaled, least = self._of(*_KINDS), self._of(*_SCALED), 0.5 / len(x)
        log_x = x.log()
        first, scales = [], []
        for i in kinds:
            kind, column = self.columns[i], x[:, i : i + 1]
            if kind == "binary":
                first.append(mean_over_data(column).clamp(1e-3, 1 - 1e-3).logit())
            elif kind == "count":
                mean, variance = mean_over_data(column), variance_over_data(column)
                first.append(mean_log_rate(column, None))
                excess = (variance - mean).maximum(1e-2 * mean.square() + 1e-6)
                scales.append((mean.square() / excess).clamp(0.01, 100.0))
            else:
                values = column if kind == "real" else log_x[:, i : i + 1]
                first.append(mean_over_data(values))
                scales.append(variance_over_data(values).sqrt())
        parts = [torch.cat(first).nan_to_num(0.0)] if first else []
        if scaled:
            values = torch.cat(scales).nan_to_num(1.0)
            parts += self.scale.output_bias(values)
        for i, classes in zip(self._categorical(), self._classes(), strict=True):
            shares = [share_of_data(x[:, i : i + 1], float(c)).clamp(min=least) for c in range(classes)]
            parts.append(torch.cat(shares).nan_to_num(1 / classes).log())
        set_output_bias(self.network, *parts)
        if scaled:
            self.scale.initialize(values, shared=values.median())

    def _of(self, *kinds: str) -> list[int]:
        """Return the numbers of the columns of these kinds."""
        return [i for i, column in enumerate(self.columns) if column in kinds]

    def _categorical(self) -> list[int]:
        return [i for i, column in enumerate(self.columns) if isinstance(column, int)]

    def _classes(self) -> list[int]:
        return [column for column in self.columns if isinstance(column, int)]

    def _require_support(self, x: Tensor) -> None:
        """Refuse data, NaN where they are missing, that are outside a column's support."""
        z = torch.zeros(1, device=x.device, dtype=x.dtype)
        one = {"real": dist.Normal(z, 1), "positive": dist.LogNormal(z, 1), "binary": dist.Bernoulli(logits=z)}
        for i, column in enumerate(self.columns):
            values = x[:, i][~x[:, i].isnan()]
            if isinstance(column, int):
                good = (values >= 0) & (values < column) & (values == values.round())
            elif column == "count":
                good = (values >= 0) & (values == values.round())
            else:
                good = one[column].support.check(values)
            if not good.all():
                raise ValueError(self._words(i, values[~good][0].item()))

    def _refusal(self, x: Tensor, in_support: Tensor) -> str:
        """Return what is wrong with the first element outside its column's support."""
        i = int((~in_support).flatten(0, -2).any(0).nonzero()[0])
        return self._words(i, x[..., i][~in_support[..., i]][0].item())

    def _words(self, i: int, value: float) -> str:
        column = self.columns[i]
        if isinstance(column, int):
            wanted, fix = f"classes 0 to {column - 1}", "Number the classes from 0, or give more of them."
        else:
            wanted, fix = {
                "real": ("finite values", "Remove what is missing, or build VAE(..., missing=True)."),
                "positive": ("values above 0", 'Call the column "real", or "count" if 0 is a count.'),
                "count": ("counts 0, 1, 2, ...", 'Round it, or call the column "real".'),
                "binary": ("0 or 1", "Give the number of its classes if there are more than two."),
            }[column]
        return f"x: expected {wanted} in column {i} ({column!r}) for MixedLikelihood, got {value:.6g}. {fix}"


def _require_columns(columns: Any) -> tuple[Any, ...]:
    """Return the kinds of the columns as a tuple of words and ints."""
    values = list(columns) if isinstance(columns, Sequence) and not isinstance(columns, str) else []
    if not values:
        raise ValueError(
            f'columns: expected a sequence of one kind for each column, got {columns!r}. Write ("real", "binary", 3).'
        )
    kinds: list[Any] = []
    for i, value in enumerate(values):
        classes = as_int(value)
        if (classes is None and value not in _KINDS) or (classes is not None and classes < 2):
            raise ValueError(
                f'columns[{i}]: expected "real", "positive", "count", "binary" or a number of classes of at least 2, '
                f"got {value!r}."
            )
        kinds.append(value if classes is None else classes)
    return tuple(kinds)
