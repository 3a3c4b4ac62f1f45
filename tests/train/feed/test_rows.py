"""The number of data in a batch, whatever its arguments and plates; against closed forms."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from tiny import images, make
from torch import Tensor

import pyro_vae as pv
from pyro_vae.train import fit
from pyro_vae.train.feed.rows import Rows


def figures(model: Any, batches: list[Any], **options: Any) -> tuple[float, float]:
    """The ELBOs of training and validation of a model without latent variables and with a learning rate of 0."""
    pyro.clear_param_store()

    def guide(*args: Any, **kwargs: Any) -> None:
        pass

    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), Trace_ELBO())
    history = fit(svi, batches, epochs=1, validation=batches, progress=False, **options)
    return history["train_elbo"][0], history["validation_elbo"][0]


def normal(x: Tensor, plate: str = "data") -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate(plate, len(x)):
        pyro.sample(f"x_{plate}", dist.Normal(loc, 1.0), obs=x)


X = torch.linspace(-1.0, 2.0, 100)
PER_DATUM = dist.Normal(0.0, 1.0).log_prob(X).mean().item()


def two_plates(x: Tensor, y: Tensor) -> None:
    normal(x, "left")
    normal(y, "right")


def one_by_one(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"x_{i}", dist.Normal(loc, 1.0), obs=x[i])


def namespace(batch: Any) -> None:
    normal(batch.x)


CASES: dict[str, tuple[Any, list[Any]]] = {
    "one vector": (normal, [X]),
    "dictionaries": (lambda batch: normal(batch["x"]), [{"id": ["a", "b"], "x": x} for x in X.split(30)]),
    "nested tuples": (lambda pair, _: normal(pair[1]), [((torch.zeros(3), x), 1) for x in X.split(30)]),
    "numpy arrays": (lambda x: normal(torch.as_tensor(x)), [x.numpy() for x in X.split(30)]),
    "two plates": (two_plates, [(X[:10], X[10:])]),
    "a loop over a plate": (one_by_one, [X[:50], X[50:]]),
    "objects": (namespace, [SimpleNamespace(name="first", x=X[:10]), SimpleNamespace(name="second", x=X[10:])]),
    "labels first": (lambda y, x: normal(x), [(torch.zeros(2, 9), X)]),
}


@pytest.mark.parametrize("case", CASES)
def test_figures_are_per_datum(case: str) -> None:
    model, batches = CASES[case]
    assert figures(model, batches) == pytest.approx((PER_DATUM, PER_DATUM), rel=1e-5)


def test_a_plate_within_another_holds_no_data_of_its_own() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("pixels", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    assert figures(model, [X.reshape(20, 5)]) == pytest.approx((5 * PER_DATUM,) * 2, rel=1e-5)


def test_the_plate_named_data_counts_whatever_it_sits_in() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("pixels", x.shape[1], dim=-1), pyro.plate("data", len(x), dim=-2):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    assert figures(model, [X.reshape(20, 5)]) == pytest.approx((5 * PER_DATUM,) * 2, rel=1e-5)


def test_plates_of_latent_variables_alone_do_not_count() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("components", 7):
            pyro.sample("component", dist.Normal(0.0, 1.0))
        normal(x, "rows")

    def guide(x: Tensor) -> None:
        with pyro.plate("components", 7):
            pyro.sample("component", dist.Normal(0.0, 1.0))

    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), Trace_ELBO())
    history = fit(svi, [X], epochs=1, progress=False)
    assert history["train_elbo"] == pytest.approx([PER_DATUM], rel=1e-5)


def without_plate(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]).to_event(1), obs=x)


def test_without_a_plate_a_batch_is_one_datum_and_that_is_said() -> None:
    with pytest.warns(UserWarning, match=r"no plate.*nats per batch.*rows=") as warned:
        assert figures(without_plate, [X]) == pytest.approx((100 * PER_DATUM,) * 2, rel=1e-5)
    assert len(warned) == 1
    assert warned[0].filename == __file__


def test_rows_says_the_number_of_data() -> None:
    assert figures(without_plate, list(X.split(30)), rows=len) == pytest.approx((PER_DATUM,) * 2, rel=1e-5)
    assert figures(two_plates, [(X[:10], X[10:])], rows=lambda x, y: torch.tensor(50)) == pytest.approx(
        (2 * PER_DATUM,) * 2, rel=1e-5
    )


def subsampled(x: Tensor, total: int = 100) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", total, subsample=x):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def subsampled_by_the_plate(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x), subsample_size=5) as rows:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])


def subsampled_one_by_one(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    for i in pyro.plate("data", 100, subsample=range(len(x))):
        pyro.sample(f"x_{i}", dist.Normal(loc, 1.0), obs=x[i])


def subsampled_in_two_plates(x: Tensor, y: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    for name, data in (("left", x), ("right", y)):
        with pyro.plate(name, 10 * len(data), subsample=data):
            pyro.sample(f"x_{name}", dist.Normal(loc, 1.0), obs=data)


SUBSAMPLED: dict[str, tuple[Any, list[Any]]] = {
    "the batch": (subsampled, list(X.split(30))),
    "drawn by the plate": (subsampled_by_the_plate, [torch.ones(20)]),
    "a loop over a plate": (subsampled_one_by_one, list(X.split(30))),
    "two plates": (subsampled_in_two_plates, [(X[:10], X[10:40]), (X[40:70], X[70:])]),
    "the whole set grows": (subsampled, [(X[:30], 60), (X[30:], 700)]),
}


@pytest.mark.parametrize("case", SUBSAMPLED)
def test_a_subsampled_plate_is_per_datum_without_size(case: str) -> None:
    model, batches = SUBSAMPLED[case]
    expected = PER_DATUM if case != "drawn by the plate" else dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)).item()
    assert figures(model, batches) == pytest.approx((expected,) * 2, rel=1e-5)


def test_a_compiled_step_on_a_subsampled_plate_is_per_datum() -> None:
    svi = pv.CompiledSVI(subsampled, lambda x: None, pv.Adam({"lr": 0.0}), Trace_ELBO(), compile="graph")
    history = fit(svi, X.split(30), epochs=1, validation=X.split(70), progress=False)
    assert (history["train_elbo"][0], history["validation_elbo"][0]) == pytest.approx((PER_DATUM,) * 2, rel=1e-5)


def test_size_and_a_dictionary() -> None:
    def model(batch: Any, size: int) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", size, subsample=batch["x"]):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=batch["x"])

    batches = [{"x": x} for x in X.split(30)]
    assert figures(model, batches, size=60) == pytest.approx((PER_DATUM,) * 2, rel=1e-5)
    assert figures(model, [{"x": X}], size=100) == pytest.approx((PER_DATUM,) * 2, rel=1e-5)


@pytest.mark.parametrize("kind", [int, np.int64, np.array, torch.tensor], ids=["int", "numpy", "array", "tensor"])
def test_a_count_among_the_arguments_counts_whatever_its_type(kind: Any) -> None:
    def model(x: Tensor, n: Any) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", int(n)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[: int(n)])

    batches = [(X[:8], kind(8)), (X[8:16], kind(2))]
    expected = dist.Normal(0.0, 1.0).log_prob(X[:10]).mean().item()
    assert figures(model, batches) == pytest.approx((expected,) * 2, rel=1e-5)


@pytest.mark.parametrize("number", [np.int64(1), np.array(2), torch.tensor(3)])
def test_rows_may_return_an_integer_of_any_type(number: Any) -> None:
    assert figures(without_plate, [X], rows=lambda x: number) == pytest.approx(
        (100 / int(number) * PER_DATUM,) * 2, rel=1e-5
    )


@pytest.mark.parametrize("number", [True, np.True_, torch.tensor(True), 2.0, torch.tensor(2.0), -1, None, "3"])
def test_rows_refuses_what_is_no_number_of_data(number: Any) -> None:
    with pytest.raises(ValueError, match=r"rows: expected a function that returns a number of data"):
        figures(without_plate, [X], rows=lambda x: number)


def test_an_epoch_without_data_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"train: expected data in every epoch, got 0 in all batches of epoch 1.*rows="
    ):
        figures(without_plate, [X, X], rows=lambda x: 0)
    calls = iter([5, 0])  # the training batch, then the validation batch
    with pytest.raises(ValueError, match=r"validation: expected data, got 0 in all batches.*rows="):
        figures(without_plate, [X], rows=lambda x: next(calls))
    mixed = [X[:10], X[10:]]
    total = dist.Normal(0.0, 1.0).log_prob(X).sum().item()
    assert figures(without_plate, mixed, rows=lambda x: 0 if len(x) == 10 else 5)[0] == pytest.approx(total / 5)


def test_model_and_guide_run_once_for_each_shape() -> None:
    m = make()
    model, calls = m.svi.model, []

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return model(*args, **kwargs)

    m.svi.model = counting
    fit(m.svi, images(50).split(16), epochs=5, progress=False)
    assert len(calls) == 20 + 2  # 20 steps, and a look at batches of 16 and of 2


def test_the_numbers_that_are_kept_stay_few() -> None:
    """Names and other values of every batch are no part of what a number is kept for."""
    m = make()
    rows = Rows(
        SimpleNamespace(model=lambda batch: m.svi.model(batch["x"]), guide=lambda batch: m.svi.guide(batch["x"]))
    )
    for step in range(1000):
        assert rows(({"x": images(8), "id": [f"row {step}"], "weight": step / 7},), {}) == 8
    assert len(rows._known) == 1
    assert rows((np.zeros((0, 6)),), {}) == 0  # an empty share, on which the model would fail
