"""The documentation is true: its Python runs, prints what it says, and its links lead somewhere.

All ``python`` blocks of a page run in order, in one namespace and in a temporary directory. An ``output`` block right
after one is what it prints: words and whole numbers exactly, other numbers up to 5 % or two units of the last digit
shown. A block that cannot run says why in the line before it: ``<!-- not run: the reason -->``.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import math
import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

import pyro_vae as pv

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

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


# Pages whose Python trains for more than about 5 seconds.
SLOW_PAGES = {
    "autoencoders.md", "hierarchical.md", "missing_data.md", "mixture.md", "objectives.md", "semi_supervised.md",
    "sequences.md",
}  # fmt: skip


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW_PAGES else []) for page in PAGES],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_python_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    if page == ROOT / "CONTRIBUTING.md":
        namespace["__package__"] = "pyro_vae.likelihoods"  # where its file would be
    if page == ROOT / "README.md":
        # Run as pasted, except that the captured graph is not compiled, which takes seconds and gives the same.
        monkeypatch.setattr(pv, "CompiledSVI", functools.partial(pv.CompiledSVI, compile="graph"))
    run_page(page, namespace)


EXCERPT = re.compile(r"^<!-- not run: an excerpt of (\S+) -->\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_of_functions(source: str) -> dict[str, str]:
    """The code of every function by its name, without docstring and type annotations."""
    functions = {}
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        if ast.get_docstring(function) is not None:
            function.body = function.body[1:]
        function.returns = None
        for argument in [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]:
            argument.annotation = None
        for argument in (function.args.vararg, function.args.kwarg):
            if argument is not None:
                argument.annotation = None
        functions[function.name] = ast.unparse(function)
    return functions


def require_excerpts_of_their_files(text: str) -> int:
    excerpts = EXCERPT.findall(text)
    for file, excerpt in excerpts:
        in_file = code_of_functions((ROOT / file).read_text(encoding="utf-8"))
        for name, code in code_of_functions(excerpt).items():
            assert code == in_file.get(name), f"{file}: {name}"
    return len(excerpts)


@pytest.mark.parametrize(("page", "number"), [("README.md", 1), ("docs/first_vae.md", 1)])
def test_excerpts_are_what_the_files_say(page, number):
    assert require_excerpts_of_their_files((ROOT / page).read_text(encoding="utf-8")) == number


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("self.prior(*given)", "self.posterior(x)"), ("beta=1.0", "beta=2.0"), ("def guide", "def gide")],
)
def test_a_wrong_excerpt_is_seen(right, wrong):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert right in text
    with pytest.raises(AssertionError, match=r"pyro_vae/models/vae.py"):
        require_excerpts_of_their_files(text.replace(right, wrong))


def test_the_picture_is_small():
    picture = ROOT / "docs" / "images" / "mnist.png"
    assert "](docs/images/mnist.png)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert picture.stat().st_size < 200_000


def test_the_picture_is_composed_from_those_of_the_example(tmp_path):
    Image.new("RGB", (100, 50), "black").save(tmp_path / "reconstructions.png")
    Image.new("RGB", (60, 60), "white").save(tmp_path / "samples.png")
    composed = runpy.run_path(str(ROOT / "docs" / "images" / "mnist.py"))
    composed["compose"](tmp_path, tmp_path / "mnist.png")
    with Image.open(tmp_path / "mnist.png") as picture:
        grey = picture.convert("L")
    # Both at the same height, the wider one on the left, black; then the margin and the other one, white.
    assert grey.size == (2 * composed["HEIGHT"] + composed["MARGIN"] + composed["HEIGHT"], composed["HEIGHT"])
    assert grey.getpixel((10, 10)) == 0
    assert grey.getpixel((grey.width - 10, 10)) == 255


def anchors_of(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Links of a page to files or headings that do not exist."""
    text = page.read_text(encoding="utf-8")
    broken = []
    for link in LINK.findall(FENCE.sub("", text)):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors_of(file.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_page_lead_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title\n## Appendix B: more\n[a](#a-title) [b](page.md#appendix-b-more) [c](https://pyro.ai#x)\n"
        "[d](other.md) [e](#appendix-b) [f](page.md#a)\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["other.md", "#appendix-b", "page.md#a"]


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    links = [os.path.relpath(page, ROOT / "docs") for page in PAGES if page != ROOT / "docs" / "README.md"]
    assert [link for link in links if f"]({link})" not in index] == []


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
