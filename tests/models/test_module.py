"""Registration of modules: instances by turns, and two of one name in one run."""

from __future__ import annotations

import copy
import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_vae as pv
from tests.helpers import binary_data as make_data
from tests.helpers import small_vae


def trainer(vae, loss=None, lr=1e-2):
    return SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": lr}), loss or Trace_ELBO())


def test_vaes_train_side_by_side(make_vae, binary_data):
    """Interleaved, under one name, a deep copy among them: each as if it were alone."""

    def losses_alone(vae):
        svi = trainer(vae)
        result = []
        for step in range(20):
            pyro.set_rng_seed(step)
            result.append(svi.step(binary_data))
        return result

    vaes = [make_vae(), make_vae()]
    vaes.append(copy.deepcopy(vaes[0]))
    with torch.no_grad():
        next(vaes[2].parameters()).add_(0.1)
    alone = [losses_alone(copy.deepcopy(vae)) for vae in vaes]
    svis = [trainer(vae) for vae in vaes]
    together = [[], [], []]
    for step in range(20):
        for svi, losses in zip(svis, together, strict=True):
            pyro.set_rng_seed(step)
            losses.append(svi.step(binary_data))
    assert together == alone
    assert alone[0] != alone[2]


def test_pyro_module_alone_would_not_train_a_second_instance(make_vae, binary_data):
    """What ``pyro_vae.module`` is for: the fact about Pyro, held here so that a change of it is noticed."""
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    pyro.module("net", first)
    pyro.module("net", second)
    assert pyro.get_param_store()["net$$$weight"] is first.weight
    pv.module("net", second)
    assert pyro.get_param_store()["net$$$weight"] is second.weight


def test_module_refuses_what_would_not_train():
    transposed = nn.Linear(2, 3)
    transposed.weight = nn.Parameter(torch.randn(2, 3).T)
    with pytest.raises(ValueError, match=r"expected contiguous parameters, got weight with strides \(1, 3\)"):
        pv.module("net", transposed)
    with pytest.raises(TypeError, match=r"nn_module: expected a torch.nn.Module, got type"):
        pv.module("net", nn.Linear)


def test_frozen_parameters_stay(make_vae, binary_data):
    vae = make_vae()
    vae.likelihood.requires_grad_(False)
    before = copy.deepcopy(vae.state_dict())
    svi = trainer(vae)
    for _ in range(3):
        svi.step(binary_data)
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("likelihood"), name


# Two modules of one name in one run -----------------------------------------------------------------------------------


class OtherVAE(pv.VAE):
    """The same with another class name."""


def two_vaes(second_name="vae"):
    """Return model and guide over two VAEs, each with sites in a scope of its own."""
    first, second = small_vae(), small_vae()
    second = OtherVAE(second.prior, second.likelihood, second.posterior, name=second_name)

    def model(x=None):
        with scope(prefix="first"):
            first.model(x)
        with scope(prefix="second"):
            second.model(x)

    def guide(x=None):
        with scope(prefix="first"):
            first.guide(x)
        with scope(prefix="second"):
            second.guide(x)

    return model, guide, first, second


NAMED_BOTH = (
    r"name: expected one module under the name 'vae' in a run of model and guide, got two, a VAE and a OtherVAE, which "
    r"both have the parameter '.*'. Only one of them would be trained. Give each its own name: "
    r"OtherVAE\(..., name='vae_2'\), or pyro_vae.module\('vae_2', ...\)"
)
RUNS = {
    "trace": lambda model, guide, x: poutine.trace(model).get_trace(x),
    "Predictive": lambda model, guide, x: Predictive(model, num_samples=2)(),
    "Predictive with a guide": lambda model, guide, x: Predictive(model, guide=guide, num_samples=2)(x),
    "SVI.step": lambda model, guide, x: SVI(model, guide, pyro.optim.Adam({}), Trace_ELBO()).step(x),
    "SVI.evaluate_loss": lambda model, guide, x: SVI(model, guide, pyro.optim.Adam({}), Trace_ELBO()).evaluate_loss(x),
    "mean field": lambda model, guide, x: SVI(model, guide, pyro.optim.Adam({}), TraceMeanField_ELBO()).step(x),
    "trace graph": lambda model, guide, x: SVI(model, guide, pyro.optim.Adam({}), TraceGraph_ELBO()).step(x),
    "particles": lambda model, guide, x: SVI(model, guide, pyro.optim.Adam({}), Trace_ELBO(num_particles=2)).step(x),
    "NUTS": lambda model, guide, x: MCMC(NUTS(model), num_samples=2, warmup_steps=1, disable_progbar=True).run(x[:2]),
    "log_weights": lambda model, guide, x: pv.log_weights(model, guide, x),
    "CompiledSVI": lambda model, guide, x: [
        svi.step(x) for svi in [pv.CompiledSVI(model, guide, pv.Adam({"lr": 1e-3}), Trace_ELBO(), compile="graph")] * 3
    ],
}


@pytest.mark.parametrize("run", RUNS)
def test_two_of_one_name_in_one_run_are_refused(run, binary_data):
    model, guide, *_ = two_vaes()
    with pytest.raises(ValueError, match=NAMED_BOTH):
        RUNS[run](model, guide, binary_data)


@pytest.mark.parametrize("run", [name for name in RUNS if name != "NUTS"])  # whose parameters must be frozen
def test_two_names_are_well(run, binary_data):
    model, guide, *_ = two_vaes(second_name="other")
    RUNS[run](model, guide, binary_data)


def test_under_two_names_both_train(binary_data):
    model, guide, *vaes = two_vaes(second_name="other")
    before = [copy.deepcopy(vae.state_dict()) for vae in vaes]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    svi.step(binary_data)
    for vae, old in zip(vaes, before, strict=True):
        assert all(not torch.equal(value, old[name]) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("frozen", ["part of the first", "part of the second", "first", "second"])
def test_frozen_parameters_of_one_change_nothing(frozen, binary_data):
    model, guide, first, second = two_vaes()
    module = first if "first" in frozen else second
    (module.likelihood if "part" in frozen else module).requires_grad_(False)
    with pytest.raises(ValueError, match=NAMED_BOTH):
        SVI(model, guide, pyro.optim.Adam({}), Trace_ELBO()).step(binary_data)


def test_two_that_are_frozen_need_no_names(binary_data):
    model, _, first, second = two_vaes()
    first.requires_grad_(False), second.requires_grad_(False)
    trace = poutine.trace(model).get_trace(binary_data)
    assert {"first/z", "second/z"} <= set(trace.nodes)
    MCMC(NUTS(model), num_samples=2, warmup_steps=1, disable_progbar=True).run(binary_data[:2])


def test_the_guide_of_another_instance_is_refused_in_a_step(binary_data):
    first, second = small_vae(), small_vae()
    svi = SVI(first.model, second.guide, pyro.optim.Adam({}), Trace_ELBO())
    with pytest.raises(ValueError, match=r"got two, a VAE and a VAE, which both"):
        svi.step(binary_data)


def test_nothing_of_the_store_has_changed_when_it_is_refused(binary_data):
    model, _, first, _ = two_vaes()
    with pytest.raises(ValueError, match=NAMED_BOTH):
        poutine.trace(model).get_trace(binary_data)
    store = pyro.get_param_store()
    assert all(store[f"vae$$${name}"] is parameter for name, parameter in first.named_parameters())


def test_nested_calls_of_one_module_are_one_module(binary_data):
    vae = small_vae()

    def model(x):
        pv.module("vae", vae)
        pv.module("vae", vae)
        vae.model(x)

    before = copy.deepcopy(vae.state_dict())
    SVI(model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(binary_data)
    assert all(not torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_modules_without_a_common_parameter_may_share_a_name(binary_data):
    """As where the model registers its decoder and the guide its encoder under the name of the whole."""
    encoder, decoder = nn.ModuleDict({"encoder": nn.Linear(6, 4)}), nn.ModuleDict({"decoder": nn.Linear(2, 6)})

    def model(x):
        pv.module("net", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder["decoder"](z)).to_event(1), obs=x)

    def guide(x):
        pv.module("net", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder["encoder"](x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    before = copy.deepcopy((encoder.state_dict(), decoder.state_dict()))
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(binary_data)
    for module, old in zip((encoder, decoder), before, strict=True):
        assert all(not torch.equal(value, old[name]) for name, value in module.state_dict().items())


def test_shared_tensors_are_no_second_module():
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    second.weight, second.bias = first.weight, first.bias

    def model():
        pv.module("net", first)
        pv.module("net", second)

    trace = poutine.trace(model).get_trace()
    assert trace.nodes["net$$$weight"]["value"] is first.weight


def test_steps_of_instances_by_turns_inside_one_trace(binary_data):
    """A trace around several training steps is not one run of model and guide."""
    svis = [trainer(small_vae()), trainer(small_vae())]
    with poutine.trace(param_only=True):
        for svi in svis * 2:
            svi.step(binary_data)


def test_what_a_block_hides_is_another_run(binary_data):
    first, second = small_vae(), small_vae()

    def model(x):
        first.model(x)
        with poutine.block():
            poutine.trace(second.model).get_trace(x)

    SVI(model, first.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(binary_data)

    def exposed(x):
        first.model(x)
        with poutine.block(hide_types=["sample"]):
            second.model(x)

    with pytest.raises(ValueError, match=r"got two, a VAE and a VAE"):
        SVI(exposed, first.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(binary_data)


def test_instances_made_anew_go_on(binary_data):
    """A notebook cell that is run again; a training step for each new instance."""
    for _ in range(3):
        vae = small_vae()
        before = copy.deepcopy(vae.state_dict())
        trainer(vae).step(binary_data)
        assert all(not torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_a_module_can_be_freed_after_a_step():
    vae = small_vae()
    freed = weakref.ref(vae)
    trainer(vae).step(make_data())
    del vae
    pyro.clear_param_store()
    gc.collect()
    assert freed() is None


# One parameter under two names ----------------------------------------------------------------------------------------


def step_by_pyro(vae, x):
    trainer(vae).step(x)


def step_by_our_adam(vae, x):
    SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)


def step_captured(vae, x):
    svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), compile="graph")
    for _ in range(3):
        svi.step(x)


each_step = pytest.mark.parametrize("step", [step_by_pyro, step_by_our_adam, step_captured])


def require_consistent_store():
    """The private attributes of Pyro's store that ``pyro_vae.module`` mends: they belong together."""
    store = pyro.get_param_store()
    assert set(store._params) == set(store._constraints)
    assert all(store._params[name] is parameter for parameter, name in store._param_to_name.items())
    assert all(parameter in store._param_to_name for parameter in store._params.values())


@each_step
def test_swapped_parts_leave_nothing_behind(step, binary_data):
    """Posterior and likelihood swapped by mistake: the same parameters stand under two names."""
    parts = small_vae(elements=6)
    swapped = pv.VAE(parts.prior, parts.posterior, parts.likelihood)
    with pytest.raises(ValueError, match="expected"):
        trainer(swapped).step(binary_data)
    right = pv.VAE(parts.prior, parts.likelihood, parts.posterior)
    before = copy.deepcopy(right.state_dict())
    step(right, binary_data)
    assert all(not torch.equal(value, before[name]) for name, value in right.state_dict().items())
    require_consistent_store()
    step(small_vae(), binary_data)  # and every later model
    require_consistent_store()


@each_step
def test_a_vae_of_the_parts_of_another_trains_by_turns_with_it(step, binary_data):
    first = small_vae()
    second = pv.VAE(first.prior, first.likelihood, first.posterior, name="second")
    swapped = pv.VAE(first.prior, first.posterior, first.likelihood)
    for vae in (first, second, first):
        before = copy.deepcopy(vae.state_dict())
        step(vae, binary_data)
        assert all(not torch.equal(value, before[name]) for name, value in vae.state_dict().items())
        require_consistent_store()
        with pytest.raises(ValueError, match="expected"):
            trainer(swapped).step(binary_data)
        step(small_vae(name=vae.name), binary_data)
