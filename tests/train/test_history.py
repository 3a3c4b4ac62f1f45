"""``History`` and the schedules."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from pyro_vae.train import History, cyclical, linear_warmup, one_cycle

ROWS = [
    {"epoch": 1, "train_elbo": -120.0},
    {"epoch": 2, "train_elbo": -110.0, "validation_elbo": -111.0},
    {"epoch": 3, "train_elbo": -105.0, "validation_elbo": -107.0},
]


def test_history_reads_by_name_and_by_epoch() -> None:
    history = History(ROWS)
    assert history["train_elbo"] == [-120.0, -110.0, -105.0]
    assert math.isnan(history["validation_elbo"][0])
    assert history[-1] == ROWS[-1]
    assert list(history) == ROWS
    assert len(history) == 3
    with pytest.raises(KeyError, match="expected one of"):
        history["loss"]


def test_a_slice_of_a_history_is_a_history() -> None:
    history = History(ROWS)
    later = history[1:]
    assert isinstance(later, History)
    assert list(later) == ROWS[1:]
    assert later["validation_elbo"] == [-111.0, -107.0]
    assert list(history[0:1]) == ROWS[:1]
    assert history[0:1].names == ["epoch", "train_elbo"]
    assert list(history[::-2]) == [ROWS[2], ROWS[0]]
    assert list(history[5:]) == []
    with pytest.raises(IndexError):
        history[3]


def test_history_hands_out_copies() -> None:
    history = History(ROWS)
    history[0]["epoch"] = 99
    next(iter(history))["epoch"] = 99
    history[:1].append({"epoch": 99})
    history[:1]._rows[0]["epoch"] = 99
    assert history["epoch"] == [1, 2, 3]


def test_history_to_csv(tmp_path: Path) -> None:
    History(ROWS).to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_elbo"]) for row in rows] == [-120.0, -110.0, -105.0]
    assert rows[0]["validation_elbo"] == ""
    assert float(rows[2]["validation_elbo"]) == -107.0


@pytest.mark.parametrize("rows", [[], ROWS, [*ROWS, {"epoch": 4, "beta": 0.5}]])
def test_a_state_is_read_back_as_it_was(rows: list[dict[str, float]]) -> None:
    history = History(rows)
    state = history.state_dict()
    again = History.from_state_dict(state)
    assert list(again) == list(history)
    assert again.names == history.names
    for row, other in zip(history, again, strict=True):
        assert [type(value) for value in row.values()] == [type(value) for value in other.values()]
    history.append({"epoch": 9, "train_elbo": -1.0})
    assert len(state["table"]) == len(rows)  # a copy
    assert list(History.from_state_dict(history.state_dict())) == list(history)


def test_a_state_costs_the_same_each_epoch() -> None:
    """Each row is put into the table once; what is saved of it is 9 bytes a figure."""

    class Row(dict):  # type: ignore[type-arg]
        read = 0

        def get(self, *args: Any) -> Any:
            Row.read += 1
            return super().get(*args)

    history = History()
    for epoch in range(200):
        history.append({"epoch": epoch, "train_elbo": -1.0})
        history._rows[-1] = Row(history._rows[-1])
        state = history.state_dict()
    assert Row.read <= 200 * 4  # two figures, and the last row's kinds
    assert state["table"].nbytes + state["present"].nbytes == 200 * 2 * 9


def test_history_plots_its_figures() -> None:
    axes = History(ROWS).plot()
    assert isinstance(axes, matplotlib.axes.Axes)
    curves = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert curves["train"] == [-120.0, -110.0, -105.0]
    assert curves["validation"][1:] == [-111.0, -107.0]
    with pytest.raises(ValueError, match="at least one epoch"):
        History().plot()


@pytest.mark.parametrize(
    ("rows", "title", "limits"),
    [
        ([{"train_elbo": math.nan}], "no epoch with a finite ELBO", None),
        ([{"train_elbo": -math.inf, "validation_elbo": math.nan}], "no epoch with a finite ELBO", None),
        ([{}], "no epoch with a finite ELBO", None),
        ([{"train_elbo": -math.inf}, {"train_elbo": -3.0}, {"train_elbo": math.nan}], "", (-3.0, -3.0)),
    ],
)
def test_a_plot_without_finite_figures_says_so(rows: list[dict[str, float]], title: str, limits: Any) -> None:
    axes = History([{"epoch": epoch, **row} for epoch, row in enumerate(rows, 1)]).plot()
    axes.figure.savefig(io.BytesIO())  # warnings are errors
    assert axes.get_title() == title
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "ELBO (nats per datum)")
    assert [line.get_label() for line in axes.lines] == [name.removesuffix("_elbo") for name in rows[0]]
    assert limits is None or axes.get_ylim() == pytest.approx(limits, abs=0.01)


def test_a_whole_number_of_periods_is_the_end_of_a_cycle() -> None:
    for period in (0.1, 0.3, 0.7, 1 / 3, 3.0):
        beta = cyclical(period)
        # A sum of steps, and a product, differ from a whole number of periods by rounding, to either side.
        ends = [k * period for k in range(1, 200)] + [math.fsum([period] * k) for k in range(1, 200)]
        assert [beta(end) for end in ends] == [1.0] * len(ends), period
        assert beta(20.25 * period) == pytest.approx(0.5)
    assert cyclical(0.3)(0.9) == 1.0


def test_schedules() -> None:
    assert [linear_warmup(4)(t) for t in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert linear_warmup(0)(0.1) == 1.0
    assert [cyclical(4)(t) for t in (1, 2, 4, 5, 8)] == [0.5, 1.0, 1.0, 0.5, 1.0]
    factor = one_cycle(10, warmup=0.3, start=0.04, end=0.0)
    assert [factor(t) for t in (0, 3, 10, 11)] == pytest.approx([0.04, 1.0, 0.0, 0.0])
    assert factor(1.5) == pytest.approx(0.52)
    assert factor(6.5) == pytest.approx(0.5)
    for call in (
        lambda: linear_warmup(-1),
        lambda: cyclical(0),
        lambda: cyclical(1, rise=0),
        lambda: one_cycle(0),
        lambda: one_cycle(1, warmup=1),
    ):
        with pytest.raises(ValueError, match="expected a number"):
            call()
