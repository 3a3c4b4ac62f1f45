"""The clock of the whole command gives every second to one phase, and the table shows medians."""

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def first_run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("first_run")


def test_every_second_belongs_to_the_innermost_phase(first_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(first_run.time, "time", lambda: now[0])

    def lasting(seconds: float) -> None:
        now[0] += seconds

    clock = first_run.Clock(90.0)
    compiling = clock.timed(lasting, "compile")
    clock.switch("data")
    lasting(1)
    with clock.phase("training"):
        lasting(2)
        compiling(4)
        lasting(8)
    with clock.phase("evaluation"):
        compiling(16)  # the evaluation's own
    lasting(32)
    clock.switch("pictures")
    assert clock.seconds == {
        "start": 10.0,
        "data": 33.0,
        "capture": 0.0,
        "compile": 4.0,
        "training": 10.0,
        "evaluation": 16.0,
        "pictures": 0.0,
    }


def test_the_table_shows_medians(first_run: Any) -> None:
    runs = [dict.fromkeys((*first_run.PHASES, "total", "waiting"), value) for value in (1.0, 9.0, 2.0)]
    header, row = first_run.table({"this cold": runs}).splitlines()
    assert header.split() == ["seconds", *first_run.PHASES, "total", "waiting"]
    assert row.split() == ["this", "cold", *["2.0"] * 9]


@pytest.mark.slow
def test_a_short_run_is_measured(first_run: Any, tmp_path: Path) -> None:
    options = ["--output-dir", str(tmp_path), "--dataset", "digits", "--repeats", "1", "--", "--smoke"]
    results = first_run.main(options)
    assert (tmp_path / "first_run.json").exists()
    for name in ("this cold", "this warm"):
        [seconds] = results[name]
        assert seconds["total"] == pytest.approx(sum(seconds[phase] for phase in first_run.PHASES), abs=0.5)
        assert min(seconds[phase] for phase in first_run.PHASES if phase != "compile") > 0
        assert seconds["compile"] == 0  # 30 steps do not repay a compiler
