"""Names and files that pages and docstrings mention exist."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyro_vae as pv

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SOURCES = [
    *PAGES,
    *(
        path
        for folder in ("pyro_vae", "examples", "benchmarks", "docs")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ),
]

NAME = re.compile(r"(?<![\w./$])(?:pv|pyro_vae)((?:\.[A-Za-z]\w*)+)")
FILE = re.compile(
    r"(?<![\w./-])((?:benchmarks|docs|examples|pyro_vae|tests|\.ci)/(?:[\w.-]+/)*(?:[\w.-]+\.(?:py|md|png)|run\b)?)(?![\w*])"
)
NOT_RUN = re.compile(r"^<!-- not run: .*?-->\n```python\n.*?^```", re.MULTILINE | re.DOTALL)


def names_in(text: str) -> Iterator[str]:
    """Dotted names below the package, as ``pv.fit`` and ``pyro_vae.data.load``; not those in code that is not run."""
    for match in NAME.finditer(NOT_RUN.sub("", text)):
        yield match[1].lstrip(".")


def resolves(name: str) -> bool:
    """Whether a dotted name below the package is a module, an attribute, or an instance's documented attribute."""
    value, path = importlib.import_module("pyro_vae"), "pyro_vae"
    for part in name.split("."):
        path += f".{part}"
        if hasattr(value, part):
            value = getattr(value, part)
        elif isinstance(value, type):
            return re.search(rf"^ +{part}: ", value.__doc__ or "", re.MULTILINE) is not None
        else:
            try:
                value = importlib.import_module(path)
            except ModuleNotFoundError:
                return False
    return True


def files_in(text: str) -> Iterator[str]:
    """Paths of files and folders of the repository."""
    for match in FILE.finditer(text):
        yield match[1]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_exist(source):
    text = source.read_text(encoding="utf-8")
    assert sorted({name for name in names_in(text) if not resolves(name)}) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_exist(page):
    text = page.read_text(encoding="utf-8")
    assert sorted({file for file in files_in(text) if not (ROOT / file).exists()}) == []


def test_a_wrong_name_is_seen():
    text = (
        "`pv.fit`, ``pyro_vae.data.load``, :class:`~pyro_vae.infer.CompiledSVI`, pv.plots.sample(vae) and pv.Chekpoint."
    )
    names = list(names_in(text))
    assert names == ["fit", "data.load", "infer.CompiledSVI", "plots.sample", "Chekpoint"]
    assert [name for name in names if not resolves(name)] == ["plots.sample", "Chekpoint"]


def test_a_wrong_file_is_seen():
    text = "`python examples/mnist_svi.py`, `pytest tests/docs/test_pages.py`, [x](docs/images/mnist.png), tests/docs/"
    files = list(files_in(text))
    assert files == ["examples/mnist_svi.py", "tests/docs/test_pages.py", "docs/images/mnist.png", "tests/docs/"]
    assert [file for file in files if not (ROOT / file).exists()] == ["tests/docs/test_pages.py"]


def strings_of_the_package() -> str:
    """All string constants of the package; the parser has joined adjacent ones."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "pyro_vae").rglob("*.py")))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def messages_of(page: str) -> list[str]:
    """What the first table of the troubleshooting page quotes as messages: code of more than one word."""
    rows = [line for line in page.splitlines() if line.startswith("|")]
    return [quoted for row in rows for quoted in re.findall(r"`([^`]+)`", row.split("|")[1]) if " " in quoted]


def test_messages_in_troubleshooting_are_those_of_the_package():
    messages = messages_of((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(messages) >= 4
    strings = strings_of_the_package()
    assert [message for message in messages if message not in strings] == []
    assert "no parameter receives a gradien " not in strings


def tree_of(page: str) -> list[str]:
    """Paths in the tree of docs/architecture.md, folders with a slash at their end."""
    tree = re.search(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert tree is not None
    paths, folders = [], {-2: ""}
    for line in tree[1].splitlines():
        match = re.match(r"( *)(\S+/|\S+\.py)(?= |$)", line)
        assert match is not None, line
        depth = len(match[1])
        path = folders[depth - 2] + match[2]
        folders[depth] = path
        paths.append(path)
    return paths


def test_the_tree_of_the_architecture_is_that_of_the_package():
    paths = tree_of((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert [path for path in paths if not (ROOT / path).exists()] == []
    package = ROOT / "pyro_vae"
    rooms = [path for path in package.iterdir() if path.suffix == ".py" and not path.name.startswith("_")]
    rooms += [path.parent for path in package.rglob("__init__.py") if path.parent != package]
    names = {str(path.relative_to(ROOT)) + ("/" if path.is_dir() else "") for path in rooms}
    assert sorted(names - set(paths)) == []


def test_a_tree_is_read():
    page = "```text\na/\n  b.py   words\n  c/\n    d.py\n    e/   more words, f.py\ng/\n```\n"
    assert tree_of(page) == ["a/", "a/b.py", "a/c/", "a/c/d.py", "a/c/e/", "g/"]


def test_the_citation_names_this_version():
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert "cff-version: 1.2.0" in lines
    assert f"version: {pv.__version__}" in lines
