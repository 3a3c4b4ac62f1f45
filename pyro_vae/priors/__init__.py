"""Priors p(z): modules whose ``forward(*given)`` returns a distribution over one datum's latent variable."""

from .fit_prior import fit_prior
from .flow import FlowPrior
from .gated_transition import GatedTransition
from .mixture import MixturePrior
from .standard_normal import StandardNormalPrior
from .vamp import VampPrior

__all__ = ["FlowPrior", "GatedTransition", "MixturePrior", "StandardNormalPrior", "VampPrior", "fit_prior"]
