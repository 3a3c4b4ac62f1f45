"""What a fit is worth: importance weights and bounds on log p(x); what it imputes, classifies, and would gain."""

from .bounds import Bounds, bounds, log_likelihood
from .generative_classifier import Classified, GenerativeClassifier
from .impute import Imputed, impute
from .log_weights import elbo, iwae, log_weights
from .refine import Refined, refine

__all__ = [
    "Bounds",
    "Classified",
    "GenerativeClassifier",
    "Imputed",
    "Refined",
    "bounds",
    "elbo",
    "impute",
    "iwae",
    "log_likelihood",
    "log_weights",
    "refine",
]
