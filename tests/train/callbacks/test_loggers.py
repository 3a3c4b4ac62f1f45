"""``CSVLog`` and ``TensorBoard``."""

from __future__ import annotations

import csv
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from tiny import train

from pyro_vae.train import Checkpoint, CSVLog, History, TensorBoard


def test_csv_log(tmp_path: Path) -> None:
    history = train([CSVLog(tmp_path / "logs" / "history.csv")], epochs=2)
    with open(tmp_path / "logs" / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_elbo"]) for row in rows] == history["train_elbo"]


def test_csv_log_appends_a_line_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes written do not grow with the number of epochs."""
    whole = []
    to_csv = History.to_csv
    monkeypatch.setattr(History, "to_csv", lambda self, path: whole.append(len(self)) or to_csv(self, path))
    path = tmp_path / "history.csv"
    sizes = []
    history = train([CSVLog(path), lambda run: sizes.append(path.stat().st_size)], epochs=30)
    assert whole == [1]
    assert max(b - a for a, b in itertools.pairwise(sizes)) < 150
    with open(path, encoding="utf-8") as file:
        assert [float(row["train_elbo"]) for row in csv.DictReader(file)] == history["train_elbo"]


def test_csv_log_of_a_resumed_run_and_of_a_new_figure(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"

    def add(run: Any) -> None:
        if run.epoch > 3:
            run.history._rows[-1]["new"] = 1.0
            run.history._names["new"] = None

    train([CSVLog(path), Checkpoint(tmp_path / "run")], epochs=2)
    with open(path, "a", encoding="utf-8") as file:
        file.write("3,of a run that was ki")
    history = train([add, CSVLog(path), Checkpoint(tmp_path / "run")], epochs=5, resume=tmp_path / "run")
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5]
    assert [row["new"] for row in rows] == ["", "", "", "1.0", "1.0"]
    assert [float(row["train_elbo"]) for row in rows] == history["train_elbo"]


def test_places_are_those_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    callbacks = [CSVLog("log.csv"), CSVLog("~/log.csv"), Checkpoint("run"), Checkpoint(Path("~/run"))]
    train([lambda run: os.chdir(tmp_path / "elsewhere"), *callbacks], epochs=2)
    for place in (tmp_path, tmp_path / "home"):
        assert (place / "log.csv").exists()
        assert (place / "run" / "step-0000000008.pt").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard and what it imports
def test_tensorboard(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = train([TensorBoard(tmp_path)], epochs=2)
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    scalars = events.Scalars("train_elbo")
    assert [event.step for event in scalars] == [1, 2]
    assert [event.value for event in scalars] == pytest.approx(history["train_elbo"], rel=1e-6)
