"""Likelihoods p(x|z): modules whose ``forward(z)`` returns a distribution over one datum.

Every density is normalised, and zero outside its support: there ``log_prob`` is minus infinity, and with Pyro's
validation on (the default) a ``ValueError`` names the value and the fix.
"""

from .bernoulli import BernoulliLikelihood
from .continuous_bernoulli import ContinuousBernoulliLikelihood
from .gaussian import GaussianLikelihood

__all__ = ["BernoulliLikelihood", "ContinuousBernoulliLikelihood", "GaussianLikelihood"]
