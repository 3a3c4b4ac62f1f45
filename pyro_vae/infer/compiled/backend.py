"""From a captured graph to a function that runs it fast."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ..._warn import warn
from .lower import lowered
from .toolchain import FAST_CPU, inductor, kept_on_disk
from .undo import gpus

logger = logging.getLogger(__name__)

Run = Callable[..., Any]  # (*held, *inputs) -> list of tensors

# Random numbers as PyTorch's eager operations draw them. No asserts of sizes: a call of other sizes has another graph.
_OPTIONS = {"fallback_random": True, "size_asserts": False, "alignment_asserts": False, "scalar_asserts": False}
# On a GPU they are drawn in their order only without this. (On a CPU they are with it; without it, what a compiled
# batch normalization with dropout computes is wrong.)
_IN_ORDER = {"reorder_for_locality": False}

# The most operations of a graph that is compiled: about a minute. A loop over many time steps makes more.
MOST_OPERATIONS = 4000

_said: set[str] = set()


def compiled(
    graph: fx.GraphModule, held: list[Tensor], inputs: list[Tensor], like: Mapping[int, Tensor] | None = None
) -> Run:
    """``graph`` through torch's inductor for these inputs, and on a GPU as one CUDA graph on top.

    Where inductor fails, for want of a C++ compiler say, or the graph has more than ``MOST_OPERATIONS``, it is run
    uncompiled, and that is said once. Random numbers are drawn as PyTorch's eager operations draw them, so that one
    seed gives one run, compiled or not.

    Args:
        graph: takes ``held`` and then ``inputs``.
        held: tensors that every call brings again, at the same address.
        inputs: tensors like those of later calls.
        like: by the position of an output, a tensor whose strides it is to have; as the compiler likes for others.
    """
    operations = len(graph.graph.nodes)
    if operations > MOST_OPERATIONS:
        _say_once(
            f"the captured graph has {operations:,} operations and runs uncompiled: beyond {MOST_OPERATIONS:,}, "
            "compiling takes minutes. Where a loop makes them, one operation over a dimension may take its place."
        )
        return graph
    for node in graph.graph.find_nodes(op="placeholder"):
        node.meta.pop("val", None)  # fake tensors of several modes, which the compiler refuses
    on_cpu = all(t.device.type == "cpu" for t in (*held, *inputs))
    try:
        compiler = inductor(on_cpu)
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=gpus()),  # the compiler tries programs on random inputs
            warnings.catch_warnings(),
            kept_on_disk([*held, *inputs]) as examples,
        ):
            # What torch's own code warns of while it compiles (its own deprecated parts) is nothing a user could mend.
            warnings.simplefilter("ignore")
            run = _with_strides(_first_that_works(_ways(compiler, graph, examples, on_cpu)), like or {})
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        logger.debug("compilation failed", exc_info=True)
        of_the_compiler = "compiler" in f"{type(error).__name__} {error}".lower()
        cure = (
            "Is there a C++ compiler (g++ or clang++) on the path?"
            if of_the_compiler
            else "The results are the same; compile='graph' says that it is meant."
        )
        _say_once(
            f"the captured step could not be compiled and runs uncompiled ({type(error).__name__}: {reason}). {cure}"
        )
        return graph
    _keep_freed_memory()
    if inputs and all(t.device.type == "cuda" for t in (*held, *inputs)):
        try:
            return _CudaGraph(run, held, inputs)
        except RuntimeError as error:  # an operation that cannot be replayed, such as a copy from the host
            logger.info("no CUDA graph: %s", str(error).partition("\n")[0])
    return run


def _ways(compiler: Any, graph: fx.GraphModule, examples: list[Tensor], on_cpu: bool) -> list[Callable[[], Run]]:
    """Ways to compile, the one that takes least time first."""
    # How many threads is told for the sake of releases that took one number's program for another's.
    fast = _OPTIONS | FAST_CPU | {"cpp.threads": torch.get_num_threads()}
    last = partial(compiler.compile, graph, examples, options=_OPTIONS)
    if not examples:
        return [last]
    if not on_cpu:
        in_order = _OPTIONS | _IN_ORDER
        return [
            partial(lowered, graph, examples, in_order),
            partial(compiler.compile, graph, examples, options=in_order),
        ]
    return [partial(lowered, graph, examples, fast), partial(compiler.compile, graph, examples, options=fast), last]


def _first_that_works(ways: list[Callable[[], Run]]) -> Run:
    for way in ways[:-1]:
        try:
            return way()
        except Exception:
            logger.debug("one way of compiling failed, the next one follows", exc_info=True)
    return ways[-1]()


def _with_strides(run: Run, like: Mapping[int, Tensor]) -> Run:
    """Return ``run`` with outputs in the strides of other tensors.

    The compiler may store a gradient in another order than its parameter. The fused kernels of the optimizers take
    the elements as they lie in memory: on a CPU they would mix them up without a word.
    """
    to_copy: list[int] | None = None  # found in the first call: a compiled function gives the same strides each time

    def with_strides(*tensors: Tensor) -> list[Tensor]:
        nonlocal to_copy
        out = list(run(*tensors))
        if to_copy is None:
            to_copy = [i for i, t in like.items() if out[i].stride() != t.stride()]
        for i in to_copy:
            out[i] = torch.empty_like(like[i]).copy_(out[i])
        return out

    return with_strides if like else run


class _CudaGraph:
    """Replay one call on fixed addresses; new inputs are copied in."""

    def __init__(self, run: Run, held: list[Tensor], inputs: list[Tensor]) -> None:
        device = inputs[0].device
        self._inputs = [t.detach().clone() for t in inputs]
        before = [t.detach().clone() for t in held]
        random_state = torch.cuda.get_rng_state(device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.no_grad(), torch.cuda.stream(stream):
            for _ in range(2):  # lazy initialisation must not be captured
                run(*held, *self._inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.no_grad(), torch.cuda.graph(self._graph):
                self._outputs = list(run(*held, *self._inputs))
        finally:  # the warm-up took steps
            with torch.no_grad():
                for tensor, value in zip(held, before, strict=True):
                    tensor.copy_(value)
            torch.cuda.set_rng_state(random_state, device)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        for here, new in zip(self._inputs, tensors[len(tensors) - len(self._inputs) :], strict=True):
            here.copy_(new, non_blocking=True)
        self._graph.replay()
        return [o.clone() if o.dim() == 0 else o for o in self._outputs]


def _keep_freed_memory() -> None:
    """Keep the C library from returning freed memory to the system: each step would pay a page fault for every page.

    glibc returns what is freed beyond twice the largest block that it has seen freed, up to blocks of 32 MiB (see
    M_MMAP_THRESHOLD in mallopt(3)); so one is freed here, never written to. Other C libraries ignore it.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warn(message)
