"""What torch's compiler needs of the machine, made ready in the background while Pyro takes the first step."""

from __future__ import annotations

import functools
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

logger = logging.getLogger(__name__)

# For the CPU: one C++ program for all of a step's kernels and the calls between them, which compiles in half the time
# of a program for each. Which vector instructions to use torch reads off the processor, and then tries each in a
# program of its own: seven seconds. A compiler too old for them fails at the step, which goes without these options.
FAST_CPU = {
    "cpp_wrapper": True,
    "cpp.vec_isa_ok": True,
    # Appended to the compiler's command, so that it overrides what comes before: kernels that name their vector
    # instructions run as fast with -O1 as with -O3 (1 %), which takes the compiler 1.4 times as long; warnings and
    # tables for a debugger are for nobody here. "off" is this option's default.
    "cpp.enable_floating_point_contract_flag": "off -O1 -g0 -w",
    # Replaces known pairs of operations by one call; none of those pairs is left in a step with its gradients.
    "pattern_matcher": False,
    # What is left over at the end of a row is computed without vector instructions: a third fewer kernels to write.
    "cpp.enable_loop_tail_vec": False,
}

# The smallest program that includes what a compiled step includes: compiling it leaves the headers precompiled.
_PROGRAM = """
#include <torch/csrc/inductor/cpp_wrapper/cpu.h>
extern "C" void inductor_entry_impl(AtenTensorHandle* inputs, AtenTensorHandle* outputs) {}
"""


def inductor(on_cpu: bool) -> Any:
    """``torch._inductor``, which takes a second or two to import; for the CPU its headers begin to be precompiled.

    That is done in a thread, by the C++ compiler's process, once for each release of PyTorch: they are kept on disk.
    """
    module = _imported()
    if on_cpu:
        _begin_headers(os.getpid())  # a forked process has none of its parent's threads
    return module


@contextmanager
def kept_on_disk(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Lets inductor reuse what it compiled before, also in other processes; without this it does not look.

    It looks only where it finds the environment of shapes that torch.compile would have made.

    Yields:
        The tensors as inductor is to be shown them: shapes of the kind that is fixed.
    """
    try:
        from torch._guards import TracingContext, tracing
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        mode = FakeTensorMode(shape_env=ShapeEnv())
        shown: list[Tensor] = [mode.from_tensor(t, static_shapes=True) for t in tensors]
        context = tracing(TracingContext(mode))
    except (ImportError, TypeError):  # another release of PyTorch, where every process compiles for itself
        yield tensors
        return
    with context:
        yield shown


@functools.cache
def _imported() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own use of what it deprecates
        # All of it here: two threads that import these modules at once would meet half-made ones.
        import torch._dynamo
        from torch._inductor import codecache, compile_fx  # noqa: F401
    return torch._inductor


@functools.cache
def _begin_headers(process: int) -> None:
    threading.Thread(target=_precompile_headers, name="pyro_vae headers", daemon=True).start()


def _precompile_headers() -> None:
    from torch._inductor import codecache, config

    try:
        with config.patch(FAST_CPU):
            codecache.CppWrapperCodeCache.load_pybinding(
                ["std::vector<AtenTensorHandle>"], _PROGRAM, device_type="cpu", needs_vec_isa=True, num_outputs=0
            )
    except Exception:  # whatever is wrong, the step itself meets it too, and says so
        logger.debug("the compiler's headers were not precompiled", exc_info=True)
