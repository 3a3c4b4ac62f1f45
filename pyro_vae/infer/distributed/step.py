"""A step that all processes take together."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
import torch.distributed as dist
from pyro.infer.util import zero_grads
from torch import Tensor

from ..update import step_or_skip
from .exchange import waiting_for_others
from .processes import world_size

__all__ = ["JointStep", "Totals"]


class Totals(NamedTuple):
    """What a joint step came to, the same in every process."""

    loss: float  # minus the bound in nats, summed over the batches of all processes; NaN: not finite, and no update
    rows: int  # data in them
    taking_part: int  # processes that had a batch; 0: none, and no update
    stopping: bool  # whether a process wants to stop


class JointStep:
    """A step that all processes take together: each its own gradients, one all-reduce, the same update everywhere.

    What travels is one flat buffer: the gradients, for each parameter whether it has one, the loss and four counts. So
    every process sees the same numbers and decides alike. A process whose share of a batch is empty, or whose data came
    to an end before the others' did, takes part with zeros; an exception in one process reaches the others as a loss
    that is not finite.

    With a ``CompiledSVI`` loss and gradients come from its compiled graph, and the optimiser runs outside it.

    Args:
        svi: a ``pyro.infer.SVI`` or a ``pyro_vae.CompiledSVI``.
        parameters: every unconstrained parameter of model and guide, by name; the same names in all processes, and the
            same values (``same_start``).
        stop: asked in every step whether this process wants to stop.
        rows: function of a batch's arguments that returns its number of data; by default the length of the first
            tensor.

    Raises:
        ValueError: there are no parameters, or they are on several devices.
        RuntimeError: (in a step) another process has ended; a parameter appeared that was not in ``parameters``.

    Example:
        >>> import pyro, pyro.distributions as dist, pyro_vae
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> pyro.clear_param_store()
        >>> loc = pyro.param("loc", torch.tensor(0.0))
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(pyro.param("loc"), 1.0), obs=x)
        >>> svi = SVI(model, lambda x: None, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
        >>> parameters = dict(pyro.get_param_store().named_parameters())
        >>> pyro_vae.infer.distributed.same_start(parameters)
        >>> step = JointStep(svi, parameters)
        >>> step(torch.ones(5)).rows, round(loc.item(), 3)
        (5, 0.5)
    """

    def __init__(
        self,
        svi: Any,
        parameters: Mapping[str, Tensor],
        *,
        stop: Callable[[], bool] = lambda: False,
        rows: Callable[..., int] | None = None,
    ) -> None:
        trained = {name: parameters[name] for name in sorted(parameters) if parameters[name].requires_grad}
        devices = {parameter.device for parameter in trained.values()}
        if len(devices) != 1:
            found = ", ".join(sorted(map(str, devices))) or "no parameters"
            raise ValueError(f"parameters: expected some, on one device, got {found}. Run model and guide once before.")
        self.svi = svi
        self.stop = stop
        self.stopping = False
        self._rows = rows or _length
        self._known = {id(parameter) for parameter in parameters.values()}
        self._trained = list(trained.values())
        self._sizes = [parameter.numel() for parameter in self._trained]
        self._elements = sum(self._sizes)
        dtype = functools.reduce(torch.promote_types, [p.dtype for p in self._trained], torch.float32)
        length = self._elements + 5 + len(self._trained)
        self._flat = torch.zeros(length, dtype=dtype, device=next(iter(devices)))

    @property
    def bytes(self) -> int:
        """Length of the buffer that is reduced in each step, in bytes."""
        return self._flat.numel() * self._flat.element_size()

    def __call__(self, *args: Any, **keywords: Any) -> Totals:
        """Take a step on this process's share of a batch; without arguments, take part in a step of the others."""
        loss: Any = 0.0
        failure: Exception | None = None
        used: set[int] = set()
        rows = 0
        try:
            rows = self._rows(*args, **keywords) if args else 0
            if rows:
                loss, used = self._own_gradients(args, keywords)
        except Exception as error:  # the others are told, and then it is raised
            failure, loss = error, math.nan
        # With size= each share's loss speaks for the whole data set: they are averaged, each with its number of data.
        weight, divisor = (rows, rows) if keywords.get("size") is not None else (1, 0)
        totals, trained = self._sum(loss, weight, used, [rows, divisor, len(args) > 0, self.stop()])
        if failure is None and totals.taking_part:
            step_or_skip(self.svi.optim, trained, math.isfinite(totals.loss))
        zero_grads(self._trained)  # as Pyro: a zero gradient still moves a parameter that has momentum
        if failure is not None:
            raise failure
        self.stopping = totals.stopping
        return totals

    def _own_gradients(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, set[int]]:
        """The loss, and which parameters it depends on; their gradients are left in ``grad``."""
        svi = self.svi
        if hasattr(svi, "backward"):
            loss, used = svi.backward(*args, **keywords)
        else:
            with poutine.trace(param_only=True) as capture:
                loss = svi.loss_and_grads(svi.model, svi.guide, *args, **keywords)
            used = [site["value"].unconstrained() for site in capture.trace.nodes.values()]
        if not self._known.issuperset(map(id, used)):
            raise RuntimeError(
                "a parameter appeared, or was replaced, after training in several processes began, and the others know "
                "nothing of it. Let every parameter exist before the first step."
            )
        return loss[0] if isinstance(loss, tuple) else loss, {id(p) for p in used if p.grad is not None}

    def _sum(self, loss: Any, weight: int, used: set[int], counts: list[float]) -> tuple[Totals, set[Tensor]]:
        """Sum gradients, loss and counts over the processes, and leave the sums of the gradients in ``grad``.

        Returns:
            The sums, and the parameters that have a gradient in some process.
        """
        flat, n = self._flat, self._elements
        gradients = [p.grad if id(p) in used else None for p in self._trained]
        tail = torch.tensor([0.0, *counts, *(g is not None for g in gradients)], dtype=flat.dtype, device=flat.device)
        tail[0] = loss
        tail[0] *= weight
        pairs = zip(gradients, self._trained, strict=True)
        pieces = [torch.zeros_like(p) if g is None else g.detach() for g, p in pairs]
        torch.cat([*(piece.reshape(-1).to(flat.dtype) for piece in pieces), tail], out=flat)
        if weight != 1:
            flat[:n] *= weight
        with waiting_for_others():
            if world_size() > 1:
                dist.all_reduce(flat)
            # One look for all: on a GPU this waits for the step. A sum is finite only if its terms are.
            check, total, rows, divisor, taking_part, stop, *present = torch.cat(
                [flat[:n].sum()[None], flat[n:]]
            ).tolist()
        if divisor:
            flat[:n] /= divisor
            total /= divisor
        trained = set()
        for parameter, part, has in zip(self._trained, flat[:n].split(self._sizes), present, strict=True):
            if has:
                parameter.grad = part.view_as(parameter).to(parameter.dtype)
                trained.add(parameter)
        if not math.isfinite(check) and not bool(flat[:n].isfinite().all()):
            total = math.nan
        return Totals(total, int(rows), int(taking_part), stop > 0), trained


def _length(*args: Any, **keywords: Any) -> int:
    lengths = [len(arg) for arg in args if isinstance(arg, Tensor) and arg.ndim]
    return lengths[0] if lengths else 1
