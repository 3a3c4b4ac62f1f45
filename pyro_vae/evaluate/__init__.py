"""What a fit is worth: importance weights and bounds on log p(x), what it imputes, and a classifier by Bayes' rule."""

from .bounds import Bounds, bounds, log_likelihood
from .generative_classifier import Classified, GenerativeClassifier
from .impute import Imputed, impute
from .log_weights import elbo, iwae, log_weights

__all__ = [
    "Bounds",
    "Classified",
    "GenerativeClassifier",
    "Imputed",
    "bounds",
    "elbo",
    "impute",
    "iwae",
    "log_likelihood",
    "log_weights",
]
