"""Write the table of programs for the documentation.

cd tests; python -m strangers.table
"""

from __future__ import annotations

from . import test_strangers  # the programs of all themes
from .runner import OUTCOMES, PROGRAMS

__all__ = ["table"]


def table() -> str:
    """Return what becomes of every program, as a Markdown table of theme, outcome and programs."""
    lines = ["| theme | outcome | programs |", "|---|---|---|"]
    for module in test_strangers.THEMES:
        theme = module.__name__.rpartition(".")[2].replace("_", " ")
        for outcome in OUTCOMES:
            titles = [p.title for p in PROGRAMS.values() if p.theme == theme and p.outcome == outcome]
            if titles:
                lines.append(f"| {theme} | {outcome} | {'; '.join(titles)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
