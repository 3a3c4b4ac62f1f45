"""What the engine takes from torch and Pyro without their promise, one small test for each: a new release that changes
one of them fails here, by name, before it fails somewhere inside a step."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.util
import pyro.infer.traceenum_elbo
import pyro.infer.util
import pyro.poutine.runtime
import pyro.util
import pytest
import torch
from pyro import poutine
from torch import Tensor, fx, nn
from torch._guards import TracingContext, detect_fake_mode, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pyro_vae.infer.compiled import toolchain
from pyro_vae.infer.compiled.backend import _OPTIONS

aten = torch.ops.aten


def targets(graph: fx.GraphModule) -> list[Any]:
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def fakes(*tensors: Tensor) -> list[Tensor]:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    return [mode.from_tensor(t, static_shapes=True) for t in tensors]


# -- tracing -----------------------------------------------------------------------------------------------------------


def test_make_fx_keeps_gradients_and_what_is_closed_over() -> None:
    weight = nn.Parameter(torch.tensor([2.0, 3.0]))

    def function(x: Tensor) -> list[Tensor]:
        weight.grad = None
        (weight * x).sum().backward()
        assert weight.grad is not None
        return [weight.grad]

    graph = make_fx(function)(torch.ones(2))
    assert torch.equal(graph(torch.tensor([5.0, 7.0]))[0], torch.tensor([5.0, 7.0]))
    closed = [node for node in graph.graph.nodes if node.op == "get_attr"]
    assert closed
    assert all(getattr(graph, node.target).data_ptr() == weight.data_ptr() for node in closed if node.users)
    assert all("val" in node.meta for node in graph.graph.find_nodes(op="placeholder"))


def test_make_fx_decomposes_and_takes_fake_tensors() -> None:
    def double(x: Tensor) -> Tensor:
        return x + x

    table = {aten.mul.Tensor: lambda x, other: double(x)}
    graph = make_fx(lambda x: [x * x], decomposition_table=table, tracing_mode="fake")(*fakes(torch.ones(2)))
    assert targets(graph) == [aten.add.Tensor]


def test_make_fx_turns_item_under_a_function_mode_into_a_tensor() -> None:
    class Items(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0].detach() if func is torch.Tensor.item else func(*args, **(kwargs or {}))

    def function(x: Tensor) -> list[Tensor]:
        with Items():
            return [x.sum().item() * 2]

    assert torch.equal(make_fx(function)(torch.ones(2))(torch.full((2,), 3.0))[0], torch.tensor(12.0))


def test_torch_func_functionalize_replaces_writes_by_values() -> None:
    def function(x: Tensor, buffer: Tensor) -> list[Tensor]:
        buffer.add_(x)
        noise = torch.empty_like(x).normal_()
        return [buffer * noise]

    graph = make_fx(torch.func.functionalize(function, remove="mutations"), tracing_mode="fake")(
        *fakes(torch.ones(2), torch.ones(2))
    )
    writes = [t for t in targets(graph) if t._schema.is_mutable]
    assert writes == [aten.copy_.default]
    assert aten.normal_functional.default in targets(graph)


def test_functionalize_does_not_see_what_batch_norm_writes() -> None:
    def function(x: Tensor, mean: Tensor, variance: Tensor) -> list[Tensor]:
        return [aten.native_batch_norm(x, None, None, mean, variance, True, 0.1, 1e-5)[0]]

    assert not aten.native_batch_norm.default._schema.is_mutable
    x, mean = torch.randn(5, 3) + 1, torch.zeros(3)
    function(x, mean, torch.ones(3))
    assert not torch.equal(mean, torch.zeros(3))


def test_fake_tensor_mode_and_tracing_context_are_found_by_others() -> None:
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        mode = TracingContext.get().fake_mode
        assert detect_fake_mode() is mode
    shared = torch.arange(4.0)
    a, b = fakes(shared[:3], shared[1:])
    assert a.fake_mode is b.fake_mode  # type: ignore[attr-defined]
    assert a.untyped_storage()._cdata == b.untyped_storage()._cdata
    assert all(isinstance(size, int) for size in a.shape)


def test_disable_proxy_modes_tracing_leaves_operations_out() -> None:
    def function(x: Tensor) -> list[Tensor]:
        with disable_proxy_modes_tracing():
            torch.ones(3) * 2
        return [x + 1]

    assert targets(make_fx(function)(torch.ones(2))) == [aten.add.Tensor]


def test_disable_current_modes_hides_operations_from_a_dispatch_mode() -> None:
    class Count(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Count.seen += 1
            return func(*args, **(kwargs or {}))

    with Count():
        torch.ones(2)
        before = Count.seen
        with _disable_current_modes():
            torch.ones(2)
    assert Count.seen == before > 0


def test_get_proxy_mode_tells_whether_a_trace_runs() -> None:
    found = []
    make_fx(lambda x: [found.append(get_proxy_mode() is not None), x + 1][1:])(torch.ones(2))
    assert found == [True]
    assert get_proxy_mode() is None


def test_aten_schema_alias_info_says_what_is_written() -> None:
    def written(operator: Any) -> list[str]:
        arguments = operator._schema.arguments
        return [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]

    assert written(aten.add_.Tensor) == ["self"]
    assert written(aten.add.out) == ["out"]
    assert written(aten.add.Tensor) == []
    assert aten.add_.Tensor._schema.is_mutable
    assert not aten.add.Tensor._schema.is_mutable
    [returned] = aten.t.default._schema.returns  # a view
    assert returned.alias_info is not None
    assert not returned.alias_info.is_write


def test_register_module_forward_pre_hook_sees_every_call() -> None:
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_pre_hook(lambda module, args: seen.append(module))
    try:
        inner = nn.Linear(2, 2)
        outer = nn.Sequential(inner)
        outer(torch.ones(1, 2))
    finally:
        handle.remove()
    inner(torch.ones(1, 2))
    assert [id(m) for m in seen] == [id(outer), id(inner)]


def test_tensor_version_counts_writes() -> None:
    t = torch.zeros(2)
    before = t._version
    t.add_(1)
    assert t._version > before


# -- inductor ----------------------------------------------------------------------------------------------------------


def test_inductor_has_the_options() -> None:
    config = toolchain.inductor(on_cpu=False).config
    values = config.get_config_copy()
    assert {*_OPTIONS, *toolchain.FAST_CPU, "cpp.threads"} <= values.keys()
    assert values["cpp.enable_floating_point_contract_flag"] == "off"  # to which flags are appended


def test_inductor_appends_the_flags_after_its_own() -> None:
    toolchain.inductor(on_cpu=False)
    from torch._inductor import config, cpp_builder

    with config.patch(toolchain.FAST_CPU):
        flags = " ".join(f"-{flag}" for flag in cpp_builder.CppTorchDeviceOptions(device_type="cpu").get_cflags())
    assert flags.index("-O3") < flags.index("-O1 ")
    for flag in ("-ffp-contract=off", "-g0", "-w"):
        assert flag in flags.split()
    assert flags.split()[flags.split().index("-g0") :].count("-g1") == 0


def test_inductor_select_decomp_table_knows_activations() -> None:
    toolchain.inductor(on_cpu=False)
    from torch._inductor.decomposition import select_decomp_table

    assert {aten.silu.default, aten.native_batch_norm.default, aten.t.default} <= select_decomp_table().keys()


@pytest.mark.slow
def test_inductor_compile_fx_inner_takes_a_graph_and_finds_it_again(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inductor = toolchain.inductor(on_cpu=False)
    from torch._dynamo.utils import counters
    from torch._inductor import compile_fx
    from torch._inductor.virtualized import V

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = []
    for _ in range(2):
        counters.clear()
        examples = fakes(torch.ones(3), torch.ones(3))
        graph = make_fx(lambda x, y: [aten.exp(x) + y], tracing_mode="fake")(*examples)
        mode = examples[0].fake_mode  # type: ignore[attr-defined]
        last = next(iter(reversed(graph.graph.nodes)))
        last.meta["user_visible_output_idxs"] = [0]
        options = {**compile_fx.get_cpp_wrapper_config(), **_OPTIONS, **toolchain.FAST_CPU}
        with (
            warnings.catch_warnings(),
            inductor.config.patch(options),
            V.set_fake_mode(mode),
            tracing(TracingContext(mode)),
        ):
            warnings.simplefilter("ignore")
            run = compile_fx.compile_fx_inner(graph, examples, cpp_wrapper=True, is_inference=True)
        [out] = run([torch.zeros(3), torch.ones(3)])
        assert torch.equal(out, torch.full((3,), 2.0))
        found.append((counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"]))
    assert found == [(1, 0), (0, 1)]


@pytest.mark.slow
def test_inductor_compile_takes_a_graph_and_options() -> None:
    inductor = toolchain.inductor(on_cpu=False)
    graph = make_fx(lambda x: [x * 2])(torch.ones(3))
    for node in graph.graph.find_nodes(op="placeholder"):
        node.meta.pop("val")
    with warnings.catch_warnings(), toolchain.kept_on_disk([torch.ones(3)]) as examples:
        warnings.simplefilter("ignore")
        run = inductor.compile(graph, examples, options=_OPTIONS | toolchain.FAST_CPU)
    assert torch.equal(run(torch.ones(3))[0], torch.full((3,), 2.0))


@pytest.mark.slow
def test_inductor_cpp_wrapper_code_cache_compiles_the_program_for_headers() -> None:
    toolchain.inductor(on_cpu=False)
    from torch._inductor import codecache, config

    with config.patch(toolchain.FAST_CPU):
        entry = codecache.CppWrapperCodeCache.load_pybinding(
            ["std::vector<AtenTensorHandle>"],
            toolchain._PROGRAM,
            device_type="cpu",
            needs_vec_isa=True,
            num_outputs=0,
        )
    assert callable(entry)


# -- kernels -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_mkldnn_linear_pointwise_is_a_product() -> None:
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    out = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    torch.testing.assert_close(out, a @ b)


def test_mkldnn_is_mkldnn_bf16_supported_answers() -> None:
    assert torch.ops.mkldnn._is_mkldnn_bf16_supported() in (True, False)


@pytest.mark.parametrize("kernel", [torch._fused_adam_, torch._fused_adamw_])
def test_fused_adam_kernels_skip_where_found_inf_and_divide_by_grad_scale(kernel: Any) -> None:
    def after(grad: Tensor, *, found_inf: float, grad_scale: float) -> Tensor:
        p = torch.ones(3)
        kernel(
            [p], [grad.clone()], [torch.zeros(3)], [torch.zeros(3)], [], [torch.ones(())],
            lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.0, eps=0.1, amsgrad=False, maximize=False,
            grad_scale=torch.tensor(grad_scale), found_inf=torch.tensor(found_inf),
        )  # fmt: skip
        return p

    grad = torch.tensor([1.0, 2.0, -3.0])
    assert torch.equal(after(grad, found_inf=1.0, grad_scale=1.0), torch.ones(3))
    moved = after(grad, found_inf=0.0, grad_scale=1.0)
    torch.testing.assert_close(moved, 1 - 0.1 * grad / (grad.abs() + 0.1))
    torch.testing.assert_close(after(2 * grad, found_inf=0.0, grad_scale=2.0), moved)


def test_foreach_add_takes_tensors_of_one_number() -> None:
    steps = [torch.zeros(()), torch.ones(())]
    torch._foreach_add_(steps, [torch.ones(())] * 2)
    assert [s.item() for s in steps] == [1.0, 2.0]


# -- Pyro --------------------------------------------------------------------------------------------------------------


def reads(function: Any, value: Tensor) -> set[tuple[Any, str]]:
    """Which of Python's conversions a function asks a tensor for, and the code that asks."""
    asked = set()

    class Note(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            caller = inspect.currentframe().f_back  # type: ignore[union-attr]
            asked.add((caller.f_code, getattr(func, "__name__", "")))  # type: ignore[union-attr]
            return func(*args, **(kwargs or {}))

    with Note():
        function(value)
    return asked


def test_pyro_util_warn_if_nan_and_warn_if_inf_ask_for_a_bool() -> None:
    for question in (pyro.util.warn_if_nan, pyro.util.warn_if_inf):
        assert (question.__code__, "__bool__") in reads(question, torch.tensor(0.5))


def test_pyro_is_identically_zero_and_one_ask_for_a_number() -> None:
    for question in (pyro.distributions.util.is_identically_zero, pyro.distributions.util.is_identically_one):
        assert (question.__code__, "item") in reads(question, torch.tensor(3))
        assert not reads(question, torch.tensor(0.5)) & {(question.__code__, "item"), (question.__code__, "__bool__")}


def test_pyro_infer_util_dice_compute_expectation_is_there() -> None:
    assert pyro.infer.util.Dice.compute_expectation.__code__.co_name == "compute_expectation"


def test_pyro_infer_traceenum_elbo_get_common_scale_is_there() -> None:
    scale = inspect.unwrap(pyro.infer.traceenum_elbo._get_common_scale)
    assert scale.__code__.co_name == "_get_common_scale"


def test_pyro_distributions_transforms_spline_monotonic_rational_spline_is_there() -> None:
    from pyro.distributions.transforms.spline import _monotonic_rational_spline

    assert inspect.unwrap(_monotonic_rational_spline).__code__.co_name == "_monotonic_rational_spline"


def test_pyro_poutine_indep_messenger_iterates_over_a_plate() -> None:
    from pyro.poutine.indep_messenger import IndepMessenger

    with poutine.trace():
        plate = pyro.plate("data", 3)
        assert isinstance(plate, IndepMessenger)
        assert list(plate) == [0, 1, 2]


def test_pyro_poutine_runtime_am_i_wrapped() -> None:
    assert not pyro.poutine.runtime.am_i_wrapped()
    with poutine.scale(scale=2.0):
        assert pyro.poutine.runtime.am_i_wrapped()


def test_pyro_param_store_names_a_modules_parameters_with_dollars_and_finds_them() -> None:
    module = nn.Linear(2, 1)
    pyro.module("net", module)
    store = pyro.get_param_store()
    assert set(store) == {"net$$$weight", "net$$$bias"}
    assert store.param_name(module.weight) == "net$$$weight"
    assert dict(store.named_parameters())["net$$$weight"] is module.weight


def test_poutine_trace_of_parameters_gives_the_unconstrained_ones() -> None:
    with poutine.trace(param_only=True) as found:
        value = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        pyro.sample("z", dist.Normal(0.0, value))
    assert list(found.trace.nodes) == ["scale"]
    unconstrained = found.trace.nodes["scale"]["value"].unconstrained()
    assert unconstrained.is_leaf
    assert unconstrained.requires_grad
