"""pythae's trainer with its own DataLoader, which collates images that are in memory one by one."""

from __future__ import annotations

import torch
from pythae.data.datasets import BaseDataset

from contest.contestants.pythae_trainer import make_trainer, train_step
from contest.problem import EpochProblem, Run
from contest.recipes.mnist import images, networks


def pythae_loader(problem: EpochProblem) -> Run:
    """``BaseTrainer.train_step``, which is one epoch."""
    data = images(problem).float() / 255
    trainer = make_trainer(*networks(problem), BaseDataset(data, torch.zeros(len(data))), problem.batch_size, cpu=True)

    def run(first: int, count: int) -> float:
        return sum(train_step(trainer) for _ in range(count)) / count

    return run
