"""Run a Pyro step once and keep what it did as one graph of tensor operations."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import pyro.distributions.util
import pyro.infer.traceenum_elbo
import pyro.infer.util
import pyro.util
import torch
from pyro.distributions.transforms.spline import _monotonic_rational_spline
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from .batch_statistics import require_used_statistics
from .errors import CaptureError, user_line
from .undo import host_random_state, undone

__all__ = ["traced_graph"]

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
_VALIDATION = vars(torch.distributions.distribution)
_COMMON_SCALE = inspect.unwrap(pyro.infer.traceenum_elbo._get_common_scale).__code__
_SPLINE = inspect.unwrap(_monotonic_rational_spline).__code__
_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_SEQUENTIAL_PLATE = IndepMessenger.__iter__.__code__
_SEED = 0x5EED_0F_C0DE  # no seed that a program would set

_VALUE_CURE = "Use tensor operations that do not need the value in Python (torch.where in place of if)."
_SHAPE_CURE = (
    "Keep the shape fixed: torch.where or poutine.mask in place of a boolean index; or compute it before the step and "
    "pass the result as a tensor argument."
)
_CURES = {
    "one_hot": "F.one_hot looks at the labels, with num_classes= too: write (labels[..., None] == "
    "torch.arange(classes)).to(x.dtype).",
    "numpy": "Use torch operations in place of numpy's, or pass the result as a tensor argument.",
    "__array__": "Use torch operations in place of numpy's, or pass the result as a tensor argument.",
    "bincount": "Use torch.zeros(size).scatter_add(0, index, ones), whose shape does not depend on values.",
    "repeat_interleave": "Give output_size=, and the shape does not depend on values.",
}


def traced_graph(
    function: Callable[..., list[Tensor]], inputs: list[Tensor], params: Iterable[Tensor]
) -> tuple[fx.GraphModule, list[Tensor]]:
    """Return one graph of everything ``function(*inputs)`` does to tensors.

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
        CaptureError: ``function`` reads the value of a tensor, makes a tensor whose shape depends on values, draws from
            Python's or numpy's random numbers, sets a seed, or cannot be traced for another reason.
    """
    aliases = [t.detach() for t in inputs]  # distinct objects, though a caller pass one tensor twice
    host_random = host_random_state()

    def traced(*tensors: Tensor) -> list[Tensor]:
        with _NumbersAsTensors():
            return function(*tensors)

    try:
        with undone(params, before_each=_refuse_values), pyro.validation_enabled(False):
            torch.default_generator.manual_seed(_SEED)
            with _one_fake_mode():
                graph = make_fx(traced)(*aliases)
            seed, host_random_after = torch.default_generator.initial_seed(), host_random_state()
    except CaptureError as error:
        raise CaptureError(str(error).splitlines()[0]) from None  # Pyro adds the shapes of the trace
    except Exception as error:
        raise _explained(error) from error
    if seed != _SEED:
        raise CaptureError(
            "model, guide or objective sets the seed of torch's random numbers (torch.manual_seed, pyro.set_rng_seed); "
            "a graph draws on from where they are. Set the seed outside the step."
        )
    if host_random_after != host_random:
        raise CaptureError(
            "model, guide or objective draws from Python's or numpy's random numbers, which a graph would freeze. "
            "Draw with torch or pyro.sample."
        )
    require_used_statistics(graph)
    graph.graph.eliminate_dead_code()
    return _lift(graph)


def _one_fake_mode() -> Any:
    """One mode for what the tracer notes of every tensor's shape: making one for each takes half of its time."""
    return tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))


class _NumbersAsTensors(TorchFunctionMode):
    """Keep ``.item()`` a tensor, so that Pyro's objectives can be captured; refuse other reads of values."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[int, Tensor] = {}  # by id

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        caller = sys._getframe(1)
        if func is torch.Tensor.item:
            if caller.f_code is _SEQUENTIAL_PLATE:
                return _index_of(caller.f_locals["self"], args[0])
            return self._number(args[0].detach())
        if func is torch.Tensor.__bool__ and caller.f_code in _PYRO_QUESTIONS:
            return _PYRO_QUESTIONS[caller.f_code]
        if func in (torch._is_all_true, torch.Tensor.__bool__) and caller.f_globals is _VALIDATION:
            return True  # a distribution that was made while validation was on; a graph does not validate
        if func is torch.Tensor.__float__ and caller.f_code is _COMMON_SCALE:  # compared, and not computed with
            return _value(args[0])
        if func is torch.Tensor.register_hook and args[1].__code__.co_filename == pyro.util.__file__:
            return None  # a look for NaN in a gradient
        if func in _RECURRENT:  # oneDNN's and cuDNN's fused ones cannot be taken apart into forwards and backwards
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # these flags of torch warn of another setting
                return _unfused(func, args, kwargs or {})
        if caller.f_code is _SPLINE and func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            return _masked(func, *args)
        name = getattr(func, "__name__", "")
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__):
            raise _refusal(f"Tensor.{name}() reads values into Python", _CURES.get(name, _VALUE_CURE))
        try:
            return self._called(func, args, kwargs or {})
        except CaptureError:
            if name not in _CURES:
                raise
            raise _refusal(f"{name} depends on the values of a tensor", _CURES[name]) from None

    def _number(self, value: Tensor) -> Tensor:
        """A tensor that stands for a Python number, which has double precision."""
        if value.is_floating_point() and value.device.type != "mps":
            value = value.double()
        self._numbers[id(value)] = value
        return value

    def _called(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call a function in which numbers meet tensors as Python numbers do: without widening them."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        numbers = [value for value in tensors if id(value) in self._numbers]
        if not numbers:
            return func(*args, **kwargs)
        floats = [t.dtype for t in tensors if id(t) not in self._numbers and t.is_floating_point()]
        if floats:
            dtype = functools.reduce(torch.promote_types, floats)
            args = [a.to(dtype) if id(a) in self._numbers and a.is_floating_point() else a for a in args]
        result = func(*args, **kwargs)
        if len(numbers) == len(tensors) and isinstance(result, Tensor):
            self._numbers[id(result)] = result
        return result


def _unfused(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
        return func(*args, **kwargs)


def _masked(func: Any, tensor: Tensor, mask: Any, *value: Any) -> Any:
    """``a[mask] = b[mask]``, as Pyro's splines write it, with shapes that do not depend on the mask."""
    boolean = isinstance(mask, Tensor) and mask.dtype is torch.bool
    if boolean and func is torch.Tensor.__getitem__:
        return tensor
    if boolean and isinstance(value[0], Tensor):
        return tensor.copy_(torch.where(mask, value[0], tensor))
    return func(tensor, mask, *value)


def _index_of(plate: Any, index: Tensor) -> int:
    """The index that a sequential plate of full size is at: its place in the sequence."""
    place: int = (plate.counter - 1) % plate.size  # the counter goes on where the plate is iterated again
    if plate.subsample_size != plate.size or int(_value(index)) != place:
        raise _refusal(
            f"the sequential plate {plate.name!r} subsamples, and its indices are Python numbers",
            "Use it as a context (with pyro.plate(...) as index), or pass the batch as a tensor argument.",
        )
    return place


def _value(tensor: Tensor) -> float:
    with _disable_current_modes():
        return float(tensor)


def _refuse_values(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse an operator whose result goes to Python, or whose result's shape depends on values."""
    kind = _kind(func)
    if kind == "value":
        raise _refusal("the value of a tensor is read into Python", _VALUE_CURE)
    if kind == "shape" and not _has_fixed_shape(func, args, kwargs):
        name = func.overloadpacket.__name__
        what = "a boolean index" if name == "index" else name.strip("_2")
        raise _refusal(f"{what} gives a tensor whose shape depends on values", _CURES.get(name, _SHAPE_CURE))


@functools.cache
def _kind(func: Any) -> str:
    if torch.Tag.data_dependent_output in func.tags:
        return "value"
    return "shape" if torch.Tag.dynamic_output_shape in func.tags else ""


def _has_fixed_shape(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if func is aten.index.Tensor:
        return not any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None


def _refusal(what: str, cure: str) -> CaptureError:
    return CaptureError(f"{what} at {user_line()}; a graph would freeze it. {cure}")


def _explained(error: Exception) -> CaptureError:
    lines = str(error).strip().splitlines() or [""]
    if "dynamo-optimized function" in lines[0]:
        return CaptureError(
            f"a torch.compile module or function is called at {user_line(error.__traceback__)}. Use the one that it "
            "was made from: the step is compiled as a whole."
        )
    return CaptureError(
        f"model, guide or objective cannot be traced: {type(error).__name__}: {lines[0][:300]} (at "
        f"{user_line(error.__traceback__)})."
    )


def _lift(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """Make the tensors that the graph closes over its first inputs, one for each tensor however often it is used."""
    first = next(iter(graph.graph.nodes))
    lifted: dict[Any, fx.Node] = {}
    tensors: list[Tensor] = []
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(graph, node.target)
        if isinstance(tensor, torch.Generator):
            raise CaptureError(
                "model, guide or objective draws from a torch.Generator of its own, which a graph cannot hold. Draw "
                "from torch's default generator."
            )
        if not isinstance(tensor, Tensor):
            raise CaptureError(f"model, guide or objective uses a {type(tensor).__name__} in a tensor operation.")
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
