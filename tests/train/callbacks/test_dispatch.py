"""The order of callbacks, and their failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import images, make, train

from pyro_vae.train import (
    Callback,
    Checkpoint,
    CSVLog,
    EarlyStopping,
    SamplePictures,
    fit,
    read_checkpoint,
)


class Noting(Callback):
    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def start(self, run: Any) -> None:
        self.notes.append(f"{self.name} start {run.epoch}")
        assert run.parameters

    def step_end(self, run: Any) -> None:
        self.notes.append(f"{self.name} step {run.step}")

    def epoch_end(self, run: Any) -> None:
        self.notes.append(f"{self.name} epoch {run.epoch} of {len(run.history)}")

    def end(self, run: Any) -> None:
        self.notes.append(f"{self.name} end {run.status}")


def test_moments_and_their_order() -> None:
    notes: list[str] = []
    m = make()
    fit(
        m.svi,
        [images()],
        epochs=2,
        callbacks=[Noting("a", notes), lambda run: notes.append(f"f {run.epoch}"), Noting("b", notes)],
        progress=False,
    )
    expected = ["a start 0", "b start 0"]
    for epoch in (1, 2):
        expected += [f"a step {epoch}", f"b step {epoch}"]
        expected += [f"a epoch {epoch} of {epoch}", f"f {epoch}", f"b epoch {epoch} of {epoch}"]
    assert notes == [*expected, "b end finished", "a end finished"]


def test_a_checkpoint_goes_after_all_others(tmp_path: Path) -> None:
    stopping = EarlyStopping("train_elbo", patience=9)
    train([Checkpoint(tmp_path, every=0), stopping], epochs=2)
    saved = read_checkpoint(max(tmp_path.glob("step-*.pt")))["callbacks"]
    states = {callback["name"]: callback["state"] for callback in saved}
    assert states["EarlyStopping"]["best_epoch"] == stopping.best_epoch == 2


def test_a_failing_logger_does_not_lose_the_run() -> None:
    calls = []

    def logger(run: Any) -> None:
        calls.append(run.epoch)
        raise OSError("the log server is away")

    notes: list[str] = []
    with pytest.warns(RuntimeWarning, match=r"logger.*failed in epoch_end at step 4.*log server is away") as warned:
        history = train([logger, Noting("after", notes)])
    assert len(warned) == 1  # said once
    assert calls == [1, 2, 3] == history["epoch"]  # and tried again each time
    assert notes[-1] == "after end finished"


def test_an_essential_callback_ends_the_run() -> None:
    class Essential(Callback):
        essential = True

        def step_end(self, run: Any) -> None:
            raise KeyError("needed")

    notes: list[str] = []
    with pytest.raises(KeyError, match="needed"):
        train([Essential(), Noting("other", notes)])
    assert notes[-1] == "other end failed"


def test_a_failure_at_the_start_comes_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    m = make()
    before = {name: value.clone() for name, value in m.vae.state_dict().items()}
    for callback in (
        CSVLog(tmp_path / "file" / "log.csv"),
        Checkpoint(tmp_path / "file" / "run"),
        SamplePictures(tmp_path / "file" / "pictures", lambda: None),
    ):
        with pytest.raises(OSError, match="file"):
            train([callback], m=m)
    assert all(torch.equal(before[name], value) for name, value in m.vae.state_dict().items())


def test_a_function_may_stop_training() -> None:
    def stop(run: Any) -> None:
        run.stopping = run.epoch == 2

    assert len(train([stop], epochs=9)) == 2
