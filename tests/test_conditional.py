"""The part that joins its input with what is given."""

from __future__ import annotations

import math

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_vae as pv
from tests.helpers import check_gradients, check_state_dict, total_mass

D, C, E = 2, 3, 4


def conditional() -> pv.Conditional:
    return pv.Conditional(pv.GaussianLikelihood(pv.MLP(D + C, E, hidden_dims=(5,))))


@pytest.mark.parametrize("leading", [(5,), (4, 5), (2, 4, 5)])
def test_shapes_with_particles_to_the_left_of_the_data(leading: tuple[int, ...]) -> None:
    part, z, y = conditional(), torch.randn(*leading, D), torch.randn(5, C)
    p = part(z, y)
    assert (p.batch_shape, p.event_shape) == (leading, (E,))
    rows = [part.part(torch.cat([row, y], -1)).mean for row in z.reshape(-1, 5, D)]
    torch.testing.assert_close(p.mean.reshape(-1, 5, E), torch.stack(rows))


def test_several_tensors_are_joined_in_order() -> None:
    part = pv.Conditional(pv.GaussianLikelihood(nn.Linear(D + 2 + 1, E)))
    z, a, b = torch.randn(5, D), torch.randn(5, 2), torch.randn(5, 1)
    assert torch.equal(part(z, a, b).mean, part.part(torch.cat([z, a, b], -1)).mean)
    assert not torch.equal(part(z, a, b).mean, part(z, b, a).mean)


def test_the_given_that_are_named_are_joined_and_all_reach_the_part() -> None:
    network = nn.Linear(D + C, E)
    part = pv.Conditional(pv.PoissonLikelihood(network, exposure=0), given=(1,))
    z, exposure, y = torch.randn(4, 5, D), torch.rand(5) + 1, torch.randn(5, C)
    expected = network(torch.cat([z, y.expand(4, 5, C)], -1)).exp() * exposure[:, None]
    torch.testing.assert_close(part(z, exposure, y).mean, expected)
    turned = pv.Conditional(pv.GaussianLikelihood(nn.Linear(D + 3, E)), given=[1, 0])
    a, b = torch.randn(5, 1), torch.randn(5, 2)
    assert torch.equal(turned(z[0], a, b).mean, turned.part(torch.cat([z[0], b, a], -1)).mean)


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 3)])
def test_labels_and_exposures_in_one_vae(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    y = nn.functional.one_hot(torch.arange(40) % 2, 2).float()
    exposure = torch.rand(shape) + 0.5
    rates = torch.tensor([[0.5, 2.0, 1.0], [2.0, 0.5, 1.0]])
    x = torch.poisson(exposure.reshape(40, -1) * (y @ rates))
    vae = pv.VAE(
        pv.StandardNormalPrior(D),
        pv.Conditional(pv.PoissonLikelihood(nn.Linear(D + 2, 3), exposure=1), given=(0,)),
        pv.Conditional(pv.DiagonalNormalPosterior(nn.Linear(3 + 2, 2 * D)), given=(0,)),
    )
    vae.likelihood.initialize_output_bias(x, y, exposure)
    torch.testing.assert_close(
        vae.likelihood.part.network.bias.exp(), x.sum(0) / exposure.reshape(40, -1).expand(40, 3).sum(0)
    )
    svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-3}), Trace_ELBO(), compile="graph")
    losses = [svi.step(x, y, exposure) for _ in range(4)]
    assert all(map(math.isfinite, losses))
    assert svi.captures == 1
    twice = vae.decode(torch.zeros(40, D), y, 2 * exposure).mean
    torch.testing.assert_close(twice, 2 * vae.decode(torch.zeros(40, D), y, exposure).mean)
    assert vae.sample(40, y, exposure).shape == (40, 3)


def test_what_was_not_given_is_named() -> None:
    part, z = conditional(), torch.zeros(5, D)
    fix = r"Pass it after x: svi.step\(x, y\), validation=\[\(x, y\)\], vae.sample\(n, y\)"
    with pytest.raises(ValueError, match=r"given\[0\]: expected what Conditional joins .*, got nothing. " + fix):
        part(z)
    second = pv.Conditional(part.part, given=(1,))
    with pytest.raises(ValueError, match=r"given\[1\]: expected what Conditional joins .*, got 1 value. " + fix):
        second(z, torch.zeros(5, C))
    vae = pv.VAE(pv.StandardNormalPrior(D), part, pv.Conditional(pv.DiagonalNormalPosterior(nn.Linear(E + C, 2 * D))))
    for call in (
        lambda: vae.sample(5),
        lambda: vae.reconstruct(torch.zeros(5, E)),
        lambda: vae.guide(torch.ones(5, E)),
    ):
        with pytest.raises(ValueError, match=r"given\[0\]: expected what Conditional joins"):
            call()


def test_data_are_repeated_for_every_value_of_what_is_given() -> None:
    """A class that is summed out has a dimension to the left of the data's."""
    part, z, classes = conditional(), torch.randn(5, D), torch.eye(C)
    means = part(z, classes[:, None]).mean
    assert means.shape == (C, 5, E)
    for y in range(C):
        torch.testing.assert_close(means[y], part(z, classes[y].expand(5, C)).mean)
    q = pv.Conditional(pv.DiagonalNormalPosterior(nn.Linear(2 * E + C, 2 * D)))
    mask = torch.rand(5, E) < 0.5
    assert q(torch.randn(5, E), classes[:, None], mask=mask).batch_shape == (C, 5)
    with pytest.raises(ValueError, match=r"given\[0\]: expected rows that broadcast to \(5,\).* got shape \(3, 4, 3\)"):
        part(z, torch.zeros(C, 4, C))


def test_integer_labels_are_to_be_encoded() -> None:
    part, z = conditional(), torch.zeros(5, D)
    encode = r"Encode classes \(torch.nn.functional.one_hot\("
    with pytest.raises(ValueError, match=r"given\[0\]: expected shape \(B, C\), got \(5,\). " + encode):
        part(z, torch.arange(5))
    with pytest.raises(TypeError, match=r"given\[0\]: expected floating-point .* got torch.int64. " + encode) as error:
        part(z, torch.arange(5)[:, None])
    assert "pixels" not in str(error.value)


def test_positions_of_another_kind_are_refused() -> None:
    for wrong in (0, (), (-1,), (0.5,), ("labels",), "0", (True,), (0, 0)):
        with pytest.raises(ValueError, match=r"given: expected different positions .* got .*Write given=\(0,\)"):
            pv.Conditional(pv.GaussianLikelihood(nn.Linear(D, E)), given=wrong)


def test_every_parameter_gets_a_gradient_and_is_saved(tmp_path) -> None:
    z, y = torch.randn(5, D), torch.randn(5, C)
    part = conditional()
    check_gradients(part, part(z, y).log_prob(torch.randn(5, E)))
    check_state_dict(conditional, lambda part: part(z, y).mean, tmp_path / "part.pt")


def test_density_integrates_to_one_for_each_condition() -> None:
    part = pv.Conditional(pv.ContinuousBernoulliLikelihood(pv.MLP(D + C, 1, hidden_dims=(5,)))).double()
    for y in torch.eye(C).double():
        p = part(torch.randn(1, D).double(), y[None])
        one = type(p.base_dist)(logits=p.base_dist.logits[0])
        assert total_mass(one.to_event(1)) == pytest.approx(1.0, abs=1e-6)


def test_it_passes_on_what_the_likelihood_offers() -> None:
    part = pv.Conditional(pv.BernoulliLikelihood(nn.Linear(D + C, E), event_shape=(E,)))
    assert part.event_shape == (E,)
    x = (torch.rand(500, E) < 0.3).float()
    part.initialize_output_bias(x)
    torch.testing.assert_close(part.part.network.bias.sigmoid(), x.mean(0))
    assert not hasattr(pv.Conditional(pv.DiagonalNormalPosterior(nn.Linear(3, 4))), "event_shape")


def test_bad_input_is_refused() -> None:
    part, z = conditional(), torch.zeros(5, D)
    with pytest.raises(ValueError, match=r"given\[0\]: expected shape \(B, C\), got \(5,\). Encode classes .*one_hot"):
        part(z, torch.zeros(5))
    with pytest.raises(TypeError, match=r"given\[0\]: expected floating-point values .* got torch.int64"):
        part(z, torch.zeros(5, C, dtype=torch.long))
    with pytest.raises(TypeError, match=r"given\[0\]: expected torch.float32, .* got torch.float64"):
        part(z, torch.zeros(5, C).double())
    with pytest.raises(TypeError, match=r"given\[0\]: expected a torch.Tensor, got list"):
        part(z, [0.0])
    with pytest.raises(ValueError, match=r"given\[0\]: expected rows that broadcast to \(5,\).* got shape \(4, 3\)"):
        part(z, torch.zeros(4, C))
    for wrong in (None, pv.BernoulliLikelihood):
        with pytest.raises(TypeError, match=r"part: expected a likelihood or posterior, got"):
            pv.Conditional(wrong)
