"""A classifier made of generative models, one for each class, by Bayes' rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import require_positive_int, require_probs
from .bounds import bounds

__all__ = ["Classified", "GenerativeClassifier"]


class Classified(NamedTuple):
    """What Bayes' rule says of N data and C classes."""

    log_joint: Tensor  # (N, C): log p(x, y), nats, from below
    log_evidence: Tensor  # (N,): log p(x), nats, from below; low where x is of none of the classes
    probs: Tensor  # (N, C): p(y|x); p(y) where x has density 0 under every class, since it then tells nothing of y

    @property
    def y(self) -> Tensor:
        """The most probable class of each datum, ``(N,)``."""
        return self.probs.argmax(-1)


class GenerativeClassifier:
    r"""A classifier by Bayes' rule: one generative model of the data of each class.

    .. math:: p(y \mid x) = \frac{p(y) \, p(x \mid y)}{\sum_{y'} p(y') \, p(x \mid y')}

    where the importance-weighted bound takes the place of :math:`\log p(x \mid y)`. It is exact as the number of
    particles grows; with few, the bounds of all classes are too low by different amounts.

    A datum that is of none of the classes has a low log p(x): compare it with ``log_evidence`` of held-out data of the
    classes, the 1 % quantile for instance. (A model may give a high density to data that are simpler than those it was
    trained on; Nalisnick et al. 2019.)

    Args:
        stories: one for each class: an object with ``model`` and ``guide`` (a ``VAE`` that was trained on the data of
            the class), or a pair of functions ``(model, guide)``. One model of all classes gives a pair for each:
            functions of x that call it with that y. (Of ``SemiSupervisedVAE`` they give p(x, y), so that
            ``class_probs`` stay equal ones.)
        class_probs: p(y), C probabilities above 0; None: equal ones.

    Raises:
        TypeError: a story that is neither.
        ValueError: fewer than two stories; ``class_probs`` that are not C probabilities.

    Example:
        >>> import pyro_vae as pv
        >>> def vae():
        ...     return pv.VAE(
        ...         pv.StandardNormalPrior(2),
        ...         pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=())),
        ...         pv.DiagonalNormalPosterior(pv.MLP(6, 4, hidden_dims=())),
        ...     )
        >>> classify = GenerativeClassifier([vae(), vae(), vae()])  # train each on the data of its class
        >>> found = classify(torch.ones(5, 6), num_particles=10)
        >>> found.y.shape, found.probs.shape, found.log_evidence.shape
        (torch.Size([5]), torch.Size([5, 3]), torch.Size([5]))

    Source:
        Ng and Jordan (2002), On Discriminative vs. Generative Classifiers; for deep generative models: Li, Bradshaw and
        Sharma (2019), Are Generative Classifiers More Robust to Adversarial Attacks?, equation 4.
    """

    def __init__(self, stories: Sequence[Any], *, class_probs: Tensor | Sequence[float] | None = None) -> None:
        self.stories = [_pair(f"stories[{i}]", story) for i, story in enumerate(stories)]
        if len(self.stories) < 2:
            raise ValueError(f"stories: expected at least two, one for each class, got {len(self.stories)}.")
        self.log_probs = require_probs("class_probs", class_probs, len(self.stories)).log()

    def __call__(self, *args: Any, num_particles: int = 100, **options: Any) -> Classified:
        """Classify data.

        Args:
            *args: data ``(N, *E)``, and what is given with them, handed to model and guide of every class.
            num_particles: draws of the latent variables per datum and class.
            **options: those of ``pyro_vae.bounds`` (``max_bytes``, ``progress``, ...), and keywords of the models.

        Returns:
            ``Classified(log_joint, log_evidence, probs)``; its ``y`` are the most probable classes.

        Raises:
            TypeError, ValueError: as ``pyro_vae.bounds``.
        """
        num_particles = require_positive_int("num_particles", num_particles)
        log_px = [bounds(*story, *args, num_particles=num_particles, **options).iwae for story in self.stories]
        log_joint = torch.stack(log_px, -1) + self.log_probs.to(log_px[0])
        log_evidence = log_joint.logsumexp(-1)
        logits = self.log_probs.to(log_joint).where((log_evidence == -math.inf)[:, None], log_joint)
        return Classified(log_joint, log_evidence, logits.softmax(-1))


def _pair(name: str, story: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return model and guide."""
    pair = story if isinstance(story, (tuple, list)) else (getattr(story, "model", None), getattr(story, "guide", None))
    if len(pair) != 2 or not all(callable(part) for part in pair):
        raise TypeError(
            f"{name}: expected an object with model and guide, or a pair (model, guide) of functions, got "
            f"{type(story).__name__}. Give a trained VAE for each class."
        )
    return pair[0], pair[1]
