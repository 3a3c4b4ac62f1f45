"""Sums of Bernoulli log-densities with few logarithms: the same sums, and fewer logarithms."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.evaluate.bernoulli_sums import share_logarithms

aten = torch.ops.aten


def log_density(logits, x):
    return dist.Bernoulli(logits=logits, validate_args=False).to_event(1).log_prob(x)


def rewritten(function, *args):
    graph = share_logarithms(make_fx(function)(*args))
    return graph, {node.target for node in graph.graph.nodes}


@pytest.mark.parametrize("terms", [16, 784, 1024, 3072])
@pytest.mark.parametrize("scale", [0.1, 5.0, 100.0])
def test_the_sum_is_the_log_density(terms, scale):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, terms, generator=generator) * scale
    x = (torch.rand(5, terms, generator=generator) < 0.4).float()
    graph, operations = rewritten(log_density, logits, x)
    assert aten.prod.dim_int in operations
    assert aten.binary_cross_entropy_with_logits.default not in operations
    exact = log_density(logits.double(), x.double())
    error = (graph(logits, x) - exact).abs().max()
    assert error <= max((log_density(logits, x) - exact).abs().max(), 1e-6 * exact.abs().max())


def test_images_are_summed_over_all_their_dimensions():
    logits, x = torch.randn(3, 5, 1, 4, 8), torch.ones(5, 1, 4, 8)
    graph, operations = rewritten(
        lambda logits, x: dist.Bernoulli(logits=logits, validate_args=False).to_event(3).log_prob(x), logits, x
    )
    assert aten.prod.dim_int in operations
    torch.testing.assert_close(
        graph(logits, x), dist.Bernoulli(logits=logits).to_event(3).log_prob(x), rtol=0, atol=1e-5
    )


def test_other_graphs_are_left_alone():
    logits, x = torch.randn(3, 5, 6), torch.ones(5, 6)
    _, operations = rewritten(log_density, logits, x)  # six terms do not divide into groups
    assert aten.prod.dim_int not in operations
    logits, x = torch.randn(3, 64), torch.ones(3, 64)
    functions = (
        lambda logits, x: log_density(logits.half(), x.half()),
        lambda logits, x: dist.Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(0),
        lambda logits, x: torch.nn.functional.binary_cross_entropy_with_logits(
            logits, x, weight=x, reduction="none"
        ).sum(-1),
    )
    for function in functions:
        graph, operations = rewritten(function, logits, x)
        assert aten.prod.dim_int not in operations
        assert torch.equal(graph(logits, x), function(logits, x))
