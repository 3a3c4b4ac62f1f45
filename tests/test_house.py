"""The shape of the house: imports point one way, and README and checks run the same commands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_vae as pv

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyro_vae"
# Who may import whom: each from itself and those named.
ARROWS = {
    "_checks": set(),
    "_precision": set(),
    "_store": set(),
    "_version": set(),
    "_warn": set(),
    "networks": {"_checks"},
    "data": {"_checks"},
    "bayesian": {"_checks"},
    "conditional": {"_checks"},
    "flows": {"_checks"},
    "priors": {"flows", "networks", "_checks", "_precision"},
    "posteriors": {"flows", "networks", "_checks", "_precision"},
    "likelihoods": {"networks", "_checks", "_precision"},
    "models": {"networks", "priors", "posteriors", "likelihoods", "conditional", "_checks", "_store"},
    "infer": {"_checks", "_store", "_warn"},
    "evaluate": {"infer", "_checks"},
    "train": {"infer", "_checks", "_version", "_warn"},
    "plots": {"_checks"},
}


def imported(path: Path) -> set[str]:
    """First-level names of the package that a file imports, doctests left out."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            module = base + (node.module or "")
            names = [f"{module.rstrip('.')}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("pyro_vae.")}
    return found


@pytest.mark.parametrize("room", ARROWS)
def test_imports_point_one_way(room):
    files = sorted((PACKAGE / room).rglob("*.py")) if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]
    for file in files:
        assert imported(file) <= ARROWS[room] | {room}, file


def test_every_room_is_on_the_plan():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(ARROWS)


def test_there_are_no_circles():
    def reach(room, seen):
        for other in ARROWS[room]:
            assert other not in seen, [*seen, other]
            reach(other, [*seen, other])

    for room in ARROWS:
        reach(room, [room])


def test_every_public_name_is_there_and_has_a_docstring():
    assert sorted(pv.__all__) == sorted(set(pv.__all__))
    for name in pv.__all__:
        assert getattr(pv, name).__doc__, name


def test_import_has_no_side_effects():
    program = """
import logging, warnings, torch, pyro
before = (torch.get_default_dtype(), torch.get_rng_state().tolist(), torch.get_num_threads(), len(warnings.filters),
          logging.getLogger().handlers[:], len(pyro.get_param_store()), pyro.settings.get())
import pyro_vae
after = (torch.get_default_dtype(), torch.get_rng_state().tolist(), torch.get_num_threads(), len(warnings.filters),
         logging.getLogger().handlers[:], len(pyro.get_param_store()), pyro.settings.get())
assert before == after, [pair for pair in zip(before, after) if pair[0] != pair[1]]
import sys
assert "torchvision" not in sys.modules and "sklearn" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def shell_commands(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_readme_and_checks_run_the_same_commands():
    start = (ROOT / "README.md").read_text(encoding="utf-8").split("## Start\n")[1].split("\n## ")[0]
    commands = [shell_commands(block) for block in re.findall(r"```bash\n(.*?)```", start, re.DOTALL)]
    assert commands == [
        ["pip install . && python examples/mnist_svi.py"],
        ['pip install -e ".[test]" && pytest -m "not slow" -n 2'],
    ]
    steps = shell_commands((ROOT / ".ci/run").read_text(encoding="utf-8"))
    positions = []
    for (command,) in commands:
        # The main job is run in its short form, with flags behind it. A failure in the middle of `a && b` does not end
        # a script under `set -e`; `|| exit 1` does.
        runs = [step for step in steps if step.startswith(command)]
        assert runs, command
        for run in runs:
            assert re.fullmatch(r"( --.*)? \|\| exit 1", run.removeprefix(command)), run
        positions.append(steps.index(runs[0]))
    assert positions == sorted(positions)


def test_no_file_of_the_package_is_too_long():
    long = {path.name: n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 300}
    assert not long, f"{long}: is each one thing? Past about 300 lines a file becomes a folder."
