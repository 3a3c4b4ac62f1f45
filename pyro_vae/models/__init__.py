"""Generative models, one per file, each with its ``model`` and its ``guide``."""

from __future__ import annotations

from .autoencoder import Autoencoder
from .conditional_vae import ConditionalVAE
from .deep_markov import DeepMarkovModel
from .discrete import DiscreteVAE
from .hierarchical import HierarchicalVAE
from .latent_scale import latent_scale
from .mixture import MixtureVAE
from .module import module
from .multimodal import MultimodalVAE
from .ppca import ProbabilisticPCA
from .semi_supervised import SemiSupervisedVAE
from .vae import VAE

__all__ = [
    "VAE",
    "Autoencoder",
    "ConditionalVAE",
    "DeepMarkovModel",
    "DiscreteVAE",
    "HierarchicalVAE",
    "MixtureVAE",
    "MultimodalVAE",
    "ProbabilisticPCA",
    "SemiSupervisedVAE",
    "latent_scale",
    "module",
]
