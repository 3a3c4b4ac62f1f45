"""A pandas frame as a tensor, with the kind of each column, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import as_int, require_tensor

__all__ = ["Table", "table"]


class Table(NamedTuple):
    """What :func:`table` returns.

    Attributes:
        values: ``(N, C)``, NaN where a value is missing.
        columns: the kind of each column, for ``MixedLikelihood``.
        names: the columns' names.
        categories: for each column its categories in the order of their numbers; None where it has none.
    """

    values: Tensor
    columns: tuple[str | int, ...]
    names: tuple[Any, ...]
    categories: tuple[tuple[Any, ...] | None, ...]

    def frame(self, values: Tensor) -> Any:
        """Return values ``(M, C)``, draws for instance, as a pandas frame with the names and categories of this table.

        Counts and classes are rounded to the nearest; NaN stays missing.
        """
        import pandas as pd  # the extra ``tables``

        require_tensor("values", values)
        if values.ndim != 2 or values.shape[1] != len(self.names):
            raise ValueError(
                f"values: expected shape (M, {len(self.names)}), one column for each of the table, got "
                f"{tuple(values.shape)}. Take one draw at a time, e.g. table.frame(draws[0])."
            )
        columns = {}
        for i in range(len(self.names)):
            column, categories = values[:, i].double().cpu().numpy(), self.categories[i]
            if categories is not None:
                numbers = values[:, i].nan_to_num(-1.0).round().clamp(-1, len(categories) - 1).long().tolist()
                columns[i] = pd.Categorical.from_codes(numbers, categories=list(categories))
            elif self.columns[i] == "count":
                columns[i] = pd.array(column.round(), dtype="Float64").astype("Int64")
            else:
                columns[i] = column
        frame = pd.DataFrame(columns)
        frame.columns = list(self.names)
        return frame


def table(frame: Any, columns: Mapping[Any, str | int] | None = None) -> Table:
    """Return a pandas frame as a tensor, with the kind of each column.

    By default the kind of a column follows from its dtype, and from the values that are there:

    - booleans, and integers that are all 0 or 1: ``"binary"``
    - other integers: ``"count"`` where none is negative, else ``"real"``
    - floats: ``"positive"`` where all are above 0, else ``"real"``
    - strings, objects and categories: a number of classes, ``"binary"`` where there are two. They are numbered in
      their order as categories, or else in sorted order.

    Args:
        frame: a ``pandas.DataFrame``.
        columns: the kind of some columns by name, in place of the default: ``{"age": "real", "grade": 5}``.

    Returns:
        ``Table(values, columns, names, categories)``: ``values`` is ``(N, C)`` in torch's default dtype.

    Raises:
        TypeError: ``frame`` is not a frame; ``columns`` is no dictionary; a column holds dates, or objects of
            several types.
        ValueError: a column without any value, or of one category; an infinite value; ``columns`` names none of the
            frame's; a kind that does not fit.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"age": [31.0, None], "children": [0, 2], "city": ["Ulm", "Bonn"]})
        >>> values, columns, names, categories = table(frame)
        >>> columns, categories[2]
        (('positive', 'count', 'binary'), ('Bonn', 'Ulm'))
        >>> values
        tensor([[31.,  0.,  1.],
                [nan,  2.,  0.]])
    """
    if not (hasattr(frame, "columns") and hasattr(frame, "dtypes") and hasattr(frame, "iloc")):
        raise TypeError(f"frame: expected a pandas.DataFrame, got {type(frame).__name__}.")
    names = tuple(frame.columns)
    if columns is not None and not isinstance(columns, Mapping):
        raise TypeError(
            f"columns: expected a dictionary from names to kinds, got {columns!r}. Write "
            '{"age": "real", "grade": 5}, or leave it out.'
        )
    wanted = dict(columns or {})
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"columns: expected names of the frame's columns, got {unknown[0]!r}. It has {list(names)}.")
    if not len(frame) or not names:
        raise ValueError(f"frame: expected at least one row and one column, got shape {tuple(frame.shape)}.")
    found = [_column(name, frame.iloc[:, i], wanted.get(name)) for i, name in enumerate(names)]
    values, kinds, categories = zip(*found, strict=True)
    return Table(torch.stack(values, 1), kinds, names, categories)


def _column(name: Any, series: Any, wanted: str | int | None) -> tuple[Tensor, str | int, tuple[Any, ...] | None]:
    """Return a column's values, its kind and its categories."""
    import pandas as pd  # the extra ``tables``

    types = pd.api.types
    if not series.notna().any():
        raise ValueError(f"column {name!r}: expected at least one value, got none. Leave the column out.")
    classes = as_int(wanted)
    number = types.is_numeric_dtype(series.dtype) and not isinstance(series.dtype, pd.CategoricalDtype)
    if not number:
        return _categories(name, series, wanted)
    values = torch.tensor(series.astype("float64").to_numpy(na_value=float("nan")), dtype=torch.get_default_dtype())
    there = values[~values.isnan()]
    if there.isinf().any():
        raise ValueError(f"column {name!r}: expected finite values, got infinity. Correct it, or make it missing.")
    integers = types.is_integer_dtype(series.dtype) or types.is_bool_dtype(series.dtype)
    if wanted is not None:
        kind: str | int = wanted if classes is None else classes
    elif types.is_bool_dtype(series.dtype) or (integers and bool(((there == 0) | (there == 1)).all())):
        kind = "binary"
    elif integers:
        kind = "count" if bool((there >= 0).all()) else "real"
    else:
        kind = "positive" if bool((there > 0).all()) else "real"
    return values, kind, None


def _categories(name: Any, series: Any, wanted: Any) -> tuple[Tensor, str | int, tuple[Any, ...]]:
    """Return a column of categories as numbers."""
    import pandas as pd  # the extra ``tables``

    if not isinstance(series.dtype, pd.CategoricalDtype):
        kinds = {type(value) for value in series.dropna()}
        if len(kinds) > 1 or not (kinds <= {str, bool}):
            got = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise TypeError(
                f"column {name!r}: expected numbers, strings, booleans or categories, got {got}. Convert it: a date to "
                "a number of days, say, or numbers kept as objects with pandas.to_numeric."
            )
        series = series.astype("category")
    categories = tuple(series.cat.categories)
    if len(categories) < 2:
        raise ValueError(f"column {name!r}: expected at least two categories, got {list(categories)}. Leave it out.")
    kind = "binary" if len(categories) == 2 else len(categories)
    classes = as_int(wanted)
    if wanted not in (None, kind) and (classes is None or classes < len(categories)):
        raise ValueError(
            f"columns[{name!r}]: expected a number of classes, at least {len(categories)}, for the categories "
            f"{list(categories)}, got {wanted!r}. Write {len(categories)}, or leave the column out of columns."
        )
    kind = kind if classes is None else classes
    codes = torch.tensor(series.cat.codes.to_numpy(), dtype=torch.get_default_dtype())
    return codes.where(codes >= 0, float("nan")), kind, categories
