"""Pandas frames as tensors, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv

FRAME = pd.DataFrame(
    {
        "age": [31.5, None, 40.0, 22.0],
        "balance": [-1.0, 2.0, 0.5, None],
        "children": [0, 2, 1, 5],
        "visits": pd.array([1, None, 3, 4], dtype="Int64"),
        "smoker": [True, False, True, True],
        "flag": [0, 1, 1, 0],
        "city": ["Ulm", None, "Bonn", "Ulm"],
        "grade": pd.Categorical(["low", "high", None, "mid"], categories=["low", "mid", "high"], ordered=True),
        "shift": [-1, 0, 3, 2],
    }
)


def test_kinds_values_and_missing_ones() -> None:
    table = pv.data.table(FRAME)
    assert table.columns == ("positive", "real", "count", "count", "binary", "binary", "binary", 3, "real")
    assert table.names == tuple(FRAME.columns)
    assert table.categories[6:8] == (("Bonn", "Ulm"), ("low", "mid", "high"))
    assert table.categories[0] is None
    expected = torch.tensor(
        [
            [31.5, -1.0, 0, 1, 1, 0, 1, 0, -1],
            [math.nan, 2.0, 2, math.nan, 0, 1, math.nan, 2, 0],
            [40.0, 0.5, 1, 3, 1, 1, 0, math.nan, 3],
            [22.0, math.nan, 5, 4, 1, 0, 1, 1, 2],
        ]
    )
    torch.testing.assert_close(table.values, expected, equal_nan=True)


def test_there_and_back() -> None:
    table = pv.data.table(FRAME)
    back = table.frame(table.values)
    assert list(back.columns) == list(FRAME.columns)
    again = pv.data.table(back, columns={"flag": "binary", "smoker": "binary"})
    torch.testing.assert_close(again.values, table.values, equal_nan=True)
    assert back["city"].tolist()[0::2] == ["Ulm", "Bonn"]
    assert back["grade"].isna().tolist() == [False, False, True, False]
    assert str(back["children"].dtype) == "Int64"


def test_kinds_can_be_given() -> None:
    table = pv.data.table(FRAME, columns={"age": "real", "children": np.int64(6), "grade": 4})
    assert table.columns[0] == "real"
    assert table.columns[2] == 6
    assert table.columns[7] == 4
    network = pv.MLP(2, pv.MixedLikelihood.num_outputs(table.columns))
    likelihood = pv.MixedLikelihood(network, table.columns)
    likelihood.initialize_output_bias(table.values, mask=~table.values.isnan())
    draws = likelihood(torch.zeros(3, 2)).sample()
    assert table.frame(draws).shape == (3, 9)


def test_names_may_repeat_and_be_numbers() -> None:
    frame = pd.DataFrame([[1.5, 2.5], [0.5, 1.0]], columns=[7, 7])
    table = pv.data.table(frame)
    assert table.names == (7, 7)
    assert table.frame(table.values).equals(frame)


@pytest.mark.parametrize(
    ("frame", "columns", "error", "match"),
    [
        ([[1.0]], None, TypeError, "frame: expected a pandas.DataFrame, got list"),
        (FRAME.iloc[:0], None, ValueError, "frame: expected at least one row and one column"),
        (pd.DataFrame({"a": [None, None]}), None, ValueError, "column 'a': expected at least one value"),
        (pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])}), None, TypeError, "column 'a': expected numbers, strings"),
        (pd.DataFrame({"a": [1, "b"]}), None, TypeError, "column 'a': expected numbers.*got int, str"),
        (pd.DataFrame({"a": ["b", "b"]}), None, ValueError, "column 'a': expected at least two categories"),
        (pd.DataFrame({"a": [1.0, math.inf]}), None, ValueError, "column 'a': expected finite values, got infinity"),
        (FRAME, {"name": "real"}, ValueError, "columns: expected names of the frame's columns, got 'name'"),
        (FRAME, {"grade": "real"}, ValueError, r"columns\['grade'\]: expected a number of classes, at least 3"),
        (FRAME, {"grade": "categorical"}, ValueError, r"got 'categorical'. Write 3, or leave the column out"),
        (FRAME, ["real"] * 9, TypeError, r"columns: expected a dictionary from names to kinds, got \['real'"),
        (FRAME, {"grade": 2}, ValueError, r"columns\['grade'\]: expected a number of classes, at least 3.*got 2"),
    ],
)
def test_faults_are_named(frame: Any, columns: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        pv.data.table(frame, columns)


def test_draws_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"values: expected shape \(M, 9\).*\(2, 4, 9\).*table.frame\(draws\[0\]\)"):
        pv.data.table(FRAME).frame(torch.zeros(2, 4, 9))
