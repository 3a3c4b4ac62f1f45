"""Train a variational autoencoder on MNIST with Pyro's SVI, say what it is worth in nats, and draw what it learned.

    python examples/mnist_svi.py                                    # downloads MNIST once
    python examples/mnist_svi.py --data-dir DIR                     # or reads DIR/MNIST/raw/*
    python examples/mnist_svi.py --likelihood continuous-bernoulli  # grey pixels in place of binary ones
    python examples/mnist_svi.py --resume                           # goes on where the last run was stopped
    torchrun --nproc-per-node 4 examples/mnist_svi.py               # the same on 4 processes, each with its share

Writes to ``--output-dir``: ``metrics.json``, ``history.csv``, ``weights.pt`` (a ``state_dict``), four pictures, and
checkpoints on the way. Without ``--resume`` the files of an earlier run are moved to ``earlier-1``, ``earlier-2``, ...
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pyro.infer import SVI
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv
from pyro_vae.infer import distributed

PICTURES = ("reconstructions", "samples", "latent_space", "learning_curves")
LIKELIHOODS = {
    "bernoulli": pv.BernoulliLikelihood,
    "gaussian": pv.GaussianLikelihood,
    "continuous-bernoulli": pv.ContinuousBernoulliLikelihood,
}


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    """Do it all, and return what ``metrics.json`` holds."""
    args = parse_arguments(argv)
    torch.manual_seed(args.seed)

    rank, world_size = distributed.rank(), distributed.world_size()  # 0 and 1 without torchrun
    with distributed.first_alone():  # one download a machine
        images = load_images(args)
    height, width = images.image_shape
    # Binary pixels are drawn anew each epoch for training, and once for validation and test.
    binary = args.likelihood == "bernoulli"
    as_data = pv.data.binarize if binary else pv.data.to_float
    train_images, validation_images = pv.data.split(
        images.train_images, sizes=(len(images.train_images) - args.validation, args.validation), seed=args.seed
    )
    train = pv.data.Batches(
        train_images,
        batch_size=args.batch_size,
        shuffle=True,
        seed=args.seed,
        transform=as_data,
        device=args.device,
    ).shard(rank, world_size)
    fixed = {"seed": 1} if binary else {}
    validation = as_data(validation_images, **fixed)[rank::world_size].to(args.device).split(1000)
    test = as_data(images.test_images, **fixed).to(args.device)

    vae = build_vae(args, train_images).to(args.device)
    print(
        f"{images.name}: {len(train_images)} training, {args.validation} validation and {len(test)} test images of "
        f"{height} x {width}; {args.likelihood} likelihood, {args.latent_dim} latent dimensions, "
        f"{sum(p.numel() for p in vae.parameters()):,} parameters; {args.epochs} epochs on {args.device}."
    )

    total_steps = args.epochs * len(train)
    optimizer = pv.Adam(
        {"lr": args.learning_rate, "betas": (0.9, 0.99)},
        scheduler=lambda adam: OneCycleLR(
            adam,
            args.learning_rate,
            total_steps=total_steps,
            pct_start=0.1 if total_steps > 10 else 0.3,  # a tenth of 10 steps, and OneCycleLR divides by zero
            anneal_strategy="linear",
            cycle_momentum=False,
        ),
    )
    parts = (vae.model, vae.guide, optimizer, pv.TraceSTL_ELBO())
    svi = SVI(*parts) if args.no_compile else pv.CompiledSVI(*parts, precision=args.precision)
    if not args.resume:
        distributed.from_first(lambda: set_aside(args.output_dir))
    checkpoints = args.output_dir / "checkpoints"
    try:
        history = pv.fit(
            svi,
            train,
            epochs=args.epochs,
            validation=validation,
            schedules={"beta": pv.linear_warmup(args.beta_warmup)},
            callbacks=[pv.Checkpoint(checkpoints, keep_best=False)],
            resume=checkpoints if args.resume else None,
        )
    except ValueError as error:
        if "belongs to another run" not in str(error):
            raise
        sys.exit(f"error: --resume: {error}")
    train_seconds = sum(history["seconds"])  # of all its legs, where the run was stopped and resumed

    vae.eval()
    elbo, bound = distributed.spread(
        lambda x: pv.bounds(vae.model, vae.guide, x, num_particles=args.num_particles, progress=rank == 0), test
    )
    metrics: dict[str, object] = {
        "dataset": images.name,
        "n_train": len(train_images),
        "n_test": len(test),
        "likelihood": args.likelihood,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "latent_dim": args.latent_dim,
        "hidden_dims": args.hidden_dims,
        "seed": args.seed,
        "device": args.device,
        "processes": world_size,
        "train_seconds": round(train_seconds, 2),
        "num_particles": args.num_particles,
        "test_elbo": elbo.mean().item(),
        "test_elbo_standard_error": standard_error(elbo),
        "test_log_likelihood": bound.mean().item(),
        "test_log_likelihood_standard_error": standard_error(bound),
    }
    print(f"Trained {args.epochs} epochs in {train_seconds:.1f} s.")
    print(f"test ELBO      {elbo.mean():9.2f} +- {standard_error(elbo):.2f} nats per image")
    print(
        f"test log p(x) {bound.mean():10.2f} +- {standard_error(bound):.2f} nats per image "
        f"(at least: importance-weighted bound, {args.num_particles} particles)"
    )

    if rank == 0:
        write(args.output_dir, metrics, history, vae, test, images)
        print(f"Wrote metrics, history, weights and pictures to {args.output_dir}/")
    return metrics


def build_vae(args: argparse.Namespace, train_images: Tensor) -> pv.VAE:
    """The model of the paper with two hidden layers on each side."""
    pixels = train_images.shape[1]
    prior = pv.StandardNormalPrior(args.latent_dim)
    likelihood = LIKELIHOODS[args.likelihood](pv.MLP(args.latent_dim, pixels, hidden_dims=args.hidden_dims[::-1]))
    posterior = pv.DiagonalNormalPosterior(pv.MLP(pixels, 2 * args.latent_dim, hidden_dims=args.hidden_dims))
    likelihood.initialize_output_bias(pv.data.to_float(train_images))
    return pv.VAE(prior, likelihood, posterior)


def load_images(args: argparse.Namespace) -> pv.data.Images:
    """The data set asked for; scikit-learn's digits where it cannot be had from the network."""
    try:
        if args.data_dir is None and args.dataset != "digits":
            cache = pv.data.default_root()
            print(f"Looking for {args.dataset} in {cache}, else downloading it (--data-dir reads a local copy).")
        images = pv.data.load(args.dataset, args.data_dir, download=args.data_dir is None)
    except ConnectionError as error:
        print(
            f"{args.dataset} cannot be had: {error}\n"
            f"Give a local copy with --data-dir. Going on with the digits that ship inside scikit-learn.",
            file=sys.stderr,
        )
        images = pv.data.load("digits")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    small = images.name == "digits"
    # Sizes that fit the data, where none was asked for.
    args.epochs = args.epochs or (200 if small else 15)
    args.batch_size = args.batch_size or (64 if small else 200)
    args.validation = 100 if small else 1000
    if args.smoke:
        args.epochs, args.num_particles = 2, min(args.num_particles, 10)
        args.validation = 50
        images = images._replace(
            train_images=images.train_images[:1000],
            train_labels=images.train_labels[:1000],
            test_images=images.test_images[:200],
            test_labels=images.test_labels[:200],
        )
    return images


def set_aside(output_dir: Path) -> None:
    """Move the files of an earlier run to a folder of their own, so that no file is of another run than the others."""
    names = ["checkpoints", "metrics.json", "history.csv", "weights.pt", *(f"{name}.png" for name in PICTURES)]
    files = [output_dir / name for name in names if (output_dir / name).exists()]
    if files:
        number = next(n for n in itertools.count(1) if not (output_dir / f"earlier-{n}").exists())
        folder = output_dir / f"earlier-{number}"
        folder.mkdir()
        for file in files:
            file.rename(folder / file.name)
        print(f"Moved the files of an earlier run to {folder}/ (--resume goes on with it instead).")


def write(
    output_dir: Path, metrics: dict[str, object], history: pv.History, vae: pv.VAE, test: Tensor, images: pv.data.Images
) -> None:
    """Everything that a person or a program wants to look at afterwards."""
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    history.to_csv(output_dir / "history.csv")
    torch.save(vae.state_dict(), output_dir / "weights.pt")

    shown = test[:40]
    with torch.no_grad():
        locations = vae.encode(test[:5000]).mean
    pictures = {
        "reconstructions": pv.plots.reconstructions(shown, vae.reconstruct(shown), images.image_shape),
        "samples": pv.plots.image_grid(
            vae.sample(100, mean=True), images.image_shape, title="E[x|z] of 100 draws z ~ p(z)"
        ),
        "latent_space": pv.plots.latent_space(
            locations, images.test_labels[:5000], title="posterior means, test images"
        ),
        "learning_curves": history.plot().figure,
    }
    for name, figure in pictures.items():
        figure.savefig(output_dir / f"{name}.png", dpi=130)


def standard_error(values: Tensor) -> float:
    """Standard error of the mean."""
    return values.std().item() / math.sqrt(len(values))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags, checked before any work is done."""
    parser = argparse.ArgumentParser(
        description="Train a variational autoencoder with Pyro's SVI and judge it in nats.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--data-dir",
        type=Path,
        default=argparse.SUPPRESS,
        help="folder with a local copy (DIR/MNIST/raw/*); without it, download to a cache",
    )
    add("--dataset", choices=pv.data.DATASETS, default="mnist", help="what to train on; digits needs no network")
    add("--likelihood", choices=list(LIKELIHOODS), default="bernoulli", help="p(x|z); bernoulli binarizes the pixels")
    add("--latent-dim", type=positive_int, default=40, help="dimensions of z")
    add("--hidden-dims", type=positive_int, nargs="+", default=[500, 500], help="encoder's hidden layers, mirrored")
    add(
        "--epochs",
        type=positive_int,
        default=argparse.SUPPRESS,
        help="passes over the training data (default: 15; digits: 200)",
    )
    add("--batch-size", type=positive_int, default=argparse.SUPPRESS, help="data in a step (default: 200; digits: 64)")
    add("--learning-rate", type=positive_float, default=4e-3, help="peak of Adam's one-cycle schedule")
    add("--beta-warmup", type=non_negative_float, default=3.0, help="epochs in which the KL term's weight rises to 1")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")
    add("--seed", type=non_negative_int, default=0, help="of parameters, shuffling and noise")
    add("--num-particles", type=positive_int, default=200, help="importance samples per test image")
    add("--output-dir", type=Path, default=Path("runs/mnist_svi"), help="where results go")
    add("--no-compile", action="store_true", help="train with pyro.infer.SVI, uncompiled")
    add("--precision", choices=["float32", "bf16"], default="bf16", help="of the matrix products of compiled training")
    add("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    add("--smoke", action="store_true", help="a few batches, to see that everything works")
    # None for the flags without one default, of which --help would otherwise say "(default: None)".
    args = parser.parse_args(argv, argparse.Namespace(data_dir=None, epochs=None, batch_size=None))
    try:
        args.device = usable_device(args.device)
        args.output_dir.mkdir(parents=True, exist_ok=True)
        probe = args.output_dir / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have been here
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--output-dir: expected a folder that can be written, got {args.output_dir} ({error}).")
    return args


def usable_device(name: str) -> str:
    """The device, tried out."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(
            f"--device: expected a device of this machine, cpu or cuda, got {name!r} ({first_line})"
        ) from None
    return name


def _number(parse: type, smallest: float, *, above: bool = False):
    def check(text: str):
        value = parse(text)
        if not math.isfinite(value) or value < smallest or (above and value == smallest):
            bound = f"above {smallest}" if above else f"of at least {smallest}"
            raise argparse.ArgumentTypeError(f"expected a number {bound}, got {text}")
        return value

    check.__name__ = parse.__name__
    return check


positive_int, non_negative_int = _number(int, 1), _number(int, 0)
positive_float, non_negative_float = _number(float, 0, above=True), _number(float, 0)


if __name__ == "__main__":
    with distributed.processes(), contextlib.redirect_stdout(sys.stdout if distributed.rank() == 0 else None):
        main()  # the first process speaks for all
