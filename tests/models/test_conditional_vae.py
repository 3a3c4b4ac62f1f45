"""The conditional VAE: y a class, a vector or an image; against the model with a shift for each class."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

import pyro_vae as pv
from tests import helpers
from tests.helpers.stories import trains_alike
from tests.models.test_given import solved_conditional_vae

CLASSES = 3


def solved() -> tuple[pv.ConditionalVAE, torch.Tensor, torch.Tensor, helpers.LinearGaussian]:
    """The solved linear-Gaussian model with a shift for each class, by class numbers."""
    vae, x, y, linear = solved_conditional_vae()
    conditional = pv.ConditionalVAE(vae.prior, vae.likelihood.part, vae.posterior.part, num_classes=CLASSES)
    return conditional, x, y.argmax(1), linear


def small(*, pixels: int = 6, columns: int = CLASSES, **options) -> pv.ConditionalVAE:
    return pv.ConditionalVAE(
        pv.StandardNormalPrior(2),
        pv.BernoulliLikelihood(pv.MLP(2 + columns, pixels, hidden_dims=(8,))),
        pv.DiagonalNormalPosterior(pv.MLP(pixels + columns, 2 * 2, hidden_dims=(8,))),
        **options,
    )


def test_log_weights_of_the_solved_model_are_log_p_x_given_y():
    vae, x, y, linear = solved()
    log_w = pv.log_weights(vae.model, vae.guide, x, y, num_particles=3)
    torch.testing.assert_close(log_w, linear.log_px.expand(3, -1), rtol=0, atol=2e-4)
    torch.testing.assert_close(
        pv.bounds(vae.model, vae.guide, x, y, num_particles=2).iwae, linear.log_px, rtol=0, atol=2e-4
    )
    wrong = pv.log_weights(vae.model, vae.guide, x, y.roll(1, 0))
    assert (wrong - linear.log_px).abs().mean() > 1.0


def test_the_missing_half_of_an_image_is_learned():
    """p(x|y) of the second half given the first, by enumeration: the bound comes near, draws have its frequencies."""
    data = helpers.binary_data(4000)
    y, x = data[:, :3], data[:, 3:]
    vae = small(pixels=3, columns=3)
    svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), compile="graph")
    pv.fit(svi, pv.data.Batches(x, y, batch_size=200, shuffle=True), epochs=40, progress=False)
    halves = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    patterns = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0.0, 0, 0, 1, 1, 1]])
    whole = torch.cat([halves.repeat_interleave(8, 0), halves.repeat(8, 1)], 1)  # y, x
    p = torch.where(whole[:, None] == patterns, 0.9, 0.1).prod(-1).mean(-1).reshape(8, 8)  # p(y, x)
    exact = (p / p.sum(1, keepdim=True)).log().reshape(-1)
    bound = pv.bounds(vae.model, vae.guide, whole[:, 3:], whole[:, :3], num_particles=500).iwae
    nats_lost = (p.reshape(-1) * (exact - bound)).sum().item()  # KL, on average over y
    without_y = (p.reshape(-1) * (exact - p.sum(0).log().repeat(8))).sum().item()
    assert 0 < nats_lost < 0.1
    assert without_y > 0.3
    draws = vae.sample(2000, torch.tensor([[1.0, 1.0, 1.0]]).expand(2000, 3))
    torch.testing.assert_close(draws.mean(0), torch.full((3,), 0.1), rtol=0, atol=0.06)


def test_images_vectors_and_classes_are_one_model():
    """An image is flattened, a class is a column: the same values as with the vector that they amount to."""
    vae, x = small(columns=4), helpers.binary_data(16)
    image = torch.rand(16, 1, 2, 2)
    for method in (vae.encode, vae.reconstruct):
        a, b = method(x, image), method(x, image.flatten(1))
        assert torch.equal(*(v if isinstance(v, torch.Tensor) else v.mean for v in (a, b)))
    classes = small(num_classes=CLASSES)
    vectors = small()
    vectors.load_state_dict(classes.state_dict())
    y = torch.arange(16) % CLASSES
    assert torch.equal(classes.reconstruct(x, y), vectors.reconstruct(x, nn.functional.one_hot(y, CLASSES).float()))
    assert classes.double().reconstruct(x.double(), y).dtype == torch.float64


def test_an_image_is_joined_to_an_image_as_channels():
    vae = pv.ConditionalVAE(
        pv.DiagonalNormalPosterior(pv.ConvEncoder((2, 8, 8), 2 * 3, channels=(4,))),  # p(z|y), y an image
        pv.BernoulliLikelihood(pv.ConvDecoder(3 + 2 * 64, (1, 8, 8), channels=(4,)), event_shape=(1, 8, 8)),
        pv.DiagonalNormalPosterior(pv.ConvEncoder((1 + 2, 8, 8), 2 * 3, channels=(4,))),
    )
    x, y = torch.rand(5, 1, 8, 8).round(), torch.rand(5, 2, 8, 8)
    expected = vae.posterior.part.part(torch.cat([x, y], 1))
    assert torch.equal(vae.encode(x, y).mean, expected.mean)
    assert pv.log_weights(vae.model, vae.guide, x, y, num_particles=3).shape == (3, 5)
    assert vae.sample(5, y).shape == vae.reconstruct(x, y, num_particles=2).shape == x.shape
    # A vector is a constant channel for each element.
    planes = pv.Conditional(vae.posterior.part.part, event_dim=3)
    vector = torch.rand(5, 2)
    assert torch.equal(planes(x, vector).mean, planes(x, vector[..., None, None].expand(5, 2, 8, 8)).mean)
    particles = planes(x.expand(4, 5, 1, 8, 8), vector).mean
    torch.testing.assert_close(particles[2], planes(x, vector).mean)


def test_an_embedding_is_trained_once(binary_data):
    vae = small(columns=4, embedding=nn.Embedding(CLASSES, 4))
    y = torch.arange(64) % CLASSES
    names = [name for name, _ in vae.named_parameters() if "embedding" in name]
    assert names == ["condition.embedding.weight"]
    assert [name for name in vae.state_dict() if "embedding" in name] == names
    before = vae.condition.embedding.weight.detach().clone()
    SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO()).step(binary_data, y)
    assert not torch.equal(vae.condition.embedding.weight, before)
    other = copy.deepcopy(vae)
    with torch.no_grad():
        other.condition.embedding.weight.zero_()
    assert not torch.equal(other.reconstruct(binary_data, y), vae.reconstruct(binary_data, y))


@pytest.mark.parametrize("objective", [Trace_ELBO, pv.TraceSTL_ELBO, lambda: pv.TraceIWAE_ELBO(3, gradient="dreg")])
@pytest.mark.parametrize("kind", ["classes", "embedding"])
def test_captured_steps_are_pyros(binary_data, objective, kind):
    def make():
        options = {"num_classes": CLASSES} if kind == "classes" else {"embedding": nn.Embedding(CLASSES, CLASSES)}
        vae = small(**options)
        return vae.model, vae.guide

    y = torch.arange(64) % CLASSES
    beta = {"keywords": lambda step: {"beta": torch.tensor((step + 1) / 8), "size": 100}}
    assert trains_alike(make, objective, (binary_data, y), **beta) == 1


def test_fit_resume_predictive_and_missing_data(tmp_path, binary_data):
    y = torch.arange(64) % CLASSES

    def run(directory, epochs, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        vae = small(num_classes=CLASSES)
        svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO())
        batches = list(zip(binary_data.split(16), y.split(16), strict=True))
        options = {"callbacks": [pv.Checkpoint(directory)], "progress": False, **options}
        history = pv.fit(svi, batches, epochs=epochs, validation=batches, **options)
        return vae, history

    whole, history = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    vae, again = run(tmp_path / "parts", 4, resume=tmp_path / "parts")
    assert again["train_elbo"] == history["train_elbo"]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in vae.state_dict().items())
    assert Predictive(vae.model, num_samples=5)(None, y)["x"].shape == (5, 64, 6)

    holes = binary_data.clone()
    holes[torch.rand(holes.shape) < 0.3] = math.nan
    posterior = pv.DiagonalNormalPosterior(pv.MLP(12 + CLASSES, 4, hidden_dims=(8,)))
    likelihood = pv.BernoulliLikelihood(pv.MLP(2 + CLASSES, 6, hidden_dims=(8,)))
    vae = pv.ConditionalVAE(pv.StandardNormalPrior(2), likelihood, posterior, num_classes=CLASSES, missing=True)
    assert pv.log_weights(vae.model, vae.guide, holes, y).isfinite().all()
    assert pv.impute(vae.model, vae.guide, holes, y, num_particles=5).mean.isfinite().all()
    vae.likelihood.initialize_output_bias(binary_data)


def test_bad_input_is_refused(binary_data):
    y = torch.arange(64) % CLASSES
    vae = small(num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"y: expected class numbers from 0 to 2, num_classes being 3, got 3. Number"):
        vae.guide(binary_data, y + 1)
    with pytest.raises(ValueError, match=r"y: expected class numbers, integers of shape \(B,\), got torch.float32"):
        vae.guide(binary_data, y.float())
    with pytest.raises(ValueError, match=r"given\[0\]: expected what Conditional joins .*, got nothing"):
        vae.guide(binary_data)
    with pytest.raises(TypeError, match=r"y: expected a torch.Tensor, got list"):
        vae.guide(binary_data, [1] * 64)
    with pytest.raises(ValueError, match=r"given\[0\]: expected 64 rows as in x, got 63"):
        vae.guide(binary_data, y[:63])
    with pytest.raises(TypeError, match=r"y: expected a float tensor, got torch.int64. For class numbers build"):
        small().guide(binary_data, y)
    with pytest.raises(ValueError, match=r"num_classes: expected None beside an embedding"):
        small(num_classes=3, embedding=nn.Identity())
    with pytest.raises(ValueError, match=r"num_classes: expected an integer of at least 1, got 0"):
        small(num_classes=0)
    with pytest.raises(TypeError, match=r"embedding: expected a torch.nn.Module, got 3"):
        small(embedding=3)
    with pytest.raises(TypeError, match=r"prior: expected a module"):
        pv.ConditionalVAE(None, vae.likelihood, vae.posterior)
    with pytest.raises(ValueError, match=r"event_dim: expected 1, for vectors, or 3, for images \(C, H, W\), got 2"):
        pv.Conditional(vae.posterior, event_dim=2)
    planes = pv.Conditional(vae.posterior, event_dim=3)
    with pytest.raises(ValueError, match=r"expected vectors \(B, C\) or images \(B, C, H, W\) .* got \(5, 8, 8\)"):
        planes(torch.rand(5, 1, 8, 8), torch.rand(5, 8, 8))
    with pytest.raises(ValueError, match=r"the input and height and width \(8, 8\), got shape \(5, 1, 7, 8\)"):
        planes(torch.rand(5, 1, 8, 8), torch.rand(5, 1, 7, 8))


def test_a_class_out_of_range_stops_a_captured_step(binary_data):
    vae, y = small(num_classes=CLASSES), torch.arange(64) % CLASSES
    svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), compile="graph", check_steps=0)
    for _ in range(2):
        svi.step(binary_data, y)
    before = copy.deepcopy(vae.state_dict())
    with pytest.warns(UserWarning, match="the loss or a gradient is not finite"):
        assert math.isnan(svi.step(binary_data, y + 1))
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_a_reconstruction_has_a_row_of_y_for_each_datum():
    vae = small(num_classes=CLASSES)
    x = torch.ones(4, 6)
    assert vae.reconstruct(x, torch.tensor([0, 1, 2, 0])).shape == (4, 6)
    with pytest.raises(ValueError, match=r"given\[0\]: expected 4 rows as in x, got 1"):
        vae.reconstruct(x, torch.tensor([1]))


@pytest.mark.parametrize("number", [2, np.int64(2)])
def test_one_class_for_all_samples(number):
    vae = small(num_classes=CLASSES)
    found = []
    for y in (number, torch.full((5,), 2)):
        pyro.set_rng_seed(0)
        found.append(vae.sample(5, y, mean=True))
    assert torch.equal(*found)
    with pytest.raises(ValueError, match="class numbers from 0 to 2, num_classes being 3, got 3"):
        vae.sample(5, 3)
