"""SVI whose step is captured once as one graph, compiled, and run as such from then on."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

import pyro.poutine as poutine
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor

from ..call_key import flatten, with_tensors
from ..optim import FusedOptim
from ..update import all_finite, update
from .backend import compiled
from .bfloat16 import Bfloat16Products
from .cache import Graphs
from .captured_step import Captured, Traced
from .check import compare
from .dependencies import Snapshot, calls_of
from .guarded_adam import GuardedAdam
from .losses import Loss, as_tensors, marked, numbers, parts
from .passes import cheapen_checks, choose_products, share_casts
from .toolchain import inductor
from .trace import CaptureError, capture, undone

logger = logging.getLogger(__name__)


class CompiledSVI(SVI):
    r"""A drop-in for ``pyro.infer.SVI`` that runs at the speed of hand-written, compiled PyTorch.

    The first call with arguments of new shapes is Pyro's own step, with Pyro's validation. The second call runs model,
    guide and objective once more under a tracer, which keeps loss and gradients as one graph of tensor operations. That
    graph is compiled, and it and the parameters' update (for :func:`pyro_vae.Adam`, torch's fused kernel) are all that
    runs from then on.

    - Tensors among the arguments are inputs of the graph: a :math:`\beta` that warms up is a 0-dim tensor. Python
      values are part of the key, and so are shapes, dtypes and training flags: each combination is captured by itself,
      at its second call, ``max_captures`` of them at most; whatever else comes is run by Pyro.
    - A parameter that is replaced, moved, frozen or unfrozen, a module's attribute that changes, a closed-over variable
      bound to another value: noticed, and captured anew. See :class:`pyro_vae.infer.snapshot.Snapshot` for what is
      watched. Not noticed is what changes inside a list, a dictionary or a numpy array; ``check_steps`` finds that.
    - A step whose loss or gradients are not finite changes no parameter and no optimiser state. Its loss is returned
      (NaN, if only a gradient was not finite), and :meth:`step` warns.

    Args:
        model: callable with Pyro primitives, of static structure.
        guide: the same, or an ``AutoGuide``.
        optim: any ``pyro.optim.PyroOptim``; with :func:`pyro_vae.Adam` no step waits for the device.
        loss: a ``pyro.infer.ELBO``, or a function as ``pyro.infer.SVI`` takes it.
        loss_and_grads: a function as ``pyro.infer.SVI`` takes it, if ``loss`` is one.
        compile: True; ``"graph"`` to run the captured graph without compiling it; False to leave every step to Pyro.
        precision: ``"bf16"`` lets matrix products and convolutions take bfloat16 inputs; parameters, optimiser state
            and log-densities stay float32.
        check_steps: the first so many captured steps are compared with Pyro's on the same random numbers.
        max_captures: how many graphs are kept.

    Raises:
        CaptureError: on a step that no graph can stand for: control flow on the values of tensors, Python-side
            randomness, host-side state that a run changes. It names the line.

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
        check_steps: int = 0,
        max_captures: int = 8,
    ) -> None:
        if compile not in (True, False, "graph"):
            raise ValueError(f"compile: expected True, False or 'graph', got {compile!r}.")
        if precision not in ("float32", "bf16"):
            raise ValueError(f"precision: expected 'float32' or 'bf16', got {precision!r}.")
        super().__init__(model, guide, optim, loss, loss_and_grads)
        self.compile = compile
        self.precision = precision
        self.check_steps = check_steps
        self._graphs = Graphs(max_captures)
        self._params: dict[str, Tensor] = {}  # those of the last call that Pyro ran
        self._checked = 0
        self._said_untrained = False

    # -- Pyro's interface ------------------------------------------------------------------------------------------

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One optimisation step.

        Returns:
            The loss, minus the bound in nats summed over the batch, as a float (a tuple of them for an objective that
            returns one, as in Pyro).
        """
        loss = numbers(self.update(*args, **kwargs))
        if not all(map(math.isfinite, loss if isinstance(loss, tuple) else (loss,))):
            warnings.warn(
                f"the loss or a gradient is not finite (loss {loss}); the step was not applied. "
                "Are the data within the likelihood's support?",
                stacklevel=2,
            )
        return loss

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """The same step as :meth:`step`, without waiting for its result.

        Returns:
            The loss as a 0-dim tensor on the parameters' device. A value that is not finite means that the step was not
            applied; nothing warns of it here.
        """
        if self._checked < self.check_steps:
            return self._checked_update(args, kwargs)
        return self._run("step", args, kwargs)

    def backward(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Tensor]]:
        """The first half of a step: the loss, and the gradients left in ``.grad`` of the parameters.

        What goes between gradients and update goes here, an all-reduce for instance; then ``svi.optim(params)``.

        Returns:
            The loss as a 0-dim tensor, and the unconstrained parameters.
        """
        return self._run("backward", args, kwargs)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss as a float, with no gradient taken and no parameter moved; by the captured graph, uncompiled."""
        return numbers(self._run("loss", args, kwargs))

    @property
    def captures(self) -> int:
        """How many graphs are kept now."""
        return len(self._graphs)

    @property
    def max_captures(self) -> int:
        """How many graphs are kept at most."""
        return self._graphs.most

    # -- which way a call goes -------------------------------------------------------------------------------------

    def _run(self, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Handlers around the call (poutine.scale, say) change what model and guide mean, so they are left to Pyro.
        if not self.compile or poutine.runtime.am_i_wrapped():
            return self._eagerly(kind, args, kwargs)[0]
        tensors: list[Tensor] = []
        key = (kind, flatten(args, tensors, "args"), flatten(kwargs, tensors, "kwargs"), torch.get_default_dtype())
        device = next(iter(self._params.values())).device if self._params else None
        if device is not None and device.type == "cuda":  # a beta on the host would keep the step from one CUDA graph
            tensors = [t.to(device, non_blocking=True) if t.dim() == 0 else t for t in tensors]
        graph = self._graphs.find(key)
        if graph is not None and not graph.snapshot.registered():  # the store was cleared: Pyro fills it again
            return self._eagerly(kind, args, kwargs)[0]
        if graph is None:
            before = self._graphs.to_capture(key)
            if before is None:
                if self._compiles(kind):
                    inductor(on_cpu=all(t.device.type == "cpu" for t in tensors))
                result, snapshot = self._eagerly(kind, args, kwargs)
                self._graphs.seen(key, snapshot)
                return result
            graph = self._capture(kind, args, kwargs, tensors, before)
            self._graphs.keep(key, graph)
        self._graphs.calls += 1
        return graph(tensors)

    def _compiles(self, kind: str) -> bool:
        return self.compile is True and kind != "loss"  # a look at data would seldom repay the compiler's time

    # -- by Pyro ---------------------------------------------------------------------------------------------------

    def _eagerly(self, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Snapshot]:
        """The call as Pyro makes it, and a snapshot of what it may depend on."""
        for p in self._params.values():
            p.grad = None
        with calls_of() as modules:
            loss, params = self._pyro(kind, args, kwargs)
        self._params = params
        result = as_tensors(loss, params)
        if kind == "step" and not self._said_untrained and all(p.grad is None for p in params.values()):
            self._said_untrained = True
            warnings.warn(
                "no parameter receives a gradient: the step trains nothing. Register the module's parameters with "
                "pyro.module in model or guide, and see that they require gradients.",
                stacklevel=5,
            )
        if kind == "step":
            result = self._apply(result, list(params.values()))
        elif kind == "backward":
            result = (result, list(params.values()))
        functions = (self.model, self.guide, self.loss, self.loss_and_grads)
        return result, Snapshot(functions, modules, params)

    def _pyro(self, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Loss, dict[str, Tensor]]:
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
        self, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor], before: Snapshot
    ) -> Captured:
        """Captures and compiles one graph; ``before`` is the snapshot taken after the eager run."""
        started = time.perf_counter()
        found: list[Traced] = []  # what the tracing run met

        def function(*inputs: Tensor) -> list[Tensor]:
            new_args, new_kwargs = with_tensors((args, kwargs), list(inputs))
            loss, params = self._pyro(kind, new_args, new_kwargs)
            loss_type = type(loss) if isinstance(loss, tuple) else None
            losses = parts(as_tensors(loss, params))
            trained = [p for p in params.values() if p.grad is not None] if kind != "loss" else []
            grads = [p.grad for p in trained if p.grad is not None]
            flags: list[Tensor] = []
            adam = None
            if kind == "step":
                with torch.no_grad():
                    ok = all_finite(losses, grads)
                    losses = [marked(part, ok) for part in losses]
                    adam = self._adam(trained)
                    if adam is not None:
                        flags = adam.inputs(grads, ok)
            found.append(Traced(params, trained, loss_type, len(losses), adam))
            return losses + grads + flags

        graph, held = capture(function, tensors, before.params.values())
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
                "graph has one structure. Use pyro.infer.SVI, or CompiledSVI(..., compile=False)."
            )
        change = before.change()
        if change is not None:
            raise CaptureError(
                f"running model and guide changes state that they may depend on ({change}); a graph would freeze it. "
                "Pass it as a tensor argument; or use pyro.infer.SVI, or CompiledSVI(..., compile=False)."
            )
        trace_seconds = time.perf_counter() - started
        run: Callable[..., Any] = graph
        if self._compiles(kind):
            run = compiled(share_casts(choose_products(cheapen_checks(graph))), held, tensors)
        own = {id(p) for p in before.params.values()}
        before.watch_tensors({f"a closed-over tensor ({i})": t for i, t in enumerate(held) if id(t) not in own})
        if traced.adam is not None:
            before.watch_values(traced.adam.watched(), "the optimiser's state")
            before.watch_values([(self.optim.__dict__, "optimizer")], "the optimiser")
        logger.info(
            "captured %s for inputs %s: %d operations, traced in %.2f s, compiled in %.2f s",
            kind,
            [tuple(t.shape) for t in tensors],
            len(graph.graph.nodes),
            trace_seconds,
            time.perf_counter() - started - trace_seconds,
        )
        return Captured(kind, run, held, before, self.optim, traced)

    def _adam(self, trained: list[Tensor]) -> GuardedAdam | None:
        """The update that needs no look at the loss, where this optimiser has one."""
        if len({p.device for p in trained}) != 1 or not isinstance(self.optim, FusedOptim):
            return None
        self.optim.register(trained)
        return GuardedAdam(self.optim, trained) if GuardedAdam.fits(self.optim) else None

    def _checked_update(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step whose captured loss and gradients must be those of Pyro on the same random numbers."""
        if not self._params:
            return self._run("step", args, kwargs)
        with undone(self._params.values()):
            expected, params = self._pyro("backward", args, kwargs)
            expected_grads = {name: p.grad for name, p in params.items()}
        before = self._graphs.calls
        loss, values = self._run("backward", args, kwargs)
        if self._graphs.calls > before:
            self._checked += 1
            compare(numbers(loss), numbers(expected), expected_grads, params, self.precision)
        loss = self._apply(loss, values)
        return loss

    def _apply(self, loss: Any, params: list[Tensor]) -> Any:
        """The second half of a step, on the host: updates unless loss or gradients are not finite."""
        losses = parts(loss)
        ok = all_finite(losses, [p.grad for p in params if p.grad is not None])
        losses = [marked(part, ok) for part in losses]
        update(self.optim, losses, params)
        return type(loss)(losses) if isinstance(loss, tuple) else losses[0]
