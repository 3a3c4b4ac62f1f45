"""``CSVLog`` and ``TensorBoard``."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny import train

from pyro_vae.train import CSVLog, TensorBoard


def test_csv_log(tmp_path: Path) -> None:
    history = train([CSVLog(tmp_path / "logs" / "history.csv")], epochs=2)
    with open(tmp_path / "logs" / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_elbo"]) for row in rows] == history["train_elbo"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard and what it imports
def test_tensorboard(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = train([TensorBoard(tmp_path)], epochs=2)
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    scalars = events.Scalars("train_elbo")
    assert [event.step for event in scalars] == [1, 2]
    assert [event.value for event in scalars] == pytest.approx(history["train_elbo"], rel=1e-6)
