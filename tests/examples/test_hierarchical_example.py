"""The example of one and two layers in its short form."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

import pyro_vae as pv

EXAMPLE = Path(__file__).parents[2] / "examples" / "hierarchical.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("hierarchical", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("flags", [["--layers", "1"], ["--layers", "2", "--particles", "3"], ["--guide", "top-down"]])
def test_it_writes_metrics_and_weights(example, tmp_path, flags):
    flags = [*flags, "--smoke", "--dataset", "digits", "--no-compile", "--test-particles", "5", "--epochs", "1"]
    metrics = example.main([*flags, "--output-dir", str(tmp_path), "--beta-warmup", "1"])
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert -60 < metrics["test_elbo"] <= metrics["test_log_likelihood"] < 0
    assert len(metrics["active_units"]) == metrics["layers"]
    vae = example.build(metrics["layers"], metrics["guide"], pixels=64)
    vae.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    resumed = example.main([*flags, "--output-dir", str(tmp_path), "--beta-warmup", "1", "--resume"])
    assert math.isclose(resumed["test_elbo"], metrics["test_elbo"], abs_tol=1.0)


def test_the_architectures_are_those_of_the_paper(example):
    one, two = example.build(1, "bottom-up"), example.build(2, "bottom-up")
    sizes = [[tuple(m.weight.shape) for m in v.modules() if isinstance(m, torch.nn.Linear)] for v in (one, two)]
    decoder = [(200, 50), (200, 200), (784, 200)]
    assert sizes[0] == [*decoder, (200, 784), (200, 200), (100, 200)]
    assert (100, 50) in sizes[1]  # z_2 to 100 hidden units
    assert (200, 100) in sizes[1]  # z_1 to 200 hidden units
    assert isinstance(two, pv.HierarchicalVAE)
    assert [q.event_shape for q in (two.prior(), two.encode(torch.zeros(1, 784)))] == [(50,), (100,)]
