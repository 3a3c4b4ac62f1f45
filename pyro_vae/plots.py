"""Pictures of images and latent variables. Each function returns a ``matplotlib`` figure, to be saved or shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ._checks import require_positive_int, require_tensor

__all__ = ["image_grid", "latent_space", "reconstructions"]


def image_grid(images: Tensor, image_shape: Sequence[int], *, columns: int | None = None, title: str = "") -> Figure:
    """Draw images side by side.

    Args:
        images: ``(N, *E)`` with values in [0, 1]; values outside are clipped.
        image_shape: ``(H, W)`` or ``(C, H, W)`` with C = 1 or 3.
        columns: number of images in a row; by default about as many as there are rows.
        title: title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: no image, or images that are not of ``image_shape``.

    Example:
        >>> figure = image_grid(torch.rand(10, 64), (8, 8))
        >>> figure.savefig("samples.png")  # doctest: +SKIP
    """
    tiles = _tiles(images, image_shape)
    columns = math.ceil(math.sqrt(len(tiles))) if columns is None else require_positive_int("columns", columns)
    rows = math.ceil(len(tiles) / columns)
    return _draw(_mosaic(tiles, rows, columns), columns, title)


def reconstructions(
    originals: Tensor, reconstructed: Tensor, image_shape: Sequence[int], *, columns: int = 10
) -> Figure:
    """Draw originals, each with its reconstruction right below it.

    Args:
        originals: ``(N, *E)`` with values in [0, 1].
        reconstructed: ``(N, *E)``.
        image_shape: ``(H, W)`` or ``(C, H, W)``.
        columns: pairs in a row.

    Returns:
        The figure.

    Raises:
        ValueError: the two differ in shape, or are not of ``image_shape``.

    Example:
        >>> x = torch.rand(20, 64)
        >>> figure = reconstructions(x, 1 - x, (8, 8))
    """
    above, below = _tiles(originals, image_shape), _tiles(reconstructed, image_shape)
    if above.shape != below.shape:
        raise ValueError(
            f"reconstructed: expected originals' shape, {tuple(originals.shape)}, got {tuple(reconstructed.shape)}."
        )
    columns = min(require_positive_int("columns", columns), len(above))
    lines = [line for pair in zip(above.split(columns), below.split(columns), strict=True) for line in pair]
    mosaic = torch.cat([_mosaic(line, 1, columns) for line in lines], 0)
    return _draw(mosaic, columns, "each original above its reconstruction")


def latent_space(locations: Tensor, labels: Tensor | None = None, *, title: str = "latent space") -> Figure:
    """Draw posterior means in the plane, coloured by class.

    With more than two dimensions their first two principal components are drawn.

    Args:
        locations: ``(N, D)``, posterior means.
        labels: ``(N,)``, integer classes, or ``None``.
        title: title of the figure.

    Returns:
        The figure. The label of a principal component gives its share of the variance.

    Raises:
        ValueError: ``locations`` is not ``(N, D)`` with N >= 2, or ``labels`` of another length.

    Example:
        >>> figure = latent_space(torch.randn(50, 5), torch.arange(50) % 10)
    """
    require_tensor("locations", locations)
    if locations.ndim != 2 or len(locations) < 2:
        raise ValueError(f"locations: expected shape (N, D) with N >= 2, got {tuple(locations.shape)}.")
    if not locations.isfinite().all():
        raise ValueError("locations: expected finite values, got NaN or infinity. Check whether training diverged.")
    if labels is not None:
        require_tensor("labels", labels)
    if labels is not None and tuple(labels.shape) != (len(locations),):
        raise ValueError(f"labels: expected shape ({len(locations)},), got {tuple(labels.shape)}.")
    points = locations.detach().cpu().double()
    axis_names = ["$z_1$", "$z_2$"]
    if points.shape[1] == 1:
        points = torch.cat([points, torch.zeros_like(points)], 1)
        axis_names[1] = ""
    elif points.shape[1] > 2:
        points = points - points.mean(0)
        variances, directions = torch.linalg.eigh(points.T @ points / len(points))
        parts = (variances / variances.sum()).flip(0)
        points = points @ directions.flip(1)[:, :2]
        axis_names = [f"principal component {i + 1} ({100 * parts[i]:.0f} % of variance)" for i in range(2)]

    figure = Figure(figsize=(6.5, 5.5), layout="constrained")
    ax = figure.subplots()
    if labels is None:
        ax.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=4, alpha=0.6, linewidths=0)
    else:
        labels = labels.cpu()
        for i, label in enumerate(labels.unique().tolist()):
            x, y = points[labels == label].T.numpy()
            ax.scatter(x, y, s=5, alpha=0.7, linewidths=0, color=f"C{i % 10}", label=str(label))
        ax.legend(title="class", markerscale=3, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    ax.set(xlabel=axis_names[0], ylabel=axis_names[1], title=title)
    return figure


def _tiles(images: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Return the images as ``(N, H, W, C)``, with values in [0, 1]."""
    require_tensor("images", images)
    shape = tuple(image_shape)
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"image_shape: expected (H, W) or (C, H, W) with C = 1 or 3, got {tuple(image_shape)}.")
    if images.ndim < 2 or len(images) == 0 or images[0].numel() != math.prod(shape):
        raise ValueError(
            f"images: expected at least one image of {math.prod(shape)} = {' * '.join(map(str, shape))} values, "
            f"got shape {tuple(images.shape)}."
        )
    return images.detach().cpu().float().reshape(-1, *shape).permute(0, 2, 3, 1).clamp(0, 1)


def _mosaic(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """Return one picture of ``rows * columns`` tiles with a one-pixel margin, empty places white."""
    _, height, width, channels = tiles.shape
    mosaic = torch.ones(rows * (height + 1), columns * (width + 1), channels)
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        mosaic[top : top + height, left : left + width] = tile
    return mosaic


def _draw(mosaic: Tensor, columns: int, title: str) -> Figure:
    width = 0.6 * columns
    figure = Figure(figsize=(width + 0.2, width * mosaic.shape[0] / mosaic.shape[1] + 0.5))
    ax = figure.add_axes((0.02, 0.02, 0.96, 0.9))
    grey = mosaic.shape[2] == 1
    ax.imshow((mosaic[..., 0] if grey else mosaic).numpy(), cmap="gray" if grey else None, vmin=0, vmax=1)
    ax.set_axis_off()
    ax.set_title(title, fontsize=10)
    return figure
