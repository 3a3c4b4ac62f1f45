"""Data sets: what is read is what the files hold, and a bad file is refused by name."""

import functools
import gzip
import hashlib
import os
import re
import socket
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae.data import DATASETS, datasets, default_root, import_torchvision, load

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(("name", "folder"), [("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_reads_what_torchvision_reads(name, folder, make_root, no_network):
    root = make_root(folder)
    images = load(name, root)
    for train, x, y in (
        (True, images.train_images, images.train_labels),
        (False, images.test_images, images.test_labels),
    ):
        reference = getattr(import_torchvision().datasets, folder)(root, train=train)
        assert torch.equal(x, reference.data.flatten(1))
        assert torch.equal(y, reference.targets)
        assert y.dtype == torch.int64
    assert images.name == name
    assert images.image_shape == (28, 28)


def test_image_shape_comes_from_the_file(make_root):
    images = load("kmnist", make_root("KMNIST", shape=(4, 6)))
    assert images.image_shape == (4, 6)
    assert images.train_images.shape == (20, 24)


@pytest.mark.skipif("PYRO_VAE_DATA" not in os.environ, reason="PYRO_VAE_DATA names no folder with MNIST/raw")
def test_published_mnist(no_network):
    mnist = load("mnist", os.environ["PYRO_VAE_DATA"])
    assert mnist.train_images.shape == (60000, 784)
    assert mnist.test_images.shape == (10000, 784)
    assert round(mnist.train_images.float().mean().item() / 255, 4) == 0.1307  # the mean that everyone normalises by
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_mnist_that_is_not_the_published_one_is_refused(make_root):
    with pytest.raises(ValueError, match=rf"{TRAIN_IMAGES}: is not the published file of MNIST: expected MD5 6bbc9ace"):
        load("mnist", make_root("MNIST"))


def test_digits_need_no_network_and_split_every_class(no_network):
    digits = load("digits")
    assert digits.train_images.shape == (1438, 64)
    assert digits.test_images.shape == (359, 64)
    for images in (digits.train_images, digits.test_images):
        assert images.dtype == torch.uint8
        assert (images.min(), images.max()) == (0, 255)
    share = digits.test_labels.bincount() / (digits.train_labels.bincount() + digits.test_labels.bincount())
    assert torch.all((share - 0.2).abs() < 0.01)
    together = torch.cat([digits.train_images, digits.test_images])
    from sklearn.datasets import load_digits

    expected = torch.from_numpy(load_digits().images).flatten(1)
    assert torch.equal(
        (together * (16 / 255)).round().sum(0), expected.sum(0).float()
    )  # every image once, levels 0..16


def test_digits_split_is_the_same_in_every_version():
    digits = load("digits")
    found = hashlib.sha256(digits.test_images.numpy().tobytes() + digits.test_labels.numpy().tobytes()).hexdigest()
    assert found.startswith("355252c8623c1f8c")


def test_unknown_name_says_which_exist():
    with pytest.raises(ValueError, match="name: expected one of mnist, fashion-mnist, kmnist, digits, got 'mnits'"):
        load("mnits")
    assert DATASETS == ("mnist", "fashion-mnist", "kmnist", "digits")


def test_missing_files_are_named_with_the_fix(make_root, no_network):
    root = make_root()
    (root / "FashionMNIST" / "raw" / TEST_LABELS).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"fashion-mnist: missing in .*raw: {TEST_LABELS}\. Pass download=True"
    ):
        load("fashion-mnist", root)
    with pytest.raises(FileNotFoundError, match=rf"{TRAIN_IMAGES}, {TRAIN_LABELS}, {TEST_IMAGES}, {TEST_LABELS}"):
        load("kmnist", root)


def test_default_root_is_in_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "pyro_vae"
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "pyro_vae" / "MNIST" / "raw"))):
        load("mnist")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == Path.home() / ".cache" / "pyro_vae"


def patch(path: Path, place: int, new: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[place : place + len(new)] = new
    path.write_bytes(content)


FAULTS = {
    "truncated": (TRAIN_IMAGES, lambda p: os.truncate(p, 5000), "is truncated: expected 15696 bytes"),
    "truncated by one": (TEST_IMAGES, lambda p: os.truncate(p, p.stat().st_size - 1), "is truncated"),
    "header cut": (TRAIN_LABELS, lambda p: os.truncate(p, 6), "is truncated: expected a header of 8 bytes, got 6"),
    "magic cut": (TRAIN_LABELS, lambda p: os.truncate(p, 3), "is truncated"),
    "empty": (TEST_LABELS, lambda p: os.truncate(p, 0), "is truncated: expected a header of 8 bytes, got 0"),
    "too long": (TEST_LABELS, lambda p: p.write_bytes(p.read_bytes() + b"x"), "is too long: expected 18 bytes"),
    "text": (TRAIN_IMAGES, lambda p: p.write_text("<html>404</html>"), "is not an IDX file of bytes with 3 dim"),
    "swapped": (TRAIN_IMAGES, lambda p: p.write_bytes((p.parent / TRAIN_LABELS).read_bytes()), "is not an IDX file"),
    "packed": (TRAIN_IMAGES, lambda p: p.write_bytes(gzip.compress(p.read_bytes())), "is compressed by gzip.*gunzip"),
    "absurd size": (TRAIN_IMAGES, lambda p: patch(p, 4, b"\xff" * 12), "is truncated: expected 7922816"),
    "label range": (TRAIN_LABELS, lambda p: patch(p, 10, b"\x11"), "expected labels 0..9, got 17"),
    "label count": (
        TRAIN_LABELS,
        lambda p: p.write_bytes((p.parent / TEST_LABELS).read_bytes()),
        "got 10 labels for 20 images",
    ),
    "no data": (TRAIN_LABELS, lambda p: (patch(p, 4, bytes(4)), os.truncate(p, 8)), "got 0 labels for 20 images"),
    "folder": (TEST_IMAGES, lambda p: (p.unlink(), p.mkdir()), r"cannot be read \(Is a directory\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_refused_by_name(fault, make_root):
    root = make_root()
    file, damage, message = FAULTS[fault]
    path = root / "FashionMNIST" / "raw" / file
    damage(path)
    with pytest.raises((ValueError, OSError), match=rf"^{re.escape(str(path))}: .*{message}"):
        load("fashion-mnist", root)


def test_unreadable_file(make_root, monkeypatch):
    def refuse(path, dtype):
        raise PermissionError(13, "Permission denied", str(path))

    root = make_root()
    monkeypatch.setattr(np, "fromfile", refuse)
    path = root / "FashionMNIST" / "raw" / TRAIN_IMAGES
    with pytest.raises(PermissionError, match=rf"^{re.escape(str(path))}: cannot be read \(Permission denied\)"):
        load("fashion-mnist", root)


def test_train_and_test_images_of_different_shapes_are_refused(make_root, tmp_path):
    root = make_root()
    path = root / "FashionMNIST" / "raw" / TEST_IMAGES
    patch(path, 8, (14).to_bytes(4, "big") + (56).to_bytes(4, "big"))
    with pytest.raises(ValueError, match=r"images of one shape, got \(28, 28\) and \(14, 56\) pixels"):
        load("fashion-mnist", root)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A function that serves the files of a data set, packed, at an address of this machine in place of the network."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("no_proxy", "*")

    def serve(root: Path, name: str) -> Path:
        resources = []
        for file in sorted((root / name / "raw").iterdir()):
            packed = folder / f"{file.name}.gz"
            packed.write_bytes(gzip.compress(file.read_bytes()))
            resources.append((packed.name, hashlib.md5(packed.read_bytes()).hexdigest()))
        dataset = getattr(import_torchvision().datasets, name)
        monkeypatch.setattr(dataset, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(dataset, "resources", resources)
        return folder

    yield serve
    server.shutdown()
    thread.join()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(("name", "folder"), [("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_download_through_torchvision(name, folder, make_root, mirror, tmp_path, capfd):
    source = make_root(folder)
    mirror(source, folder)
    with pytest.raises(FileNotFoundError):
        load(name, tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()
    fetched = load(name, tmp_path / "fresh", download=True)
    assert torch.equal(fetched.train_images, load(name, source).train_images)
    assert load(name, tmp_path / "fresh").test_images.shape == (10, 784)
    assert socket.getdefaulttimeout() is None


def test_download_with_a_wrong_checksum_is_refused(make_root, mirror, tmp_path, capfd):
    for packed in mirror(make_root(), "FashionMNIST").iterdir():
        patch(packed, 30, b"damage")
    with pytest.raises(
        ConnectionError, match=r"fashion-mnist: could not be downloaded .*corrupted.* Give a local copy"
    ):
        load("fashion-mnist", tmp_path / "fresh", download=True)


def test_download_without_network_says_how_to_give_a_local_copy(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as held:  # bound but not listening: nothing answers at this port
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}/"
        monkeypatch.setattr(import_torchvision().datasets.MNIST, "mirrors", [address])
        with pytest.raises(
            ConnectionError, match=r"mnist: could not be downloaded .* root= a folder that holds MNIST/raw/"
        ):
            load("mnist", tmp_path, download=True)
    assert socket.getdefaulttimeout() is None


def test_download_from_a_silent_server_gives_up(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(datasets, "_NETWORK_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(import_torchvision().datasets.MNIST, "mirrors", [address])
        with pytest.raises(ConnectionError, match=r"mnist: could not be downloaded .*timed out"):
            load("mnist", tmp_path, download=True)
    assert socket.getdefaulttimeout() is None


def test_a_complete_copy_is_not_fetched_again(make_root, no_network):
    assert len(load("fashion-mnist", make_root(), download=True).train_labels) == 20


def test_values_are_those_of_the_file(make_root):
    root = make_root("KMNIST")
    content = np.fromfile(root / "KMNIST" / "raw" / TRAIN_IMAGES, dtype=np.uint8)[16:].reshape(20, 784)
    assert np.array_equal(load("kmnist", root).train_images.numpy(), content)
