"""What a fit is worth: importance weights and bounds on log p(x)."""

from .data_set import Bounds, bounds, log_likelihood
from .weights import elbo, iwae, log_weights

__all__ = ["Bounds", "bounds", "elbo", "iwae", "log_likelihood", "log_weights"]
