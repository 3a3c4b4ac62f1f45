"""SVI whose step is captured once as one graph, compiled, and run as such from then on."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

import pyro.poutine as poutine
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor

from ..._warn import warn
from ..call_key import digest, flatten, with_tensors
from ..optim import FusedOptim
from ..update import all_finite, update
from .backend import compiled
from .bfloat16 import Bfloat16Products
from .cache import Cache
from .captured_step import CapturedStep, Traced
from .check import audit_due, difference
from .dependencies import calls_of, dependencies_of
from .errors import CaptureError, CaptureWarning
from .gradients import Gradients
from .guarded_adam import flags
from .losses import Loss, as_tensors, marked, numbers, parts
from .passes import cheapen_checks, choose_products, share_casts
from .toolchain import inductor
from .trace import capture
from .undo import undone
from .watch import Watch

__all__ = ["CompiledSVI"]

logger = logging.getLogger(__name__)

Kind = Literal["step", "backward", "loss"]


class CompiledSVI(SVI):
    r"""A drop-in for ``pyro.infer.SVI`` that runs at the speed of hand-written, compiled PyTorch.

    The first call with arguments of new shapes is Pyro's own step, with Pyro's validation. The second call runs model,
    guide and objective once more under a tracer, which keeps loss and gradients as one graph of tensor operations. That
    graph is compiled, and it and the parameters' update (for :func:`pyro_vae.Adam`, torch's fused kernel) are all that
    runs from then on.

    - Tensors among the arguments are inputs of the graph: a :math:`\beta` that warms up is a 0-dim tensor. Python
      values are part of the key, and so are shapes and dtypes: each combination is captured by itself, at its second
      call, ``max_captures`` of them at most; whatever else comes is run by Pyro.
    - What model, guide and objective read by name is watched (globals, closed-over variables, attributes, training
      flags, parameters), and where it changes, the step is captured anew.
    - What no watch can see is found by an audit: captured calls 1, 2, 4, 8, ... and every ``check_steps``-th are
      compared with Pyro's own step on the same random numbers.
    - A program that no graph can stand for is left to Pyro, and a :class:`CaptureWarning` says so once, with the line.
    - A step whose loss or gradients are not finite changes no parameter and no optimizer state. Its loss is returned
      (NaN, if only a gradient was not finite), and :meth:`step` warns.

    Args:
        model: callable with Pyro primitives.
        guide: the same, or an ``AutoGuide``.
        optim: any ``pyro.optim.PyroOptim``; with :func:`pyro_vae.Adam` no step waits for the device.
        loss: a ``pyro.infer.ELBO``, or a function as ``pyro.infer.SVI`` takes it.
        loss_and_grads: a function as ``pyro.infer.SVI`` takes it, if ``loss`` is one.
        compile: True; ``"graph"`` to run the captured graph without compiling it; False to leave every step to Pyro.
        precision: ``"bf16"`` lets matrix products and convolutions take bfloat16 inputs; parameters, optimizer state
            and log-densities stay float32.
        check_steps: every how many captured calls the audit compares with Pyro (and at calls 1, 2, 4, ... before); 1
            compares every call, 0 none.
        max_captures: how many graphs are kept.
        on_refusal: what happens where a program cannot be captured: ``"pyro"`` warns once and leaves it to Pyro,
            ``"raise"`` raises the ``CaptureError``.

    Raises:
        CaptureError: (in a step) the audit found that the graph no longer computes what Pyro does, because model or
            guide depends on something that changed out of sight; or, with ``on_refusal="raise"``, the program cannot
            be captured. It names the line or the parameters.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro_vae.infer import Adam, CompiledSVI
        >>> pyro.clear_param_store()
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     pyro.sample("z", dist.Normal(loc, 0.3))
        >>> svi = CompiledSVI(model, guide, Adam({"lr": 0.05}), Trace_ELBO(), compile="graph")
        >>> losses = [svi.step(torch.full((9,), 2.0)) for _ in range(200)]
        >>> abs(pyro.param("loc").item() - 1.8) < 0.3  # the posterior's mean is 9 * 2 / (9 + 1)
        True
        >>> svi.captures
        1
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim,
        loss: Any,
        loss_and_grads: Callable[..., Any] | None = None,
        *,
        compile: bool | Literal["graph"] = True,
        precision: Literal["float32", "bf16"] = "float32",
        check_steps: int = 1000,
        max_captures: int = 8,
        on_refusal: Literal["pyro", "raise"] = "pyro",
    ) -> None:
        if compile not in (True, False, "graph"):
            raise ValueError(f"compile: expected True, False or 'graph', got {compile!r}.")
        if precision not in ("float32", "bf16"):
            raise ValueError(f"precision: expected 'float32' or 'bf16', got {precision!r}.")
        if on_refusal not in ("pyro", "raise"):
            raise ValueError(f"on_refusal: expected 'pyro' or 'raise', got {on_refusal!r}.")
        super().__init__(model, guide, optim, loss, loss_and_grads)
        self.compile = compile
        self.precision = precision
        self.check_steps = check_steps
        self.on_refusal = on_refusal
        self._cache = Cache(max_captures)
        self._gradients = Gradients()
        self._params: dict[str, Tensor] = {}  # those of the last call that Pyro ran
        self._owed: dict[str, int] = {}  # calls made before a resume, by digest of their key
        self._said: set[str] = set()

    # -- Pyro's interface ------------------------------------------------------------------------------------------

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one optimization step.

        Returns:
            The loss, minus the bound in nats summed over the batch, as a float (a tuple of them for an objective that
            returns one, as in Pyro).
        """
        loss = numbers(self.update(*args, **kwargs))
        if not all(map(math.isfinite, loss if isinstance(loss, tuple) else (loss,))):
            warn(
                f"the loss or a gradient is not finite (loss {loss}); the step was not applied. "
                "Are the data within the likelihood's support?"
            )
        return loss

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Take the same step as :meth:`step`, without waiting for its result.

        Returns:
            The loss as a 0-dim tensor on the parameters' device. A value that is not finite means that the step was not
            applied; nothing warns of it here.
        """
        return self._run("step", args, kwargs)

    def backward(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Tensor]]:
        """Take the first half of a step: the loss, and the gradients left in ``.grad`` of the parameters.

        What goes between gradients and update goes here, an all-reduce for instance; then ``svi.optim(params)``.

        Returns:
            The loss as a 0-dim tensor, and the unconstrained parameters.
        """
        return self._run("backward", args, kwargs)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss as a float, by the captured graph, uncompiled; without a gradient or an update."""
        return numbers(self._run("loss", args, kwargs))

    @property
    def captures(self) -> int:
        """How many graphs are kept now."""
        return len(self._cache)

    @property
    def max_captures(self) -> int:
        """How many graphs are kept at most."""
        return self._cache.most

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know to run the same calls by Pyro and by graphs: plain values."""
        counts: dict[str, int] = dict(self._owed)
        for key, count in self._cache.counts().items():
            name = self._digest(key)
            counts[name] = max(count, counts.get(name, 0))
        return {"calls": counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``'s state: calls of a kind that was captured are captured at their next call."""
        self._owed = {str(name): int(count) for name, count in state["calls"].items()}

    # -- which way a call goes -------------------------------------------------------------------------------------

    def _run(self, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Handlers around the call (poutine.scale, say) change what model and guide mean, so they are left to Pyro.
        if not self.compile or poutine.runtime.am_i_wrapped():
            return self._by_pyro(kind, args, kwargs)
        tensors: list[Tensor] = []
        try:
            arguments = (flatten(args, tensors, "args"), flatten(kwargs, tensors, "kwargs"))
        except (TypeError, RecursionError) as error:
            self._leave(CaptureError(str(error)))
            return self._by_pyro(kind, args, kwargs)
        key = (kind, *self._functions(), id(self.optim), *arguments, torch.get_default_dtype())
        if self._cache.refused(key):
            return self._by_pyro(kind, args, kwargs)
        if self._params and next(iter(self._params.values())).device.type == "cuda":
            # A beta on the host would keep the step from being one CUDA graph.
            device = next(iter(self._params.values())).device
            tensors = [t.to(device, non_blocking=True) if t.dim() == 0 else t for t in tensors]
        graph = self._cache.find(key)
        if graph is not None and not graph.watch.registered():  # the store was cleared: Pyro fills it again
            return self._by_pyro(kind, args, kwargs)
        if graph is None:
            try:
                self._catch_up(key, kind, args, kwargs)
                before = self._cache.to_capture(key)
                if before is None:
                    return self._first(key, kind, args, kwargs, tensors)
                graph = self._capture(kind, args, kwargs, tensors, before)
                self._cache.keep(key, graph)
            except CaptureError as error:
                self._cache.refuse(key)
                self._leave(error)
                return self._by_pyro(kind, args, kwargs)
        if kind == "step" and self._gradients.foreign(graph.traced.params.values()):
            return self._by_pyro(kind, args, kwargs)  # which adds to them
        graph.calls += 1
        if audit_due(graph.calls, self.check_steps):
            change = self._audit(graph, args, kwargs, tensors)
            if change is not None:
                self._cache.drop(key, graph)
                self._cache.refuse(key)
                if graph.calls > 1:
                    raise CaptureError(_audit_message(change, graph))
                self._leave(CaptureError(_audit_message(change, graph)))
                return self._by_pyro(kind, args, kwargs)
            graph.held_since = graph.calls
        return graph(tensors)

    def _functions(self) -> tuple[Any, ...]:
        """Model, guide and objective, by identity: each may be replaced between two steps."""
        return tuple(
            (id(f.__self__), id(f.__func__)) if hasattr(f, "__func__") else id(f)
            for f in (self.model, self.guide, self.loss, self.loss_and_grads)
        )

    def _digest(self, key: Hashable) -> str:
        """The key without what differs between processes."""
        assert isinstance(key, tuple)
        return digest((key[0], *key[6:]))

    def _leave(self, error: CaptureError) -> None:
        """Say once that calls of a kind are left to Pyro, or raise."""
        if self.on_refusal == "raise":
            raise error
        if str(error) not in self._said and len(self._said) < 8:
            self._said.add(str(error))
            warn(
                f"{error} This program is left to Pyro, whose results are the same (on_refusal='raise' makes this an "
                "error, compile=False says that it is meant).",
                CaptureWarning,
            )

    def _first(
        self, key: Hashable, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> Any:
        """The first call of a kind: Pyro's, and a note of what it read."""
        if self._compiles(kind):
            inductor(on_cpu=all(t.device.type == "cpu" for t in tensors))
        with calls_of() as modules:
            result = self._by_pyro(kind, args, kwargs)
        try:
            self._cache.seen(key, self._watch(modules))
        except CaptureError as error:
            self._cache.refuse(key)
            self._leave(error)
        return result

    def _catch_up(self, key: Hashable, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """After a resume, let such a call be at the point of its captures where it was: its first run, undone."""
        if self._owed and self._owed.pop(self._digest(key), 0):
            with undone(self._params.values()), calls_of() as modules:
                _, self._params = self._evaluate(kind, args, kwargs)
            for p in self._params.values():
                p.grad = None
            self._cache.seen(key, self._watch(modules))

    def _watch(self, modules: list[torch.nn.Module]) -> Watch:
        watch = dependencies_of((self.model, self.guide, self.loss, self.loss_and_grads), modules, self._params)
        if isinstance(self.optim, FusedOptim):  # its norm is part of the graph
            watch.entry(self.optim.__dict__, "clip_norm", self.optim.clip_norm, "the optimizer")
        return watch

    def _compiles(self, kind: Kind) -> bool:
        return self.compile is True and kind != "loss"  # a look at data would seldom repay the compiler's time

    # -- by Pyro ---------------------------------------------------------------------------------------------------

    def _by_pyro(self, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call as Pyro makes it."""
        if kind == "backward":
            self._gradients.clear(self._params.values())
        loss, self._params = self._evaluate(kind, args, kwargs)
        params = list(self._params.values())
        result = as_tensors(loss, self._params)
        if kind == "loss":
            return result
        if params and "untrained" not in self._said and all(p.grad is None for p in params):
            self._said.add("untrained")
            warn(
                "no parameter receives a gradient: the step trains nothing. Register the module's parameters with "
                "pyro.module in model or guide, and see that they require gradients."
            )
        if kind == "backward":
            return result, params
        losses = parts(result)
        ok = all_finite(losses, [p.grad for p in params if p.grad is not None])
        losses = [marked(part, ok) for part in losses]
        update(self.optim, losses, params)
        self._gradients.reset(params)
        return type(result)(losses) if isinstance(result, tuple) else losses[0]

    def _evaluate(self, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Loss, dict[str, Tensor]]:
        """Loss, and for a step gradients, as ``pyro.infer.SVI`` computes them; with the parameters by name."""
        precision = Bfloat16Products() if self.precision == "bf16" else contextlib.nullcontext()
        with poutine.trace(param_only=True) as params, precision:
            if kind == "loss":
                with torch.no_grad():
                    loss = self.loss(self.model, self.guide, *args, **kwargs)
            else:
                loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        return loss, {name: site["value"].unconstrained() for name, site in params.trace.nodes.items()}

    # -- by a captured graph ---------------------------------------------------------------------------------------

    def _capture(
        self, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor], before: Watch
    ) -> CapturedStep:
        """Capture and compile one graph; ``before`` is what the run by Pyro read."""
        started = time.perf_counter()
        if any(t.requires_grad for t in tensors):
            raise CaptureError(
                "an argument requires a gradient, and a graph gives gradients to parameters only. Detach it, or let "
                "model and guide close over it."
            )
        found: list[Traced] = []

        def function(*inputs: Tensor) -> list[Tensor]:
            new_args, new_kwargs = with_tensors((args, kwargs), list(inputs))
            loss, params = self._evaluate(kind, new_args, new_kwargs)
            _require_unchanged((new_args, new_kwargs), (args, kwargs))
            loss_type = type(loss) if isinstance(loss, tuple) else None
            losses = parts(as_tensors(loss, params))
            trained = [p for p in params.values() if p.grad is not None] if kind != "loss" else []
            grads = [p.grad for p in trained if p.grad is not None]
            extra: list[Tensor] = []
            if kind == "step":
                with torch.no_grad():
                    ok = all_finite(losses, grads)
                    losses = [marked(part, ok) for part in losses]
                    extra = flags(self.optim, grads, ok)
            found.append(Traced(params, trained, loss_type, len(losses)))
            return losses + grads + extra

        try:
            graph, held = capture(function, tensors, before.params.values())
            change = before.change()
        finally:
            before.restore()
        traced = found[-1]
        for name, p in traced.params.items():
            if p is not before.params.get(name, p):
                raise RuntimeError(
                    f"parameter {name!r} of Pyro's store belongs to another module of the same name, so that Pyro "
                    "would train that one. Give the modules different names in pyro.module."
                )
        if traced.params.keys() != before.params.keys():
            raise CaptureError(
                f"the parameters differ from run to run: {sorted(traced.params.keys() ^ before.params.keys())}; a "
                "graph has one structure."
            )
        if change is not None:
            raise CaptureError(
                f"running model and guide changes state that they may depend on ({change}); a graph would freeze it. "
                "Pass it as a tensor argument."
            )
        trace_seconds = time.perf_counter() - started
        own = {id(p) for p in before.params.values()}
        before.tensors({f"a closed-over tensor ({i})": t for i, t in enumerate(held) if id(t) not in own})
        step = CapturedStep(kind, graph, held, before, self.optim, traced, self._gradients)
        if self._compiles(kind):
            faster = share_casts(choose_products(cheapen_checks(graph)))
            step.run = compiled(faster, held, tensors)
        logger.info(
            "captured %s for inputs %s: %d operations, traced in %.2f s, compiled in %.2f s",
            kind,
            [tuple(t.shape) for t in tensors],
            len(graph.graph.nodes),
            trace_seconds,
            time.perf_counter() - started - trace_seconds,
        )
        return step

    def _audit(
        self, graph: CapturedStep, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> str | None:
        """What differs between a captured call and Pyro's on the same random numbers; None if nothing does."""
        params = graph.traced.params
        with undone(params.values()):
            loss, now = self._evaluate(graph.kind, args, kwargs)
            wanted = [numbers(part) for part in parts(loss)]
            wanted_grads = {name: p.grad.clone() for name, p in now.items() if p.grad is not None}
        names = {id(p): name for name, p in params.items()}

        def differs(run: Callable[..., Any], tolerance: float) -> str | None:
            out = graph.outputs_undone(run, tensors)
            grads = {names[id(p)]: g for p, g in zip(graph.traced.trained, out.grads, strict=True)}
            return difference([numbers(part) for part in out.losses], wanted, grads, wanted_grads, tolerance)

        change = differs(graph.run, 5e-2 if self.precision == "bf16" else 1e-3)
        if change is None or graph.run is graph.graph:
            return change
        # A rounding may have moved a discrete draw: the uncompiled graph rounds as Pyro does.
        return differs(graph.graph, 1e-2 if self.precision == "bf16" else 1e-4)


def _require_unchanged(after: Any, before: Any) -> None:
    """Refuse a run that changes its arguments: a graph would not."""
    if flatten(after, [], "args") != flatten(before, [], "args"):
        raise CaptureError(
            "model, guide or objective changes its arguments (a list or a dictionary among them); a graph would not. "
            "Copy them before."
        )


def _audit_message(change: str, graph: CapturedStep) -> str:
    since = (
        f"The last comparison that held was at captured call {graph.held_since}; steps taken since then may be wrong, "
        "and are not undone. "
        if graph.calls > 1
        else ""
    )
    return (
        f"captured call {graph.calls} was compared with Pyro's on the same random numbers: {change}. {since}Model, "
        "guide or objective depends on something that the graph has frozen: what an object, a list, a dictionary, an "
        "array or a generator holds. Pass it as a tensor argument."
    )
