"""Columns of different kinds: each has the density of its own distribution."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import pyro_vae as pv
from pyro_vae.likelihoods.by_column import ByColumn
from tests.helpers import check_gradients, check_state_dict, fit_pvalue, total_mass

D = 2
COLUMNS = ("count", "real", 3, "binary", "positive", "real", 4, "count")
NAN = math.nan
SCALES = pytest.mark.parametrize("scale", ["predicted", "per-dimension"])


def make(columns: Any = COLUMNS, scale: str = "predicted") -> pv.MixedLikelihood:
    network = pv.MLP(D, pv.MixedLikelihood.num_outputs(columns, scale), hidden_dims=(5,))
    return pv.MixedLikelihood(network, columns, scale=scale)


def by_hand(likelihood: pv.MixedLikelihood, z: Tensor, x: Tensor) -> Tensor:
    """The log-density of each column of COLUMNS, from the network's outputs, one after the other."""
    out = likelihood.network(z)
    number = dict(zip([0, 1, 3, 4, 5, 7], range(6), strict=True))
    scaled = dict(zip([0, 1, 4, 5, 7], range(5), strict=True))
    if likelihood.scale.outputs:
        raw, logits = out[..., 6:11], out[..., 11:]
    else:
        raw, logits = likelihood.scale.raw.expand(*out.shape[:-1], 5), out[..., 6:]
    scale = 1e-3 + torch.nn.functional.softplus(raw)
    columns = []
    for i, kind in enumerate(COLUMNS):
        if isinstance(kind, int):
            own = logits[..., :3] if kind == 3 else logits[..., 3:]
            columns.append(dist.Categorical(logits=own).log_prob(x[..., i].nan_to_num()))
            continue
        first = out[..., number[i]]
        if kind == "binary":
            columns.append(dist.Bernoulli(logits=first).log_prob(x[..., i].nan_to_num()))
        elif kind == "count":
            r = scale[..., scaled[i]]
            columns.append(dist.NegativeBinomial(r, logits=first - r.log()).log_prob(x[..., i].nan_to_num()))
        elif kind == "real":
            columns.append(dist.Normal(first, scale[..., scaled[i]]).log_prob(x[..., i].nan_to_num()))
        else:
            columns.append(dist.LogNormal(first, scale[..., scaled[i]]).log_prob(x[..., i].nan_to_num(1.0)))
    return torch.stack(columns, -1)


@SCALES
def test_each_column_has_its_own_density(scale: str) -> None:
    torch.manual_seed(0)
    likelihood, z = make(scale=scale), torch.randn(4, 5, D)
    p = likelihood(z)
    assert (p.batch_shape, p.event_shape) == ((4, 5), (8,))
    x = p.sample()
    assert x.shape == (4, 5, 8)
    expected = by_hand(likelihood, z, x)
    torch.testing.assert_close(p.log_prob(x), expected.sum(-1))
    mask = torch.rand(4, 5, 8) < 0.5
    torch.testing.assert_close(pv.observed_elements(p, mask).log_prob(x.where(mask, NAN)), (expected * mask).sum(-1))
    assert p.sample((7,)).shape == (7, 4, 5, 8)
    torch.testing.assert_close(p.expand((6, 4, 5)).log_prob(x), p.log_prob(x).expand(6, 4, 5))
    assert p.mean.shape == p.variance.shape == (4, 5, 8)


@pytest.mark.parametrize("kind", ["real", "positive", "count", "binary", 3])
@SCALES
def test_each_column_is_normalized_and_sampled_rightly(kind: Any, scale: str) -> None:
    torch.manual_seed(0)
    z = torch.ones(D).double()
    columns = (kind, kind, "real")
    p = make(columns, scale).double()(z)
    part = next(part for numbers, part in p.base_dist.parts if 0 in numbers)
    alone = part.__class__ if False else dist.Independent(_first(part), 1)
    assert total_mass(alone) == pytest.approx(1.0, abs=1e-6)
    x = p.sample((20_000,))
    assert fit_pvalue(alone) > 1e-3
    torch.testing.assert_close(p.base_dist.log_prob(x)[:, :1].sum(-1), alone.log_prob(x[:, :1]))
    standard_error = (p.variance / len(x)).sqrt()
    assert ((x.mean(0) - p.mean).abs() < 4.5 * standard_error).all()
    squares = (x - p.mean).square()
    assert ((squares.mean(0) - p.variance).abs() < 4.5 * squares.std(0) / len(x) ** 0.5).all()
    assert x.T.corrcoef().triu(1).abs().max() < 4.5 / len(x) ** 0.5


def _first(part: Any) -> Any:
    """The distribution of the first column of a part, of batch shape (1,)."""
    arguments = {name: getattr(part, name) for name in part.arg_constraints if name in vars(part)}
    if isinstance(part, dist.Categorical):
        return type(part)(logits=part.logits[:1])
    if isinstance(part, dist.LogNormal):
        return dist.LogNormal(part.loc[:1], part.scale[:1])
    if isinstance(part, dist.NegativeBinomial):
        return dist.NegativeBinomial(part.total_count[:1], logits=part.logits[:1])
    return type(part)(**{name: value[:1] for name, value in arguments.items() if name != "probs"})


@SCALES
def test_parameters_gradients_and_dtypes(scale: str, tmp_path: Any) -> None:
    likelihood, z = make(scale=scale), torch.randn(5, D)
    p = likelihood(z)
    x = p.sample()
    check_gradients(likelihood, p.log_prob(x))
    check_state_dict(lambda: make(scale=scale), lambda part: part(z).log_prob(x), tmp_path / "part.pt")
    double = make(scale=scale).double()(z.double())
    assert double.sample().dtype == double.mean.dtype == double.log_prob(double.sample()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        p = likelihood(z)
        assert p.log_prob(p.sample()).dtype == torch.float32


@SCALES
@pytest.mark.parametrize("columns", [COLUMNS, ("binary", 3), ("real",), (2, 2, 5)])
def test_training_starts_at_the_columns_of_the_data(columns: Any, scale: str) -> None:
    torch.manual_seed(0)
    first = make(columns, scale)
    with torch.no_grad():
        first.network.output.bias.normal_()
    x = first(torch.zeros(2000, D)).sample()
    mask = torch.rand(x.shape) < 0.7
    again = make(columns, scale)
    torch.nn.init.zeros_(again.network.output.weight)
    again.initialize_output_bias(x.where(mask, NAN), mask=mask)
    mean = again(torch.zeros(D)).mean
    for i, kind in enumerate(columns):
        values = x[:, i][mask[:, i]]
        if kind == "positive":  # the mean of log x
            part = next(part for numbers, part in again(torch.zeros(D)).base_dist.parts if i in numbers)
            assert part.loc.item() == pytest.approx(values.log().mean().item(), abs=1e-3)
            assert part.scale.item() == pytest.approx(values.log().std().item(), rel=1e-2)
        else:
            assert mean[i].item() == pytest.approx(values.mean().item(), abs=2e-3)
    with pytest.raises(ValueError, match=r"x: expected finite values, got NaN"):
        again.initialize_output_bias(x.where(mask, NAN))
    with pytest.raises(ValueError, match=rf"x: expected {len(columns)} columns, got shape"):
        again.initialize_output_bias(torch.ones(5, len(columns) + 1))


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        (0, 0.5, r"x: expected counts 0, 1, 2, ... in column 0 \('count'\) for MixedLikelihood, got 0.5. Round it"),
        (0, -1.0, r"column 0 \('count'\) for MixedLikelihood, got -1"),
        (1, math.inf, r"x: expected finite values in column 1 \('real'\) for MixedLikelihood, got inf"),
        (2, 3.0, r"x: expected classes 0 to 2 in column 2 \(3\) for MixedLikelihood, got 3. Number the classes"),
        (3, 0.2, r"x: expected 0 or 1 in column 3 \('binary'\) for MixedLikelihood, got 0.2"),
        (4, 0.0, r"x: expected values above 0 in column 4 \('positive'\) for MixedLikelihood, got 0"),
        (6, 1.5, r"x: expected classes 0 to 3 in column 6 \(4\) for MixedLikelihood, got 1.5"),
        (5, NAN, r"x: expected finite values in column 5 \('real'\) for MixedLikelihood, got nan.*missing=True"),
    ],
)
def test_a_value_of_another_kind_is_named_by_its_column(column: int, value: float, match: str) -> None:
    likelihood = make()
    x = likelihood(torch.zeros(4, D)).sample()
    x[2, column] = value
    with pytest.raises(ValueError, match=match):
        likelihood(torch.zeros(4, D)).log_prob(x)
    with pyro.validation_enabled(False):
        log_p = likelihood(torch.zeros(4, D)).log_prob(x)
    assert log_p[2] == -math.inf
    assert log_p[[0, 1, 3]].isfinite().all()
    if math.isfinite(value):
        with pytest.raises(ValueError, match=match):
            likelihood.initialize_output_bias(x)


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ((), r"columns: expected a sequence"),
        ("real", r"columns: expected a sequence"),
        (3, r"columns: expected a sequence"),
        (("real", "normal"), r"columns\[1\]: expected \"real\".*got 'normal'"),
        (("real", 1), r"columns\[1\]: .* of at least 2, got 1"),
        (("real", 2.0), r"columns\[1\]: .* got 2.0"),
        ((True,), r"columns\[0\]: .* got True"),
        ((None,), r"columns\[0\]: .* got None"),
    ],
)
def test_columns_of_unknown_kind_are_refused(columns: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        pv.MixedLikelihood.num_outputs(columns)
    with pytest.raises(ValueError, match=match):
        pv.MixedLikelihood(torch.nn.Linear(D, 4), columns)


def test_wrong_networks_and_words_are_refused() -> None:
    with pytest.raises(ValueError, match=r"network: expected output of shape \(\*, 3\).*num_outputs\("):
        pv.MixedLikelihood(torch.nn.Linear(D, 4), ("real", "binary"))(torch.zeros(5, D))
    with pytest.raises(ValueError, match=r'scale: expected "predicted" or "per-dimension", got 1.0'):
        pv.MixedLikelihood(torch.nn.Linear(D, 4), ("real",), scale=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x: expected event shape \(8,\)"):
        make()(torch.zeros(5, D)).log_prob(torch.ones(5, 1))


def test_a_numpy_number_of_classes_is_one() -> None:
    import numpy as np

    likelihood = make((np.int64(3), "real"))
    assert likelihood.columns == (3, "real")


@SCALES
def test_a_vae_of_missing_elements_trains_in_pyro_and_captured_and_imputes(scale: str) -> None:
    torch.manual_seed(0)
    x = make(scale=scale)(torch.randn(20, D)).sample()
    x = x.where(torch.rand(x.shape) < 0.7, NAN)
    losses = []
    for kind, options in ((SVI, {}), (pv.CompiledSVI, {"compile": "graph", "check_steps": 1, "on_refusal": "raise"})):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        posterior = pv.DiagonalNormalPosterior(pv.MLP(2 * 8, 2 * D, (4,)))
        vae = pv.VAE(pv.StandardNormalPrior(D), make(scale=scale), posterior, missing=True)
        before = copy.deepcopy(vae.state_dict())
        svi = kind(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), **options)
        losses.append([svi.step(x, size=100) for _ in range(5)])
        assert all(not torch.equal(value, before[key]) for key, value in vae.state_dict().items())
    assert losses[0] == losses[1]
    mean, draws, _ = pv.impute(vae.model, vae.guide, x, num_particles=50, num_samples=4)
    assert vae.likelihood(torch.zeros(20, D)).log_prob(draws).isfinite().all()  # of the columns' kinds
    assert mean.isfinite().all()


def test_rows_are_put_together_in_the_order_of_the_columns() -> None:
    p = ByColumn([([2, 0], dist.Normal(torch.tensor([20.0, 0.0]), 1.0)), ([1], dist.Normal(torch.tensor([10.0]), 1.0))])
    assert p.mean.tolist() == [0.0, 10.0, 20.0]
    assert p.batch_shape == (3,)


@SCALES
def test_a_column_without_a_value_starts_at_zero(scale: str) -> None:
    torch.manual_seed(0)
    x = make(scale=scale)(torch.randn(50, D)).sample()
    for i in range(len(COLUMNS)):
        likelihood, mask = make(scale=scale), torch.ones_like(x, dtype=torch.bool)
        mask[:, i] = False
        likelihood.initialize_output_bias(x.where(mask, NAN), mask=mask)
        assert all(p.isfinite().all() for p in likelihood.parameters())
        p = pv.observed_elements(likelihood(torch.zeros(50, D)), mask)
        assert p.log_prob(x.where(mask, NAN)).isfinite().all()
