"""What a fit is worth: importance weights and bounds on log p(x), and what it imputes."""

from .bounds import Bounds, bounds, log_likelihood
from .impute import Imputed, impute
from .log_weights import elbo, iwae, log_weights

__all__ = ["Bounds", "Imputed", "bounds", "elbo", "impute", "iwae", "log_likelihood", "log_weights"]
