"""The contract of the networks, held against each of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import networks
from tests.helpers import check_gradients, check_state_dict

IN, OUT = 3, 2
NETWORKS = {
    "MLP": lambda: pv.MLP(IN, OUT, hidden_dims=(4,)),
    "MLP without hidden layers": lambda: pv.MLP(IN, OUT, hidden_dims=()),
    "AnyLeadingDims": lambda: pv.AnyLeadingDims(nn.Sequential(nn.Flatten(1), nn.Linear(IN, OUT)), event_dim=1),
}
each_network = pytest.mark.parametrize("name", NETWORKS)


def test_every_exported_network_is_listed() -> None:
    assert set(networks.__all__) == {name.split()[0] for name in NETWORKS}


@pytest.mark.parametrize("leading", [(), (5,), (4, 5)])
@each_network
def test_shapes_with_any_leading_dimensions(name: str, leading: tuple[int, ...]) -> None:
    network, input = NETWORKS[name](), torch.randn(*leading, IN)
    output = network(input)
    assert output.shape == (*leading, OUT)
    one_by_one = [network(row) for row in input.reshape(-1, IN)]
    torch.testing.assert_close(output.reshape(-1, OUT), torch.stack(one_by_one))


@each_network
def test_every_parameter_gets_a_gradient(name: str) -> None:
    network = NETWORKS[name]()
    check_gradients(network, network(torch.randn(5, IN)))


@each_network
def test_state_dict_round_trip(name: str, tmp_path: Any) -> None:
    input = torch.randn(5, IN)
    check_state_dict(NETWORKS[name], lambda network: network(input), tmp_path / "network.pt")


@each_network
def test_double_precision_throughout(name: str) -> None:
    assert NETWORKS[name]().double()(torch.randn(5, IN, dtype=torch.float64)).dtype == torch.float64


def test_mlp_is_affine_maps_with_an_activation_between_them() -> None:
    network = pv.MLP(IN, OUT, hidden_dims=(4, 5), activation=nn.Tanh)
    assert [type(layer) for layer in network.layers] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert network.output is network.layers[-1]
    hidden = input = torch.randn(7, IN)
    for linear in network.layers[:-1:2]:
        hidden = torch.tanh(hidden @ linear.weight.T + linear.bias)
    torch.testing.assert_close(network(input), hidden @ network.output.weight.T + network.output.bias)


def test_mlp_takes_its_activation() -> None:
    assert pv.MLP(IN, OUT, hidden_dims=(4,), activation=lambda: nn.LeakyReLU(0.3)).layers[1].negative_slope == 0.3
    for wrong in (nn.SiLU(), torch.relu, "relu"):
        with pytest.raises(TypeError, match=r"activation: expected a function that returns a module, such as nn.SiLU"):
            pv.MLP(IN, OUT, activation=wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.MLP(IN, 0), r"out_features: expected an integer of at least 1, got 0"),
        (lambda: pv.MLP(IN, OUT, hidden_dims=(4, -1)), r"hidden_dims: expected an integer of at least 1, got -1"),
        (lambda: pv.MLP(IN, OUT)(torch.zeros(5, 4)), r"input: expected shape \(\*, 3\) .* got \(5, 4\). Flatten"),
        (lambda: pv.MLP(IN, OUT)(torch.tensor(1.0)), r"input: expected shape \(\*, 3\) .* got \(\)"),
        (lambda: pv.AnyLeadingDims(nn.Linear(2, 3), 3)(torch.zeros(2)), r"input: expected at least 3 dimensions"),
        (lambda: pv.AnyLeadingDims(nn.Linear(2, 3), 0), r"event_dim: expected an integer of at least 1"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_input_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match=r"input: expected floating-point values"):
        pv.MLP(IN, OUT)(torch.zeros(2, IN, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"input: expected torch.float32, .* got torch.float16"):
        pv.MLP(IN, OUT)(torch.zeros(2, IN).half())
    with pytest.raises(TypeError, match=r"hidden_dims: expected a sequence of integers, got 5. Write \(5,\)"):
        pv.MLP(IN, OUT, hidden_dims=5)
