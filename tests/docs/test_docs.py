"""The documentation is true: its Python runs, prints what it says, and its links lead somewhere.

All ``python`` blocks of a page run in order, in one namespace and in a temporary directory. An ``output`` block right
after one is what it prints: words and whole numbers exactly, other numbers up to 5 % or two units of the last digit
shown. A block that cannot run says why in the line before it: ``<!-- not run: the reason -->``.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import pyro_vae as pv

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[^\S\n]*$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \S.*-->\s*\Z")
NUMBER = re.compile(r"([-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?)", re.IGNORECASE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """One piece of Python of a page, and what it is said to print (None: nothing is said)."""

    line: int
    code: str
    output: str | None


def blocks_of(text: str) -> Iterator[Block]:
    fences = list(FENCE.finditer(text))
    for position, fence in enumerate(fences):
        if fence[1] == "output" and (position == 0 or fences[position - 1][1] != "python"):
            line = text.count("\n", 0, fence.start()) + 1
            raise ValueError(f"line {line}: output that belongs to no Python block")
        if fence[1] != "python" or NOT_RUN.search(text, 0, fence.start()):
            continue
        after = fences[position + 1] if position + 1 < len(fences) else None
        output = after[2] if after is not None and after[1] == "output" else None
        yield Block(text.count("\n", 0, fence.start(2)), fence[2], output)


def run_page(path: Path, namespace: dict[str, object]) -> None:
    for block in blocks_of(path.read_text(encoding="utf-8")):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # Empty lines before it, so that a traceback shows the page's own line.
            exec(compile("\n" * block.line + block.code, str(path), "exec"), namespace)
        if block.output is not None:
            require_same(block.output, printed.getvalue(), f"{path.name}:{block.line}")


def require_same(said: str, printed: str, where: str) -> None:
    if not same(said, printed):
        pytest.fail(f"{where}: the page says\n{said}\nand the code prints\n{printed}")


def same(said: str, printed: str) -> bool:
    """Whether two outputs agree, white space aside."""
    said_parts, printed_parts = (NUMBER.split(" ".join(text.split())) for text in (said, printed))
    return len(said_parts) == len(printed_parts) and all(map(_same_part, said_parts, printed_parts))


def _same_part(said: str, printed: str) -> bool:
    if said == printed or not (NUMBER.fullmatch(said) and NUMBER.fullmatch(printed)):
        return said == printed
    if re.fullmatch(r"[-+]?\d+", said):
        return False  # a count, a shape
    digits, _, exponent = said.lower().partition("e")
    last_digit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return math.isclose(float(said), float(printed), rel_tol=0.05, abs_tol=2.001 * last_digit)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    if page == ROOT / "README.md":
        # A sketch over data that its reader has; captured, but without seconds of C++ compilation.
        x = torch.rand(8, 784).round()
        namespace |= {"train": [x], "valid": [x], "x": x[:2]}
        monkeypatch.setattr(pv, "CompiledSVI", functools.partial(pv.CompiledSVI, compile="graph"))
    run_page(page, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_page_lead_somewhere(page):
    targets = [link.partition("#")[0] for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))]
    missing = [target for target in targets if target and "://" not in target and not (page.parent / target).exists()]
    assert not missing


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if page.name != "README.md" and f"]({page.name})" not in index] == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nraise KeyError('x')\n```\n", KeyError),
        ("```python\na = 1\n```\nwords\n```python\nassert a == 2\n```\n", AssertionError),
        ("```python\nprint(3.0)\n```\n```output\n3.4\n```\n", pytest.fail.Exception),
        ("```python\nprint('3 data')\n```\n\n```output\n4 data\n```\n", pytest.fail.Exception),
        ("```output\n1\n```\n", ValueError),
    ],
)
def test_a_wrong_page_is_seen(text, error, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(error):
        run_page(page, {})


def test_what_a_page_may_leave_open(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: needs a GPU -->\n```python\nraise KeyError\n```\n"
        "```bash\nexit 1\n```\n```python\nprint(f'{-99.96:.1f} nats,', 2)\n```\n```output\n-99.8 nats, 2\n```\n",
        encoding="utf-8",
    )
    run_page(page, {})
