"""Layers, transforms and Pyro's modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
import torch.nn.functional as F
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import AutoRegressiveNN, PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.checkpoint import checkpoint

from .runner import CAPTURED, LEFT, NOTICED, ROUNDED, STEPS, Setup, call, fresh, program, ragged, reals


class Story(nn.Module):
    """z ~ N(0, I), x ~ N(W z, 1), with an encoder that gives 4 numbers for every datum."""

    def __init__(self, encode: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.encode = encode
        self.decode = nn.Linear(2, 6)
        self._forward = forward

    def model(self, x: Tensor) -> None:
        pyro.module("story", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 1.0).to_event(1), obs=x.reshape(len(x), -1)[:, :6])

    def guide(self, x: Tensor) -> None:
        pyro.module("story", self)
        code = self.encode(x) if self._forward is None else self._forward(self.encode, x)
        with pyro.plate("data", len(x)):
            loc, raw = code.chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, F.softplus(raw) + 0.01).to_event(1))


def encoded(
    encode: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor] | None = None, batches: Any = None, **options: Any
) -> Setup:
    story = Story(encode, forward)
    return Setup(story.model, story.guide, batches or ragged(5, 6), modules=(story,), **options)


@program(CAPTURED, compiled=True)
def layers() -> Setup:
    """`Linear`, `LayerNorm`, `GELU`, weight decay"""
    return encoded(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4)))


@program(LEFT, says="self.encode")
def batch_norm_with_a_cumulative_mean() -> Setup:
    """`BatchNorm1d(momentum=None)`, which reads its counter"""
    return encoded(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=None), nn.ReLU(), nn.Linear(8, 4)))


@program(CAPTURED)
def dropout() -> Setup:
    """`Dropout`, and `BatchNorm1d` with statistics and counter"""
    return encoded(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 4)))


@program(NOTICED)
def train_and_eval() -> Setup:
    """`train()` and `eval()` in turn"""
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 4))
    return encoded(network, before_step=lambda svi, i: network.train(i % 5 < 3))


@program(CAPTURED)
def convolutions() -> Setup:
    """`Conv2d`, pooling and `ConvTranspose2d`"""
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(2), nn.ConvTranspose2d(3, 1, 2), nn.Flatten(), nn.Linear(9, 4)
    )
    return encoded(network, batches=fresh(3, 1, 4, 4))


def _recurrent(kind: type[nn.Module], **options: Any) -> Setup:
    width = 3 * (2 if options.get("bidirectional") else 1)
    network = nn.ModuleList([kind(2, 3, **options), nn.Linear(width, 4)])

    def forward(parts: Any, x: Tensor) -> Tensor:
        sequence = x if options.get("batch_first") else x.transpose(0, 1)
        out, _ = parts[0](sequence)
        return parts[1](out[:, -1] if options.get("batch_first") else out[-1])

    return encoded(network, forward, fresh(3, 4, 2))


@program(CAPTURED)
def gru() -> Setup:
    """`GRU`"""
    return _recurrent(nn.GRU)


@program(ROUNDED)
def lstm() -> Setup:
    """`LSTM`, bidirectional, batch first: without oneDNN's fused kernel"""
    return _recurrent(nn.LSTM, bidirectional=True, batch_first=True)


@program(CAPTURED)
def rnn() -> Setup:
    """`RNN` of two layers, batch first"""
    return _recurrent(nn.RNN, num_layers=2, batch_first=True)


@program(CAPTURED)
def recurrent_cells() -> Setup:
    """`GRUCell` in a loop"""
    network = nn.ModuleList([nn.GRUCell(2, 3), nn.Linear(3, 4)])

    def forward(parts: Any, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 3)
        for t in range(x.shape[1]):
            state = parts[0](x[:, t], state)
        return parts[1](state)

    return encoded(network, forward, fresh(3, 4, 2))


@program(LEFT, says="rnn(packed)")
def packed_sequences() -> Setup:
    """`pack_padded_sequence` with lengths among the arguments"""
    rnn, head = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 2)

    def model(x: Tensor, lengths: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0, 0])

    def guide(x: Tensor, lengths: Tensor) -> None:
        pyro.module("rnn", rnn)
        pyro.module("head", head)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        loc, raw = head(rnn(packed)[1][0]).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.exp()))

    batches = [call(reals(3, 4, 2, seed=i), torch.tensor([4, 2, 3]).roll(i)) for i in range(STEPS)]
    return Setup(model, guide, batches, modules=(rnn, head))


@program(CAPTURED)
def attention() -> Setup:
    """A transformer's encoder layer with dropout"""
    layer = nn.TransformerEncoderLayer(2, 1, dim_feedforward=4, dropout=0.1, batch_first=True)
    network = nn.ModuleList([layer, nn.Linear(2, 4)])
    return encoded(network, lambda parts, x: parts[1](parts[0](x).mean(1)), fresh(3, 4, 2))


@program(CAPTURED)
def affine_grid() -> Setup:
    """`F.affine_grid` and `F.grid_sample` (attend, infer, repeat)"""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            where = pyro.sample("where", dist.Normal(torch.tensor([1.0, 0.0, 0.0]), 0.2).to_event(1))
            scale, shift = where[:, :1], where[:, 1:]
            zero = torch.zeros_like(scale)
            theta = torch.stack(
                [torch.cat([scale, zero, shift[:, :1]], 1), torch.cat([zero, scale, shift[:, 1:]], 1)], 1
            )
            grid = F.affine_grid(theta, [len(x), 1, 4, 4], align_corners=False)
            image = F.grid_sample(torch.ones(len(x), 1, 3, 3), grid, align_corners=False)
            pyro.sample("x", dist.Normal(image[:, 0], 1.0).to_event(2), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([1.0, 0.1, 0.0]))
        with pyro.plate("data", len(x)):
            pyro.sample("where", dist.Normal(loc, 0.1).to_event(1))

    return Setup(model, guide, fresh(3, 4, 4))


@program(LEFT, says="compared with Pyro")
def checkpointed_dropout() -> Setup:
    """`torch.utils.checkpoint` around dropout"""
    network = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.4), nn.Linear(8, 4))
    return encoded(network, lambda part, x: checkpoint(part, x, use_reentrant=False))


@program(CAPTURED)
def shared_weights() -> Setup:
    """One layer used twice under two names"""
    layer = nn.Linear(6, 6)
    return encoded(nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 4)))


@program(CAPTURED)
def weight_norm() -> Setup:
    """`weight_norm`, a parametrization"""
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
    return encoded(nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 4)))


@program(CAPTURED)
def spectral_norm() -> Setup:
    """`spectral_norm`, which updates its vectors at every call"""
    layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8))
    return encoded(nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 4)))


@program(CAPTURED, compiled=True)
def sparse_gradients() -> Setup:
    """`Embedding` with sparse gradients"""
    table = nn.Embedding(7, 1, sparse=True)

    def model(x: Tensor, index: Tensor) -> None:
        pyro.module("table", table)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(table(index)[:, 0], 1.0), obs=x)

    batches = [call(reals(5, seed=i), torch.arange(5).roll(i)) for i in range(STEPS)]
    optimizer = pyro.optim.SGD({"lr": 0.05})
    return Setup(model, lambda *args: None, batches, optimizer=optimizer, modules=(table,))


@program(CAPTURED)
def embeddings() -> Setup:
    """`Embedding` of labels among the arguments"""
    table = nn.Embedding(7, 1)

    def model(x: Tensor, index: Tensor) -> None:
        pyro.module("table", table)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(table(index)[:, 0], 1.0), obs=x)

    batches = [call(reals(5, seed=i), torch.arange(5).roll(i)) for i in range(STEPS)]
    return Setup(model, lambda *args: None, batches, modules=(table,))


@program(LEFT, says="torch.jit", around=lambda: torch.jit.optimized_execution(False))
def scripted() -> Setup:
    """A `torch.jit.script` module"""
    return encoded(torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))))


@program(LEFT, says="torch.jit")
def traced() -> Setup:
    """A `torch.jit.trace` module"""
    return encoded(torch.jit.trace(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), reals(5, 6)))


@program(LEFT, says="torch.compile")
def compiled_module() -> Setup:
    """A `torch.compile` module"""
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    return encoded(torch.compile(network, backend="eager"))


@program(CAPTURED)
def hooks() -> Setup:
    """A forward hook that changes the output"""
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    network[1].register_forward_hook(lambda module, args, output: 0.5 * output)
    return encoded(network)


@program(NOTICED)
def a_layer_replaced() -> Setup:
    """A layer replaced in mid-training"""
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

    def before_step(svi: SVI, i: int) -> None:
        if i == 7:
            network[1] = nn.ReLU()

    return encoded(network, before_step=before_step)


@program(NOTICED)
def a_parameter_of_a_module_replaced() -> Setup:
    """A rate of dropout changed in mid-training"""
    network = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.Linear(8, 4))
    return encoded(network, before_step=lambda svi, i: setattr(network[1], "p", 0.1 + 0.1 * (i // 7)))


@program(CAPTURED)
def pyro_module() -> Setup:
    """A `PyroModule` with `PyroParam` and `PyroSample`"""

    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
            self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

        def forward(self, x: Tensor) -> Tensor:
            mean = self.linear(x[:, :2]).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, self.noise), obs=x[:, 2])
            return mean

    model = Regression()
    return Setup(model, AutoDiagonalNormal(model), ragged(5, 3), modules=(model,))


@program(CAPTURED)
def dependent_pyro_samples() -> Setup:
    """`PyroSample` of a function of the module"""

    class Chain(PyroModule):
        @PyroParam(constraint=constraints.positive)
        def spread(self) -> Tensor:
            return torch.tensor(1.0)

        @PyroSample
        def mean(self) -> Any:
            return dist.Normal(0.0, self.spread)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.mean, 1.0), obs=x)

    model = Chain()
    return Setup(model, AutoNormal(model), fresh(5))


@program(CAPTURED)
def a_bayesian_network() -> Setup:
    """Every weight of a network random (`pyro.nn.module.to_pyro_module_`)"""
    network = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    pyro.nn.module.to_pyro_module_(network)
    for module in network.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, PyroSample(dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim())))

    def model(x: Tensor) -> None:
        mean = network(x[:, :1]).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=x[:, 1])

    return Setup(model, AutoNormal(model), fresh(5, 2))


def _transformed(transform: Any, n: int = 2) -> Setup:
    """Maximum likelihood of a flow over ``n`` numbers."""

    def model(x: Tensor) -> None:
        if isinstance(transform, nn.Module):
            pyro.module("transform", transform)
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(n), pyro.param("width", torch.ones(n), constraint=constraints.positive))
            pyro.sample("x", dist.TransformedDistribution(base.to_event(1), [transform]), obs=x)

    return Setup(model, lambda x: None, fresh(5, n), modules=(transform,) if isinstance(transform, nn.Module) else ())


@program(CAPTURED)
def splines() -> Setup:
    """A rational spline"""
    return _transformed(transforms.spline(2, count_bins=4))


@program(CAPTURED)
def spline_coupling() -> Setup:
    """Coupled splines"""
    return _transformed(transforms.spline_coupling(2, hidden_dims=[4], count_bins=3))


@program(CAPTURED)
def affine_coupling() -> Setup:
    """Affine coupling (Real NVP)"""
    return _transformed(transforms.affine_coupling(2, hidden_dims=[4]))


@program(CAPTURED)
def batch_norm_transform() -> Setup:
    """`transforms.BatchNorm`, with its running statistics"""
    return _transformed(transforms.BatchNorm(2))


@program(CAPTURED)
def cached_transforms() -> Setup:
    """Transforms with caches, sampled in the guide and scored in the model"""
    flow = transforms.ComposeTransformModule([transforms.planar(2), transforms.radial(2)])
    exp = torch.distributions.transforms.ExpTransform(cache_size=1)

    def model(x: Tensor) -> None:
        pyro.sample("rate", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        pyro.sample("rate", dist.TransformedDistribution(base, [*flow, exp]))

    return Setup(model, guide, fresh(5, 2), modules=(flow,))


@program(CAPTURED)
def conditional_flow() -> Setup:
    """A conditional spline"""
    flow = transforms.conditional_spline(1, context_dim=1, hidden_dims=[4], count_bins=3)

    def model(x: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(1), torch.ones(1)).to_event(1)
            flowed = dist.ConditionalTransformedDistribution(base, [flow]).condition(x[:, :1])
            pyro.sample("x", flowed, obs=x[:, 1:])

    return Setup(model, lambda x: None, fresh(5, 2), modules=(flow,))


@program(CAPTURED)
def autoregressive_network() -> Setup:
    """`AutoRegressiveNN` with random permutations"""
    return encoded(
        nn.ModuleList([AutoRegressiveNN(6, [8], param_dims=[1]), nn.Linear(6, 4)]), lambda m, x: m[1](m[0](x))
    )
