"""The categorical likelihood: the order of its logits, its moments, its initialization."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyro_vae as pv


def test_logits_are_grouped_by_class_along_the_first_dimension() -> None:
    network = nn.Sequential(nn.Linear(2, 3 * 2 * 2), nn.Unflatten(-1, (3 * 1, 2, 2)))
    p = pv.CategoricalLikelihood(network, 3, event_shape=(1, 2, 2))(torch.randn(5, 2))
    assert (p.batch_shape, p.event_shape) == ((5,), (1, 2, 2))
    z = torch.randn(5, 2)
    logits = network(z)  # (5, 3, 2, 2)
    x = pv.CategoricalLikelihood(network, 3, event_shape=(1, 2, 2))(z).sample()
    expected = logits.log_softmax(1).gather(1, x.long())[:, 0].flatten(1).sum(-1)
    torch.testing.assert_close(pv.CategoricalLikelihood(network, 3, event_shape=(1, 2, 2))(z).log_prob(x), expected)


def test_the_output_bias_is_the_frequency_of_each_class() -> None:
    likelihood = pv.CategoricalLikelihood(nn.Linear(2, 4 * 2), 4)
    x = torch.tensor([[0.0, 3.0], [0.0, 3.0], [1.0, 3.0], [2.0, 0.0]])
    likelihood.initialize_output_bias(x)
    nn.init.zeros_(likelihood.network.weight)
    probs = likelihood(torch.zeros(2)).base_dist.probs
    torch.testing.assert_close(probs[0], torch.tensor([2.0, 1.0, 1.0, 0.5]) / 4.5)
    torch.testing.assert_close(probs[1], torch.tensor([1.0, 0.5, 0.5, 3.0]) / 5)
    with pytest.raises(ValueError, match=r"x: expected values in \[0, 3\], got values from 1 to 4"):
        likelihood.initialize_output_bias(x + 1)


def test_bad_arguments_are_refused() -> None:
    for wrong in (0, 2.5, None, "3"):
        with pytest.raises(ValueError, match=r"num_classes: expected an integer of at least 1, got"):
            pv.CategoricalLikelihood(nn.Linear(2, 4), wrong)
    with pytest.raises(ValueError, match=r"expected output of shape \(\*, 3 \* E\) \(3 numbers for each element"):
        pv.CategoricalLikelihood(nn.Linear(2, 4), 3)(torch.zeros(5, 2))
