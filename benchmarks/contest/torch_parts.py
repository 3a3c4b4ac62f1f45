"""What the PyTorch contestants share: the two networks with the given weights, the batches, and the plain loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from contest import problem as given
from contest.problem import Layers, Problem, Run


def network(layers: Layers) -> nn.Sequential:
    """Linear maps with the given weights and SiLU between them."""
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))
        modules += [linear, nn.SiLU()]
    return nn.Sequential(*modules[:-1])


def networks(problem: Problem) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder at the initial weights, on the problem's device."""
    encoder, decoder = given.initial_weights(problem)
    return network(encoder).to(problem.device), network(decoder).to(problem.device)


def batches(problem: Problem) -> list[Tensor]:
    """The batches as tensors on the problem's device."""
    return list(torch.from_numpy(given.batches(problem)).to(problem.device))


def loop(step: Callable[[Tensor], Tensor | float], data: list[Tensor]) -> Run:
    """The training loop as everybody writes it, around ``step(batch) -> loss summed over the batch``."""

    def run(first: int, count: int) -> float:
        total: Tensor | float = 0.0
        for i in range(first, first + count):
            total += step(data[i % len(data)])
        return float(total) / (count * len(data[0]))

    return run
