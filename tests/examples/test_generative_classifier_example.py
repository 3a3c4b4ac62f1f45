"""The example of a classifier by Bayes' rule in its short form."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pyro_vae as pv

EXAMPLE = Path(__file__).parents[2] / "examples" / "generative_classifier.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("generative_classifier", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_it_classifies_and_finds_what_is_no_digit(example: Any, tmp_path: Path) -> None:
    metrics = example.main(["--smoke", "--dataset", "digits", "--output-dir", str(tmp_path)])
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["test_accuracy"] > 60
    assert metrics["none_of_these_test"] < 10
    assert metrics["none_of_these_negative"] > 50
    with Image.open(tmp_path / "classes.png") as picture:
        assert min(picture.size) > 300


def test_accuracy_is_a_percentage_of_right_classes(example: Any) -> None:
    found = pv.Classified(torch.eye(4), torch.zeros(4), torch.eye(4))
    assert example.accuracy(found, torch.tensor([0, 1, 2, 0])) == 75.0
