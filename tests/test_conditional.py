"""The part that joins its input with what is given."""

from __future__ import annotations

import pytest
import torch
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
