"""Generative models, one per file, each with its ``model`` and its ``guide``."""

from __future__ import annotations

from .autoencoder import Autoencoder
from .conditional_vae import ConditionalVAE
from .deep_markov import DeepMarkovModel
from .hierarchical import HierarchicalVAE
from .latent_scale import latent_scale
from .module import module
from .ppca import ProbabilisticPCA
from .vae import VAE

__all__ = [
    "VAE",
    "Autoencoder",
    "ConditionalVAE",
    "DeepMarkovModel",
    "HierarchicalVAE",
    "ProbabilisticPCA",
    "latent_scale",
    "module",
]
