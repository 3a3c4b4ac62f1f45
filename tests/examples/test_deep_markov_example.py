"""The example of sequences in its short form."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "deep_markov.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("deep_markov", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_it_writes_metrics_weights_and_a_picture(example: Any, tmp_path: Path) -> None:
    metrics = example.main(["--smoke", "--output-dir", str(tmp_path)])
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert {path.name for path in tmp_path.iterdir()} >= {"history.csv", "weights.pt", "forecast.png", "checkpoints"}
    assert -60 < metrics["test_elbo_per_step"] <= metrics["test_bound_per_step"] < 0


def test_chords_become_notes(example: Any) -> None:
    x, lengths = example.pad([[[60, 64], [21]], [[108]]])
    assert lengths.tolist() == [2, 1]
    assert x.shape == (2, 2, 88)
    assert x.nonzero().tolist() == [[0, 0, 39], [0, 0, 43], [0, 1, 0], [1, 0, 87]]
    assert math.isfinite(x.sum())


def test_without_data_it_says_what_it_needs(example: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        example.main([])
    assert "--data: expected the file of the chorales, or --smoke" in capsys.readouterr().err
