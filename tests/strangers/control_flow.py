"""Programs whose Python follows the values of tensors, and programs whose Python only looks so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceGraph_ELBO
from scipy import special
from torch import Tensor
from torch.distributions import constraints

from .runner import CAPTURED, LEFT, ROUNDED, STEPS, Setup, call, fresh, program, reals


def guide(*args: Any, **kwargs: Any) -> None:
    """q(z) = N(loc, scale) for one latent variable."""
    scale = pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), scale))


def observing(weight: Callable[[Tensor, Tensor], Any]) -> Setup:
    """z ~ N(0, 1), x_n ~ N(weight(z, x) z, 1), other data at every step."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(weight(z, x) * z, 1.0), obs=x)

    return Setup(model, guide, fresh(5))


@program(LEFT, says="if z > 0:")
def a_branch_on_a_sample() -> Setup:
    """`if z > 0`"""

    def weight(z: Tensor, x: Tensor) -> float:
        if z > 0:
            return 2.0
        return 1.0

    return observing(weight)


@program(LEFT, says="x.mean() > 0")
def a_branch_on_data() -> Setup:
    """`2.0 if x.mean() > 0 else 1.0`"""
    return observing(lambda z, x: 2.0 if x.mean() > 0 else 1.0)


@program(LEFT, says="while")
def a_loop_on_a_sample() -> Setup:
    """A geometric number of draws: `while` over a sample"""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        total, n = z, 0
        while total.abs() < 1.0:
            total, n = 2 * total + 0.1, n + 1
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + n, 1.0), obs=x)

    return Setup(model, guide, fresh(5))


@program(LEFT, says="if pyro.sample")
def stochastic_recursion() -> Setup:
    """A recursion whose depth is random, in model and guide"""

    def geometric(p: Any, t: int = 0) -> int:
        if pyro.sample(f"again_{t}", dist.Bernoulli(p)) > 0.5 and t < 5:
            return geometric(p, t + 1)
        return t

    def model(x: Tensor) -> None:
        depth = geometric(0.5)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(float(depth), 1.0), obs=x)

    def recursive(x: Tensor) -> None:
        geometric(pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval))

    return Setup(model, recursive, fresh(5), TraceGraph_ELBO())


@program(LEFT, says="z.item()")
def a_value_read() -> Setup:
    """`z.item()`"""
    return observing(lambda z, x: 1.0 + abs(round(z.item())))


@program(LEFT, says="float(x.std())")
def a_value_read_from_data() -> Setup:
    """`float(x.std())`"""
    return observing(lambda z, x: float(x.std()))


@program(LEFT, says="tolist")
def a_list_of_values() -> Setup:
    """`x.tolist()`"""
    return observing(lambda z, x: sum(v for v in x.tolist() if v > 0))


@program(LEFT, says="numpy")
def values_by_numpy() -> Setup:
    """`x.numpy()` and a median by numpy"""
    return observing(lambda z, x: float(np.median(x.numpy())))


@program(LEFT, says="special.expit")
def values_by_scipy() -> Setup:
    """A function of scipy"""
    return observing(lambda z, x: torch.as_tensor(special.expit(x.detach()), dtype=torch.float32))


@program(LEFT, says="print")
def a_printed_value() -> Setup:
    """A value that is formatted into a string"""
    log: list[str] = []

    def weight(z: Tensor, x: Tensor) -> float:
        log[:] = [f"print {float(z):.3f}"]
        return 1.0

    return observing(weight)


@program(LEFT, says="assert")
def an_assertion_on_data() -> Setup:
    """`assert` on the values of data"""

    def weight(z: Tensor, x: Tensor) -> float:
        assert torch.isfinite(x).all()
        return 1.0

    return observing(weight)


@program(LEFT, says="max(")
def the_larger_of_two() -> Setup:
    """`max()` of Python over tensors"""
    return observing(lambda z, x: max(x[0], x[1]))


@program(LEFT, says="sorted(")
def sorted_by_python() -> Setup:
    """`sorted()` of Python over a tensor"""
    return observing(lambda z, x: sorted(x)[2])


@program(LEFT, says="torch.equal")
def an_equality() -> Setup:
    """`torch.equal`"""
    return observing(lambda z, x: 2.0 if torch.equal(x, reals(5, seed=10)) else 1.0)


@program(LEFT, says="allclose")
def closeness() -> Setup:
    """`torch.allclose`"""
    return observing(lambda z, x: 2.0 if torch.allclose(x, reals(5, seed=10)) else 1.0)


@program(LEFT, says="if z in")
def membership() -> Setup:
    """`in` over a tensor"""

    def weight(z: Tensor, x: Tensor) -> float:
        if z in x:
            return 2.0
        return 1.0

    return observing(weight)


@program(LEFT, says="cholesky")
def an_exception_on_a_value() -> Setup:
    """`try` and `except` around a decomposition that fails for some values"""

    def weight(z: Tensor, x: Tensor) -> Any:
        try:
            return torch.linalg.cholesky(torch.outer(x, x) + x[0].sign() * torch.eye(5))[0, 0]
        except RuntimeError:  # not positive definite
            return 1.0

    return observing(weight)


@program(CAPTURED)
def a_decomposition() -> Setup:
    """`cholesky`, `solve`, `logdet`"""

    def weight(z: Tensor, x: Tensor) -> Any:
        matrix = torch.outer(x, x) + torch.eye(5)
        factor = torch.linalg.cholesky(matrix)
        return factor[0, 0] + torch.linalg.solve(matrix, x).sum() + torch.logdet(matrix)

    return observing(weight)


@program(ROUNDED)
def eigenvalues() -> Setup:
    """`eigvalsh`, which computes vectors too under a tracer"""
    return observing(lambda z, x: torch.linalg.eigvalsh(torch.outer(x, x) + torch.eye(5))[0])


@program(CAPTURED)
def branches_on_shapes() -> Setup:
    """`if` on shapes, types and `None`"""

    def model(x: Tensor, y: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        shift = 0.0 if y is None else (y.mean() if y.dim() == 1 else y.sum())
        if len(x) > 4 and x.dtype == torch.float32 and not x.requires_grad:
            shift = shift + x[4]
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    extras = [None, reals(3), reals(2, 2)]
    return Setup(model, guide, [call(reals(5 - i % 2, seed=i), extras[i % 3]) for i in range(STEPS)])


@program(CAPTURED)
def loops_of_fixed_length() -> Setup:
    """Loops over rows, `zip`, `enumerate`, comprehensions"""

    def weight(z: Tensor, x: Tensor) -> Any:
        total = x.new_zeros(())
        for i, (a, b) in enumerate(zip(x, x.flip(0), strict=True)):
            total = total + (i + 1) * a * b
        return torch.stack([total * row for row in x]).mean()

    return observing(weight)


@program(CAPTURED)
def helpers_and_closures() -> Setup:
    """Decorators, `functools`-free closures, lambdas and recursion of fixed depth"""

    def power(x: Tensor, n: int) -> Tensor:
        return x if n == 1 else x * power(x, n - 1)

    return observing(lambda z, x: power(x.abs().mean(), 3))


@program(CAPTURED)
def gradients_inside_the_model() -> Setup:
    """`torch.autograd.grad` inside the model"""

    def weight(z: Tensor, x: Tensor) -> Tensor:
        start = x.mean().detach().requires_grad_()
        (slope,) = torch.autograd.grad(torch.sin(start), start)
        return slope.detach()

    return observing(weight)


@program(CAPTURED)
def without_gradient_inside() -> Setup:
    """`torch.no_grad()` and `detach()` inside the model"""

    def weight(z: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            center = (x * z).mean()
        return x.mean().detach() + center

    return observing(weight)


@program(CAPTURED)
def a_function_with_its_own_gradient() -> Setup:
    """A `torch.autograd.Function`"""

    class Clamped(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z.clamp(-1.0, 1.0)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 0.5 * grad

    return observing(lambda z, x: Clamped.apply(z))


@program(CAPTURED)
def rejection_free_draws() -> Setup:
    """Gamma, Beta, Dirichlet, Poisson and Student's t draws in guide and model"""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Gamma(2.0, 2.0))
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.StudentT(3.0, z - p, 1.0), obs=x)

    def gamma_guide(x: Tensor) -> None:
        rate = pyro.param("rate", torch.tensor(2.0), constraint=constraints.positive)
        pyro.sample("z", dist.Gamma(rate + 1.0, rate))
        pyro.sample("p", dist.Beta(rate, 2.0))

    return Setup(model, gamma_guide, fresh(5))


@program(CAPTURED)
def relaxed_draws() -> Setup:
    """Relaxed Bernoulli and relaxed categorical draws, straight through"""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), probs=torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(2 * b - 1, 1.0), obs=x)

    def relaxed_guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(5))
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), logits=logits))

    return Setup(model, relaxed_guide, fresh(5))
