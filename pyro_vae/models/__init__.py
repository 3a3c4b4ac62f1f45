"""Generative models, one per file, each with its ``model`` and its ``guide``."""

from __future__ import annotations

from .latent_scale import latent_scale
from .module import module
from .semi_supervised import SemiSupervisedVAE
from .vae import VAE

__all__ = ["VAE", "SemiSupervisedVAE", "latent_scale", "module"]
