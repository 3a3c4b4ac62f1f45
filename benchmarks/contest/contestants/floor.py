"""The floor: the matrix products of one step and nothing else, no activation, no noise, no optimiser.

Each linear map costs one product forward and two backward (the gradients of its weight and of its input), except that
the encoder's first layer needs no gradient of its input. Every product runs on the library that is the fastest for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from contest.problem import Problem, Run

Product = Callable[[], Tensor]


def floor(problem: Problem) -> Run:
    """The products in float32: MKL or oneDNN on a CPU, a CUDA graph of them on a GPU."""
    return _floor(problem, torch.float32)


def floor_bf16(problem: Problem) -> Run:
    """The products in bfloat16."""
    return _floor(problem, torch.bfloat16)


def _floor(problem: Problem, dtype: torch.dtype) -> Run:
    products = []
    for dims, first_needs_gradient in ((problem.encoder_dims, False), (problem.decoder_dims, True)):
        for layer, (fan_in, fan_out) in enumerate(pairwise(dims)):
            x = torch.randn(problem.batch_size, fan_in).to(problem.device, dtype)
            w = torch.randn(fan_out, fan_in).to(problem.device, dtype)
            g = torch.randn(problem.batch_size, fan_out).to(problem.device, dtype)
            products.append(_fastest(x, w.t()))
            products.append(_fastest(g.t(), x))
            if layer > 0 or first_needs_gradient:
                products.append(_fastest(g, w))

    def step() -> None:
        for product in products:
            product()

    step = _graphed(step) if problem.device.startswith("cuda") else step

    def run(first: int, count: int) -> float:
        for _ in range(count):
            step()
        return float("nan")  # it fits nothing

    return run


def _fastest(a: Tensor, b: Tensor) -> Product:
    """``a @ b`` on the library that does this shape in the least time here."""
    out = a.new_empty(a.shape[0], b.shape[1])
    products: list[Product] = [lambda: torch.mm(a, b, out=out)]
    if a.device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], ""))
    return min(products, key=_seconds)


def _seconds(product: Product) -> float:
    times = []
    for _ in range(15):
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def _graphed(step: Callable[[], None]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
