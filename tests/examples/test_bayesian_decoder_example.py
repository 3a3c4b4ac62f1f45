"""The example of a Bayesian decoder in its short form."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

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
    assert (tmp_path / "uncertainty.png").stat().st_size > 1000


def test_the_decoder_interpolates_and_learns_only_the_coarse_image(example):
    network = example.decoder(3, (8, 8))
    assert network(torch.zeros(2, 5, 3)).shape == (2, 5, 64)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {*(f"coarse.layers.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")), "output.bias"}
    torch.testing.assert_close(network.output.weight.sum(1), torch.ones(64))  # a weighted mean of coarse pixels
