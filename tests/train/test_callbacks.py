"""Callbacks: their order, their failures, and what each of them does."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pytest
import torch
from matplotlib.figure import Figure
from tiny import images, make

from pyro_vae.infer import Adam
from pyro_vae.train import (
    Callback,
    Checkpoint,
    CSVLog,
    EarlyStopping,
    LearningRate,
    SamplePictures,
    TensorBoard,
    fit,
    read_checkpoint,
)
from pyro_vae.train.optimiser import param_groups


def train(callbacks: list[Any], epochs: int = 3, m: Any = None, **keywords: Any) -> Any:
    m = make() if m is None else m
    return fit(m.svi, images().split(16), epochs=epochs, callbacks=callbacks, progress=False, **keywords)


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


class Figures(Callback):
    """Puts given numbers in place of the validation figures, and a mark of the epoch into a weight."""

    def __init__(self, figures: list[float]) -> None:
        self.figures = figures

    def epoch_end(self, run: Any) -> None:
        run.history._rows[-1]["validation_elbo"] = self.figures[run.epoch - 1]
        with torch.no_grad():
            next(iter(run.parameters.values())).fill_(run.epoch)


@pytest.mark.parametrize(
    ("figures", "patience", "min_delta", "epochs", "best_epoch"),
    [
        ([1, 2, 3, 4, 5], 1, 0.0, 5, 5),
        ([1, 3, 2, 2, 9], 2, 0.0, 4, 2),
        ([1, 3, 2, 4, 3, 3, 9], 2, 0.0, 6, 4),
        ([1, 1.5, 2.5, 3, 3.2, 9], 3, 1.0, 6, 6),
        ([1, math.nan, math.nan, 9], 2, 0.0, 3, 1),
        ([1, 1.5, 1.9, 9], 2, 1.0, 3, 1),
    ],
)
def test_early_stopping(figures: list[float], patience: int, min_delta: float, epochs: int, best_epoch: int) -> None:
    m = make()
    stopping = EarlyStopping(patience=patience, min_delta=min_delta)
    history = train([Figures(figures), stopping], epochs=len(figures), m=m, validation=[images()])
    assert len(history) == epochs
    assert (stopping.best_epoch, stopping.best) == (best_epoch, figures[best_epoch - 1])
    first = next(iter(pyro.get_param_store().named_parameters()))[1]
    assert bool((first == best_epoch).all())  # the best weights are back


def test_early_stopping_refuses_what_it_cannot_watch() -> None:
    with pytest.raises(ValueError, match="needs validation data"):
        train([EarlyStopping()])
    with pytest.raises(ValueError, match="monitor: expected one of"):
        train([EarlyStopping("elbo")])
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match="min_delta"):
        EarlyStopping(min_delta=-1.0)


OPTIMISERS = {
    "pyro": lambda: pyro.optim.Adam({"lr": 0.1}),
    "pyro, by name": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1}),
    "ours": lambda: Adam({"lr": 0.1}),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_learning_rate_of_every_step(optimiser: str) -> None:
    rates = []
    m = make(optim=OPTIMISERS[optimiser]())
    step = m.svi.step

    def noting(*args: Any, **keywords: Any) -> Any:
        rates.append({group["lr"] for group in param_groups(m.svi.optim)})
        return step(*args, **keywords)

    m.svi.step = noting
    fit(m.svi, images(32).split(16), epochs=2, callbacks=[LearningRate(lambda t: t)], progress=False)
    assert [rate for (rate,) in rates] == pytest.approx([0.05, 0.1, 0.15, 0.2])  # the first step too


def test_learning_rate_takes_the_step_of_a_scheduler_of_pyro() -> None:
    optim = pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-3}, "gamma": 0.1})
    m = make(optim=optim)
    train([LearningRate()], epochs=2, m=m)
    assert {round(group["lr"], 9) for group in param_groups(optim)} == {1e-5}
    with pytest.raises(TypeError, match="expected a function with a plain optimiser"):
        train([LearningRate()])


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


def test_sample_pictures(tmp_path: Path) -> None:
    m, undisturbed = make(), make()
    modes = []

    def draw() -> Figure:
        modes.append(m.vae.training)
        figure = Figure(figsize=(1, 1))
        figure.subplots().imshow(m.vae.sample(1).reshape(2, 3).numpy())
        return figure

    torch.manual_seed(1)
    train([SamplePictures(tmp_path, draw, every=2)], epochs=5, m=m)
    torch.manual_seed(1)
    train([], epochs=5, m=undisturbed)
    assert sorted(os.listdir(tmp_path)) == ["epoch-0002.png", "epoch-0004.png", "epoch-0005.png"]
    assert (tmp_path / "epoch-0002.png").read_bytes().startswith(b"\x89PNG")
    assert modes == [False] * 3
    for a, b in zip(m.vae.parameters(), undisturbed.vae.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_kept(tmp_path: Path) -> None:
    m = make()
    figures = [1.0, 5.0, 2.0]
    train([Figures(figures), Checkpoint(tmp_path, every=0, keep=2)], m=m, validation=[images()])
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "step-0000000011.pt", "step-0000000012.pt"]
    best = read_checkpoint(tmp_path / "best.pt")
    assert (best["epoch"], best["step"]) == (2, 8)
    assert read_checkpoint(tmp_path / "step-0000000012.pt")["epoch"] == 3
    # The documented way to the weights of the best epoch.
    fresh = make(seed=5).vae
    fresh.load_state_dict(best["weights"]["modules"][0])
    marked = next(iter(pyro.get_param_store().keys())).removeprefix("vae$$$")
    assert bool((fresh.state_dict()[marked] == 2).all())


def test_every_is_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("pyro_vae.train.checkpoint.time", SimpleNamespace(monotonic=lambda: clock.now))
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
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("on_error", ["continue", "raise"])
def test_a_full_disk(on_error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyro_vae.train.checkpoint as checkpoint

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
    with pytest.raises(ValueError, match="every"):
        Checkpoint(tmp_path, every=-1)
    with pytest.raises(ValueError, match="keep"):
        Checkpoint(tmp_path, keep=0)
    with pytest.raises(ValueError, match="on_error"):
        Checkpoint(tmp_path, on_error="ignore")
    with pytest.raises(ValueError, match="needs validation data"):
        train([Checkpoint(tmp_path, monitor="validation_elbo")])
