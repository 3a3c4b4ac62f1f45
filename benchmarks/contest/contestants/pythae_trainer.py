"""pythae's ``BaseTrainer``: its own training step, callbacks included, over batches that are ready in memory."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator

import torch
from pythae.data.datasets import BaseDataset, DatasetOutput
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor, nn

from contest.problem import LEARNING_RATE, PIXELS, Problem, Run
from contest.torch_parts import batches, networks


class Encoder(BaseEncoder):
    """The common encoder in pythae's interface, which asks for a log-variance."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> ModelOutput:
        loc, log_scale = self.network(x).chunk(2, dim=-1)
        return ModelOutput(embedding=loc, log_covariance=2 * log_scale)


class Decoder(BaseDecoder):
    """The common decoder in pythae's interface, which asks for probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.network(z).sigmoid())


class Ready:
    """Steps ``first`` to ``first + count`` as the loader that ``train_step`` goes through once."""

    def __init__(self, data: list[Tensor], first: int, count: int) -> None:
        self.data, self.first, self.count = data, first, count
        self.dataset = range(count * len(data[0]))  # the trainer reads its length alone

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[DatasetOutput]:
        for i in range(self.first, self.first + self.count):
            yield DatasetOutput(data=self.data[i % len(self.data)])


def make_trainer(
    encoder: nn.Module, decoder: nn.Module, dataset: BaseDataset, batch_size: int, cpu: bool
) -> BaseTrainer:
    """A trainer with pythae's defaults (Adam, progress bar), ready for ``train_step``."""
    logging.disable(logging.INFO)  # this process is pythae's alone; its loggers ignore their parent's level
    latent_dim = decoder[0].in_features  # type: ignore[index]
    model_config = VAEConfig(input_dim=(PIXELS,), latent_dim=latent_dim, reconstruction_loss="bce")
    model = VAE(model_config, encoder=Encoder(encoder), decoder=Decoder(decoder))
    with tempfile.TemporaryDirectory() as output_dir:  # the trainer wants a folder, and single steps put nothing in it
        config = BaseTrainerConfig(
            output_dir=output_dir,
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=batch_size,
            no_cuda=cpu,
        )
        trainer = BaseTrainer(model=model, train_dataset=dataset, training_config=config)
        trainer.prepare_training()
    return trainer


def train_step(trainer: BaseTrainer) -> float:
    """One pass of the trainer over its loader, its progress bar kept off the terminal."""
    with contextlib.redirect_stderr(io.StringIO()):
        return float(trainer.train_step(epoch=1))


def pythae_trainer(problem: Problem) -> Run:
    """``BaseTrainer.train_step`` with the loader replaced: no time goes into pythae's collation of single images."""
    encoder, decoder = networks(problem)
    data = batches(problem)
    dataset = BaseDataset(data[0].cpu(), torch.zeros(len(data[0])))
    trainer = make_trainer(encoder, decoder, dataset, problem.batch_size, cpu=problem.device == "cpu")

    def run(first: int, count: int) -> float:
        trainer.train_loader = Ready(data, first, count)
        return train_step(trainer)

    return run
