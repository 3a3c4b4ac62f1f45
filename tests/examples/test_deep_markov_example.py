"""The example of sequences in its short form."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

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
    assert metrics["test_elbo_per_step"] < metrics["test_refined_elbo_per_step"] < 0


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


def test_batches_are_of_about_one_length_and_others_in_each_epoch(example: Any) -> None:
    lengths = [int(n) for n in torch.randint(5, 130, (95,), generator=torch.Generator().manual_seed(0))]
    sampler = example.ByLength(lengths, batch_size=20, seed=0)
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 5
        assert sorted(i for batch in batches for i in batch) == list(range(95))
        spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches]
        assert max(spread) < 60 < max(lengths) - min(lengths)
        epochs.append(batches)
    assert epochs[0] == epochs[2] != epochs[1]


def test_sequences_are_padded_to_few_lengths_and_transposed(example: Any) -> None:
    sequences = [torch.zeros(n, 88) for n in (3, 17, 32)]
    for sequence in sequences:
        sequence[:, 40] = 1.0
    x, lengths = example.Collate(0)(sequences)
    assert x.shape == (3, 32, 88)
    assert lengths.tolist() == [3, 17, 32]
    assert (x.sum(2) == (torch.arange(32) < lengths[:, None])).all()
    moved = torch.cat([example.Collate(2)(sequences)[0] for _ in range(30)])
    assert {int(i) for i in moved[:, 0].argmax(1)} == {38, 39, 40, 41, 42}
    assert torch.equal(sequences[0], x[0, :3])  # the data themselves do not move
