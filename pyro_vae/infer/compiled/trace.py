"""Running a Pyro step once and keeping what it did as one plain graph of tensor operations."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyro
import pyro.distributions.util
import pyro.infer.util
import pyro.util
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# What Pyro asks about tensors whatever the validation settings, and the answer in a graph. The first two look for NaN
# and infinity in a loss (a captured step watches its loss by itself), the next two for a constant 0 or 1. The last asks
# whether all of some probabilities are positive, to drop the others' terms: a term of probability 0 adds nothing, and
# where its cost is infinite the loss becomes NaN and the step is not applied.
_PYRO_QUESTIONS = {
    pyro.util.warn_if_nan.__code__: False,
    pyro.util.warn_if_inf.__code__: False,
    pyro.distributions.util.is_identically_zero.__code__: False,
    pyro.distributions.util.is_identically_one.__code__: False,
    pyro.infer.util.Dice.compute_expectation.__code__: True,
}
# These write to running statistics without saying so in their schema: positions of what they write.
_SILENT_WRITES = {"native_batch_norm": (3, 4), "cudnn_batch_norm": (3, 4), "miopen_batch_norm": (3, 4)}
_MACHINERY = tuple(
    os.path.dirname(path) + os.sep for path in (torch.__file__, pyro.__file__, os.path.dirname(__file__))
)


class CaptureError(RuntimeError):
    """A model, guide or objective that no graph can stand for."""


class _NumbersAsTensors(TorchFunctionMode):
    """``.item()`` stays a tensor, so that Pyro's objectives can be captured; other reads of values are refused."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item:
            caller = sys._getframe(1)
            value = args[0].detach()
            # Pyro adds up losses as Python numbers, which are double precision.
            in_pyro = caller.f_globals.get("__name__", "").startswith("pyro.infer")
            return value.double() if in_pyro and value.is_floating_point() and value.device.type != "mps" else value
        if func is torch.Tensor.__bool__:
            answer = _PYRO_QUESTIONS.get(sys._getframe(1).f_code)
            if answer is not None:
                return answer
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__):
            raise CaptureError(_reading_message(f"Tensor.{func.__name__}()"))
        return func(*args, **(kwargs or {}))


class _Undo(TorchDispatchMode):
    """Remembers every tensor before it is first written, to put the old values back.

    Args:
        reads_allowed: False refuses to read a tensor's value into Python, where it would be frozen into a graph.
    """

    def __init__(self, reads_allowed: bool = True) -> None:
        super().__init__()
        self.reads_allowed = reads_allowed
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and not self.reads_allowed:
            raise CaptureError(_reading_message("the value of a tensor"))
        schema = func._schema
        if schema.is_mutable:
            for argument, value in zip(schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._save(value)
            for argument in schema.arguments:
                if argument.name in kwargs and argument.alias_info is not None and argument.alias_info.is_write:
                    self._save(kwargs[argument.name])
        for position in _SILENT_WRITES.get(func.overloadpacket.__name__, ()):
            self._save(args[position])
        return func(*args, **kwargs)

    def _save(self, value: Any) -> None:
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if isinstance(tensor, Tensor) and id(tensor) not in self._saved:
                self._saved[id(tensor)] = (tensor, tensor.detach().clone())

    def undo(self) -> None:
        with torch.no_grad():
            for tensor, before in reversed(self._saved.values()):
                tensor.copy_(before)


@contextlib.contextmanager
def undone(params: Iterable[Tensor] = (), *, reads_allowed: bool = True) -> Iterator[None]:
    """Whatever runs inside leaves no trace: tensors written (running statistics), random numbers drawn, gradients.

    Args:
        params: parameters whose ``.grad`` is to be kept; inside, they start with none.
        reads_allowed: False refuses reads of tensor values into Python.
    """
    params = list(params)
    gradients = [p.grad for p in params]
    for p in params:
        p.grad = None
    cuda = sorted({p.device.index for p in params if p.device.type == "cuda"})
    watch = _Undo(reads_allowed)
    try:
        with torch.random.fork_rng(devices=cuda), watch:
            yield
    finally:
        watch.undo()
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient


def capture(
    function: Callable[..., list[Tensor]], inputs: list[Tensor], params: Iterable[Tensor]
) -> tuple[fx.GraphModule, list[Tensor]]:
    """One graph of everything ``function(*inputs)`` does to tensors.

    Pyro's validation is off while it runs (it asks tensors for their values), and what the run does to parameters,
    buffers and random number generators is undone, so that capturing is not a step.

    Args:
        function: returns a list of tensors.
        inputs: its arguments, the graph's last inputs.
        params: the parameters whose gradients it takes.

    Returns:
        The graph and the tensors that ``function`` closes over, such as parameters and buffers; the graph takes them
        before ``inputs``.

    Raises:
        CaptureError: if ``function`` looks at the value of a tensor, or draws from Python's or numpy's random numbers.
    """
    aliases = [t.detach() for t in inputs]  # distinct objects, though a caller pass one tensor twice
    host_random = _host_random_state()
    try:
        with undone(params, reads_allowed=False), pyro.validation_enabled(False):

            def traced(*tensors: Tensor) -> list[Tensor]:
                with _NumbersAsTensors():
                    return function(*tensors)

            graph = make_fx(traced)(*aliases)
    except CaptureError:
        raise
    except Exception as error:
        if _looks_like_a_read(error):
            raise CaptureError(_reading_message("the value of a tensor", error.__traceback__)) from error
        raise
    if _host_random_state() != host_random:
        raise CaptureError(
            "the model, the guide or the objective draws from Python's or numpy's random numbers, which a graph would "
            "freeze. Draw with torch or pyro.sample; or use pyro.infer.SVI, or CompiledSVI(..., compile=False)."
        )
    graph.graph.eliminate_dead_code()
    return _lift(graph)


def _lift(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """Makes the tensors that the graph closes over its first inputs, one for each tensor however often it is used."""
    first = next(iter(graph.graph.nodes))
    lifted: dict[Any, fx.Node] = {}
    tensors: list[Tensor] = []
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(graph, node.target)
        if not isinstance(tensor, Tensor):
            raise CaptureError(
                f"the graph holds a {type(tensor).__name__} ({node.target}), which no graph can stand for."
            )
        copies = [user for user in node.users if user.target is aten.lift_fresh_copy.default]
        if len(copies) == len(node.users) and not tensor.dim():  # a number written in the program: torch.tensor(2.0)
            for copy in copies:
                with graph.graph.inserting_before(copy):
                    number = graph.graph.call_function(
                        aten.scalar_tensor.default, (tensor.item(),), {"dtype": tensor.dtype, "device": tensor.device}
                    )
                number.meta["val"] = copy.meta.get("val")
                copy.replace_all_uses_with(number)
                graph.graph.erase_node(copy)
            graph.graph.erase_node(node)
            continue
        key = (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in lifted:
            with graph.graph.inserting_before(first):
                lifted[key] = graph.graph.placeholder(f"held{len(tensors)}")
            lifted[key].meta["val"] = tensor.detach()
            tensors.append(tensor)
        node.replace_all_uses_with(lifted[key])
        graph.graph.erase_node(node)
    return fx.GraphModule(torch.nn.Module(), graph.graph), tensors


def _host_random_state() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy is not None else None
    return random.getstate(), None if state is None else (state[1].tobytes(), *state[2:])


def _looks_like_a_read(error: Exception) -> bool:
    text = str(error)
    return "tracing tensor" in text or "_local_scalar_dense" in text or "data-dependent" in text.lower()


def _reading_message(what: str, trace: Any = None) -> str:
    frames = traceback.extract_tb(trace) if trace is not None else traceback.extract_stack()[:-2]
    return (
        f"{what} is read into Python at {_user_line(frames)}; a graph would freeze what depends on it. Express it in "
        "tensor operations (torch.where instead of if); or use pyro.infer.SVI, or CompiledSVI(..., compile=False)."
    )


def _user_line(frames: Iterable[traceback.FrameSummary]) -> str:
    """The innermost line that is neither torch's, Pyro's nor this package's machinery."""
    ours = [frame for frame in frames if not frame.filename.startswith(_MACHINERY)]
    if not ours:
        return "an unknown line"
    return f'{ours[-1].filename}:{ours[-1].lineno} ("{ours[-1].line}")'
