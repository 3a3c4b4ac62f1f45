"""Classify MNIST by Bayes' rule, with one variational autoencoder for each class, and say which images are no digits.

    python examples/generative_classifier.py                  # downloads MNIST once
    python examples/generative_classifier.py --data-dir DIR   # or reads DIR/MNIST/raw/*

p(y|x) is proportional to p(y) p(x|y), where the importance-weighted bound takes the place of log p(x|y). An image is
"none of these" where its log p(x) is below the 1 % quantile of held-out training images: printed for test images, the
same turned by 180 degrees, and their negatives. Writes ``metrics.json`` and ``classes.png`` to ``--output-dir``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv


def train(args: argparse.Namespace, images: Tensor, c: int) -> pv.VAE:
    """Return a VAE trained on the images of class c, bytes (N, pixels)."""
    pixels = images.shape[1]
    vae = pv.VAE(
        pv.StandardNormalPrior(args.latent_dim),
        pv.BernoulliLikelihood(pv.MLP(args.latent_dim, pixels, (args.hidden,) * 2)),
        pv.DiagonalNormalPosterior(pv.MLP(pixels, 2 * args.latent_dim, (args.hidden,) * 2)),
        name=f"vae_{c}",
    )
    vae.likelihood.initialize_output_bias(pv.data.to_float(images))
    batches = pv.data.Batches(
        images, batch_size=args.batch_size, shuffle=True, drop_last=True, seed=args.seed, transform=pv.data.binarize
    )
    steps, lr = args.epochs * len(batches), args.learning_rate
    optimizer = pv.Adam(
        {"lr": lr, "betas": (0.9, 0.99)},
        scheduler=lambda adam: OneCycleLR(adam, lr, total_steps=steps, cycle_momentum=False),
    )
    svi = pv.CompiledSVI(vae.model, vae.guide, optimizer, pv.TraceSTL_ELBO(), compile="graph" if args.smoke else True)
    pv.fit(svi, batches, epochs=args.epochs, schedules={"beta": pv.linear_warmup(args.beta_warmup)}, progress=False)
    return vae.eval()


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, classify, and return what ``metrics.json`` holds."""
    args = parse_arguments(argv)
    torch.manual_seed(args.seed)
    data = pv.data.load(args.dataset, args.data_dir, download=args.data_dir is None and args.dataset != "digits")
    held_out = len(data.train_images) // 12
    (x, y), (held_out_x, held_out_y) = pv.data.split(
        data.train_images, data.train_labels, sizes=(len(data.train_images) - held_out, held_out), seed=0
    )
    started = time.perf_counter()
    stories = []
    for c in range(10):
        stories.append(train(args, x[y == c], c))
        print(f"class {c}: trained on {int((y == c).sum()):,} images", flush=True)
    minutes = (time.perf_counter() - started) / 60

    classify = pv.GenerativeClassifier(stories)

    def judge(images: Tensor) -> pv.Classified:
        return classify(pv.data.binarize(images, seed=1), num_particles=args.particles)

    validation, test = judge(held_out_x), judge(data.test_images)
    threshold = validation.log_evidence.quantile(0.01)
    others = {"turned": data.test_images.flip(1), "negative": 255 - data.test_images}
    metrics = {
        "seed": args.seed,
        "minutes": round(minutes, 1),
        "particles": args.particles,
        "validation_accuracy": accuracy(validation, held_out_y),
        "test_accuracy": accuracy(test, data.test_labels),
        "test_log_evidence": test.log_evidence.mean().item(),
        "none_of_these_test": 100 * (test.log_evidence < threshold).double().mean().item(),
    }
    for name, images in others.items():
        metrics[f"none_of_these_{name}"] = 100 * (judge(images).log_evidence < threshold).double().mean().item()
    print("\n".join(f"{name}: {value:.2f}" for name, value in metrics.items()))
    (args.output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    draws = torch.cat([vae.sample(10, mean=True) for vae in stories])
    figure = pv.plots.image_grid(draws, data.image_shape, columns=10, title="draws of each class")
    figure.savefig(args.output_dir / "classes.png", dpi=120)
    return metrics


def accuracy(found: pv.Classified, labels: Tensor) -> float:
    """Return the percentage of right classes."""
    return 100 * (found.y == labels).double().mean().item()


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--epochs", type=int, default=60)
    add("--latent-dim", type=int, default=30)
    add("--hidden", type=int, default=300, help="width of the hidden layers")
    add("--batch-size", type=int, default=100)
    add("--learning-rate", type=float, default=2e-3, help="the largest of one cycle")
    add("--beta-warmup", type=float, default=5.0, help="epochs in which beta rises from 0 to 1")
    add("--particles", type=int, default=100)
    add("--dataset", choices=pv.data.DATASETS, default="mnist")
    add("--data-dir", type=Path, help="folder of the data set; without it, MNIST is downloaded")
    add("--output-dir", type=Path, default=Path("runs/generative_classifier"))
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="seconds, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.epochs, args.particles, args.latent_dim, args.hidden, args.batch_size = 3, 5, 5, 30, 20
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
