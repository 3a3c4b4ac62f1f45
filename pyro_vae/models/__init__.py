"""Generative stories, one a file: ``model`` and ``guide`` written out whole."""

from .module import module
from .vae import VAE

__all__ = ["VAE", "module"]
