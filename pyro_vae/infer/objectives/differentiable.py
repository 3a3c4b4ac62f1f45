"""What an objective needs beside its differentiable loss, to be one of Pyro's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from pyro.infer.util import torch_item
from pyro.util import warn_if_nan
from torch import Tensor

__all__ = ["DifferentiableELBO"]


class DifferentiableELBO(ELBO):
    """An objective whose gradient is that of a loss: ``differentiable_loss`` alone is left to write."""

    @abstractmethod
    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss in nats, summed over the data (0-dim); its gradient is the estimator's."""

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss in nats, summed over the data."""
        with torch.no_grad():
            loss: float = torch_item(self.differentiable_loss(model, guide, *args, **kwargs))
        warn_if_nan(loss, "loss")
        return loss

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The same, and adds its gradients to the parameters' ``.grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        value: float = torch_item(loss)
        warn_if_nan(value, "loss")
        return value

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} makes its traces in differentiable_loss.")
