"""What a checkpoint may hold is read back as it was; all else is refused before it is written."""

from __future__ import annotations

import enum
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch
from tiny import images, make, parameters_of, same

import pyro_vae.train.resume.checkpoint_file as files
from pyro_vae.infer import Adam
from pyro_vae.train import Callback, Checkpoint, fit

CONTENTS = {"a": [1, 2.5]}


class Point(NamedTuple):
    x: float


class Color(enum.IntEnum):
    RED = 1


DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
]
DTYPES += [torch.int64, torch.bool, torch.complex64, torch.complex128]
KINDS: list[Any] = [
    *(True, 0, -(2**70), 1.5, float("inf"), 1 + 2j, "text", b"bytes", None),
    *(torch.float32, torch.device("cpu"), torch.Size([2, 3])),
    *({"a": {"b": 1}}, [1, [2]], (1, (2,)), OrderedDict(a=1), {1: "int", None: "none", 2.5: "float", b"b": "bytes"}),
    *(torch.ones(2, 3, dtype=torch.float64).to(dtype) for dtype in DTYPES),
    *(
        torch.tensor(1.0),
        torch.zeros(0, 3),
        torch.ones(4, 4)[:, 1:3],
        torch.ones(1, 3).expand(2, 3),
        torch.arange(6).view(2, 3).T,
    ),
    *(torch.nn.Parameter(torch.ones(2)), torch.nn.Linear(2, 2).state_dict()),
]
NUMPY: list[Any] = [np.float64(1.5), np.float32(1.5), np.int64(3), np.bool_(True), np.str_("text"), np.uint8(200)]


@pytest.mark.parametrize("value", KINDS, ids=lambda value: type(value).__name__)
def test_each_plain_value_is_read_back_as_it_was(value: Any, tmp_path: Path) -> None:
    files.write(tmp_path / "file.pt", {"value": value, "key": {"nested": [value]}})
    contents = files.read(tmp_path / "file.pt")
    for found in (contents["value"], contents["key"]["nested"][0]):
        if isinstance(value, torch.Tensor):
            assert (found.shape, found.dtype) == (value.shape, value.dtype)
            assert torch.equal(found, value)
        elif isinstance(value, OrderedDict):
            assert found.keys() == value.keys()
            assert all(
                a is b or torch.equal(torch.as_tensor(a), torch.as_tensor(b))
                for a, b in zip(found.values(), value.values(), strict=True)
            )
        else:
            assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("value", NUMPY, ids=lambda value: type(value).__name__)
def test_a_number_of_numpy_becomes_pythons(value: Any, tmp_path: Path) -> None:
    files.write(tmp_path / "file.pt", {"value": value, np.int64(3): {"nested": [value]}})
    contents = files.read(tmp_path / "file.pt")
    assert (contents["value"], type(contents["value"])) == (value.item(), type(value.item()))
    assert contents[3]["nested"] == [value.item()]


NOT_PLAIN = [
    *(object(), {1, 2}, lambda: 0, {"deep": [pickle]}, Point(1.0), Color.RED, {Color.RED: 1}, {(1, 2): 1}),
    *(np.ones(3), torch.ones(2).to_sparse(), torch.ones(2, device="meta"), torch.zeros(2).to(torch.uint16)),
    defaultdict(int),
]


@pytest.mark.parametrize("value", NOT_PLAIN, ids=lambda value: type(value).__name__)
def test_what_could_not_be_read_back_safely_is_not_written(value: Any, tmp_path: Path) -> None:
    files.write(tmp_path / "file.pt", CONTENTS)
    with pytest.raises(TypeError, match=r"expected tensors and plain values|expected plain keys"):
        files.write(tmp_path / "file.pt", {"value": value})
    assert files.read(tmp_path / "file.pt")["a"] == CONTENTS["a"]


class Keeping(Callback):
    """A callback with a state."""

    def __init__(self, state: Any, later: bool = False) -> None:
        self.value, self.later = state, later

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state["value"]


def test_a_state_that_cannot_be_saved_is_refused_at_the_start(tmp_path: Path) -> None:
    m = make()
    before = parameters_of(m.vae)
    with pytest.raises(TypeError, match=r"callbacks.*value.*expected tensors and plain values, got Point"):
        fit(m.svi, images().split(16), epochs=1, callbacks=[Keeping(Point(1.0)), Checkpoint(tmp_path)], progress=False)
    assert same(before, parameters_of(m.vae))


@pytest.mark.parametrize("optim", [pyro.optim.Adam, Adam])
def test_options_of_numpy_are_saved_and_resumed(optim: Any, tmp_path: Path) -> None:
    def run(epochs: int) -> Any:
        m = make(optim=optim({"lr": np.logspace(-3, -2, 3)[1], "betas": (np.float64(0.9), 0.99)}))
        keeping = Keeping(np.float64(2.5))
        callbacks = [keeping, Checkpoint(tmp_path, every=0)]
        history = fit(m.svi, images().split(16), epochs=epochs, callbacks=callbacks, resume=tmp_path, progress=False)
        return history, keeping

    run(1)
    history, keeping = run(2)
    assert history["steps"] == [4, 8]
    assert (keeping.loaded, type(keeping.loaded)) == (2.5, float)
