"""The recipe of Pyro's VAE example: a DataLoader over torchvision's MNIST with ``ToTensor``, and plain SVI."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from contest.problem import LEARNING_RATE, PIXELS, EpochProblem, Run
from contest.recipes.mnist import networks
from pyro_vae.data import import_torchvision

torchvision = import_torchvision()


def pyro_example(problem: EpochProblem) -> Run:
    """Each image is read through PIL on its way into a batch; grey levels go under a Bernoulli whose check is off."""
    to_tensor = torchvision.transforms.ToTensor()
    mnist = torchvision.datasets.MNIST(problem.data_dir, train=True, transform=to_tensor)
    loader = DataLoader(Subset(mnist, range(problem.subset)), batch_size=problem.batch_size, shuffle=True)
    encoder, decoder = networks(problem)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            loc = x.new_zeros(len(x), problem.latent_dim)
            z = pyro.sample("z", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            pixels = dist.Bernoulli(decoder(z).sigmoid(), validate_args=False)
            pyro.sample("x", pixels.to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO())

    def run(first: int, count: int) -> float:
        total = 0.0
        for _ in range(count):
            for x, _ in loader:
                total += svi.step(x.reshape(-1, PIXELS))
        return total / (count * problem.subset)

    return run
