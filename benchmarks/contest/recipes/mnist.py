"""What the recipes share: the images in memory and, for PyTorch, the two networks."""

from __future__ import annotations

from torch import Tensor, nn

from contest.problem import PIXELS, EpochProblem
from pyro_vae.data import load


def images(problem: EpochProblem) -> Tensor:
    """The training images, (subset, 784) uint8."""
    return load("mnist", problem.data_dir).train_images[: problem.subset]


def networks(problem: EpochProblem) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder to location and log-scale, and decoder to logits."""
    hidden, latent = problem.hidden_dim, problem.latent_dim
    encoder = nn.Sequential(nn.Linear(PIXELS, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latent))
    decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, PIXELS))
    return encoder, decoder
