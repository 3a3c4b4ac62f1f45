"""One torch optimiser behind Pyro's interface: equal to torch's, and its state makes the round trip."""

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from torch import Tensor

from pyro_vae.infer import Adam, FusedOptim


def model(x: Tensor, more: bool = False) -> None:
    loc = pyro.param("loc", torch.tensor([0.0, 1.0]))
    if more:
        loc = loc * pyro.param("late", torch.tensor(2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def svi_with(optim: Any) -> SVI:
    return SVI(model, lambda *args, **kwargs: None, optim, Trace_ELBO())


X = torch.tensor([[3.0, -2.0], [1.0, 0.5]])


def by_hand(steps: int, clip_norm: float | None = None, gamma: float = 1.0) -> Tensor:
    p = torch.tensor([0.0, 1.0], requires_grad=True)
    optimizer = torch.optim.Adam([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (X - p) ** 2).sum().backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([p], clip_norm)
        optimizer.step()
        scheduler.step()
    return p.detach()


@pytest.mark.parametrize(("clip_norm", "gamma"), [(None, 1.0), (0.5, 1.0), (None, 0.8)])
def test_it_is_torchs_adam(clip_norm: float | None, gamma: float) -> None:
    optim = Adam({"lr": 0.1}, clip_norm=clip_norm, scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma))
    svi = svi_with(optim)
    for _ in range(20):
        svi.step(X)
    assert torch.allclose(pyro.param("loc").detach(), by_hand(20, clip_norm, gamma), atol=1e-6)
    assert optim.optimizer is not None
    assert optim.optimizer.param_groups[0]["fused"] is True


@pytest.mark.parametrize("after", [0, 1, 7])
@pytest.mark.parametrize("before_first_step", [True, False])
def test_state_makes_the_round_trip(after: int, before_first_step: bool, tmp_path: Path) -> None:
    schedule = {"scheduler": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 0.9**t)}
    optim = Adam({"lr": 0.1}, **schedule)
    svi = svi_with(optim)
    for _ in range(after):
        svi.step(X)
    start = pyro.param("loc", torch.tensor([0.0, 1.0])).detach().clone()
    optim.save(tmp_path / "optim.pt")
    torch.load(tmp_path / "optim.pt", weights_only=True)
    for _ in range(5):
        svi.step(X)
    want = pyro.param("loc").detach().clone()

    other = Adam({"lr": 0.1}, **schedule) if before_first_step else optim
    with torch.no_grad():
        pyro.param("loc").copy_(start)
    other.load(tmp_path / "optim.pt")
    svi = svi_with(other)
    for _ in range(5):
        svi.step(X)
    assert torch.equal(pyro.param("loc"), want)


def test_a_parameter_that_appears_later_joins_in_and_finds_its_state() -> None:
    optim = Adam({"lr": 0.1})
    svi = svi_with(optim)
    svi.step(X)
    svi.step(X, True)
    assert pyro.param("late").item() != 2.0
    state = optim.get_state()
    assert set(state["params"]) == {"loc", "late"}
    fresh = Adam({"lr": 0.1})
    fresh.set_state(state)
    svi_with(fresh).step(X)
    again = fresh.get_state()
    assert torch.equal(again["params"]["late"]["exp_avg"], state["params"]["late"]["exp_avg"])
    assert again["params"]["loc"]["step"] == state["params"]["loc"]["step"] + 1


def test_options_by_name() -> None:
    optim = FusedOptim(torch.optim.SGD, lambda name: {"lr": 0.0 if name == "loc" else 0.1})
    svi_with(optim).step(X, True)
    assert torch.equal(pyro.param("loc").detach(), torch.tensor([0.0, 1.0]))
    assert pyro.param("late").item() != 2.0


def test_a_decaying_average_is_no_parameter() -> None:
    """Pyro keeps it in the store as a new tensor after each step; each would join the optimizer."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            baseline = {"baseline": {"use_decaying_avg_baseline": True}}
            pyro.sample("y", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(len(x)))), infer=baseline)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    optim = Adam({"lr": 0.1}, clip_norm=1.0)
    svi = SVI(model, guide, optim, TraceGraph_ELBO())
    for _ in range(3):
        svi.step(torch.tensor([0.2, 1.0]))
    assert "__baseline_avg_downstream_cost_y" in pyro.get_param_store()
    assert optim.optimizer is not None
    assert [p.shape for group in optim.optimizer.param_groups for p in group["params"]] == [(2,)]
    assert list(optim.get_state()["params"]) == ["logits"]


def test_clear_errors() -> None:
    with pytest.raises(TypeError, match="optim_args"):
        Adam(0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip_norm"):
        Adam({"lr": 0.1}, clip_norm=0.0)
    with pytest.raises(ValueError, match="parameter store"):
        Adam({"lr": 0.1})([torch.zeros(1, requires_grad=True)])
    with pytest.raises(ValueError, match="expected the keys"):
        Adam({"lr": 0.1}).set_state({"loc": {}})
    optim = Adam({"lr": 0.1})
    svi_with(optim).step(X)
    state = optim.get_state()
    state["params"]["loc"]["exp_avg"] = torch.zeros(5)
    with pytest.raises(ValueError, match="another model"):
        optim.set_state(state)
