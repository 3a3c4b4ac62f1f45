"""``fit`` against hand-written loops and closed forms."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from tiny import images, make, parameters_of, same
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pyro_vae as pv
from pyro_vae.train import fit, linear_warmup


class Recorder:
    """Stands in for an SVI: notes what it is given; each datum's loss is its own value."""

    def __init__(self, parameters: Any = None) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.optim = SimpleNamespace(get_state=dict)

    def model(self, x: Any, y: Any = None, *, size: Any = None, beta: Any = 1.0) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("zero", dist.Delta(torch.zeros(len(x))), obs=torch.zeros(len(x)))

    def guide(self, x: Any, y: Any = None, *, size: Any = None, beta: Any = 1.0) -> None:
        pass

    def step(self, *args: Any, **keywords: Any) -> float:
        self.calls.append((args, keywords))
        return self.loss(*args, **keywords)

    evaluate_loss = staticmethod(lambda x, y=None, size=None: Recorder.loss(x, size=size))

    @staticmethod
    def loss(x: Any, y: Any = None, *, size: Any = None, beta: Any = 1.0) -> float:
        return float(x.sum()) * (size / len(x) if size else 1.0)


def test_equals_the_loop_people_write_by_hand() -> None:
    batches = images().split(16)
    by_hand = make()
    torch.manual_seed(1)
    losses = [sum(by_hand.svi.step(batch) for batch in batches) for _ in range(3)]
    ours = make()
    torch.manual_seed(1)
    history = fit(ours.svi, batches, epochs=3, progress=False)
    assert same(parameters_of(ours.vae), parameters_of(by_hand.vae))
    assert history["train_elbo"] == pytest.approx([-loss / 50 for loss in losses], rel=1e-12)


def test_a_ragged_last_batch_weighs_by_its_size() -> None:
    x = torch.arange(7.0)[:, None]
    history = fit(Recorder(), x.split(3), epochs=1, validation=x.split(5), progress=False)
    assert history["train_elbo"] == [-3.0]  # the mean of 0..6; the mean of the batches' means would be 3.67
    assert history["validation_elbo"] == [-3.0]


def test_size_reaches_the_model_and_is_taken_out_of_the_figures() -> None:
    svi = Recorder()
    x = torch.arange(7.0)[:, None]
    history = fit(svi, x.split(3), epochs=1, size=7, validation=x.split(5), progress=False)
    assert all(keywords == {"size": 7} for _, keywords in svi.calls)
    assert history["train_elbo"] == pytest.approx([-3.0])
    assert history["validation_elbo"] == pytest.approx([-3.0])


def test_size_gives_a_global_latent_variable_its_weight() -> None:
    # mu ~ N(0, 1), x_i ~ N(mu, 1): the posterior of mu has mean N xbar / (N + 1), whatever the batch size.
    x = 2.0 + torch.randn(40)

    def model(x: torch.Tensor, *, size: int) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size, subsample=x):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x: torch.Tensor, *, size: int) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.2), constraint=dist.constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.04}), Trace_ELBO())
    fit(svi, x.split(10), epochs=80, size=40, progress=False)
    assert pyro.param("loc").item() == pytest.approx(40 * x.mean().item() / 41, abs=0.15)


def test_schedules_arrive_as_tensors_with_the_time_after_the_step() -> None:
    svi = Recorder()
    batches = torch.ones(8, 1).split(4)
    history = fit(svi, batches, epochs=2, schedules={"beta": linear_warmup(2)}, progress=False)
    betas = [keywords["beta"] for _, keywords in svi.calls]
    assert all(isinstance(beta, torch.Tensor) and beta.ndim == 0 for beta in betas)
    assert [beta.item() for beta in betas] == [0.25, 0.5, 0.75, 1.0]
    assert history["beta"] == [0.5, 1.0]


def test_a_schedule_need_not_be_defined_beyond_the_run() -> None:
    table = [0.1, 0.2, 0.3]
    history = fit(Recorder(), [torch.ones(4, 1)], epochs=2, schedules={"beta": lambda t: table[int(t)]}, progress=False)
    assert history["beta"] == pytest.approx([0.2, 0.3])


def test_a_schedule_over_an_iterable_without_length_counts_whole_epochs_at_first() -> None:
    class Stream:
        def __iter__(self) -> Any:
            return iter(torch.ones(8, 1).split(4))

    svi = Recorder()
    fit(svi, Stream(), epochs=2, schedules={"beta": linear_warmup(2)}, progress=False)
    assert [keywords["beta"].item() for _, keywords in svi.calls] == [0.5, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("workers", [0, 1])
def test_data_loader_with_labels(workers: int) -> None:
    svi = Recorder()
    x, y = torch.arange(6.0)[:, None], torch.arange(6)
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, num_workers=workers)
    fit(svi, loader, epochs=2, progress=False)
    for (x_batch, y_batch), _ in svi.calls:
        assert torch.equal(x_batch[:, 0].long(), y_batch)
    epochs = [torch.cat([args[1] for args, _ in svi.calls[i : i + 2]]) for i in (0, 2)]
    assert all(sorted(epoch.tolist()) == list(range(6)) for epoch in epochs)


def test_iterable_dataset_and_transform() -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter([{"x": torch.ones(6) * i} for i in range(4)])

    svi = Recorder()
    fit(svi, DataLoader(Stream(), batch_size=2), epochs=1, transform=lambda batch: batch["x"], progress=False)
    assert [args[0][:, 0].tolist() for args, _ in svi.calls] == [[0.0, 1.0], [2.0, 3.0]]


@pytest.mark.slow
def test_autoguide_in_place_of_a_guide() -> None:
    x = torch.randn(30) + 3.0

    def model(x: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    guide = AutoDiagonalNormal(model)
    fit(SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO()), [x], epochs=500, progress=False)
    assert guide.median()["mu"].item() == pytest.approx(x.mean().item(), abs=0.4)


@pytest.mark.parametrize("told", [True, False], ids=["create_plates", "alone"])
def test_autoguide_on_mini_batches_must_be_told_the_rows(told: bool) -> None:
    """z ~ N(0, 1), x ~ N(z, 1), E[z|x] = x / 2. Pyro's own draw of rows pairs data with the parameters of others."""
    x = torch.randn(60)

    def model(x: torch.Tensor, rows: torch.Tensor, size: int) -> None:
        with pyro.plate("data", size, subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    plate = (lambda x, rows, size: pyro.plate("data", size, subsample=rows)) if told else None
    guide = AutoNormal(model, create_plates=plate)
    batches = pv.data.Batches(x, torch.arange(60), batch_size=20, shuffle=True)
    svi = SVI(model, guide, pv.Adam({"lr": 0.02}), Trace_ELBO())
    fit(svi, batches, epochs=60, size=60, progress=False)
    correlation = torch.corrcoef(torch.stack([guide.median()["z"], x / 2]))[0, 1].item()
    assert correlation > 0.9 if told else abs(correlation) < 0.4  # 3 standard errors of none


def test_batches_go_on_where_an_earlier_fit_ended() -> None:
    batches = pv.data.Batches(torch.arange(6.0)[:, None], batch_size=3, shuffle=True)
    svi = Recorder()
    for _ in range(2):
        fit(svi, batches, epochs=1, progress=False)
    seen = [args[0] for args, _ in svi.calls]
    assert torch.equal(torch.cat(seen[2:]), torch.cat(list(batches.iterate(1))))
    assert batches.epoch == 2


A = torch.ones(4)


def svi_with(**replaced: Any) -> SVI:
    """An SVI of Pyro's in which something is what it should not be."""
    m = make()
    given = {"model": m.svi.model, "guide": m.svi.guide, "optim": m.svi.optim, "loss": Trace_ELBO(), **replaced}
    return SVI(**given)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train": torch.ones(5, 6)}, TypeError, "train: expected an iterable of batches, got Tensor"),
        ({"train": 5}, TypeError, "train: expected an iterable"),
        ({"validation": torch.ones(5, 6)}, TypeError, "validation: expected an iterable"),
        ({"train": {"x": images()}}, TypeError, r"train: .* got a dict, .*one batch.*\[batch\]"),
        ({"validation": {"x": images()}}, TypeError, r"validation: .* got a dict, .*one batch.*\[batch\]"),
        (
            {"validation": (images(), torch.zeros(50, 3))},
            ValueError,
            r"the tuple of 2 tensors given as validation was taken as 2 batches; one batch is written \[\(x, y\)\]",
        ),
        (
            {"train": [images(), torch.zeros(50, 3)]},
            ValueError,
            r"the list of 2 tensors given as train was taken as 2 batches; one batch is written \[\(x, y\)\]",
        ),
        (
            {"train": (torch.zeros(50, 3), images())},
            ValueError,
            r"the tuple of 2 tensors given as train was taken as 2 batches",
        ),
        (
            {"svi": SVI(lambda x, y: None, lambda x, y: None, pyro.optim.Adam({}), Trace_ELBO()), "train": (A, A)},
            TypeError,
            r"missing 1 required positional argument: 'y'(.|\n)*the tuple of 2 tensors given as train was taken as",
        ),
        ({"resume": True}, TypeError, r"resume: expected the directory of a Checkpoint.*got True\. Give"),
        ({"resume": 3}, TypeError, r"resume: expected the directory of a Checkpoint.*got 3\. Give"),
        (
            {"schedules": {"bta": linear_warmup(2)}},
            TypeError,
            r"schedules\['bta'\]: expected the name of a keyword argument of the model and the guide, got 'bta'.*beta",
        ),
        (
            {
                "svi": SVI(lambda x, beta: None, lambda x: None, pyro.optim.Adam({}), Trace_ELBO()),
                "schedules": {"beta": linear_warmup(2)},
            },
            TypeError,
            r"schedules\['beta'\]: .* which the guide .*\(x\)",
        ),
        (
            {"svi": SimpleNamespace(model=print, guide=print, optim=torch.optim.Adam([A]), step=print)},
            TypeError,
            r"svi: expected an optimizer of Pyro, got torch\.optim\.Adam.*pyro_vae\.Adam\(",
        ),
        ({"epochs": 0}, ValueError, "epochs: expected an integer of at least 1"),
        ({"train": []}, ValueError, "train: expected at least one batch"),
        ({"validation": []}, ValueError, "validation: expected at least one batch"),
        ({"train": iter([torch.ones(5, 6)]), "epochs": 2}, ValueError, "got none in epoch 2.*not a generator"),
        (
            {
                "svi": SVI(lambda x: None, lambda x: None, pyro.optim.Adam({}), Trace_ELBO()),
                "train": [(torch.ones(5, 6),) * 2],
            },
            TypeError,
            "train: expected batches that are the positional.*transform=",
        ),
        ({"svi": None}, TypeError, "svi: expected a pyro.infer.SVI, .*got NoneType without model, .*Make one: SVI"),
        ({"svi": SVI}, TypeError, "svi: expected .*got the class SVI without model, guide, optim. Make one"),
        ({"svi": nn.Linear(2, 2)}, TypeError, "svi: expected .*got Linear without model, guide, optim, step. Make"),
        (
            {"svi": SimpleNamespace(model=0, guide=0, optim=0, step=0), "validation": images().split(16)},
            TypeError,
            "svi: expected .*got SimpleNamespace without evaluate_loss",
        ),
        ({"svi": svi_with(model=None)}, TypeError, "svi: expected a function as its model, got None. Give"),
        ({"svi": svi_with(guide=3)}, TypeError, "svi: expected a function as its guide, got 3. Give"),
        ({"svi": svi_with(loss=None)}, TypeError, "svi: expected an objective as its loss, .* got None. Make"),
        ({"svi": svi_with(loss=Trace_ELBO)}, TypeError, "svi: expected an objective as its loss, .* got <class"),
        (
            {"train": [(torch.ones(5, 6), torch.ones(5, 6) > 0)], "keywords": ("msk",)},
            TypeError,
            "keywords: expected names of the model's arguments, x, given, mask, size, beta, got msk. Name one of them",
        ),
        (
            {"schedules": {"beta": lambda t: 0.0}},
            ValueError,
            "beta: expected a number above 0, got 0.0. Pyro cannot scale by 0; start an annealing at 1e-3",
        ),
        (
            {"schedules": {"beta": 0.5}},
            TypeError,
            r"schedules\['beta'\]: expected a function of the epochs .*got 0.5. Give .* a constant lambda t: 0.5",
        ),
        ({"schedules": {1: linear_warmup(2)}}, TypeError, "schedules: expected names of keyword arguments, got 1"),
        ({"schedules": linear_warmup(2)}, TypeError, "schedules: expected a mapping .*got <function.*Name the"),
        ({"schedules": [("beta", 0.5)]}, TypeError, r"schedules: expected a mapping .*got \[\('beta', 0.5\)\]"),
        (
            {"schedules": {"beta": linear_warmup}},
            TypeError,
            r"schedules\['beta'\]: expected a function from epochs to a number, got <function.* at 0.25.*linear_warmup",
        ),
        ({"schedules": {"beta": lambda t: None}}, TypeError, r"schedules\['beta'\]: expected .* number, got None"),
        ({"callbacks": [3]}, TypeError, "callbacks: expected .*functions of a run, got 3. Give a function, or"),
        ({"callbacks": [pv.CSVLog]}, TypeError, "callbacks: expected .*got <class .*CSVLog'>. Give .*an instance"),
        ({"callbacks": print}, TypeError, r"callbacks: expected a list .*got <built-in function print>. Put it into"),
        ({"callbacks": (f for f in [print])}, TypeError, r"callbacks: expected a list .*got <generator"),
        ({"callbacks": "print"}, TypeError, r"callbacks: expected a list .*got 'print'"),
        ({"transform": 3}, TypeError, "transform: expected a function of a batch, got 3. Give"),
        ({"size": 0}, ValueError, "size: expected an integer of at least 1, got 0"),
        ({"rows": 16}, TypeError, "rows: expected a function of the batch's arguments, got 16. Give"),
        ({"rows": lambda x: None}, ValueError, "rows: expected a function that returns a number of data, got None"),
        ({"on_nonfinite": "ignore"}, ValueError, 'on_nonfinite: expected "raise" or "restore"'),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    m = make()
    with pytest.raises(error, match=message):
        fit(**{"svi": m.svi, "train": images().split(16), "epochs": 1, "progress": False, **arguments})


def test_batches_of_one_shape_are_no_mistaken_tuple() -> None:
    bad = images().clone()
    bad[40] = math.nan
    with pytest.raises(ValueError, match="in train, epoch 1, batch 3") as raised:
        fit(make().svi, bad.split(16), epochs=1, progress=False)
    assert "taken as" not in str(raised.value)


def test_the_arguments_of_a_module_are_those_of_its_forward() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, *, beta: Any = 1.0) -> None:
            loc = pyro.param("loc", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    svi = SVI(Model(), lambda x, **keywords: None, pv.Adam({"lr": 0.0}), Trace_ELBO())
    assert len(fit(svi, [A], epochs=1, schedules={"beta": lambda t: 1.0}, progress=False)) == 1
    with pytest.raises(
        TypeError, match=r"schedules\['bta'\]: .*the model does not take; its arguments are \(x, beta\)"
    ):
        fit(svi, [A], epochs=1, schedules={"bta": lambda t: 1.0}, progress=False)


def test_a_schedule_may_name_what_keyword_arguments_take_in() -> None:
    def model(x: Tensor, **keywords: Any) -> None:
        assert "beta" in keywords
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    svi = SVI(model, AutoNormal(model), pv.Adam({"lr": 0.0}), Trace_ELBO())
    assert len(fit(svi, [A], epochs=1, schedules={"beta": lambda t: 1.0}, progress=False)) == 1


def test_what_interrupts_a_run_carries_the_history_and_leaves_no_gradient() -> None:
    def losses(interrupted: bool) -> Any:
        pyro.clear_param_store()
        m = make()
        guide, calls = m.svi.guide, []

        def interrupting(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            if interrupted and len(calls) == 7:  # 1 look, 4 steps, and the second one of the next epoch
                next(iter(m.vae.parameters())).grad = torch.ones_like(next(iter(m.vae.parameters())))
                raise KeyboardInterrupt
            return guide(*args, **kwargs)

        m.svi.guide = interrupting
        if interrupted:
            with pytest.raises(KeyboardInterrupt) as caught:
                fit(m.svi, images().split(16), epochs=3, progress=False)
            assert caught.value.history["steps"] == [4]  # type: ignore[attr-defined]
        return [p.grad for p in m.vae.parameters()]

    assert all(gradient is None or not gradient.any() for gradient in losses(True))


def test_an_error_carries_the_history() -> None:
    m = make()
    bad = [*images(32).split(16), images(16) * 0.5]

    class Data:
        epoch = -1

        def __iter__(self) -> Any:
            self.epoch += 1
            return iter(bad if self.epoch == 2 else bad[:2])

    with pytest.raises(ValueError, match="epoch 3, batch 3") as caught:
        fit(m.svi, Data(), epochs=9, progress=False)
    assert caught.value.history["epoch"] == [1, 2]  # type: ignore[attr-defined]


def test_the_bar_shows_elbos_epochs_and_the_time_that_remains(capsys: pytest.CaptureFixture[str]) -> None:
    history = fit(make().svi, images().split(16), epochs=2, validation=[images()])
    text = capsys.readouterr().err
    last = text.rsplit("\r", 1)[-1]
    assert "epoch 2/2" in last
    assert "8/8" in last
    assert f"ELBO train {history['train_elbo'][-1]:.2f}, validation {history['validation_elbo'][-1]:.2f} nats" in last
    assert "<" in last  # elapsed<remaining


def test_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    fit(make().svi, images().split(16), epochs=1, progress=False)
    assert capsys.readouterr().err == ""


def test_the_signature_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    counts = {"calls": 0}
    signature = inspect.signature

    def counting(*args: Any, **keywords: Any) -> Any:
        counts["calls"] += 1
        return signature(*args, **keywords)

    monkeypatch.setattr(inspect, "signature", counting)
    fit(Recorder(), torch.ones(100, 1).split(1), epochs=1, progress=False)
    assert counts["calls"] <= 2


def test_history_by_time() -> None:
    history = fit(make().svi, images().split(16), epochs=2, progress=False)
    assert history["epoch"] == [1, 2]
    assert history["steps"] == [4, 8]
    assert all(seconds > 0 and math.isfinite(seconds) for seconds in history["seconds"])


def test_an_objective_that_is_a_function_trains_quietly() -> None:
    """Its loss still hangs on the graph when the guard looks at it."""
    x = torch.randn(30) + 3.0

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def minus_log_likelihood(model: Any, guide: Any, *args: Any) -> Tensor:
        return -pyro.poutine.trace(model).get_trace(*args).log_prob_sum()

    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), minus_log_likelihood)
    fit(svi, [x], epochs=100, progress=False)
    assert pyro.param("loc").item() == pytest.approx(x.mean().item(), abs=0.05)
