"""Checkpoints from strangers and from machines that died: refused clearly, nothing run, nothing overwritten."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import images, make

import pyro_vae.train.resume.checkpoint_file as files
from pyro_vae.train import Checkpoint, fit, read_checkpoint

CONTENTS = {"a": [1, 2.5, None, "text", (True, b"bytes")], "t": torch.arange(3.0), "nested": {"x": {1: torch.ones(2)}}}


def test_round_trip(tmp_path: Path) -> None:
    files.write(tmp_path / "file.pt", CONTENTS)
    contents = files.read(tmp_path / "file.pt")
    assert contents["a"] == CONTENTS["a"]
    assert torch.equal(contents["t"], CONTENTS["t"])
    assert torch.equal(contents["nested"]["x"][1], torch.ones(2))
    assert os.listdir(tmp_path) == ["file.pt"]
    assert torch.load(tmp_path / "file.pt", weights_only=True)["a"] == CONTENTS["a"]


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def _truncate(path: Path, part: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    tensor = torch.arange(3.0).numpy().tobytes()
    data[bytes(data).index(tensor) + 5] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "one byte": (lambda path: _truncate(path, 1e-9) or path.write_bytes(b"P"), "truncated or of another kind"),
    "half": (lambda path: _truncate(path, 0.5), "truncated or of another kind"),
    "all but the end": (lambda path: _truncate(path, 0.99), "truncated or of another kind"),
    "a flipped bit": (_flip_a_bit, "is damaged"),
    "text": (lambda path: path.write_text("epoch,elbo\n1,-90\n" * 99), "truncated or of another kind"),
    "other weights": (lambda path: torch.save({"weight": torch.ones(3)}, path), "of another kind"),
    "a tensor": (lambda path: torch.save(torch.ones(3), path), "of another kind"),
    "an older format": (
        lambda path: torch.save({"kind": "pyro_vae checkpoint", "version": 1}, path),
        "expected a checkpoint of format 2, got one of format 1",
    ),
    "a newer format": (
        lambda path: torch.save({"kind": "pyro_vae checkpoint", "version": 99}, path),
        "expected a checkpoint of format 2, got one of format 99",
    ),
    "code in an archive": (
        lambda path: torch.save({"kind": "pyro_vae checkpoint", "run": Malicious(path.parent / "hacked")}, path),
        "Nothing was executed",
    ),
    "code in a bare pickle": (
        lambda path: path.write_bytes(pickle.dumps(Malicious(path.parent / "hacked"))),
        "truncated or of another kind",
    ),
    "code in an old archive": (
        lambda path: torch.save(Malicious(path.parent / "hacked"), path, _use_new_zipfile_serialization=False),
        "truncated or of another kind",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_foreign_files(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "step-0000000007.pt"
    files.write(path, CONTENTS)
    act, message = DAMAGES[damage]
    act(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match=message):
        fit(make().svi, images().split(16), epochs=1, resume=tmp_path, callbacks=[Checkpoint(tmp_path)], progress=False)
    assert path.read_bytes() == before
    assert set(os.listdir(tmp_path)) == {path.name, ".lock"}  # nothing was executed


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.pt"):
        read_checkpoint(tmp_path / "no.pt")


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    fit(make().svi, images().split(16), epochs=1, callbacks=[Checkpoint(tmp_path, every=0, keep=3)], progress=False)
    steps = sorted(tmp_path.glob("step-*.pt"))
    assert [path.name for path in steps] == [f"step-000000000{n}.pt" for n in (2, 3, 4)]
    _truncate(steps[-1], 0.5)
    broken = steps[-1].read_bytes()
    with pytest.warns(RuntimeWarning, match=r"0004\.pt.*truncated.*Going on from step-0000000003\.pt"):
        history = fit(
            make().svi,
            images().split(16),
            epochs=1,
            callbacks=[Checkpoint(tmp_path, every=0)],
            resume=tmp_path,
            progress=False,
        )
    assert history["steps"] == [4]
    assert (tmp_path / "step-0000000004.pt.old").read_bytes() == broken
    read_checkpoint(tmp_path / "step-0000000004.pt")


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.pt"
    files.write(path, CONTENTS)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if moment == "write":
        monkeypatch.setattr(files, "open", lambda *a: Full(*a), raising=False)
    else:
        monkeypatch.setattr(files.os, moment, fail)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, {"a": 2})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["file.pt"]
    assert files.read(path)["a"] == CONTENTS["a"]


class Full:
    """A file on a disk that is full after 100 bytes."""

    def __init__(self, path: Path, mode: str) -> None:
        self.file = open(path, mode)  # noqa: SIM115

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: Any) -> None:
        self.file.write(bytes(data)[:100])
        raise OSError(28, "No space left on device")
