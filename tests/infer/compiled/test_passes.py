"""What is done to products leaves their results, and casts nothing twice."""

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.infer.compiled import bfloat16, passes
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


@pytest.mark.parametrize("intel", [False, True])
def test_large_products_go_to_onednn_by_their_shape_alone_but_on_intel(
    intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_mkl_on_intel", lambda: intel)
    onednn = torch.backends.mkldnn.is_available() and not intel

    def function(a: Tensor, b: Tensor, bias: Tensor) -> list[Tensor]:
        return [a @ b, torch.addmm(bias, a, b), a[:3] @ b]

    a, b, bias = torch.randn(130, 120), torch.randn(120, 140), torch.randn(140)
    graph = choose_products(make_fx(function)(a, b, bias))
    targets = [node.target for node in graph.graph.nodes]
    if onednn:
        assert targets.count(torch.ops.pyro_vae.onednn_linear.default) == 2
    assert targets.count(aten.mm.default) == (1 if onednn else 2)
    exact = [t.double() for t in (a, b, bias)]
    for got, want in zip(graph(a, b, bias), function(*exact), strict=True):
        assert torch.allclose(got.double(), want, atol=1e-3)


def test_a_processor_without_bfloat16_multiplies_rounded_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(50, 70), torch.randn(30, 70)
    results = []
    for native in (True, False):
        monkeypatch.setattr(bfloat16, "_native", lambda native=native: native)
        results.append(layer(weight, x))
    rounded = x.bfloat16().float() @ weight.t().bfloat16().float()
    assert torch.equal(results[1][0], nn.functional.silu(rounded))
    for native, emulated in zip(*results, strict=True):
        assert emulated.dtype is torch.float32
        assert (native - emulated).norm() < 1e-2 * native.norm()
        assert not torch.equal(native, emulated)
