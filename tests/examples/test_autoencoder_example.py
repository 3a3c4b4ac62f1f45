"""The example of autoencoders in its short form."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "autoencoder.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("autoencoder_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_frechet_distance_is_that_of_normal_distributions(example):
    torch.manual_seed(0)
    a = torch.randn(500, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    assert example.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)
    assert example.frechet_distance(a, a + 2.0) == pytest.approx(3 * 2.0**2)
    scaled = 3 * (a - a.mean(0)) + a.mean(0)
    assert example.frechet_distance(a, scaled) == pytest.approx((3 - 1) ** 2 * a.T.cov().trace().item())


@pytest.mark.slow
def test_it_writes_metrics_and_a_picture(example, tmp_path):
    flags = ["--smoke", "--dataset", "digits", "--no-compile", "--epochs", "1", "--output-dir", str(tmp_path)]
    metrics = example.main(flags)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    nats = metrics["nats per image"]
    assert nats["linear VAE, ELBO"] <= nats["linear VAE, bound"] < nats["linear VAE, log p(x)"] < nats["PPCA, log p(x)"]
    distances = metrics["Frechet distance"]
    training = distances.pop("training images")
    assert len(distances) == 7
    assert 0 < training < min(distances.values())
