"""The example of clusters in its short form."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image

import pyro_vae as pv

EXAMPLE = Path(__file__).parents[2] / "examples" / "mixture.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("mixture", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_prints_elbo_and_accuracy_and_draws_the_clusters(example, tmp_path, capsys):
    flags = ["--smoke", "--dataset", "digits", "--output-dir", str(tmp_path)]
    percent = example.main(flags)
    assert 10.0 <= percent <= 100.0
    out = capsys.readouterr().out
    assert f"cluster accuracy {percent:.2f} %" in out
    assert -70 < float(out.split("test ELBO ")[1].split()[0]) < -15
    with Image.open(tmp_path / "clusters.png") as picture:
        assert min(picture.size) > 300


def test_accuracy_is_that_of_the_best_matching(example):
    labels = torch.arange(100) % 10
    assert example.accuracy((labels + 3) % 10, labels) == 100.0
    swapped = labels.clone()
    swapped[:15] = 0  # of the first 15 images those two of class 0 stay right
    assert example.accuracy((swapped + 3) % 10, labels) == pytest.approx(87.0)


def test_an_upright_image_is_centered_and_without_slant(example):
    row, column = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    bar = 255 * torch.exp(-((column - 10 - 0.4 * (row - 16)) ** 2) / 4 - (row - 16) ** 2 / 20)
    x = pv.data.to_float(example.upright(bar.to(torch.uint8).view(1, -1))).view(28, 28)
    down, right = row - 13.5, column - 13.5
    assert abs((x * down).sum() / x.sum()) < 0.1
    assert abs((x * right).sum() / x.sum()) < 0.1
    assert abs((x * down * right).sum() / (x * down**2).sum()) < 0.02


def test_jitter_moves_images_in_training_alone(example):
    jitter = example.Jitter()
    x = torch.rand(5, 64)
    assert not torch.equal(jitter(x), x)
    assert jitter(x).shape == x.shape
    assert torch.equal(jitter.eval()(x), x)


def test_the_prior_starts_with_the_moments_of_the_clusters(example):
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(2000) % 10
    centers = 8.0 * torch.randn(10, 3, generator=generator)
    loc = centers[truth] + 0.3 * torch.randn(2000, 3, generator=generator)
    prior = pv.MixturePrior(3, 10)
    clusters = example.initialize(prior, torch.distributions.Normal(loc, 0.4), seed=0)
    assert example.accuracy(clusters, truth) > 99.0
    torch.testing.assert_close(prior.log_scale.exp(), torch.full((10, 3), 0.5), rtol=0.2, atol=0)


def test_it_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 150
