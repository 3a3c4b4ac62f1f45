"""A layer and its activation in one call: the same values, fewer operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.evaluate.linear_layers import fuse_activations

aten = torch.ops.aten

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


@torch.no_grad()
def fused(network: nn.Module, x: Tensor) -> tuple[Tensor, list[object]]:
    with torch.random.fork_rng():
        graph = fuse_activations(make_fx(network)(x))
    return graph(x), [node.target for node in graph.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.ReLU(), nn.Tanh(), nn.Sigmoid()])
@pytest.mark.parametrize("leading", [(200,), (5, 40)])
def test_layer_and_activation_are_one_operation(activation: nn.Module, leading: tuple[int, ...]) -> None:
    network = nn.Sequential(nn.Linear(120, 130), activation, nn.Linear(130, 70))
    x = torch.randn(*leading, 120)
    got, operations = fused(network, x)
    assert operations.count(torch.ops.pyro_vae.onednn_linear.default) == 2
    assert not {aten.addmm.default, aten.silu.default, aten.relu.default, aten.tanh.default} & set(operations)
    assert torch.allclose(got.double(), network.double()(x.double()), atol=1e-5)


def test_another_activation_and_one_whose_input_is_used_again_stay_apart() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(120, 120), nn.Linear(120, 120)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return torch.nn.functional.elu(self.second(y + torch.relu(y)))

    network, x = Residual(), torch.randn(100, 120)
    got, operations = fused(network, x)
    assert operations.count(torch.ops.pyro_vae.onednn_linear.default) == 2
    assert {aten.relu.default, aten.elu.default} <= set(operations)
    assert torch.allclose(got.double(), network.double()(x.double()), atol=1e-5)


def test_small_layers_and_other_precisions_stay_as_they_are() -> None:
    for network, x in (
        (nn.Sequential(nn.Linear(20, 30), nn.ReLU()), torch.randn(100, 20)),
        (nn.Sequential(nn.Linear(120, 130), nn.ReLU()).double(), torch.randn(200, 120).double()),
    ):
        got, operations = fused(network, x)
        assert {aten.addmm.default, aten.relu.default} <= set(operations)
        assert torch.equal(got, network(x))
