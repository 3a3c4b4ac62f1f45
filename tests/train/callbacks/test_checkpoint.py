"""``Checkpoint``: which files there are, when they are written, and full disks."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pytest
from tiny import Figures, images, make, train

from pyro_vae.train import Callback, Checkpoint, EarlyStopping, LearningRate, read_checkpoint


def test_checkpoints_kept(tmp_path: Path) -> None:
    m = make()
    figures = [1.0, 5.0, 2.0]
    train([Figures(figures), Checkpoint(tmp_path, every=0, keep=2)], m=m, validation=[images()])
    assert sorted(os.listdir(tmp_path)) == [".lock", "best.pt", "step-0000000011.pt", "step-0000000012.pt"]
    best = read_checkpoint(tmp_path / "best.pt")
    assert (best["epoch"], best["step"]) == (2, 8)
    assert read_checkpoint(tmp_path / "step-0000000012.pt")["epoch"] == 3
    # The documented way to the weights of the best epoch.
    fresh = make(seed=5).vae
    fresh.load_state_dict(best["modules"][0])
    marked = next(iter(pyro.get_param_store().keys())).removeprefix("vae$$$")
    assert bool((fresh.state_dict()[marked] == 2).all())


def test_every_is_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("pyro_vae.train.callbacks.checkpoint.time", SimpleNamespace(monotonic=lambda: clock.now))
    saved = []

    class Ticking(Callback):
        def step_end(self, run: Any) -> None:
            clock.now += 10.0
            saved.append(len(list(tmp_path.glob("step-*.pt"))))

    train([Ticking(), Checkpoint(tmp_path, every=25, keep=99)], epochs=2)
    names = sorted(path.name for path in tmp_path.glob("step-*.pt"))
    assert names == ["step-0000000003.pt", "step-0000000006.pt", "step-0000000008.pt"]  # the last one at the end


def test_a_new_run_refuses_the_directory_of_another(tmp_path: Path) -> None:
    train([Checkpoint(tmp_path)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"directory: expected one without checkpoints.*resume="):
        train([Checkpoint(tmp_path)])
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_leftovers_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-0000000001.pt.123.tmp").write_bytes(b"half")
    train([Checkpoint(tmp_path)])
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("on_error", ["continue", "raise"])
def test_a_full_disk(on_error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyro_vae.train.callbacks.checkpoint as checkpoint

    write, count = checkpoint.write, [0]

    def full(path: Any, contents: Any) -> None:
        count[0] += 1
        if count[0] > 2:
            raise OSError(28, "No space left on device")
        write(path, contents)

    monkeypatch.setattr(checkpoint, "write", full)
    callbacks = [Checkpoint(tmp_path, every=0, on_error=on_error)]
    if on_error == "raise":
        with pytest.raises(OSError, match="No space left"):
            train(callbacks)
    else:
        with pytest.warns(
            RuntimeWarning, match=r"could not be written.*No space.*step-0000000002\.pt is whole.*goes on"
        ):
            assert len(train(callbacks)) == 3
    assert read_checkpoint(tmp_path / "step-0000000002.pt")["step"] == 2


def test_bad_arguments_of_checkpoint(tmp_path: Path) -> None:
    for every in (-1, "60", None, math.nan):
        with pytest.raises(ValueError, match=rf"every: expected a finite number of at least 0, got {every!r}"):
            Checkpoint(tmp_path, every=every)
    for directory in (None, 3):
        with pytest.raises(TypeError, match=f"directory: expected a path, got {directory}. Give a folder"):
            Checkpoint(directory)
    for kind in (lambda: Checkpoint(tmp_path, monitor=3), lambda: EarlyStopping(3), lambda: LearningRate(monitor=3)):
        with pytest.raises(TypeError, match=r"monitor: expected the name of a figure of the history, got 3\. Give"):
            kind()
    with pytest.raises(ValueError, match="keep"):
        Checkpoint(tmp_path, keep=0)
    with pytest.raises(ValueError, match="on_error"):
        Checkpoint(tmp_path, on_error="ignore")
    with pytest.raises(ValueError, match="needs validation data"):
        train([Checkpoint(tmp_path, monitor="validation_elbo")])
