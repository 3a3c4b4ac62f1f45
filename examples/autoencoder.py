"""What a prior adds to an autoencoder, and a network to principal components: samples and likelihoods of grey MNIST.

    python examples/autoencoder.py                     # downloads MNIST once
    python examples/autoencoder.py --data-dir DIR      # reads DIR/MNIST/raw/*

An autoencoder and a VAE with the same networks, the same likelihood N(x | f(z), s^2 I) with one learned s, and the same
optimizer; a VAE whose networks are linear; and probabilistic PCA. Prints and writes to ``metrics.json``:

- log p(x) of the test images, or its bound. That of PPCA is exact, and the linear VAE's at its optimum equals it;
- the Frechet distance of 10,000 samples to the test images, in the hidden units of a classifier of digits: lower is
  better. The codes of the autoencoder are drawn from N(0, I), or from densities that are fitted to them afterwards.

``samples.png`` has a row of samples of each. Samples are means E[x|z].
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn

import pyro_vae as pv


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Train all, draw from all, and return what ``metrics.json`` holds."""
    args = parse_arguments(argv)
    torch.manual_seed(args.seed)
    warnings.filterwarnings("ignore", category=ConvergenceWarning)  # scikit-learn's iterations are few
    images = pv.data.load(args.dataset, args.data_dir, download=args.data_dir is None and args.dataset != "digits")
    size = 1000 if args.smoke else len(images.train_images)
    x, labels = pv.data.to_float(images.train_images[:size]), images.train_labels[:size]
    train, validation = pv.data.split(x, sizes=(size - size // 10, size // 10), seed=args.seed)
    test = pv.data.to_float(images.test_images[:size])
    d, k, hidden = x.shape[1], args.latent_dim, args.hidden_dims

    ppca = pv.ProbabilisticPCA.fit(train, k)
    linear = pv.VAE(pv.StandardNormalPrior(k), normal(nn.Linear(k, d)), pv.DiagonalNormalPosterior(nn.Linear(d, 2 * k)))
    encoder = pv.DiagonalNormalPosterior(pv.MLP(d, 2 * k, hidden))
    vae = pv.VAE(pv.StandardNormalPrior(k), normal(pv.MLP(k, d, hidden)), encoder)
    autoencoder = pv.Autoencoder(pv.MLP(d, k, hidden), normal(pv.MLP(k, d, hidden)), k)
    for model, precision in ((linear, "float32"), (vae, "bf16"), (autoencoder, "bf16")):
        fit(model, train, args, precision)

    metrics: dict[str, dict[str, float]] = {"nats per image": {}, "squared error": {}, "Frechet distance": {}}
    for name, model in {"linear VAE": linear, "VAE": vae}.items():
        elbo, bound = pv.bounds(model.model, model.guide, test, num_particles=args.test_particles)
        metrics["nats per image"] |= {f"{name}, ELBO": elbo.mean().item(), f"{name}, bound": bound.mean().item()}
    twin = pv.ProbabilisticPCA(d, k)
    twin.likelihood = linear.likelihood  # the linear VAE's model with the exact posterior
    for name, model in {"linear VAE, log p(x)": twin, "PPCA, log p(x)": ppca}.items():
        metrics["nats per image"][name] = model.log_likelihood(test).mean().item()
    for name, model in {"PPCA": ppca, "linear VAE": linear, "VAE": vae, "autoencoder": autoencoder}.items():
        metrics["squared error"][name] = (model.reconstruct(test) - test).square().sum(-1).mean().item()

    n = len(test)
    samples = {"PPCA": ppca.sample(n, mean=True)}
    samples |= samples_of_autoencoder(autoencoder, train, validation, n)
    samples["VAE"] = vae.sample(n, mean=True)
    vae.prior = pv.fit_prior(vae, train, validation)
    samples["VAE, mixture fitted"] = vae.sample(n, mean=True)

    features = features_of_classifier(x, labels)
    metrics["Frechet distance"] = {
        name: frechet_distance(features(value), features(test)) for name, value in samples.items()
    } | {"training images": frechet_distance(features(train), features(test))}
    for title, figures in metrics.items():
        print(title, *(f"    {name:36s}{value:10.2f}" for name, value in figures.items()), sep="\n")
    (args.output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    picture({"test images": test} | samples, images.image_shape).savefig(
        args.output_dir / "samples.png", dpi=100, bbox_inches="tight"
    )
    return metrics


def normal(network: nn.Module) -> pv.GaussianLikelihood:
    """p(x|z) = N(network(z), s^2 I), one s learned for all pixels."""
    return pv.GaussianLikelihood(network, scale="shared")


def fit(model: pv.VAE, x: Tensor, args: argparse.Namespace, precision: str) -> None:
    """Train by Adam, its learning rate in one cycle; the precision is that of matrix products."""
    model.likelihood.initialize_output_bias(x)
    optimizer = pv.Adam({"lr": args.learning_rate, "betas": (0.9, 0.99)})
    compile = "graph" if args.no_compile else True
    parts = (model.model, model.guide, optimizer, pv.TraceSTL_ELBO())
    svi = pv.CompiledSVI(*parts, compile=compile, precision=precision)
    batches = pv.data.Batches(x, batch_size=200, shuffle=True, seed=args.seed)
    pv.fit(svi, batches, epochs=args.epochs, callbacks=[pv.LearningRate(pv.one_cycle(args.epochs))])
    model.eval()


@torch.no_grad()
def samples_of_autoencoder(model: pv.Autoencoder, train: Tensor, validation: Tensor, n: int) -> dict[str, Tensor]:
    """Decoded codes, drawn from densities that know nothing of the codes, one normal, or a mixture."""
    codes = model.encode(train).mean.numpy()
    samples = {}
    model.prior = pv.StandardNormalPrior(codes.shape[1])
    samples["autoencoder, N(0, I)"] = model.sample(n, mean=True)
    for name, components in (("normal", 1), ("50 normals", 50)):
        density = GaussianMixture(components, random_state=0, max_iter=30, reg_covar=1e-3)
        drawn = torch.as_tensor(density.fit(codes).sample(n)[0]).to(train)
        samples[f"autoencoder, {name} fitted"] = model.decode(drawn[torch.randperm(n)]).mean
    with torch.enable_grad():
        model.prior = pv.fit_prior(model, train, validation)
    samples["autoencoder, `fit_prior`"] = model.sample(n, mean=True)
    return samples


def features_of_classifier(x: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from images to the 64 hidden units of a network that was trained to tell digits."""
    classifier = MLPClassifier((64,), random_state=0, max_iter=20).fit(x.numpy(), labels.numpy())
    weight, bias = torch.as_tensor(classifier.coefs_[0]).to(x), torch.as_tensor(classifier.intercepts_[0]).to(x)
    return lambda images: (images @ weight + bias).relu().double()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between normal distributions with the moments of two sets of features (Heusel et al. 2017, section 3)."""
    root = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * root).item()


def picture(samples: dict[str, Tensor], image_shape: tuple[int, ...], columns: int = 16) -> Figure:
    """A row of each."""
    figure = Figure(figsize=(8, 0.4 * len(samples)))
    for axes, (name, x) in zip(figure.subplots(len(samples), 1), samples.items(), strict=True):
        axes.imshow(torch.cat(list(x[:columns].unflatten(1, image_shape)), 1).numpy(), cmap="gray_r", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.text(-10, image_shape[0] / 2, name, ha="right", va="center", fontsize=8)
    return figure


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latent-dim", type=int, default=16)
    parser.add_argument("--hidden-dims", type=int, nargs="*", default=[500, 500])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the largest of one cycle")
    parser.add_argument("--test-particles", type=int, default=200)
    parser.add_argument("--dataset", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--data-dir", type=Path, help="folder of the data set; without it, MNIST is downloaded")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/autoencoder"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true", help="run the captured graphs without a C++ compiler")
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.epochs, args.test_particles, args.latent_dim, args.hidden_dims = min(args.epochs, 2), 10, 4, [64]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
