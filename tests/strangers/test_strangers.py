"""The same answer as Pyro, or a clear word, for every program of this folder."""

from __future__ import annotations

import pytest

from . import arguments, control_flow, guides, modules, objectives, plates, shapes, state, streams, training
from .runner import AUDIT, CAPTURED, LEFT, NOTICED, OUTCOMES, PROGRAMS, Program, outcome

THEMES = (arguments, control_flow, guides, modules, objectives, plates, shapes, state, streams, training)


def check(entry: Program, **options: object) -> None:
    got, words = outcome(entry, **options)
    expected = CAPTURED if entry.outcome == NOTICED else entry.outcome
    assert got == expected, f"{entry.name}: expected {expected}, but {got}: {words}"
    assert entry.says in words, f"{entry.name}: expected {entry.says!r} in {words!r}"


# Every tenth program in the quick suite, all of them in the whole one.
QUICK_AND_SLOW = [pytest.param(name, marks=[pytest.mark.slow] if i % 10 else []) for i, name in enumerate(PROGRAMS)]


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_a_captured_program_ends_where_pyros_ends(name: str) -> None:
    check(PROGRAMS[name], compile="graph")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in PROGRAMS.items() if entry.compiled])
def test_a_compiled_program_has_pyros_losses(name: str) -> None:
    check(PROGRAMS[name], compile=True, compile_after=1, tolerance=1e-4)


def test_the_table_of_programs_is_whole() -> None:
    assert len(PROGRAMS) >= 60
    assert {entry.outcome for entry in PROGRAMS.values()} == set(OUTCOMES)
    assert {entry.theme for entry in PROGRAMS.values()} == {
        t.__name__.rpartition(".")[2].replace("_", " ") for t in THEMES
    }
    for entry in PROGRAMS.values():
        assert entry.make.__doc__, entry.name
        assert entry.says or entry.outcome not in (LEFT, AUDIT), f"{entry.name}: what must the warning say?"
