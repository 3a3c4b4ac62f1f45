"""The small VAE of the tests."""

from __future__ import annotations

from collections.abc import Sequence

import pyro_vae as pv


def small_vae(
    latent_dim: int = 2, name: str = "vae", *, elements: int = 6, hidden_dims: Sequence[int] = (8,)
) -> pv.VAE:
    """Return a VAE over a few binary elements, with hidden layers; its parameters come from torch's generator."""
    return pv.VAE(
        pv.StandardNormalPrior(latent_dim),
        pv.BernoulliLikelihood(pv.MLP(latent_dim, elements, hidden_dims=hidden_dims)),
        pv.DiagonalNormalPosterior(pv.MLP(elements, 2 * latent_dim, hidden_dims=hidden_dims)),
        name=name,
    )
