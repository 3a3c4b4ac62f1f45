"""Train a deep Markov model on sequences of chords, and go on where a chorale ends.

    python examples/deep_markov.py --data jsb-chorales-quarter.json
    python examples/deep_markov.py --smoke                              # made-up chords, seconds

The file is that of Bach's chorales at quarter notes, in the split of Boulanger-Lewandowski et al. (2012): an object
with "train", "valid" and "test", each a list of sequences, each a list of steps, each a list of MIDI notes from 21 to
108. Figures are nats per time step; the refined ELBO is that of the guide adapted to each test sequence. Writes
metrics.json, history.csv, weights.pt and forecast.png to --output-dir.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

import pyro_vae as pv

NOTES, LOWEST = 88, 21


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Do it all, and return what metrics.json holds."""
    args = parse_arguments(argv)
    torch.manual_seed(args.seed)
    chords = load(args)
    sequences = {part: pad(chords[part]) for part in ("valid", "test")}
    train = [x[:n] for x, n in zip(*pad(chords["train"]), strict=True)]

    decoder = pv.MLP(args.latent_dim, NOTES, hidden_dims=(args.hidden_dim,))
    likelihood = pv.BernoulliLikelihood(decoder)
    likelihood.initialize_output_bias(torch.cat(train))
    likelihood.network = nn.Sequential(nn.Dropout(args.dropout), decoder)
    encoder = pv.MLP(args.latent_dim + args.rnn_dim, 2 * args.latent_dim, hidden_dims=())
    dmm = pv.DeepMarkovModel(
        pv.GatedTransition(args.latent_dim, hidden_dim=args.hidden_dim),
        likelihood,
        pv.DiagonalNormalPosterior(encoder),
        pv.BackwardRNN(NOTES, hidden_dim=args.rnn_dim),
        latent_dim=args.latent_dim,
    )

    by_length = ByLength([len(sequence) for sequence in train], args.batch_size, args.seed)
    batches = DataLoader(train, batch_sampler=by_length, collate_fn=Collate(args.transpose))
    optimizer = pv.Adam(
        {"lr": args.learning_rate, "weight_decay": args.weight_decay},
        clip_norm=10.0,
        scheduler=lambda adam: torch.optim.lr_scheduler.CosineAnnealingLR(adam, args.epochs * len(batches)),
    )
    svi = pv.CompiledSVI(dmm.model, dmm.guide, optimizer, TraceMeanField_ELBO(), compile="graph")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    history = pv.fit(
        svi,
        batches,
        epochs=args.epochs,
        validation=[sequences["valid"]],
        schedules={"beta": pv.linear_warmup(args.warmup)},
        callbacks=[
            pv.EarlyStopping(patience=args.patience),
            pv.CSVLog(args.output_dir / "history.csv"),
            pv.Checkpoint(args.output_dir / "checkpoints"),
        ],
        resume=args.output_dir / "checkpoints",
    )

    dmm.eval()
    metrics = {"epochs": len(history["epoch"]), "minutes": sum(history["seconds"]) / 60}
    for part in ("valid", "test"):
        x, lengths = sequences[part]
        elbo, bound = pv.bounds(dmm.model, dmm.guide, x, lengths, num_particles=args.particles)
        steps = int(lengths.sum())
        metrics |= {
            f"{part}_elbo_per_step": elbo.sum().item() / steps,
            f"{part}_bound_per_step": bound.sum().item() / steps,
        }
    gain = pv.refine(dmm.model, dmm.guide, x, lengths, steps=args.refine, num_particles=2, batch_size=20).gain
    metrics["test_refined_elbo_per_step"] = metrics["test_elbo_per_step"] + gain.sum().item() / steps
    (args.output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    torch.save(dmm.state_dict(), args.output_dir / "weights.pt")
    draw(dmm, *sequences["test"], path=args.output_dir / "forecast.png")
    print("\n".join(f"{name}: {value:.4g}" for name, value in metrics.items()))
    return metrics


class ByLength(Sampler[list[int]]):
    """Batches of sequences of about one length, others in each epoch, so that little is computed on padding."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = torch.tensor(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by ``fit`` before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(10_000 * self.seed + self.epoch)
        order = (self.lengths + 16 * torch.rand(len(self.lengths), generator=generator)).argsort()
        batches = order.split(self.batch_size)
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i].tolist()


class Collate:
    """Pad sequences to a multiple of 16 steps, for few shapes, each moved by up to ``transpose`` semitones."""

    def __init__(self, transpose: int) -> None:
        self.transpose = transpose

    def __call__(self, sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        x = torch.zeros(len(sequences), -(-int(lengths.max()) // 16) * 16, NOTES)
        moves = torch.randint(-self.transpose, self.transpose + 1, (len(sequences),)).tolist()
        for row, sequence, move in zip(x, sequences, moves, strict=True):
            row[: len(sequence)] = sequence.roll(move, 1)
        return x, lengths


def load(args: argparse.Namespace) -> dict[str, list[list[list[int]]]]:
    """Return the sequences of the file, or made-up ones: chords that move up and down."""
    if not args.smoke:
        return json.loads(args.data.read_text())
    steps = torch.randint(-2, 3, (40, 12)).cumsum(1).tolist()
    chords = [[[60 + s, 64 + s, 67 + s] for s in walk[: 4 + i % 9]] for i, walk in enumerate(steps)]
    return {"train": chords[:24], "valid": chords[24:32], "test": chords[32:]}


def pad(chords: list[list[list[int]]]) -> tuple[Tensor, Tensor]:
    """Return sequences as binary notes (N, T, 88), zero behind their ends, and their lengths (N,)."""
    lengths = torch.tensor([len(sequence) for sequence in chords])
    x = torch.zeros(len(chords), int(lengths.max()), NOTES)
    for i, sequence in enumerate(chords):
        for t, notes in enumerate(sequence):
            x[i, t, [note - LOWEST for note in notes]] = 1.0
    return x, lengths


def draw(dmm: pv.DeepMarkovModel, x: Tensor, lengths: Tensor, path: Path) -> None:
    """Draw a sequence without its last quarter, and the probability of each note in what follows by the model."""
    i = int(lengths.argmax())
    length = int(lengths[i])
    known = max(1, 3 * length // 4)
    forecast = dmm.forecast(x[i : i + 1, :known], steps=length - known, num_samples=500).mean(0)[0]
    figure, axes = plt.subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained")
    pictures = {"the chorale": x[i, :length], "its forecast": torch.cat([x[i, :known], forecast])}
    for axis, (title, notes) in zip(axes, pictures.items(), strict=True):
        axis.imshow(
            notes.T.numpy(), origin="lower", aspect="auto", cmap="Greys", vmin=0, vmax=1, extent=(0, length, 21, 109)
        )
        axis.axvline(known, color="tab:red")
        axis.set(title=title, ylabel="MIDI note", ylim=(35, 90))
    axes[-1].set_xlabel("quarter note; forecast from the red line on")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the file of the chorales")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/deep_markov"))
    parser.add_argument("--epochs", type=int, default=950)
    parser.add_argument("--patience", type=int, default=300, help="epochs without a rise of the validation ELBO")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--latent-dim", type=int, default=64)
    parser.add_argument("--hidden-dim", type=int, default=128)
    parser.add_argument("--rnn-dim", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--dropout", type=float, default=0.2, help="of the latent variables, in the decoder")
    parser.add_argument("--transpose", type=int, default=0, help="semitones by which training data move at most")
    parser.add_argument("--warmup", type=float, default=30, help="epochs in which beta rises to 1")
    parser.add_argument("--particles", type=int, default=100, help="of the bound")
    parser.add_argument("--refine", type=int, default=50, help="steps that adapt q(z|x) to each test sequence")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few made-up sequences and epochs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.epochs, args.latent_dim, args.hidden_dim, args.rnn_dim = 2, 4, 8, 8
        args.particles, args.warmup, args.refine = 10, 1, 2
    elif args.data is None:
        parser.error("--data: expected the file of the chorales, or --smoke for made-up sequences.")
    return args


if __name__ == "__main__":
    main()
