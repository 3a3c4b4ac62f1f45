"""Several kinds of data from one latent variable: z ~ p(z), x_m ~ p(x_m|z) for each modality m."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from .._checks import dtype_of, require_distribution, require_positive_int, require_rows
from ..likelihoods.observation import observed_elements
from ..posteriors.product_of_experts import product_of_experts
from .latent_scale import latent_scale
from .modalities import on_events, present, read_mask, read_modalities
from .module import module

__all__ = ["MultimodalVAE"]


class MultimodalVAE(nn.Module):
    r"""A variational autoencoder of several modalities, of which a datum may lack any.

    .. code-block:: text

        model                                guide
        z   ~ p(z)                           z ~ q(z|x), proportional to p(z) times
        x_m ~ p(x_m|z), m observed                e_m(z|x_m) of each modality m observed

    An expert :math:`e_m` is a normal distribution of z from :math:`x_m`. It stands for the likelihood :math:`p(x_m|z)`
    as a function of z, and not for a posterior: the prior is a factor of its own, which counts once, so that q(z|x) of
    a datum without any modality is p(z). In a linear-Gaussian model q is the exact posterior for every subset of the
    modalities at once.

    ``x`` is a dictionary of tensors ``(B, *E_m)``. What a datum lacks is left out of the likelihood and of the product.
    It is said by any of these:

    - ``mask``, a dictionary of boolean tensors ``(B,)``, True for the data that have the modality;
    - NaN in all elements of the modality, with ``missing=True``;
    - None in place of the tensor, or no entry of ``x``, where all data lack it: then it has no site.

    One captured graph serves all batches whose tensors have the same names and shapes, whatever is missing in them.

    The ELBO of data that have all modalities trains the experts together, and none to do alone. Train on random subsets
    of what is observed (``random_subsets``), as the paper does, if modalities will be missing later.

    Sites: ``"z"``, and ``"x_NAME"`` for each modality, in the plate ``"data"`` at ``dim=-1``.

    Args:
        prior: ``(*given)`` to p(z), a normal distribution.
        likelihoods: for each modality, by name: ``z`` ``(*, D)``, ``*given`` to p(x_m|z), as in ``VAE``.
        experts: for each modality: ``x_m`` ``(B, *E_m)``, ``*given`` to a normal distribution of event shape ``(D,)``:
            ``DiagonalNormalPosterior``, ``MultivariateNormalPosterior`` or ``LowRankNormalPosterior``. Where it is
            missing, ``x_m`` is 0, and the result is not used.
        missing: whether NaN means missing.
        name: as in ``VAE``.

    Raises:
        TypeError: a prior that is not callable, a likelihood or expert that is not a ``torch.nn.Module``; ``x`` is not
            a dictionary of float tensors.
        ValueError: likelihoods and experts are not of the same modalities; an unknown modality; tensors of different
            numbers of rows; a mask that is not boolean of shape ``(B,)``; a prior or an expert that is not normal.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.MultimodalVAE(
        ...     pv.StandardNormalPrior(2),
        ...     {
        ...         "image": pv.BernoulliLikelihood(pv.MLP(2, 784, hidden_dims=(8,))),
        ...         "label": pv.CategoricalLikelihood(pv.MLP(2, 10, hidden_dims=(8,)), num_classes=10),
        ...     },
        ...     {
        ...         "image": pv.DiagonalNormalPosterior(pv.MLP(784, 2 * 2, hidden_dims=(8,))),
        ...         "label": pv.DiagonalNormalPosterior(pv.MLP(1, 2 * 2, hidden_dims=(8,))),
        ...     },
        ... )
        >>> x = {"image": torch.zeros(3, 784), "label": torch.tensor([[7.0], [7.0], [1.0]])}
        >>> mask = {"label": torch.tensor([True, False, True])}
        >>> vae.reconstruct(x, mask=mask)["label"].shape, vae.reconstruct({"label": x["label"]})["image"].shape
        (torch.Size([3, 1]), torch.Size([3, 784]))
        >>> pv.log_weights(vae.model, vae.guide, x, mask=mask, num_particles=5).shape
        torch.Size([5, 3])

    Source:
        Wu and Goodman (2018), Multimodal Generative Models for Scalable Weakly-Supervised Learning, equations 2 and 3
        and section 2.2.
    """

    def __init__(
        self,
        prior: Any,
        likelihoods: Mapping[str, nn.Module],
        experts: Mapping[str, nn.Module],
        *,
        missing: bool = False,
        name: str = "multimodal_vae",
    ) -> None:
        super().__init__()
        if not callable(prior) or isinstance(prior, type):
            raise TypeError(f"prior: expected a module whose forward returns a distribution, got {prior!r}.")
        if not likelihoods or set(likelihoods) != set(experts):
            raise ValueError(
                "experts: expected one for each of the likelihoods, by the same names, got likelihoods of "
                f"{sorted(likelihoods)} and experts of {sorted(experts)}."
            )
        self.prior = prior
        self.likelihoods = _modules("likelihoods", likelihoods)
        self.experts = _modules("experts", {modality: experts[modality] for modality in likelihoods})
        self.missing = bool(missing)
        self.name = name

    def model(
        self,
        x: Mapping[str, Tensor | None] | None = None,
        *given: Any,
        mask: Mapping[str, Tensor] | None = None,
        size: int | None = None,
        beta: float | Tensor = 1.0,
    ) -> dict[str, Tensor]:
        """Draw z ~ p(z), then draw or observe x_m ~ p(x_m|z) for each modality m.

        Args:
            x: modalities ``(B, *E_m)`` by name; what is not there has no site. None: all are drawn.
            *given: as in ``VAE.model``.
            mask: True for the data that have a modality, ``(B,)`` each, by name. A name that is left out: all data.
            size: as in ``VAE.model``.
            beta: as in ``VAE.model``.

        Returns:
            The modalities, given or drawn.
        """
        module(self.name, self)
        values, observed = self.read(x, mask)
        with self.data_plate(values, *given, size=size):
            with latent_scale(beta):
                z = pyro.sample("z", self.prior(*given))
            return {
                m: pyro.sample(f"x_{m}", self.decode(m, z, *given, observed=observed[m]), obs=value)
                for m, value in values.items()
            }

    def guide(
        self,
        x: Mapping[str, Tensor | None],
        *given: Any,
        mask: Mapping[str, Tensor] | None = None,
        size: int | None = None,
        beta: float | Tensor = 1.0,
    ) -> Tensor:
        """Draw z ~ q(z|x), the product of the prior and the experts, and return it. Arguments as in ``model``."""
        module(self.name, self)
        values, observed = self.read(x, mask)
        with self.data_plate(values, *given, size=size), latent_scale(beta):
            return pyro.sample("z", self._product(values, observed, given))

    def encode(self, x: Mapping[str, Tensor | None], *given: Any, mask: Mapping[str, Tensor] | None = None) -> Any:
        """Return q(z|x), of batch shape ``(B,)``, from what is observed of ``x``. Arguments as in ``model``."""
        return self._product(*self.read(x, mask), given)

    def decode(self, modality: str, z: Tensor, *given: Any, observed: Tensor | None = None) -> Any:
        """Return p(x_m|z) of one modality, of batch shape ``*`` for ``z`` ``(*, D)``.

        With ``observed``, True for the data that have it, ``(B,)``, its log-density is 0 for the others.
        """
        if modality not in self.likelihoods:
            raise ValueError(f"modality: expected one of {list(self.likelihoods)}, got {modality!r}.")
        p = self.likelihoods[modality](z, *given)
        require_distribution(f"likelihoods[{modality!r}]", p)
        return p if observed is None else observed_elements(p, on_events(observed, p.event_shape))

    @torch.no_grad()
    def reconstruct(
        self,
        x: Mapping[str, Tensor | None],
        *given: Any,
        mask: Mapping[str, Tensor] | None = None,
        num_particles: int | None = None,
    ) -> dict[str, Tensor]:
        """Return the expected value of every modality, ``(B, *E_m)``, also of those that are missing.

        Args:
            x: as in ``model``.
            *given: as in ``model``.
            mask: as in ``model``.
            num_particles: average E[x_m|z] over this many draws z ~ q(z|x); None: at the mean of q(z|x).
        """
        q = self.encode(x, *given, mask=mask)
        if num_particles is None:
            return {m: self.decode(m, q.mean, *given).mean for m in self.likelihoods}
        z = q.sample((require_positive_int("num_particles", num_particles),))
        return {m: self.decode(m, z, *given).mean.mean(0) for m in self.likelihoods}

    @torch.no_grad()
    def sample(self, n: int = 1, *given: Any, mean: bool = False) -> dict[str, Tensor]:
        """Draw ``n`` data with all modalities, ``(n, *E_m)`` each; with ``mean`` E[x_m|z] of each drawn z."""
        _require_given(given, require_positive_int("n", n), "as n")
        z = self.prior(*given).expand((n,)).sample()
        found = {m: self.decode(m, z, *given) for m in self.likelihoods}
        return {m: p.mean if mean else p.sample() for m, p in found.items()}

    def random_subsets(
        self, x: Mapping[str, Tensor | None], mask: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Draw for each datum a random subset of the modalities that it has, as a mask to train with.

        Of n modalities, the size of the subset is 1 to n with equal probability, and all subsets of a size are equally
        probable: of two modalities both with probability 1/2, and each alone with 1/4. ::

            pyro_vae.fit(svi, data, transform=lambda x: (x, vae.random_subsets(x)), keywords=("mask",), ...)

        Args:
            x: as in ``model``.
            mask: as in ``model``.

        Returns:
            A mask for each modality of ``x``, ``(B,)``; nothing is True that was missing.
        """
        values, observed = self.read(x, mask)
        first = next(iter(values.values()))
        every = torch.ones(len(first), dtype=torch.bool, device=first.device)
        has = torch.stack([every if rows is None else rows for rows in observed.values()], 1)  # (B, M)
        noise = torch.rand(has.shape, device=has.device)
        rank = noise.masked_fill(~has, 2.0).argsort(1).argsort(1)  # those that are missing come last
        size = 1 + (torch.rand(len(has), 1, device=has.device) * has.sum(1, keepdim=True)).floor()
        return dict(zip(values, (has & (rank < size)).unbind(1), strict=True))

    def initialize_output_bias(
        self, x: Mapping[str, Tensor | None], *given: Any, mask: Mapping[str, Tensor] | None = None
    ) -> None:
        """Start each likelihood at the mean of the data that have its modality; refuse a modality that no datum has.

        Arguments as in ``model``; ``x`` is the whole training set, or as much of it as fits into memory.
        """
        values, observed = self.read(x, mask)
        for m, likelihood in self.likelihoods.items():
            rows = observed.get(m)
            if m not in values or (rows is not None and not rows.any()):
                raise ValueError(
                    f"x[{m!r}]: expected at least one datum that has this modality, got none: neither its likelihood "
                    "nor its expert would be trained. Add such data, or build the model without it."
                )
            chosen = slice(None) if rows is None else rows
            initialize: Any = likelihood.initialize_output_bias
            initialize(values[m][chosen], *(value[chosen] if getattr(value, "ndim", 0) else value for value in given))

    def read(
        self, x: Mapping[str, Tensor | None] | None, mask: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor | None]]:
        """Return the modalities of ``x``, None for each that is to be drawn, and which data have them."""
        if x is not None:
            values = read_modalities(x, dict(self.likelihoods.items()), dtype_of(self))
            return values, read_mask(values, mask, self.missing)
        if mask is not None:
            raise ValueError("mask: expected data x to go with it, got none. Leave mask out to draw data.")
        return dict.fromkeys(self.likelihoods), dict.fromkeys(self.likelihoods)

    def data_plate(self, values: Mapping[str, Any], *given: Any, size: int | None = None) -> Any:
        """Return the plate ``"data"`` at ``dim=-1`` over the rows of a batch, of ``size`` data."""
        size = None if size is None else require_positive_int("size", size)
        first = next(iter(values.values()))
        tensors = (value for value in given if getattr(value, "ndim", 0))
        rows = len(first) if first is not None else size or next(map(len, tensors), 1)
        _require_given(given, rows, "as in x" if first is not None else "as in size, or in the first tensor given")
        if size is not None and size < rows:
            raise ValueError(f"size: expected the number of all data, at least the {rows} of the batch, got {size}.")
        return pyro.plate("data", size or rows, subsample=first, dim=-1)

    def _product(self, values: Mapping[str, Tensor], observed: Mapping[str, Tensor | None], given: Any) -> Any:
        experts = {m: self.experts[m](present(value, observed[m]), *given) for m, value in values.items()}
        return product_of_experts(self.prior(*given), experts, observed)


def _require_given(given: tuple[Any, ...], rows: int, source: str) -> None:
    for i, value in enumerate(given):
        if getattr(value, "ndim", 0):
            require_rows(f"given[{i}]", value, rows, source)


def _modules(argument: str, parts: Mapping[str, Any]) -> nn.ModuleDict:
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            raise TypeError(f"{argument}[{name!r}]: expected a torch.nn.Module, got {part!r}.")
        if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"{argument}: expected names that torch.nn.ModuleDict takes, got {name!r}. Rename it.")
    return nn.ModuleDict(parts)
