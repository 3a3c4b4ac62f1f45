"""The contract of the networks, held against each of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae import networks
from tests.helpers import check_gradients, check_state_dict

IN, OUT = 3, 2
IMAGE = (2, 5, 8)
NETWORKS: dict[str, tuple[Callable[[], Any], tuple[int, ...], tuple[int, ...]]] = {  # makes one, input, output
    "MLP": (lambda: pv.MLP(IN, OUT, hidden_dims=(4,)), (IN,), (OUT,)),
    "MLP without hidden layers": (lambda: pv.MLP(IN, OUT, hidden_dims=()), (IN,), (OUT,)),
    "MLP residual": (lambda: pv.MLP(IN, OUT, hidden_dims=(IN, 4, 4), residual=True), (IN,), (OUT,)),
    "GatedMLP": (lambda: pv.GatedMLP(IN, OUT, hidden_dims=(4, 5)), (IN,), (OUT,)),
    "ConvEncoder": (lambda: pv.ConvEncoder(IMAGE, OUT, channels=(3, 4)), IMAGE, (OUT,)),
    "ConvEncoder wide": (lambda: pv.ConvEncoder(IMAGE, OUT, channels=(3,), kernel_size=5), IMAGE, (OUT,)),
    "ConvDecoder": (lambda: pv.ConvDecoder(IN, IMAGE, channels=(4, 3)), (IN,), IMAGE),
    "ConvDecoder wide": (lambda: pv.ConvDecoder(IN, IMAGE, channels=(3,), kernel_size=5), (IN,), IMAGE),
    "AnyLeadingDims": (
        lambda: pv.AnyLeadingDims(nn.Sequential(nn.Flatten(1), nn.Linear(IN, OUT)), event_dim=1),
        (IN,),
        (OUT,),
    ),
}
each_network = pytest.mark.parametrize("name", NETWORKS)


def test_every_exported_network_is_listed() -> None:
    of_sequences = {"BackwardRNN"}  # tests/models/test_deep_markov.py
    assert set(networks.__all__) - of_sequences == {name.split()[0] for name in NETWORKS}


@pytest.mark.parametrize("leading", [(), (5,), (4, 5)])
@each_network
def test_shapes_with_any_leading_dimensions(name: str, leading: tuple[int, ...]) -> None:
    make, shape, out_shape = NETWORKS[name]
    network, input = make(), torch.randn(*leading, *shape)
    output = network(input)
    assert output.shape == (*leading, *out_shape)
    one_by_one = [network(row) for row in input.reshape(-1, *shape)]
    torch.testing.assert_close(output.reshape(-1, *out_shape), torch.stack(one_by_one))


@each_network
def test_every_parameter_gets_a_gradient(name: str) -> None:
    make, shape, _ = NETWORKS[name]
    network = make()
    check_gradients(network, network(torch.randn(5, *shape)))


@each_network
def test_state_dict_round_trip(name: str, tmp_path: Any) -> None:
    make, shape, _ = NETWORKS[name]
    input = torch.randn(5, *shape)
    check_state_dict(make, lambda network: network(input), tmp_path / "network.pt")


@each_network
def test_double_precision_throughout(name: str) -> None:
    make, shape, _ = NETWORKS[name]
    assert make().double()(torch.randn(5, *shape, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "AnyLeadingDims"])
def test_input_of_another_type_or_shape_is_refused(name: str) -> None:
    make, shape, _ = NETWORKS[name]
    with pytest.raises(TypeError, match=r"input: expected floating-point values"):
        make()(torch.zeros(2, *shape, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"input: expected torch.float32, .* got torch.float16"):
        make()(torch.zeros(2, *shape).half())
    with pytest.raises(ValueError, match=rf"input: expected .*{name.split()[0]}.* got"):
        make()(torch.zeros(2, *shape[:-1], shape[-1] + 1))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "AnyLeadingDims"])
def test_the_output_bias_shifts_each_output(name: str) -> None:
    """What ``initialize_output_bias`` relies on: one bias for each number of the output."""
    make, shape, out_shape = NETWORKS[name]
    network, input = make(), torch.randn(5, *shape)
    before = network(input)
    shift = torch.randn(out_shape)
    with torch.no_grad():
        network.output.bias += shift.flatten()
    torch.testing.assert_close(network(input), before + shift)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (4, 4), (5, 9), (28, 28), (13, 6)])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_convolutions_take_images_of_any_size(size: tuple[int, int], depth: int) -> None:
    image = (3, *size)
    encoder, decoder = pv.ConvEncoder(image, 4, channels=(2,) * depth), pv.ConvDecoder(2, image, channels=(2,) * depth)
    assert encoder(torch.randn(2, *image)).shape == (2, 4)
    assert decoder(torch.randn(2, 2)).shape == (2, *image)


def test_a_convolutional_vae_trains_in_pyro_and_compiled(binary_data: torch.Tensor) -> None:
    image = (1, 2, 3)
    x = binary_data.reshape(-1, *image)
    losses = []
    for kind, options in ((SVI, {}), (pv.CompiledSVI, {"compile": "graph"})):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        likelihood = pv.BernoulliLikelihood(pv.ConvDecoder(2, image), event_shape=image)
        likelihood.initialize_output_bias(x)
        assert likelihood.network.output.bias.shape == (6,)
        vae = pv.VAE(pv.StandardNormalPrior(2), likelihood, pv.DiagonalNormalPosterior(pv.ConvEncoder(image, 4)))
        before = copy.deepcopy(vae.state_dict())
        loss = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
        svi = kind(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), loss, **options)
        losses.append([svi.step(x) for _ in range(4)])
        assert all(not torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert svi.captures == 1
    assert pv.log_weights(vae.model, vae.guide, x, num_particles=3).shape == (3, 64)


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
        (lambda: pv.GatedMLP(0, OUT), r"in_features: expected an integer of at least 1, got 0"),
        (
            lambda: pv.ConvEncoder((28, 28), OUT),
            r"image_shape: expected \(C, H, W\), got \(28, 28\). Write \(1, H, W\)",
        ),
        (lambda: pv.ConvDecoder(IN, None), r"image_shape: expected \(C, H, W\), got None"),
        (lambda: pv.ConvDecoder(IN, (0, 2, 2)), r"image_shape: expected a sequence .* each at least 1"),
        (lambda: pv.ConvEncoder(IMAGE, OUT, channels=()), r"channels: expected a sequence of at least one integer"),
        (lambda: pv.ConvEncoder(IMAGE, OUT, channels=3), r"channels: expected a sequence of at least one integer"),
        (lambda: pv.ConvEncoder(IMAGE, OUT, kernel_size=4), r"kernel_size: expected an odd number, got 4. Take 5"),
        (lambda: pv.AnyLeadingDims(nn.Linear(2, 3), 3)(torch.zeros(2)), r"input: expected at least 3 dimensions"),
        (lambda: pv.AnyLeadingDims(nn.Linear(2, 3), 0), r"event_dim: expected an integer of at least 1"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_number_is_no_sequence_of_widths() -> None:
    for make in (pv.MLP, pv.GatedMLP):
        with pytest.raises(TypeError, match=r"hidden_dims: expected a sequence of integers, got 5. Write \(5,\)"):
            make(IN, OUT, hidden_dims=5)


def test_residual_layers_add_their_input_where_the_widths_agree() -> None:
    network = pv.MLP(IN, OUT, hidden_dims=(IN, 4, 4), activation=nn.Tanh, residual=True)
    input = torch.randn(7, IN)
    first, second, third, output = network.layers[::2]
    h = input + torch.tanh(first(input))
    h = torch.tanh(second(h))
    h = h + torch.tanh(third(h))
    torch.testing.assert_close(network(input), output(h))
    with pytest.raises(
        ValueError, match=r"residual: expected a hidden layer as wide as its input, got widths \(3, 4\)"
    ):
        pv.MLP(IN, OUT, hidden_dims=(4,), residual=True)


def test_gated_layers_multiply_values_by_gates() -> None:
    network = pv.GatedMLP(IN, OUT, hidden_dims=(4,))
    input = torch.randn(7, IN)
    values, gates = network.layers[0](input).chunk(2, -1)
    torch.testing.assert_close(network(input), network.output(values * gates.sigmoid()))
