"""The example of few labels in its short form."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "semi_supervised.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("semi_supervised", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("flags", [[], ["--alone"]])
def test_it_prints_the_test_error(example, capsys, flags):
    error = example.main(["--smoke", "--dataset", "digits", "--precision", "float32", *flags])
    assert 0.0 <= error <= 95.0
    kind = "classifier alone" if flags else "M2"
    assert f"{kind}, 100 labels, seed 0: test error {error:.2f} %" in capsys.readouterr().out


def test_options_are_chosen_on_images_that_are_held_out(example, capsys):
    """Not by the test error."""
    example.main(["--smoke", "--dataset", "digits", "--precision", "float32", "--validate", "200"])
    assert "seed 0: validation error" in capsys.readouterr().out


def test_the_labels_are_as_many_of_each_class_and_a_tenth_of_the_data(example):
    args = example.parse_arguments(["--labels", "600"])
    images = example.pv.data.load("digits")
    x, y = example.training_data(args, images)
    counts = y[y >= 0].bincount()
    assert (counts == counts[0]).all()
    assert counts[0] % 60 == 0
    assert len(x) == len(y) >= len(images.train_images)
    assert (y == -1).sum() == len(images.train_images) - 600


def test_it_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 150
