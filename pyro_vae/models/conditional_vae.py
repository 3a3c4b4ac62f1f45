"""The conditional VAE: z ~ p(z|y), x ~ p(x|z, y)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import as_int, dtype_of, require_positive_int, require_tensor
from ..conditional import Conditional
from .vae import VAE

__all__ = ["ConditionalVAE"]


class ConditionalVAE(VAE):
    """A VAE of data x that come with a condition y: a class, a vector or an image.

    .. code-block:: text

        model                      guide
        z ~ p(z|y)                 z ~ q(z|x, y)
        x ~ p(x|z, y)

    It builds a ``VAE`` whose likelihood and posterior are each in a ``Conditional``. ``y`` is the first of what is
    given: ``svi.step(x, y)``, ``vae.sample(n, y)``, ``pyro_vae.bounds(vae.model, vae.guide, x, y)``. It is put into the
    form that the networks take:

    - class numbers ``(B,)``: as ``num_classes`` columns, 1 for the class (with ``num_classes``);
    - a vector ``(B, C)``: as it is;
    - an image ``(B, C, H, W)``: flattened, or joined as channels to an ``x`` that is an image;
    - anything else: what ``embedding`` makes of it.

    To fill in a part of an image, let y be what is seen, and x the rest.

    Args:
        prior: p(z|y): of ``y``, in the form above, ``DiagonalNormalPosterior(MLP(C, 2 * D))`` for instance; or p(z),
            ``StandardNormalPrior(D)`` for instance.
        likelihood: as in ``VAE``; the input of its network is z and y, joined, D + C elements.
        posterior: as in ``VAE``; the input of its network is x and y, joined.
        num_classes: the number of classes, where y are class numbers.
        embedding: a network of y to vectors ``(B, C)``, such as ``ConvEncoder`` for images or ``nn.Embedding`` for
            classes. It is trained with the rest.
        missing: as in ``VAE``, for x.
        name: as in ``VAE``.

    Raises:
        TypeError: a part that is not callable; y that is not a float tensor, without ``num_classes`` or ``embedding``.
        ValueError: both ``num_classes`` and ``embedding``; a class out of range; as ``VAE`` and ``Conditional``.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.ConditionalVAE(
        ...     pv.StandardNormalPrior(2),
        ...     pv.BernoulliLikelihood(pv.MLP(2 + 10, 784, hidden_dims=(8,))),
        ...     pv.DiagonalNormalPosterior(pv.MLP(784 + 10, 2 * 2, hidden_dims=(8,))),
        ...     num_classes=10,
        ... )
        >>> vae.sample(3, torch.tensor([7, 7, 1])).shape
        torch.Size([3, 784])

    Source:
        Sohn, Lee and Yan (2015), Learning structured output representation using deep conditional generative models,
        equation 4.
    """

    def __init__(
        self,
        prior: Callable[..., Any],
        likelihood: Callable[..., Any],
        posterior: Callable[..., Any],
        *,
        num_classes: int | None = None,
        embedding: nn.Module | None = None,
        missing: bool = False,
        name: str = "conditional_vae",
    ) -> None:
        super().__init__(prior, likelihood, posterior, missing=missing, name=name)
        event_shape = getattr(likelihood, "event_shape", None)
        event_dim = 3 if isinstance(event_shape, tuple) and len(event_shape) == 3 else 1
        self.condition = Condition(num_classes, embedding)
        joined = Conditional(likelihood, given=(0,)), Conditional(posterior, given=(0,), event_dim=event_dim)
        self.prior = OfCondition(prior, self.condition, position=0, flat=False)
        self.likelihood = OfCondition(joined[0], self.condition, position=1, flat=True)
        self.posterior = OfCondition(joined[1], self.condition, position=1, flat=event_dim == 1)

    @torch.no_grad()
    def sample(self, n: int = 1, *given: Any, mean: bool = False) -> Tensor:
        """Draw ``n`` data from the generative model, ``(n, *E)``.

        Args:
            n: how many.
            *given: y, of n rows, or the number of one class for all; what follows as in ``VAE.sample``.
            mean: as in ``VAE.sample``.
        """
        number = as_int(given[0]) if given and self.condition.num_classes is not None else None
        if number is not None:
            device = next(self.parameters()).device
            given = (torch.full((require_positive_int("n", n),), number, device=device), *given[1:])
        return super().sample(n, *given, mean=mean)


class Condition(nn.Module):
    """Puts y into the form that networks take."""

    def __init__(self, num_classes: int | None, embedding: nn.Module | None) -> None:
        super().__init__()
        if num_classes is not None and embedding is not None:
            raise ValueError(
                "num_classes: expected None beside an embedding, which may take class numbers itself, got "
                f"{num_classes!r}. Leave out one of them."
            )
        if embedding is not None and not isinstance(embedding, nn.Module):
            raise TypeError(f"embedding: expected a torch.nn.Module, got {embedding!r}.")
        self.num_classes = None if num_classes is None else require_positive_int("num_classes", num_classes)
        self.embedding = embedding

    def forward(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Return y as vectors ``(B, C)`` or images ``(B, C, H, W)``."""
        require_tensor("y", y)
        if self.embedding is not None:
            embedded: Tensor = self.embedding(y)
            return embedded
        if self.num_classes is not None:
            return _columns(y, self.num_classes, dtype)
        if not y.is_floating_point():
            numbers = "For class numbers build ConditionalVAE(..., num_classes=10), for instance; convert other numbers"
            convert = f"{numbers if y.ndim == 1 else 'Convert it'}: y.to({dtype})."
            raise TypeError(f"y: expected a float tensor, got {y.dtype}. {convert}")
        return y


def _columns(y: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Return one column for each class, ``(B, num_classes)``, 1 for the class of y."""
    if y.ndim != 1 or y.is_floating_point():
        raise ValueError(
            f"y: expected class numbers, integers of shape (B,), got {y.dtype} of shape {tuple(y.shape)}. Give "
            "y.argmax(-1), or leave out num_classes."
        )
    is_class = (y >= 0) & (y < num_classes)
    if torch.distributions.Distribution._validate_args and not is_class.all():
        raise ValueError(
            f"y: expected class numbers from 0 to {num_classes - 1}, num_classes being {num_classes}, got "
            f"{y[~is_class][0].item()}. Number the classes from 0, or build the model with more."
        )
    columns = (y[:, None] == torch.arange(num_classes, device=y.device)).to(dtype)
    return columns.masked_fill(~is_class[:, None], math.nan)  # unvalidated, it is seen as a loss that is not finite


class OfCondition(nn.Module):
    """A part that gets y in the form that networks take, among its arguments at ``position``."""

    def __init__(self, part: Callable[..., Any], condition: Condition, position: int, flat: bool) -> None:
        super().__init__()
        self.part: Any = part
        self.position = position
        self.flat = flat
        self._condition = (condition,)  # in a tuple, so that it is a module of the VAE and not of each part
        if hasattr(part, "event_shape"):
            self.event_shape = part.event_shape

    def initialize_output_bias(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> None:
        """Set the output bias of the likelihood inside."""
        self.part.initialize_output_bias(x, *given, mask=mask)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the distribution of the part."""
        if len(args) > self.position:
            y = self._condition[0](args[self.position], dtype_of(self) or torch.get_default_dtype())
            y = y.flatten(1) if self.flat and y.ndim > 1 else y
            args = (*args[: self.position], y, *args[self.position + 1 :])
        return self.part(*args, **kwargs)
