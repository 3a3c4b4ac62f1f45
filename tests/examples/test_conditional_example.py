"""The example of quadrants in its short form."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import pyro_vae as pv

EXAMPLE = Path(__file__).parents[2] / "examples" / "conditional.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("conditional", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quadrants_are_those_of_the_tutorial(example):
    """Lower left, then upper left, then upper right; those of a 2 x 2 image are its pixels."""
    for given, expected in ((1, [2]), (2, [0, 2]), (3, [0, 1, 2])):
        seen, rest = example.quadrants(given, 2, 2)
        assert seen.tolist() == expected
        assert sorted([*seen.tolist(), *rest.tolist()]) == [0, 1, 2, 3]
    seen, rest = example.quadrants(1, 28, 28)
    assert len(seen) == 14 * 14
    assert (seen // 28).min() == 14  # rows
    assert (seen % 28).max() == 13  # columns


def test_what_is_given_stays_and_the_draws_fill_in_the_rest(example):
    torch.manual_seed(0)
    seen, rest = example.quadrants(2, 4, 4)
    images = pv.data.binarize(torch.rand(3, 16), seed=0)
    rows = example.fill_in(example.build(len(seen), len(rest), 2, 8), images, seen, rest, draws=4)
    assert rows.shape == (3, 6, 16)
    assert torch.equal(rows[..., seen], images[:, None, seen].expand(-1, 6, -1))
    assert (rows[:, 0, rest] == 0.5).all()
    assert torch.equal(rows[:, -1], images)
    assert (rows[:, 1, rest] != rows[:, 2, rest]).any()


def test_it_writes_metrics_weights_and_a_picture(example, tmp_path):
    metrics = example.main(["--smoke", "--dataset", "digits", "--quadrants", "2", "--output-dir", str(tmp_path)])
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert -25 < metrics["elbo"] < metrics["log_likelihood"] < 0  # 32 fair coins: -22.2
    assert metrics["judged_on"] == "test"
    assert (tmp_path / "quadrants.png").stat().st_size > 1000
    vae = example.build(32, 32, 5, 20)
    vae.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
