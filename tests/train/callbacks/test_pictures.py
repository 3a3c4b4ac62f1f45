"""``SamplePictures``."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tiny import make, train

from pyro_vae.train import SamplePictures


def test_sample_pictures(tmp_path: Path) -> None:
    m, undisturbed = make(), make()
    modes = []

    def draw() -> Figure:
        modes.append(m.vae.training)
        figure = Figure(figsize=(1, 1))
        figure.subplots().imshow(m.vae.sample(1).reshape(2, 3).numpy())
        return figure

    torch.manual_seed(1)
    train([SamplePictures(tmp_path, draw, every=2)], epochs=5, m=m)
    torch.manual_seed(1)
    train([], epochs=5, m=undisturbed)
    assert sorted(os.listdir(tmp_path)) == ["epoch-0002.png", "epoch-0004.png", "epoch-0005.png"]
    assert (tmp_path / "epoch-0002.png").read_bytes().startswith(b"\x89PNG")
    assert modes == [False] * 3
    for a, b in zip(m.vae.parameters(), undisturbed.vae.parameters(), strict=True):
        assert torch.equal(a, b)
