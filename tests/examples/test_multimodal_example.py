"""The example of several modalities in its short form."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "multimodal.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("multimodal", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_it_prints_the_figures_and_draws_the_picture(example, tmp_path, capsys):
    found = {}
    for flags in ([], ["--all-at-once"]):
        options = ["--smoke", "--output-dir", str(tmp_path), *flags]
        found[bool(flags)] = example.main(options)
        printed = capsys.readouterr().out
        for name, value in found[bool(flags)].items():
            assert math.isfinite(value)
            assert f"{value:.2f}" in printed.split(name)[1].splitlines()[0]
        assert (tmp_path / "missing.png").stat().st_size > 10_000
        (tmp_path / "missing.png").unlink()
    assert found[False] != found[True]


def test_the_halves_make_the_image(example):
    images = torch.rand(3, 64)
    x = example.modalities(images, torch.tensor([1, 2, 3]))
    assert torch.equal(torch.cat([x[h].reshape(3, 8, 4) for h in example.HALVES], 2).flatten(1), images)
    assert torch.equal(x["label"], torch.tensor([[1.0], [2.0], [3.0]]))


def test_it_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 150
