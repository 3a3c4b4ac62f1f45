"""A class and a latent variable, the class known for some data: y ~ p(y), z ~ p(z), x ~ p(x|z, y)."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor

from .._checks import dtype_of, require_positive_int, require_probs, require_rows
from ..posteriors.network_input import network_input
from .classes import Labels, class_prior, full_like, one_hot, read_labels, require_values, sample_unless_known
from .latent_scale import latent_scale
from .module import module
from .vae import VAE, naming_what_is_not_finite

__all__ = ["SemiSupervisedVAE"]


class SemiSupervisedVAE(VAE):
    r"""A variational autoencoder with a class ``y`` that is known for some, all or none of the data.

    .. code-block:: text

        model                      guide
        y ~ p(y)                   y ~ q(y|x), where it is not known
        z ~ p(z)                   z ~ q(z|x,y)
        x ~ p(x|z,y)

    Train it with ``TraceEnum_ELBO(max_plate_nesting=1)``, which sums over all classes that ``y`` may be. With
    :math:`L(x, y) = \mathbb{E}_{q(z|x,y)}[\log p(x|z,y) + \log p(y) + \log p(z) - \log q(z|x,y)]` a labelled datum
    adds :math:`L(x, y) + \alpha \log q(y|x)` to the bound, and one without label
    :math:`\sum_y q(y|x) (L(x, y) - \log q(y|x))`.

    The three parts of a VAE get ``y`` as a one-hot vector ``(*, C)``, before what is given: wrap likelihood and
    posterior in ``Conditional``. A prior that uses ``y`` makes it p(z|y), a Gaussian mixture VAE where no label is
    known (Dilokthanakul et al. 2016). ``*`` is ``(C, 1)`` or ``(C, B)`` where y is summed out, for data ``(B, *E)``.

    Sites: ``"y"``, ``"z"`` and ``"x"`` in the plate ``"data"`` at ``dim=-1``. With labels, ``"y"`` is made of
    ``"y_observed"`` and ``"y_unobserved"``, as ``obs_mask`` of ``pyro.sample`` does. A labelled datum is decoded C
    times too: it gets that many draws of z, and their average counts.

    Args:
        prior: ``(y, *given)`` to p(z), as in ``VAE``.
        likelihood: ``z`` ``(*, D)``, ``y`` ``(*, C)``, ``*given`` to p(x|z,y).
        posterior: ``x`` ``(B, *E)``, ``y`` ``(*, C)``, ``*given`` to q(z|x,y) of batch shape ``*``.
        classifier: a network that maps ``x`` ``(B, *E)`` to the logits ``(B, C)`` of q(y|x).
        num_classes: C.
        class_probs: p(y), C probabilities; None: equal ones. They are not trained.
        missing: whether NaN in ``x`` means missing, as in ``VAE``; the classifier then gets the mask too.
        name: as in ``VAE``.

    Raises:
        TypeError: a part that is not callable; labels that are not integers.
        ValueError: ``class_probs`` are not C probabilities; more than 10,000 classes; labels that are neither a class
            nor -1, or of another shape than ``(B,)``; a classifier of another width. In a captured step such a label
            makes the loss NaN, and the step is not taken.

    Example:
        >>> import pyro_vae as pv
        >>> from pyro.infer import SVI, TraceEnum_ELBO
        >>> vae = pv.SemiSupervisedVAE(
        ...     pv.StandardNormalPrior(2),
        ...     pv.Conditional(pv.BernoulliLikelihood(pv.MLP(2 + 3, 6, hidden_dims=(8,)))),
        ...     pv.Conditional(pv.DiagonalNormalPosterior(pv.MLP(6 + 3, 2 * 2, hidden_dims=(8,)))),
        ...     pv.MLP(6, 3, hidden_dims=(8,)),
        ...     num_classes=3,
        ... )
        >>> svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))
        >>> loss = svi.step(torch.ones(4, 6), torch.tensor([0, -1, 2, -1]), alpha=10.0)  # two labels are known
        >>> vae.classify(torch.ones(4, 6)).shape, vae.sample(5, torch.arange(5) % 3).shape
        (torch.Size([4, 3]), torch.Size([5, 6]))

    Source:
        Kingma, Rezende, Mohamed and Welling (2014), Semi-supervised Learning with Deep Generative Models, model M2,
        equations 6 to 9. Their alpha is 0.1 N / N_labelled for each labelled datum.
    """

    class_logits: Tensor

    def __init__(
        self,
        prior: Callable[..., Any],
        likelihood: Callable[..., Any],
        posterior: Callable[..., Any],
        classifier: Callable[..., Any],
        *,
        num_classes: int,
        class_probs: Tensor | Sequence[float] | None = None,
        missing: bool = False,
        name: str = "semi_supervised_vae",
    ) -> None:
        super().__init__(prior, likelihood, posterior, missing=missing, name=name)
        if not callable(classifier) or isinstance(classifier, type):
            raise TypeError(f"classifier: expected a network that maps x to logits (B, C), got {classifier!r}.")
        self.classifier: Any = classifier
        self.num_classes = require_values("num_classes", num_classes)
        probs = require_probs("class_probs", class_probs, self.num_classes)
        self.class_probs: list[float] = probs.tolist()  # as they were given, by which a resumed run is compared
        self.register_buffer("class_logits", probs.log().to(torch.get_default_dtype()))

    def model(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        *given: Any,
        mask: Tensor | None = None,
        size: int | None = None,
        beta: float | Tensor = 1.0,
        alpha: float | Tensor = 0.0,
    ) -> Tensor:
        """Draw y ~ p(y) where it is not known and z ~ p(z), then draw or observe x ~ p(x|z, y).

        Args:
            x: data ``(B, *E)``, or None to draw them.
            y: class numbers ``(B,)``, -1 where the class is not known; None: none is known.
            *given: as in ``VAE.model``.
            mask: as in ``VAE.model``.
            size: as in ``VAE.model``.
            beta: weight of the latent terms, those of y and z; above 0.
            alpha: weight of log q(y|x) of labelled data, 0 or more; for training, since with it the ELBO is no bound:
                ``log_weights`` and ``bounds`` leave the term out. Give it to ``step``, or to ``fit`` as a schedule.

        Returns:
            ``x``, given or drawn.
        """
        module(self.name, self)
        labels = self._labels(x, y)
        if x is None and labels is not None:
            size = len(labels.y) if size is None else size
            require_rows("y", labels.y, size, "as in size")
        with self.data_plate(x, *given, size=size):
            with latent_scale(beta):
                y = self._one_hot(sample_unless_known("y", class_prior(self.class_logits, labels), labels))
                z = pyro.sample("z", self.prior(y, *given))
            if x is not None and labels is not None and (isinstance(alpha, Tensor) or alpha != 0):
                log_q = self._q(x, mask=mask).log_prob(labels.y)
                term = dist.Unit(_weight(alpha) * log_q.masked_fill(~labels.known, 0.0))
                pyro.sample("classification", term, obs=term.sample(), infer={"is_regularizer": True})
            return pyro.sample("x", self.decode(z, y, *given, mask=self.observed(x, mask)), obs=x)

    def guide(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *given: Any,
        mask: Tensor | None = None,
        size: int | None = None,
        beta: float | Tensor = 1.0,
        alpha: float | Tensor = 0.0,
    ) -> Tensor:
        """Draw y ~ q(y|x) where it is not known, then z ~ q(z|x, y), and return z. Arguments as in ``model``."""
        module(self.name, self)
        labels = self._labels(x, y)
        with self.data_plate(x, *given, size=size), latent_scale(beta):
            q = self._q(x, labels, mask)
            if labels is None:
                y = pyro.sample("y", q, infer={"enumerate": "parallel"})
            else:
                with poutine.mask(mask=~labels.known):
                    y = pyro.sample("y_unobserved", q, infer={"enumerate": "parallel"})
                y = torch.where(labels.known, labels.y, y)
            return pyro.sample("z", self.encode(x, self._one_hot(y), *given, mask=mask))

    @torch.no_grad()
    def classify(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Return the probabilities q(y|x) of the classes, ``(B, C)``, for data ``(B, *E)``."""
        return self._q(x, mask=mask).probs

    @torch.no_grad()
    def reconstruct(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *given: Any,
        mask: Tensor | None = None,
        num_particles: int | None = None,
    ) -> Tensor:
        """Return the reconstruction of ``x``, ``(B, *E)``, averaged over q(y|x) where ``y`` is not known.

        Arguments as in ``model`` and ``VAE.reconstruct``.
        """
        labels = self._labels(x, y)
        every = torch.eye(self.num_classes, dtype=dtype_of(self), device=x.device)[:, None]
        means = self._reconstruct(x, every, *given, mask=mask, num_particles=num_particles)  # (C, B, *E)
        probs = self.classify(x, mask=mask)
        if labels is not None:
            probs = self._one_hot(labels.y).where(labels.known[:, None], probs)
        return (probs.T.reshape(*probs.T.shape, *(1,) * (means.ndim - 2)) * means).sum(0)

    @torch.no_grad()
    def sample(self, n: int = 1, y: Tensor | int | None = None, *given: Any, mean: bool = False) -> Tensor:
        """Draw ``n`` data from the generative model, ``(n, *E)``.

        Args:
            n: how many.
            y: class numbers ``(n,)``, -1 to draw the class; a number for all; None: all classes are drawn from p(y).
            *given: as in ``VAE.sample``.
            mean: as in ``VAE.sample``.
        """
        n = require_positive_int("n", n)
        drawn = class_prior(self.class_logits).sample((n,))
        if y is not None:
            labels = read_labels("y", full_like(drawn, y), self.num_classes)
            require_rows("y", labels.y, n, "as n")
            drawn = labels.y.where(labels.known, drawn)
        return super().sample(n, self._one_hot(drawn), *given, mean=mean)

    def _q(self, x: Tensor, labels: Labels | None = None, mask: Tensor | None = None) -> dist.Categorical:
        """Return q(y|x); where ``y`` is known, equal probabilities, with which C draws of z are averaged."""
        observed = self.observed(x, mask)
        logits = self.classifier(network_input(self.classifier, x, observed))
        if logits.shape != (len(x), self.num_classes):
            raise ValueError(
                f"classifier: expected logits of shape {(len(x), self.num_classes)}, one for each class, got "
                f"{tuple(logits.shape)}. Give the network num_classes outputs."
            )
        with naming_what_is_not_finite(x, observed):
            return dist.Categorical(logits=logits if labels is None else logits.masked_fill(labels.known[:, None], 0.0))

    def _labels(self, x: Tensor | None, y: Tensor | None) -> Labels | None:
        labels = None if y is None else read_labels("y", y, self.num_classes)
        if labels is not None and isinstance(x, Tensor) and x.ndim:
            require_rows("y", labels.y, len(x))
        return labels

    def _one_hot(self, y: Tensor) -> Tensor:
        return one_hot(y, self.num_classes, dtype_of(self))


def _weight(alpha: float | Tensor) -> float | Tensor:
    """Return the weight of the classification term; NaN for a tensor below 0."""
    if isinstance(alpha, Tensor):
        if alpha.ndim:
            raise ValueError(f"alpha: expected a number or a 0-dim tensor, got shape {tuple(alpha.shape)}.")
        return torch.where(alpha >= 0, alpha, math.nan)
    if not isinstance(alpha, numbers.Real) or not 0 <= alpha < math.inf:
        raise ValueError(f"alpha: expected a finite number of 0 or more, got {alpha!r}.")
    return float(alpha)
