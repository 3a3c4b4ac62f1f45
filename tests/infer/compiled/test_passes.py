"""What is done to products leaves their results, and casts nothing twice."""

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.infer.compiled.bfloat16 import Bfloat16Products
from pyro_vae.infer.compiled.passes import choose_products, share_casts

aten = torch.ops.aten


def layer(weight: Tensor, x: Tensor) -> list[Tensor]:
    """A hidden layer, forwards and backwards."""
    with Bfloat16Products():
        hidden = nn.functional.silu(x @ weight.t())
        back = (hidden * hidden) @ weight
        return [hidden, back, hidden.t() @ x]


def casts(graph: fx.GraphModule) -> int:
    return sum(
        node.target is aten._to_copy.default and node.kwargs.get("dtype") is torch.bfloat16
        for node in graph.graph.nodes
    )


def test_a_tensor_is_cast_once_though_used_as_it_is_and_transposed() -> None:
    weight, x = torch.randn(5, 7), torch.randn(3, 7)
    graph = make_fx(layer)(weight, x)
    want = graph(weight, x)
    assert casts(graph) == 6  # two for each product
    graph = share_casts(graph)
    assert casts(graph) == 4  # weight, x, hidden, its square
    for got, expected in zip(graph(weight, x), want, strict=True):
        assert got.dtype is torch.float32
        assert torch.equal(got, expected)


def test_large_products_go_to_onednn_by_their_shape_alone() -> None:
    def function(a: Tensor, b: Tensor, bias: Tensor) -> list[Tensor]:
        return [a @ b, torch.addmm(bias, a, b), a[:3] @ b]

    a, b, bias = torch.randn(130, 120), torch.randn(120, 140), torch.randn(140)
    graph = choose_products(make_fx(function)(a, b, bias))
    targets = [node.target for node in graph.graph.nodes]
    if torch.backends.mkldnn.is_available():
        assert targets.count(torch.ops.pyro_vae.onednn_mm.default) == 2
    assert targets.count(aten.mm.default) == (1 if torch.backends.mkldnn.is_available() else 2)
    exact = [t.double() for t in (a, b, bias)]
    for got, want in zip(graph(a, b, bias), function(*exact), strict=True):
        assert torch.allclose(got.double(), want, atol=1e-3)
