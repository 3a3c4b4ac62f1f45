"""What every contestant is given: the same architecture, initial weights and batches, from numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

LEARNING_RATE = 1e-3
PIXELS = 784


Run = Callable[[int, int], float]  # (first step, number of steps) -> mean loss of those steps, nats per datum


class Unavailable(RuntimeError):
    """A contestant cannot take part on this machine; the message says why, and the others go on without it."""


@dataclass(frozen=True)
class Problem:
    """One cell of the table: a Bernoulli VAE with SiLU networks, trained by Adam on binary images held in memory.

    The encoder is 784 - hidden - 2 x latent (location and log-scale), the decoder latent - hidden reversed - 784
    (logits).
    """

    hidden_dims: tuple[int, ...]
    latent_dim: int
    batch_size: int
    device: str = "cpu"

    @property
    def encoder_dims(self) -> tuple[int, ...]:
        return (PIXELS, *self.hidden_dims, 2 * self.latent_dim)

    @property
    def decoder_dims(self) -> tuple[int, ...]:
        return (self.latent_dim, *reversed(self.hidden_dims), PIXELS)


@dataclass(frozen=True)
class EpochProblem:
    """Whole epochs on MNIST in torchvision's layout under ``data_dir``: its first ``subset`` training images."""

    data_dir: Path
    subset: int
    hidden_dim: int = 400
    latent_dim: int = 50
    batch_size: int = 256


Layers = list[tuple[np.ndarray, np.ndarray]]  # (weight (out, in), bias (out,)) of each linear map, first to last


def initial_weights(problem: Problem, seed: int = 0) -> tuple[Layers, Layers]:
    """Weights of encoder and decoder, uniform in +-1/sqrt(fan in) as ``torch.nn.Linear`` draws them."""
    rng = np.random.default_rng(seed)

    def layers(dims: tuple[int, ...]) -> Layers:
        drawn = []
        for fan_in, fan_out in pairwise(dims):
            bound = fan_in**-0.5
            drawn.append(
                (
                    rng.uniform(-bound, bound, (fan_out, fan_in)).astype(np.float32),
                    rng.uniform(-bound, bound, fan_out).astype(np.float32),
                )
            )
        return drawn

    return layers(problem.encoder_dims), layers(problem.decoder_dims)


@lru_cache(maxsize=1)
def batches(problem: Problem, seed: int = 1) -> np.ndarray:
    """Binary images of low-rank structure, ``(n, batch_size, 784)`` float32; step ``i`` takes batch ``i % n``.

    About 8,000 images in all, so that no contestant finds its batch still in the first-level caches. Shared by all who
    ask in one process, so not to be written to.
    """
    rng = np.random.default_rng(seed)
    count = max(2, 8192 // problem.batch_size)
    factors = rng.standard_normal((count * problem.batch_size, 10)).astype(np.float32)
    logits = factors @ rng.standard_normal((10, PIXELS)).astype(np.float32) - 3.0
    images = rng.random(logits.shape, dtype=np.float32) < 1.0 / (1.0 + np.exp(-logits))
    return images.astype(np.float32).reshape(count, problem.batch_size, PIXELS)
