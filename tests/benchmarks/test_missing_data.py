"""The benchmark of imputation in its short form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "missing_data.py"


@pytest.mark.slow
def test_it_writes_a_row_and_a_table(tmp_path: Path) -> None:
    flags = ["--data-sets", "wine", "--shares", "0.5", "--seeds", "0", "1", "--epochs", "2", "--particles", "2"]
    command = [sys.executable, str(SCRIPT), "--output-dir", str(tmp_path), *flags, "--latent-dim", "2", "--hidden", "8"]
    subprocess.run(command, check=True, timeout=200, capture_output=True)
    rows = json.loads((tmp_path / "missing_data.json").read_text())
    assert [(row["data"], row["share"], row["seed"]) for row in rows] == [("wine", 0.5, 0), ("wine", 0.5, 1)]
    for row in rows:
        assert 0.5 < row["column means"] < 2.0  # of standardized columns
        assert 0.0 < row["IterativeImputer"] < row["column means"]
        assert 0.0 < row["VAE"] < 3.0
        assert 0.0 < row["coverage"] <= 1.0
    table = (tmp_path / "missing_data.md").read_text()
    assert table.count("\n") == 3
    assert "| wine | 0.5 |" in table
