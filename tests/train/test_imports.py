"""The files of ``train`` import each other in one direction."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pyro_vae.train

ROOM = Path(pyro_vae.train.__file__).parent


def imports_of(path: Path) -> set[str]:
    """The files of the room that a file imports, under ``TYPE_CHECKING`` or not, as dotted names."""
    package = path.relative_to(ROOM).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(package) + 1:
            base = [*package[: len(package) + 1 - node.level], *(node.module.split(".") if node.module else [])]
            found |= {".".join(base), *(".".join([*base, alias.name]) for alias in node.names)}
    return found


def test_there_is_no_circle() -> None:
    names = {".".join(path.relative_to(ROOM).with_suffix("").parts): path for path in ROOM.rglob("*.py")}
    graph = {name: imports_of(path) & set(names) for name, path in names.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("run") < order.index("callbacks.base") < order.index("loop") < order.index("fit")
