"""A model, a guide and an objective, and a call of them as ``pyro.infer.SVI`` makes it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple

import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from ..call_key import code_in, digest, flatten
from ..optim import FusedOptim
from .bfloat16 import Bfloat16Products
from .dependencies import dependencies_of
from .errors import CaptureError
from .losses import Loss
from .watch import Watch

__all__ = ["Call", "Kind", "Program", "call_of", "digest_of", "stands_in_a_context"]

Kind = Literal["step", "backward", "loss"]


class Program(NamedTuple):
    """What a call of ``CompiledSVI`` runs, as it is at that call."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: Callable[..., Any]
    loss_and_grads: Callable[..., Any]
    optim: Any
    precision: str

    def identity(self) -> tuple[Any, ...]:
        """Return what tells this program from another: each of its parts may be replaced between two steps."""
        functions: tuple[Any, ...] = (self.model, self.guide, self.loss, self.loss_and_grads)
        return (
            *((id(f.__self__), id(f.__func__)) if hasattr(f, "__func__") else id(f) for f in functions),
            id(self.optim),
        )

    def evaluate(self, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Loss, dict[str, Tensor]]:
        """Return the loss, as Pyro computes it, and the unconstrained parameters by name; gradients are in ``.grad``.

        Args:
            kind: ``"loss"`` takes no gradients.
            args: positional arguments of model and guide.
            kwargs: their keyword arguments.
        """
        precision = Bfloat16Products() if self.precision == "bf16" else contextlib.nullcontext()
        with poutine.trace(param_only=True) as params, precision:
            if kind == "loss":
                with torch.no_grad():
                    loss = self.loss(self.model, self.guide, *args, **kwargs)
            else:
                loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        return loss, {name: site["value"].unconstrained() for name, site in params.trace.nodes.items()}


class Call(NamedTuple):
    """One call of a program."""

    program: Program
    kind: Kind
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]  # those among the arguments, the inputs of a graph
    key: Hashable

    def evaluate(self) -> tuple[Loss, dict[str, Tensor]]:
        """Return the loss as Pyro computes it, and the unconstrained parameters by name."""
        return self.program.evaluate(self.kind, self.args, self.kwargs)

    def watch(self, modules: list[nn.Module], params: dict[str, Tensor]) -> Watch:
        """Return a watch over what this call reads.

        Args:
            modules: those that were called in it.
            params: the unconstrained parameters by name.
        """
        model, guide, loss, loss_and_grads, optim, _ = self.program
        functions = (model, guide, loss, loss_and_grads, *code_in(self.args), *code_in(self.kwargs))
        watch = dependencies_of(functions, modules, params)
        if isinstance(optim, FusedOptim):  # its norm is part of the graph
            watch.entry(optim.__dict__, "clip_norm", optim.clip_norm, "the optimizer")
        return watch


def call_of(program: Program, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return a call with its tensors and its key.

    Raises:
        CaptureError: an argument can be neither an input of a graph nor part of a key.
    """
    tensors: list[Tensor] = []
    try:
        arguments = (flatten(args, tensors, "args"), flatten(kwargs, tensors, "kwargs"))
    except (TypeError, RecursionError) as error:
        raise CaptureError(str(error)) from error
    return Call(program, kind, args, kwargs, tensors, (program.identity(), kind, torch.get_default_dtype(), *arguments))


def digest_of(key: Hashable) -> str:
    """Return a name for the key of a call that is the same in every process."""
    assert isinstance(key, tuple)
    return digest(key[1:])  # without what is identified by its place in memory


def stands_in_a_context() -> bool:
    """Whether something around the call changes what it means: a handler, autocast, no_grad, a hook of all modules."""
    autocast = any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
    hooks = torch.nn.modules.module._has_any_global_hook()  # called for every module
    return poutine.runtime.am_i_wrapped() or autocast or hooks or not torch.is_grad_enabled()
