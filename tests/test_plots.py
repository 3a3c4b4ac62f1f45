"""Pictures: what they show, read back from the figures."""

from __future__ import annotations

import pytest
import torch

import pyro_vae as pv


def pixels(figure):
    return torch.as_tensor(figure.axes[0].images[0].get_array())


def test_grid_places_every_image():
    images = torch.arange(5.0)[:, None].expand(5, 6) / 5
    picture = pixels(pv.plots.image_grid(images, (2, 3), columns=3))
    assert picture.shape == (2 * 3, 3 * 4)
    assert (picture[:2, :3] == 0.0).all()
    assert (picture[:2, 4:7] == 0.2).all()
    assert (picture[3:5, 4:7] == 0.8).all()
    assert (picture[3:5, 8:] == 1.0).all()  # the empty place is white


def test_grid_takes_colour_and_clips():
    picture = pixels(pv.plots.image_grid(torch.tensor([[-1.0, 0.5, 2.0]]), (3, 1, 1)))
    assert torch.equal(picture[0, 0], torch.tensor([0.0, 0.5, 1.0]))


def test_each_reconstruction_is_below_its_original():
    x = torch.arange(7.0)[:, None] / 10
    picture = pixels(pv.plots.reconstructions(x, x + 0.05, (1, 1), columns=4))[::2, ::2]
    expected = torch.tensor([[0.0, 0.1, 0.2, 0.3], [0.05, 0.15, 0.25, 0.35], [0.4, 0.5, 0.6, 1], [0.45, 0.55, 0.65, 1]])
    torch.testing.assert_close(picture, expected)


def test_latent_space_in_many_dimensions_shows_the_principal_components():
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(5, 5)).Q
    z = torch.randn(500, 5) * torch.tensor([0.1, 3.0, 0.1, 2.0, 0.1]) @ directions
    labels = torch.arange(500) % 3
    ax = pv.plots.latent_space(z, labels).axes[0]
    points = torch.cat([torch.as_tensor(c.get_offsets().data) for c in ax.collections])
    assert len(ax.collections) == 3
    assert points.shape == (500, 2)
    expected = torch.linalg.svdvals(z.double() - z.double().mean(0))[:2] / 500**0.5
    torch.testing.assert_close(points.std(0, correction=0), expected, rtol=1e-6, atol=0)
    assert "of variance" in ax.get_xlabel()


@pytest.mark.parametrize("d", [1, 2])
def test_latent_space_in_few_dimensions_is_shown_as_it_is(d):
    z = torch.randn(50, d)
    points = torch.as_tensor(pv.plots.latent_space(z).axes[0].collections[0].get_offsets().data)
    torch.testing.assert_close(points[:, :d].float(), z)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: pv.plots.image_grid(torch.zeros(0, 6), (2, 3)),
            r"images: expected at least one image of 6 = 1 \* 2 \* 3",
        ),
        (lambda: pv.plots.image_grid(torch.zeros(3, 5), (2, 3)), r"got shape \(3, 5\)"),
        (lambda: pv.plots.image_grid(torch.zeros(3, 12), (2, 2, 3)), r"image_shape: expected \(H, W\) or \(C, H, W\)"),
        (lambda: pv.plots.reconstructions(torch.zeros(3, 6), torch.zeros(2, 6), (2, 3)), r"reconstructed: expected"),
        (lambda: pv.plots.latent_space(torch.full((3, 2), float("nan"))), r"locations: expected finite values"),
        (
            lambda: pv.plots.image_grid(torch.zeros(3, 6), (2, 3), columns=-1),
            r"columns: expected an integer of at least",
        ),
        (lambda: pv.plots.latent_space(torch.zeros(3)), r"locations: expected shape \(N, D\)"),
        (
            lambda: pv.plots.latent_space(torch.zeros(3, 2), torch.zeros(2)),
            r"labels: expected shape \(3,\), got \(2,\)",
        ),
    ],
)
def test_bad_arguments_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
