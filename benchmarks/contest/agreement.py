"""Do the contestants compute the same thing? Their losses of the first steps against those of a plain reference.

All start from the same weights and take the same batches; what differs is the noise. The reference is PyTorch's
autograd and Adam on the ELBO written out, its Kullback-Leibler term in closed form or sampled, as the contestant's is.

- A contestant that draws its noise from PyTorch's generator as the reference does, seeded alike before each step, has
  to agree in the mean loss but for a relative allowance for its arithmetic.
- Any other has to agree within ``STANDARD_ERRORS`` Monte Carlo standard errors of the mean loss, estimated from
  ``SEEDS`` runs of the reference, and that allowance on top.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from contest.contestants.hand_written import adam
from contest.problem import Problem
from contest.torch_parts import batches, networks

STEPS = 20
SEEDS = 3
STANDARD_ERRORS = 5.0


class Reference(NamedTuple):
    """Mean loss of the first steps in nats per datum: with the contestants' noise, and over other noise."""

    same_noise: float
    mean: float
    standard_error: float  # of one run's mean


class Verdict(NamedTuple):
    """A contestant's mean loss, the reference's, the tolerance, all in nats per datum, and whether they agree."""

    loss: float
    reference: float
    tolerance: float
    agrees: bool


def reference(problem: Problem, kl: str, threads: int, steps: int = STEPS) -> Reference:
    """Runs the reference with the noise of the contestants' check, and with other noise to see how much it matters.

    Args:
        problem: What is fitted.
        kl: The Kullback-Leibler term, ``"closed"`` or ``"sampled"`` (whose noisier gradients make slower steps).
        threads: PyTorch's threads meanwhile.
        steps: Steps from the initial weights.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        same, *other_noise = [_losses(problem, kl, steps, seed) for seed in range(SEEDS + 1)]
    finally:
        torch.set_num_threads(before)
    others = torch.tensor(other_noise)
    # Given its batch, a step's loss varies almost independently of the other steps': pooling the variance over the
    # steps gives SEEDS - 1 degrees of freedom a step.
    error = float(others.var(dim=0).sum().sqrt()) / steps
    return Reference(sum(same) / steps, float(others.mean()), error)


def verdict(losses: list[float], against: Reference, same_noise: bool, arithmetic: float) -> Verdict:
    """Holds the losses of a contestant's first steps against the reference.

    Args:
        losses: Loss of each step in nats per datum.
        against: The reference on the same problem, with the same Kullback-Leibler term, over the same number of steps.
        same_noise: Whether the contestant's noise is the reference's.
        arithmetic: Relative allowance for its arithmetic.
    """
    loss = sum(losses) / len(losses)
    if same_noise:
        expected, tolerance = against.same_noise, arithmetic * abs(against.same_noise)
    else:
        spread = against.standard_error * (1 + 1 / SEEDS) ** 0.5
        expected, tolerance = against.mean, STANDARD_ERRORS * spread + arithmetic * abs(against.mean)
    return Verdict(loss, expected, tolerance, abs(loss - expected) <= tolerance)


def _losses(problem: Problem, kl: str, steps: int, seed: int) -> list[float]:
    encoder, decoder = networks(problem)
    data = batches(problem)
    optimizer = adam(encoder, decoder)
    losses = []
    for i in range(steps):
        torch.manual_seed(i + 1_000_003 * seed)
        x = data[i % len(data)]
        loc, log_scale = encoder(x).chunk(2, dim=-1)
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        reconstruction = -F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        if kl == "closed":
            divergence = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        else:
            divergence = (-0.5 * noise.square() - log_scale + 0.5 * z.square()).sum()
        loss = divergence - reconstruction
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / problem.batch_size)
    return losses
