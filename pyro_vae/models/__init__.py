"""Generative models, one per file, each with its ``model`` and its ``guide``."""

from __future__ import annotations

from .discrete import DiscreteVAE
from .latent_scale import latent_scale
from .mixture import MixtureVAE
from .module import module
from .semi_supervised import SemiSupervisedVAE
from .vae import VAE

__all__ = ["VAE", "DiscreteVAE", "MixtureVAE", "SemiSupervisedVAE", "latent_scale", "module"]
