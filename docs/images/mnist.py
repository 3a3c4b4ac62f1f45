"""Compose the picture of the README from two pictures of the example: reconstructions, and samples beside them.

python examples/mnist_svi.py
python docs/images/mnist.py runs/mnist_svi docs/images/mnist.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

HEIGHT = 480
MARGIN = 20


def compose(run: Path, target: Path) -> None:
    """Write ``reconstructions.png`` and ``samples.png`` of a run side by side, in 16 levels of grey."""
    pictures = []
    for name in ("reconstructions", "samples"):
        with Image.open(run / f"{name}.png") as picture:
            grey = picture.convert("L")
        pictures.append(grey.resize((round(grey.width * HEIGHT / grey.height), HEIGHT), Image.Resampling.LANCZOS))
    width = sum(picture.width for picture in pictures) + MARGIN * (len(pictures) - 1)
    canvas = Image.new("L", (width, HEIGHT), color=255)
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + MARGIN
    canvas.quantize(16).save(target, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    compose(Path(sys.argv[1]), Path(sys.argv[2]))
