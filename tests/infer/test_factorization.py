"""Log-weights of stories with several plates, enumerated sites and given globals, against closed forms."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoLaplaceApproximation, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from pyro_vae.infer import Adam, CompiledSVI, TraceIWAE_ELBO, trace_log_weights

T = 4
X = torch.randn(5, T, generator=torch.Generator().manual_seed(3)) + 1.0  # five data of four views


def log_evidence(x: Tensor) -> Tensor:
    """log p(x) of z ~ N(0, 1), x_t ~ N(z, 1) for every datum of ``(B, T)``."""
    t = x.shape[1]
    return dist.MultivariateNormal(torch.zeros(t), torch.eye(t) + 1.0).log_prob(x)


def draw_posterior(x: Tensor, shape: tuple[int, ...] = (-1,)) -> None:
    """z from its exact posterior, in whatever plate this is called."""
    scale = (1 / (x.shape[1] + 1)) ** 0.5
    pyro.sample("z", dist.Normal((x.sum(1) / (x.shape[1] + 1)).reshape(shape), scale))


# -- plates --------------------------------------------------------------------------------------------------------


def left(x: Tensor) -> None:
    """The views left of the data."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("views", x.shape[1], dim=-2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)


def left_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        draw_posterior(x)


def right(x: Tensor) -> None:
    """The views right of the data."""
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("views", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def right_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2):
        draw_posterior(x, (-1, 1))


def apart(x: Tensor) -> None:
    """The data where the particles would be with one plate, an empty dimension beside them."""
    with pyro.plate("data", len(x), dim=-3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("views", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, None])


def apart_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-3):
        draw_posterior(x, (-1, 1, 1))


def automatic(x: Tensor) -> None:
    """Plates that find their dimension by themselves."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("views", x.shape[1]):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)


def automatic_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        draw_posterior(x)


def halves(x: Tensor) -> None:
    """Two plates within a datum, crossed, one on either side."""
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 2, dim=-1), pyro.plate("columns", x.shape[1] // 2, dim=-3):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.reshape(len(x), 2, -1).permute(2, 0, 1))


def in_turn(x: Tensor) -> None:
    """A loop within a datum."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for t in pyro.plate("views", x.shape[1]):
            pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])


LAYOUTS = {
    "left": (left, left_guide),
    "right": (right, right_guide),
    "apart": (apart, apart_guide),
    "automatic": (automatic, automatic_guide),
    "halves": (halves, right_guide),
    "in turn": (in_turn, left_guide),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plates_within_a_datum_are_summed_into_it(layout: str) -> None:
    model, guide = LAYOUTS[layout]
    log_w = trace_log_weights(model, guide, (X,), num_particles=7)
    assert log_w.shape == (7, 5)
    torch.testing.assert_close(log_w, log_evidence(X).expand(7, 5), rtol=0, atol=1e-4)


def test_a_latent_variable_of_each_view_belongs_to_the_datum() -> None:
    """u_t ~ N(0, 1), x_t ~ N(u_t, 1): p(x) is a product over the views; q is wrong, and each weight is known."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("views", x.shape[1], dim=-1):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(u, 1.0), obs=x)

    def guide(x: Tensor) -> Tensor:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("views", x.shape[1], dim=-1):
            return pyro.sample("u", dist.Normal(x / 3, 0.8))

    drawn = []
    log_w = trace_log_weights(model, lambda x: drawn.append(guide(x)), (X,), num_particles=3)
    u = drawn[-1]
    assert u.shape == (3, 5, T)
    terms = dist.Normal(0.0, 1.0).log_prob(u) + dist.Normal(u, 1.0).log_prob(X) - dist.Normal(X / 3, 0.8).log_prob(u)
    torch.testing.assert_close(log_w, terms.sum(-1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "in turn"])  # Pyro reads a loop's indices
def test_the_objective_is_the_bound_in_every_layout_and_captures(layout: str) -> None:
    model, guide = LAYOUTS[layout]
    assert TraceIWAE_ELBO(3).loss(model, guide, X) == pytest.approx(-log_evidence(X).sum().item(), rel=1e-5)

    def trained(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.3))
        guide(x + shift)

    svi = CompiledSVI(model, trained, Adam({"lr": 0.02}), TraceIWAE_ELBO(3), compile="graph", check_steps=3)
    for _ in range(100):
        svi.step(X)
    assert svi.captures
    assert pyro.param("shift").item() == pytest.approx(0.0, abs=0.1)


def test_a_subsampled_plate_of_the_data_scales_outside_the_logarithm() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 50, subsample=x, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("views", x.shape[1], dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 50, subsample=x, dim=-2):
            draw_posterior(x, (-1, 1))

    torch.testing.assert_close(
        trace_log_weights(model, guide, (X,), num_particles=2), log_evidence(X).expand(2, 5), rtol=0, atol=1e-4
    )
    assert TraceIWAE_ELBO(2).loss(model, guide, X) == pytest.approx(-10 * log_evidence(X).sum().item(), rel=1e-5)


def renamed(function: Any, **names: str) -> Any:
    """``function`` with its plates called otherwise."""

    def renaming(x: Tensor) -> None:
        plate = pyro.plate

        class Plate(plate):  # type: ignore[misc, valid-type]
            def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
                super().__init__(names.get(name, name), *args, **kwargs)

        pyro.plate = Plate
        try:
            function(x)
        finally:
            pyro.plate = plate

    return renaming


def test_the_plate_of_the_data_is_known_by_its_name() -> None:
    model, guide = renamed(left, data="pictures"), renamed(left_guide, data="pictures")
    with pytest.raises(ValueError, match=r"plate: expected .* one of \['pictures', 'views'\], got 'data'"):
        trace_log_weights(model, guide, (X,))
    log_w = trace_log_weights(model, guide, (X,), plate="pictures")
    torch.testing.assert_close(log_w[0], log_evidence(X), rtol=0, atol=1e-4)
    assert TraceIWAE_ELBO(2, plate="pictures").loss(model, guide, X) == pytest.approx(-log_evidence(X).sum().item())
    alone = trace_log_weights(renamed(in_turn, data="pictures"), guide, (X,))  # one vectorized plate alone
    torch.testing.assert_close(alone[0], log_evidence(X), rtol=0, atol=1e-4)


def test_all_plates_may_belong_to_one_datum() -> None:
    log_w = trace_log_weights(left, left_guide, (X,), plate=None, num_particles=2)
    assert log_w.shape == (2, 1)
    torch.testing.assert_close(log_w, log_evidence(X).sum().expand(2, 1), rtol=0, atol=1e-4)


# -- enumerated sites ----------------------------------------------------------------------------------------------

PROBABILITIES, CENTRES = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-2.0, 0.5, 3.0])


def mixture(x: Tensor, size: int | None = None, mask: Any = True) -> None:
    """k ~ Categorical, z ~ N(0, 1), x ~ N(z + centre_k, 1)."""
    centres = pyro.param("centres", CENTRES.clone())
    with pyro.plate("data", size or len(x), subsample=x, dim=-1), poutine.mask(mask=mask):
        k = pyro.sample("k", dist.Categorical(PROBABILITIES), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + centres[k], 1.0), obs=x)


def mixture_guide(x: Tensor, size: int | None = None, mask: Any = True) -> None:
    with pyro.plate("data", size or len(x), subsample=x, dim=-1), poutine.mask(mask=mask):
        pyro.sample("z", dist.Normal(x / 3, 0.8))


def mixture_by_hand(x: Tensor, z: Tensor, centres: Tensor = CENTRES) -> Tensor:
    of_each = PROBABILITIES.log() + dist.Normal(z[..., None] + centres, 1.0).log_prob(x[:, None])
    return of_each.logsumexp(-1) + dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(x / 3, 0.8).log_prob(z)


@pytest.mark.parametrize("kwargs", [{}, {"size": 30}, {"mask": torch.tensor([True, False, True, True, False])}])
def test_a_mixture_is_summed_as_by_hand(kwargs: dict[str, Any]) -> None:
    x = X[:, 0]
    pyro.set_rng_seed(1)
    log_w = trace_log_weights(mixture, mixture_guide, (x,), kwargs, num_particles=4)
    pyro.set_rng_seed(1)
    by_hand = mixture_by_hand(x, x / 3 + 0.8 * torch.randn(4, 5))
    if "mask" in kwargs:
        by_hand = by_hand.where(kwargs["mask"], torch.tensor(0.0))
    torch.testing.assert_close(log_w, by_hand, rtol=0, atol=1e-5)


def test_the_gradient_passes_through_the_sum() -> None:
    x = X[:, 0]
    pyro.set_rng_seed(1)
    trace_log_weights(mixture, mixture_guide, (x,), num_particles=4).sum().backward()
    gradient = pyro.param("centres").grad
    pyro.set_rng_seed(1)
    centres = CENTRES.clone().requires_grad_()
    mixture_by_hand(x, x / 3 + 0.8 * torch.randn(4, 5), centres).sum().backward()
    torch.testing.assert_close(gradient, centres.grad)


def empty_guide(x: Tensor, size: int | None = None) -> None:
    pass


def test_classes_of_a_datum_and_of_its_pixels() -> None:
    """A class for each datum, and one for each pixel given it: sums within products within sums."""
    switch = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    means = torch.tensor([-1.0, 1.5])

    @config_enumerate
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            k = pyro.sample("k", dist.Categorical(PROBABILITIES))
            with pyro.plate("pixels", x.shape[1], dim=-1):
                c = pyro.sample("c", dist.Categorical(switch[k]))
                pyro.sample("x", dist.Normal(means[c], 1.0), obs=x)

    of_pixels = (switch.log() + dist.Normal(means, 1.0).log_prob(X[:, :, None, None])).logsumexp(-1)  # (B, T, k)
    exact = (PROBABILITIES.log() + of_pixels.sum(1)).logsumexp(-1)
    log_w = trace_log_weights(model, empty_guide, (X,), num_particles=2)
    torch.testing.assert_close(log_w, exact.expand(2, 5), rtol=0, atol=1e-5)
    assert TraceIWAE_ELBO(2).loss(model, empty_guide, X) == pytest.approx(
        TraceEnum_ELBO(max_plate_nesting=2).loss(model, empty_guide, X), rel=1e-5
    )


def test_a_hidden_markov_chain_is_summed_as_by_the_forward_algorithm() -> None:
    transition, means = torch.tensor([[0.8, 0.2], [0.3, 0.7]]), torch.tensor([-1.0, 1.0])

    @config_enumerate
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            state: Any = 0
            for t in pyro.markov(range(x.shape[1])):
                state = pyro.sample(f"state{t}", dist.Categorical(transition[state]))
                pyro.sample(f"x{t}", dist.Normal(means[state], 1.0), obs=x[:, t])

    alpha = transition[0].log() + dist.Normal(means, 1.0).log_prob(X[:, :1])
    for t in range(1, T):
        alpha = (alpha[..., None] + transition.log()).logsumexp(1) + dist.Normal(means, 1.0).log_prob(X[:, t, None])
    log_w = trace_log_weights(model, empty_guide, (X,), num_particles=3)
    torch.testing.assert_close(log_w, alpha.logsumexp(-1).expand(3, 5), rtol=0, atol=1e-5)


def test_a_mixture_trains_and_captures() -> None:
    svi = CompiledSVI(mixture, mixture_guide, Adam({"lr": 0.01}), TraceIWAE_ELBO(2), compile="graph", check_steps=3)
    for _ in range(5):
        svi.step(X[:, 0], size=20)
    assert svi.captures


def test_enumeration_is_exact_or_refused() -> None:
    x = X[:, 0]

    def scaled(x: Tensor) -> None:
        with poutine.scale(scale=0.5):
            mixture(x)

    def sampled(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(PROBABILITIES), infer={"enumerate": "parallel", "num_samples": 2})
            pyro.sample("x", dist.Normal(CENTRES[k], 1.0), obs=x)

    def global_class(x: Tensor) -> None:
        k = pyro.sample("k", dist.Categorical(PROBABILITIES), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(CENTRES[k], 1.0), obs=x)

    log_ws = []
    for model in (scaled, mixture):
        pyro.set_rng_seed(0)
        log_ws.append(trace_log_weights(model, mixture_guide, (x,)))
    torch.testing.assert_close(*log_ws)
    with pytest.raises(ValueError, match=r"poutine.scale multiplies one of \['k', 'x'\], which are summed out"):
        TraceIWAE_ELBO(2).loss(scaled, mixture_guide, x)
    with pytest.raises(ValueError, match="'k': expected exact enumeration"):
        trace_log_weights(sampled, empty_guide, (x,))
    with pytest.raises(ValueError, match="'k' is global"):
        trace_log_weights(global_class, empty_guide, (x,))


def test_what_the_guide_marks_for_enumeration_is_drawn() -> None:
    """The mark is one for TraceEnum_ELBO, whose value is the mean of the log-weights over all draws."""
    x = X[:, 0]
    log_ws = []
    for guide in (mixture_guide_of_k, config_enumerate(mixture_guide_of_k, default="parallel")):
        pyro.set_rng_seed(0)
        log_ws.append(trace_log_weights(mixture, guide, (x,), num_particles=4000))
    assert torch.equal(*log_ws)
    loss = TraceEnum_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1).loss(mixture, guide, x)
    of_data = log_ws[0].sum(1)
    assert abs(of_data.mean() + loss) < 4.5 * of_data.std() * 2**0.5 / 4000**0.5
    # The planted fault: weights of the mixture, with the class summed out.
    assert abs(trace_log_weights(mixture, mixture_guide, (x,), num_particles=4000).sum(1).mean() + loss) > 0.5


def mixture_guide_of_k(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Categorical(PROBABILITIES))
        pyro.sample("z", dist.Normal(x / 3, 0.8))


# -- globals -------------------------------------------------------------------------------------------------------


def with_mean(x: Tensor) -> None:
    """mean ~ N(0, 10); z_b ~ N(mean, 1), x_b ~ N(z_b, 1)."""
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def given_mean_guide(x: Tensor, mean: float = 0.7) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + mean) / 2, 0.5**0.5))


def test_a_conditioned_global_is_given() -> None:
    x = X[:, 0]
    model = poutine.condition(with_mean, {"mean": torch.tensor(0.7)})
    exact = dist.Normal(0.7, 2**0.5).log_prob(x)
    log_w = trace_log_weights(model, given_mean_guide, (x,), num_particles=3)
    torch.testing.assert_close(log_w, exact.expand(3, 5), rtol=0, atol=1e-5)
    assert TraceIWAE_ELBO(3).loss(model, given_mean_guide, x) == pytest.approx(-exact.sum().item(), rel=1e-5)


def test_a_factor_of_parameters_is_given() -> None:
    x = X[:, 0]

    def model(x: Tensor) -> None:
        theta = pyro.param("theta", torch.tensor(0.7))
        pyro.factor("penalty", -3.0 * theta**2)
        poutine.condition(with_mean, {"mean": theta})(x)

    log_w = trace_log_weights(model, given_mean_guide, (x,), num_particles=3)
    torch.testing.assert_close(log_w, dist.Normal(0.7, 2**0.5).log_prob(x).expand(3, 5), rtol=0, atol=1e-5)


def test_what_ties_the_data_together_is_refused() -> None:
    x = X[:, 0]

    def sum_observed(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("sum", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match=r"'sum' is observed outside the plate of the data and depends on \['z'\]"):
        trace_log_weights(sum_observed, given_mean_guide, (x,))
    with pytest.raises(ValueError, match="'mean' is global"):
        trace_log_weights(with_mean, AutoNormal(with_mean), (x,))
    whole = poutine.condition(with_mean, {"mean": torch.tensor(0.7)})
    with pytest.raises(ValueError, match="'_AutoMultivariateNormal_latent' is global"):
        trace_log_weights(whole, AutoMultivariateNormal(whole), (x,))


def test_other_misfits_are_refused_by_name() -> None:
    x = X[:, 0]

    def loop(x: Tensor) -> None:
        for b in pyro.plate("data", len(x)):
            z = pyro.sample(f"z{b}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x{b}", dist.Normal(z, 1.0), obs=x[b])

    def few_views(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("views", x.shape[1], subsample_size=2, dim=-2) as chosen:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T[chosen])

    def no_plate(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(torch.zeros(len(x)), 1.0), obs=x)

    with pytest.raises(ValueError, match="plate 'data' is a loop"):
        trace_log_weights(loop, loop, (x,))
    with pytest.raises(ValueError, match="plate 'views' is subsampled"):
        trace_log_weights(few_views, left_guide, (X,))
    with pytest.raises(
        ValueError, match=r"site 'x': expected a log-density of shape \(1, 1\), the sizes of its plates, got \(1, 5\)"
    ):
        trace_log_weights(no_plate, lambda x: None, (x,))
    with pytest.raises(ValueError, match=r"plate 'data': expected one dimension and size"):
        trace_log_weights(left, lambda x: left_guide(torch.cat([x, x])), (X,))


# -- point masses --------------------------------------------------------------------------------------------------


def narrow(x: Tensor) -> None:
    """The density of its latent variable exceeds 1, and so would a "bound" without one for q."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 0.01))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def point_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(torch.zeros(len(x))))


def nested_points(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x / 2, 1.0))
        pyro.sample("y", dist.Delta(z + 1))


def nested(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        y = pyro.sample("y", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(y, 1.0), obs=x)


def in_a_list() -> AutoGuideList:
    guide = AutoGuideList(nested)
    guide.append(AutoNormal(poutine.block(nested, expose=["z"])))
    guide.append(AutoDelta(poutine.block(nested, expose=["y"])))
    return guide


@pytest.mark.parametrize(
    ("model", "make_guide", "site"),
    [
        (narrow, lambda: AutoDelta(narrow), "z"),
        (narrow, lambda: AutoLaplaceApproximation(narrow), "z"),
        (narrow, lambda: point_guide, "z"),
        (nested, lambda: nested_points, "y"),
        (nested, in_a_list, "y"),
    ],
)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_a_point_mass_has_no_density(model: Any, make_guide: Any, site: str, num_particles: int) -> None:
    guide = make_guide()
    with pytest.raises(ValueError, match=rf"site '{site}' of the guide is a point mass|latent' is global"):
        trace_log_weights(model, guide, (X[:, 0],), num_particles=num_particles)
    with pytest.raises(ValueError, match=rf"site '{site}' of the guide is a point mass|latent' is global"):
        TraceIWAE_ELBO(num_particles).loss(model, guide, X[:, 0])


def test_an_autoguide_with_a_density_is_taken() -> None:
    """AutoNormal passes an auxiliary draw through a point mass with the Jacobian: here of the logarithm."""
    x = X[:, 0].abs()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.LogNormal(z.log(), 1.0), obs=x)

    guide = AutoNormal(model)
    guide(x)
    guide.locs.z = x.log() / 2  # of log z, exactly
    guide.scales.z = torch.full((5,), 0.5**0.5)
    log_w = trace_log_weights(model, guide, (x,), num_particles=6)
    torch.testing.assert_close(log_w, dist.LogNormal(0.0, 2**0.5).log_prob(x).expand(6, 5), rtol=0, atol=1e-4)
    assert TraceIWAE_ELBO(2).loss(model, guide, x) == pytest.approx(-log_w[0].sum().item(), rel=1e-5)


def test_a_new_autoguide_gets_parameters_of_one_particle() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("views", x.shape[1]):
                u = pyro.sample("u", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(u, 1.0), obs=x.T)

    guide = AutoNormal(model)
    assert trace_log_weights(model, guide, (X,), num_particles=6).shape == (6, 5)
    assert guide.locs.z.shape == (5,)
    assert guide.locs.u.shape == (T, 5)


def test_a_point_mass_on_a_discrete_variable_has_a_probability() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(PROBABILITIES))
            pyro.sample("x", dist.Normal(CENTRES[k], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Delta(torch.ones(len(x)).long()))

    x = X[:, 0]
    exact = PROBABILITIES[1].log() + dist.Normal(CENTRES[1], 1.0).log_prob(x)
    torch.testing.assert_close(trace_log_weights(model, guide, (x,)), exact[None], rtol=0, atol=1e-5)


def test_an_objective_checks_each_new_story() -> None:
    objective = TraceIWAE_ELBO(2)
    objective.loss(narrow, given_mean_guide, X[:, 0])
    with pytest.raises(ValueError, match="point mass"):
        objective.loss(narrow, point_guide, X[:, 0])


def test_what_is_conditioned_in_model_and_guide_is_no_draw_of_the_guide() -> None:
    """log q of a value that was given has no place in a weight, be it global or a datum's."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(3.0, 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + w) / 2, 0.5**0.5))

    x, w, z = torch.tensor([0.3, -1.2, 2.0]), torch.tensor(0.7), torch.tensor([0.1, 0.2, 0.3])
    given = [poutine.condition(function, {"w": w}) for function in (model, guide)]
    exact = dist.Normal(w, 2**0.5).log_prob(x)
    assert torch.allclose(trace_log_weights(*given, (x,), num_particles=3), exact.expand(3, 3), atol=1e-5)
    assert TraceIWAE_ELBO(2).loss(*given, x) == pytest.approx(-exact.sum().item(), rel=1e-5)
    given = [poutine.condition(function, {"w": w, "z": z}) for function in (model, guide)]
    joint = dist.Normal(w, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
    assert torch.allclose(trace_log_weights(*given, (x,), num_particles=3), joint.expand(3, 3), atol=1e-5)


def test_a_factor_of_the_guide_counts_in_its_datum_and_is_refused_outside() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, inside: bool = True) -> None:
        if not inside:
            pyro.factor("f", torch.tensor(1.0), has_rsample=True)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            if inside:
                pyro.factor("f", torch.ones(len(x)), has_rsample=True)

    x = torch.tensor([0.3, -1.2, 2.0])
    log_w = trace_log_weights(model, guide, (x,), num_particles=2)
    assert torch.allclose(log_w, (dist.Normal(0.0, 2**0.5).log_prob(x) - 1).expand(2, 3), atol=1e-5)
    with pytest.raises(ValueError, match="'f' of the guide is observed outside the plate 'data'"):
        trace_log_weights(model, lambda x: guide(x, inside=False), (x,), num_particles=2)


def test_model_and_guide_swapped_are_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.randn(3)
    assert trace_log_weights(model, guide, (x,)).shape == (1, 3)
    with pytest.raises(ValueError, match=r"the guide observes 'x', and .* Give the model first"):
        trace_log_weights(guide, model, (x,))
