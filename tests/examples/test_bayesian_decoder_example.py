"""The example of a Bayesian decoder in its short form."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv

EXAMPLE = Path(__file__).parents[2] / "examples" / "bayesian_decoder.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("bayesian_decoder", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_it_writes_metrics_and_a_picture(example, tmp_path):
    metrics = example.main(["--smoke", "--dataset", "digits", "--output-dir", str(tmp_path)])
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert tuple(metrics) == example.METHODS
    assert all(-60 < values["test_log_likelihood"] < 0 for values in metrics.values())
    assert metrics["point"]["gain"] == 0
    assert metrics["Bayesian"]["standard_error"] > 0
    assert (tmp_path / "uncertainty.png").stat().st_size > 1000


def test_the_encoder_of_draws_comes_close_to_the_posterior(example):
    """x = z + noise of variance 1: q(z|x) = N(x / 2, 1 / 2), by the draws of the model alone."""

    class Identity(torch.nn.Module):
        def forward(self, z):
            return dist.Normal(z, 1.0).to_event(1)

    torch.manual_seed(0)
    vae = pv.VAE(pv.StandardNormalPrior(1), Identity(), pv.DiagonalNormalPosterior(torch.nn.Linear(1, 2)))
    encoder = example.encoder_of_draws(argparse.Namespace(latent_dim=1, sleep=600), vae, lambda: (), pixels=1)
    q = encoder(torch.tensor([[-2.0], [0.0], [2.0]]))
    torch.testing.assert_close(q.mean, torch.tensor([[-1.0], [0.0], [1.0]]), atol=0.15, rtol=0)
    torch.testing.assert_close(q.variance, torch.full((3, 1), 0.5), atol=0.12, rtol=0)


def test_the_decoder_interpolates_and_learns_only_the_coarse_image(example):
    network = example.decoder(3, (8, 8))
    assert network(torch.zeros(2, 5, 3)).shape == (2, 5, 64)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {*(f"coarse.layers.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")), "output.bias"}
    torch.testing.assert_close(network.output.weight.sum(1), torch.ones(64))  # a weighted mean of coarse pixels
