"""Objectives that Pyro lacks, one file each; they work in Pyro's ``SVI`` too."""

from .iwae import TraceIWAE_ELBO
from .stl import TraceSTL_ELBO

__all__ = ["TraceIWAE_ELBO", "TraceSTL_ELBO"]
