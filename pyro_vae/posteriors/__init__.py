"""Amortised posteriors q(z|x): modules whose ``forward(x, *given)`` returns a distribution over the latent variable."""

from . import kl as kl  # registers the closed forms of the Kullback-Leibler divergence
from .delta import DeltaPosterior
from .diagonal_normal import DiagonalNormalPosterior
from .flow import FlowPosterior
from .low_rank_normal import LowRankNormalPosterior
from .multivariate_normal import MultivariateNormalPosterior

__all__ = [
    "DeltaPosterior",
    "DiagonalNormalPosterior",
    "FlowPosterior",
    "LowRankNormalPosterior",
    "MultivariateNormalPosterior",
]
