"""SVI whose step is captured once as one graph, compiled, and run as such from then on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor

from ..._checks import require_count, require_one_of
from ..._warn import warn
from ..update import all_finite, step_or_skip
from .cache import Cache
from .capture import captured_step
from .captured_step import CapturedStep
from .check import audit, audit_due, message
from .dependencies import calls_of
from .errors import CaptureError
from .gradients import Gradients
from .losses import as_tensors, is_a_bound, marked, numbers, parts
from .program import Call, Kind, Program, call_of, digest_of, stands_in_a_context
from .replace import compile_step
from .undo import set_torch_random_state, torch_random_state, undone
from .words import Words

__all__ = ["CompiledSVI"]


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
    - What no watch can see is found by an audit: captured calls 1, 2, 4, ... and each ``check_steps``-th are compared
      with Pyro's step on the same random numbers.
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
        compile_after: the call of a graph at which it is compiled; until then it runs as it was captured. A run that
            is too short to repay a compiler is never compiled. Calls are counted, not seconds: one seed, one run.
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
        compile_after: int = 250,
        on_refusal: Literal["pyro", "raise"] = "pyro",
    ) -> None:
        require_one_of("compile", compile, True, False, "graph")
        require_one_of("precision", precision, "float32", "bf16")
        require_one_of("on_refusal", on_refusal, "pyro", "raise")
        if not isinstance(optim, PyroOptim):
            raise TypeError(
                f"optim: expected an optimizer of Pyro, got {type(optim).__name__}. Give pyro_vae.Adam({{'lr': 1e-3}}) "
                "or pyro_vae.FusedOptim(torch.optim.SGD, {'lr': 1e-3}), for instance."
            )
        if isinstance(loss, type):
            raise TypeError(f"loss: expected an objective, got the class {loss.__name__}. Give {loss.__name__}().")
        super().__init__(model, guide, optim, loss, loss_and_grads)
        self.compile = compile
        self.precision = precision
        self.check_steps = require_count("check_steps", check_steps)
        self.compile_after = require_count("compile_after", compile_after)
        self._cache, self._gradients = Cache(require_count("max_captures", max_captures)), Gradients()
        self._params: dict[str, Tensor] = {}  # those of the last call that Pyro ran
        self._owed: dict[str, int] = {}  # calls made before a resume, by digest of their key
        self._words = Words(raising=on_refusal == "raise")

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one optimization step.

        Returns:
            The loss, minus the bound in nats summed over the batch, as a float (a tuple of them for an objective that
            returns one, as in Pyro).
        """
        loss = numbers(self.update(*args, **kwargs))
        if is_a_bound(self.loss) and not all(map(math.isfinite, loss if isinstance(loss, tuple) else (loss,))):
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
        """The most graphs that are kept."""
        return self._cache.most

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know to run the same calls by Pyro and by graphs: plain values."""
        counts: dict[str, int] = dict(self._owed)
        for key, count in self._cache.counts().items():
            name = digest_of(key)
            counts[name] = max(count, counts.get(name, 0))
        return {"calls": counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``'s state: calls of a kind that was captured are captured at their next call."""
        self._owed = {str(name): int(count) for name, count in state.get("calls", {}).items()}

    def _run(self, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        program = Program(self.model, self.guide, self.loss, self.loss_and_grads, self.optim, self.precision)
        if not self.compile or stands_in_a_context():
            return self._by_pyro(program, kind, args, kwargs)
        try:
            call = call_of(program, kind, args, kwargs)
        except CaptureError as error:
            self._words.leave(error)
            return self._by_pyro(program, kind, args, kwargs)
        step = self._cache.find(call.key, program)
        # Where the store was cleared, Pyro fills it again.
        if self._cache.refused(call.key) or (step is not None and not step.watch.registered()):
            return self._by_pyro(program, kind, args, kwargs)
        call = call._replace(tensors=self._on_device(call.tensors))
        if step is None:
            try:
                answered = self._catch_up(call)
                before = self._cache.to_capture(call.key)
                if before is None:
                    return self._first(call)
                compiles = self.compile is True and kind != "loss"  # which would seldom repay the compiler's time
                step = captured_step(call, before=before, gradients=self._gradients, compile=compiles)
                step.calls = answered
                self._cache.keep(call.key, step)
            except CaptureError as error:
                self._cache.refuse(call.key)
                self._words.leave(error)
                return self._by_pyro(program, kind, args, kwargs)
        step.watch.register()
        if kind == "step" and step.adds_to_gradients():
            return self._by_pyro(program, kind, args, kwargs)  # which adds to them
        return self._by_graph(step, call)

    def _by_graph(self, step: CapturedStep, call: Call) -> Any:
        """The call by its graph, where that holds."""
        step.calls += 1
        if step.compiler is not None and step.calls >= self.compile_after:
            compile_step(step, call)
        random_state = torch_random_state() if step.may_fail else None
        try:
            new = self.check_steps > 0 and not step.held_since  # not compared yet, though counted on after a resume
            difference = audit(step, call) if new or audit_due(step.calls, self.check_steps) else None
            if difference is None:
                return step(call.tensors)
            reason = CaptureError(message(difference, step))
        except RuntimeError as error:
            if random_state is None:
                raise
            set_torch_random_state(random_state)
            difference = None
            reason = CaptureError(f"the graph fails on these data ({error}); model or guide may handle such an error.")
        self._cache.drop(call.key, step)
        self._cache.refuse(call.key)
        if difference is not None and step.held_since:
            raise reason
        self._words.leave(reason)
        return self._by_pyro(call.program, call.kind, call.args, call.kwargs)

    def _first(self, call: Call) -> Any:
        """The first call of a kind: Pyro's, and a note of what it read."""
        with calls_of() as modules:
            result = self._by_pyro(call.program, call.kind, call.args, call.kwargs)
        try:
            self._cache.seen(call.key, call.watch(modules, self._params))
        except CaptureError as error:
            self._cache.refuse(call.key)
            self._words.leave(error)
        return result

    def _catch_up(self, call: Call) -> int:
        """After a resume, let such a call be at the point of its captures where it was: its first run, undone.

        Returns:
            How many of these calls a graph answered before.
        """
        calls = self._owed.pop(digest_of(call.key), 0) if self._owed else 0
        if calls:
            with undone(self._params.values()), calls_of() as modules:
                _, self._params = call.evaluate()
            for p in self._params.values():
                p.grad = None
            self._cache.seen(call.key, call.watch(modules, self._params))
        return max(calls - 1, 0)

    def _on_device(self, tensors: list[Tensor]) -> list[Tensor]:
        """The inputs, with numbers on the parameters' device: one on the host would prevent a CUDA graph."""
        device = next((p.device for p in self._params.values()), torch.device("cpu"))
        on_gpu = device.type == "cuda"
        return [t.to(device, non_blocking=True) if on_gpu and t.dim() == 0 else t for t in tensors]

    def _by_pyro(self, program: Program, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call as Pyro makes it."""
        if kind == "backward":
            self._gradients.clear(self._params.values())
        loss, self._params = program.evaluate(kind, args, kwargs)
        params = list(self._params.values())
        result = as_tensors(loss, self._params)
        if kind == "loss":
            return result
        if all(p.grad is None for p in params):
            self._words.once(
                "no parameter receives a gradient: the step trains nothing. Register the module's parameters with "
                "pyro_vae.module in model or guide, and see that they require gradients."
            )
        if kind == "backward":
            return result, params
        losses = parts(result)
        ok = all_finite(losses if is_a_bound(self.loss) else [], [p.grad for p in params if p.grad is not None])
        losses = [marked(part, ok) for part in losses]
        step_or_skip(self.optim, params, bool(ok))
        self._gradients.reset(params)
        return type(result)(losses) if isinstance(result, tuple) else losses[0]
