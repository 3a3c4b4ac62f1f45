"""PyTorch as one writes it without Pyro: the two terms of the ELBO, ``backward``, fused Adam."""

from __future__ import annotations

import shutil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contest.problem import LEARNING_RATE, Problem, Run, Unavailable
from contest.torch_parts import batches, loop, networks


def negative_elbo(encoder: nn.Module, decoder: nn.Module, x: Tensor) -> Tensor:
    """Summed over the batch, in nats, with the Kullback-Leibler term in closed form."""
    loc, log_scale = encoder(x).chunk(2, dim=-1)
    z = loc + log_scale.exp() * torch.randn_like(loc)
    reconstruction = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
    kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
    return reconstruction + kl


def adam(*modules: nn.Module, capturable: bool = False) -> torch.optim.Adam:
    """One fused Adam over all parameters of the modules."""
    parameters = [p for module in modules for p in module.parameters()]
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True, capturable=capturable)


def hand_written(problem: Problem) -> Run:
    """Eager PyTorch."""
    encoder, decoder = networks(problem)
    optimizer = adam(encoder, decoder)

    def step(x: Tensor) -> Tensor:
        loss = negative_elbo(encoder, decoder, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return loop(step, batches(problem))


def hand_written_compiled(problem: Problem) -> Run:
    """The same with the loss, and so its gradient, under ``torch.compile``."""
    if problem.device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise Unavailable("torch.compile needs a C++ compiler on the path.")
    torch.compiler.reset()  # one capture for each architecture and batch size, none of them generalised over shapes
    encoder, decoder = networks(problem)
    optimizer = adam(encoder, decoder)
    compiled = torch.compile(negative_elbo, dynamic=False)

    def step(x: Tensor) -> Tensor:
        loss = compiled(encoder, decoder, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return loop(step, batches(problem))


def hand_written_graphed(problem: Problem) -> Run:
    """The same with the whole step, Adam included, replayed as one CUDA graph."""
    if not problem.device.startswith("cuda"):
        raise Unavailable("CUDA graphs need --device cuda.")
    encoder, decoder = networks(problem)
    data = batches(problem)
    optimizer = adam(encoder, decoder, capturable=True)
    static_x = data[0].clone()
    total = torch.zeros((), device=problem.device)

    def step() -> None:
        loss = negative_elbo(encoder, decoder, static_x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total.add_(loss.detach())

    start = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # capture wants the allocations and the optimiser's state made beforehand
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    with torch.no_grad():  # undo the warm-up steps
        for p, initial in zip((p for group in optimizer.param_groups for p in group["params"]), start, strict=True):
            p.copy_(initial)
            for moment in optimizer.state[p].values():
                moment.zero_()

    def run(first: int, count: int) -> float:
        total.zero_()
        for i in range(first, first + count):
            static_x.copy_(data[i % len(data)])
            graph.replay()
        return float(total) / (count * problem.batch_size)

    return run
