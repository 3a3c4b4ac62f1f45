"""What a fit is worth: importance weights and bounds on log p(x)."""

from .bounds import Bounds, bounds, log_likelihood
from .log_weights import elbo, iwae, log_weights

__all__ = ["Bounds", "bounds", "elbo", "iwae", "log_likelihood", "log_weights"]
