"""Files that attack, and files whose contents are wrong: refused, with little memory, and nothing is changed."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import images, make, parameters_of, same
from torch.testing import assert_close

import pyro_vae.train.resume.checkpoint_file as files
from pyro_vae.train import Checkpoint, EarlyStopping, fit, read_checkpoint
from pyro_vae.train.parameters import copied


def _rewritten(
    path: Path, *, compress: int = zipfile.ZIP_STORED, extra: dict[str, bytes] | None = None, **new: bytes
) -> None:
    """Replace files of an archive, whole and with right checksums."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(contents)).partition("/")[0]
    contents |= {f"{folder}/{name}": data for name, data in (extra or {}).items()}
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def _pickle_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def _strides(path: Path) -> None:
    """A tensor of 4 GB on a storage of 4 bytes."""
    torch.save({"kind": "pyro_vae checkpoint", "version": 2, "a": torch.ones(1).expand(2**30)}, path)


def _aliases(path: Path) -> None:
    """500 tensors on one storage: 500 times its bytes once each is copied."""
    base = torch.ones(100_000)
    torch.save({"kind": "pyro_vae checkpoint", "version": 2, "a": [base[:] for _ in range(500)]}, path)


def _longer_than_its_bytes(path: Path) -> None:
    """A tensor of which the pickle says that it has more elements than there are bytes."""
    torch.save({"a": torch.ones(3)}, path)
    data = _pickle_of(path)
    assert data.count(b"K\x03") == 2  # the number of elements, and the shape
    _rewritten(path, extra={"data.pkl": data.replace(b"K\x03", b"J" + struct.pack("<i", 2**28))})


def _deflated(path: Path) -> None:
    torch.save({"a": torch.zeros(10_000_000)}, path)
    _rewritten(path, compress=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000


def _nested(path: Path) -> None:
    torch.save({}, path)
    deep = b"\x80\x02" + b"]" * 20_001 + b"a" * 20_000 + b"."
    _rewritten(path, extra={"data.pkl": deep})


def _shared_lists(path: Path) -> None:
    """Forty lists, each with the one before twice: 2^40 items once they are walked through."""
    torch.save({}, path)
    data = b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes([i + 1]) + b"(h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(40)
    )
    _rewritten(path, extra={"data.pkl": data + b"."})


def _bytearray(path: Path) -> None:
    """Four gigabytes of zeros by a function that torch.load allows."""
    torch.save({}, path)
    _rewritten(path, extra={"data.pkl": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x01\x85R."})


def _memo(path: Path) -> None:
    """An index of 2^31 in the pickle's table of references."""
    torch.save({}, path)
    _rewritten(path, extra={"data.pkl": b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b"."})


HOSTILE = {
    "strides": (_strides, "is damaged.*a tensor of size"),
    "aliases": (_aliases, "is damaged.*two tensors in the same place"),
    "longer than its bytes": (_longer_than_its_bytes, "is damaged.*bytes"),
    "deflated": (_deflated, "compressed"),
    "20,000 levels": (_nested, "is damaged.*levels"),
    "shared lists": (_shared_lists, "is damaged.*larger than the file"),
    "bytearray": (_bytearray, "Nothing was executed"),
    "memo": (_memo, "is damaged.*index"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_files_are_refused_and_take_little_memory(attack: str, tmp_path: Path) -> None:
    path = tmp_path / "step-0000000007.pt"
    act, message = HOSTILE[attack]
    act(path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            read_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6  # testzip reads 40 MB of zeros in pieces
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def _without(*names: str) -> Any:
    def change(contents: dict[str, Any]) -> None:
        for name in names:
            del contents[name]

    return change


def _with(**values: Any) -> Any:
    return lambda contents: contents.update(values)


def _parameters_as(dtype: torch.dtype) -> Any:
    def change(contents: dict[str, Any]) -> None:
        module = contents["modules"][0]
        contents["modules"][0] = {name: value.to(dtype) for name, value in module.items()}

    return change


def _in(*path: Any, value: Any) -> Any:
    def change(contents: dict[str, Any]) -> None:
        place: Any = contents
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


NAMES = [
    "epoch",
    "batch",
    "step",
    "first_epoch",
    "batches_per_epoch",
    "values",
    "history",
    "meter",
    "modules",
    "parameters",
]
NAMES += ["optimizer", "stepper", "feed", "callbacks", "belongs_to", "learning_rate_factor"]
# Found when the file is read, so that an older whole one can take its place.
WRONG: dict[str, Any] = {
    **{f"no {name}": _without(name) for name in NAMES},
    **{f"{name} a text": _with(**{name: "seven"}) for name in NAMES},
    "no modules": _with(modules=[]),
    "no modules and no names": _with(modules=[], module_parameters=[]),
    "epoch -3": _with(epoch=-3),
    "epoch 1.5": _with(epoch=1.5),
    "more epochs than steps": _with(epoch=10**9),
    "factor NaN": _with(learning_rate_factor=float("nan")),
    "history without names": _in("history", "names", value=[]),
    "rows below 0": _in("meter", "rows", value=-1),
    "a short generator": _in("feed", "generators", "torch", value=torch.zeros(3, dtype=torch.uint8)),
    "a callback without a state": _with(callbacks=[{"name": "EarlyStopping"}]),
}
# Found when it is compared with the run, which is then as it was.
OTHER: dict[str, Any] = {
    "complex parameters": _parameters_as(torch.complex64),
    "int8 parameters": _parameters_as(torch.int8),
    "double parameters": _parameters_as(torch.float64),
    "optimizer of nothing": _in("optimizer", value={}),
    "optimizer without groups": lambda c: c["optimizer"].update({name: {} for name in c["optimizer"]}),
    "optimizer of texts": lambda c: c["optimizer"].update(dict.fromkeys(c["optimizer"], "x")),
    "state of a callback": lambda c: c["callbacks"][0].update(state={}),
    "numpy's generator": _in("feed", "generators", "numpy", value=[1, 2, 3, 4, 5]),
}


def _trained(directory: Path) -> Path:
    callbacks = [EarlyStopping("train_elbo"), Checkpoint(directory, every=0)]
    fit(make().svi, images().split(16), epochs=1, callbacks=callbacks, progress=False)
    return max(directory.glob("step-*.pt"))


def _resume(m: Any, directory: Path) -> Any:
    callbacks = [EarlyStopping("train_elbo"), Checkpoint(directory, every=0)]
    return fit(m.svi, images().split(16), epochs=2, callbacks=callbacks, resume=directory, progress=False)


@pytest.mark.parametrize("damage", WRONG)
@pytest.mark.slow
def test_wrong_contents_give_way_to_the_file_before(damage: str, tmp_path: Path) -> None:
    path = _trained(tmp_path)
    contents = read_checkpoint(path)
    WRONG[damage](contents)
    files.write(path, contents)
    with pytest.raises(ValueError, match="the file is damaged") as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    with pytest.warns(RuntimeWarning, match=r"Going on from step-0000000003\.pt"):
        assert _resume(make(), tmp_path)["steps"] == [4, 8]


@pytest.mark.parametrize("damage", OTHER)
def test_contents_that_do_not_fit_change_nothing(damage: str, tmp_path: Path) -> None:
    path = _trained(tmp_path)
    contents = read_checkpoint(path)
    OTHER[damage](contents)
    files.write(path, contents)
    m = make(seed=3)
    fit(m.svi, images().split(16), epochs=1, progress=False)  # the optimizer has a state
    torch.manual_seed(4)
    before = parameters_of(m.vae), torch.get_rng_state()
    optimizer = copied(m.svi.optim.get_state())
    if damage == "optimizer of nothing":  # as before the first step
        _resume(m, tmp_path)
        return
    with pytest.raises(ValueError, match="resume: "):
        _resume(m, tmp_path)
    assert same(before[0], parameters_of(m.vae))
    assert torch.equal(before[1], torch.get_rng_state())
    assert_close(m.svi.optim.get_state(), optimizer, rtol=0, atol=0)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of memory")
@pytest.mark.slow
def test_a_checkpoint_takes_memory_for_what_the_model_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _trained(tmp_path)
    contents = read_checkpoint(path)
    contents["callbacks"][0]["state"]["large"] = torch.zeros(300_000_000, dtype=torch.uint8)
    files.write(path, contents)
    del contents
    Path("/proc/self/clear_refs").write_text("5")  # which sets the peak to what is in memory now
    before = _peak()
    monkeypatch.setattr("pyro_vae.train.resume.run_state._BYTES_FOR_ANY_MODEL", 10**8)
    with pytest.raises(ValueError, match=r"expected at most 100 MB of tensors besides the parameters.* 300 MB"):
        _resume(make(), tmp_path)
    assert _peak() - before < 100e6


def _peak() -> int:
    """Return the most bytes that this process has had in memory."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def test_folders_named_like_checkpoints_are_skipped(tmp_path: Path) -> None:
    _trained(tmp_path)
    (tmp_path / "step-0000000099.pt").mkdir()
    assert _resume(make(), tmp_path)["steps"] == [4, 8]
    assert (tmp_path / "step-0000000099.pt").is_dir()
