"""Quadrants of MNIST filled in: examples/conditional.py side by side with the method of Pyro's tutorial on CVAEs.

    python benchmarks/quadrants.py --data-dir DIR --output-dir DIR
    python benchmarks/quadrants.py --data-dir DIR --output-dir DIR --pixels grey --methods tutorial   # its own protocol

The tutorial's method (https://pyro.ai/examples/cvae.html), written anew: a network guesses the pixels that are not
given; then a CVAE of 200 latent dimensions is trained by ``Trace_ELBO``. Its prior network sees the given pixels and
the guess, its posterior network the whole image, its decoder z alone. All networks have two hidden layers of 500 ReLUs;
Adam at 1e-3, batches of 128, at most 101 epochs, stopped 3 epochs after the best one on held-out images.

Both methods get the same training images (held-out ones set aside), the same binary pixels and the same estimator,
``pv.bounds`` with the same number of particles. With ``--pixels grey`` the grey levels themselves are the data, as in
the tutorial; sum_i x_i log p_i + (1 - x_i) log(1 - p_i) is then no log-probability, but the same for both methods.
Writes quadrants.json and quadrants.md: nats per image, of the pixels not given. A run that was measured before, whose
file is in the output directory, is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pyro_vae as pv

METHODS = ("tutorial", "example")
EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "conditional.py"))


class Data(NamedTuple):
    """Images, flat: those to train on as bytes, the others as pixels; the numbers of the pixels given and not given."""

    train: Tensor
    validation: Tensor
    judged: Tensor
    seen: Tensor
    rest: Tensor
    transform: Callable[..., Tensor]

    def cut(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and y."""
        return images[:, self.rest], images[:, self.seen]


class Tutorial(nn.Module):
    """y: the pixels given, x: the others. z ~ N(prior(y, guess(y))), x ~ Bernoulli(decoder(z))."""

    def __init__(self, seen: Tensor, rest: Tensor, d: int, hidden: int) -> None:
        super().__init__()
        pixels, widths = len(seen) + len(rest), (hidden, hidden)
        self.register_buffer("rest", rest)
        self.register_buffer("order", torch.cat([seen, rest]).argsort())
        self.guess = pv.MLP(pixels, pixels, widths, nn.ReLU)
        self.prior = pv.MLP(pixels, 2 * d, widths, nn.ReLU)
        self.posterior = pv.MLP(pixels, 2 * d, widths, nn.ReLU)
        self.decoder = pv.MLP(d, pixels, widths, nn.ReLU)

    def whole(self, x: Tensor, y: Tensor) -> Tensor:
        """Put the pixels in their places."""
        return torch.cat([y, x], -1)[..., self.order]

    def guess_x(self, y: Tensor) -> Tensor:
        """Logits of the pixels not given, which the network sees as -1."""
        unknown = y.new_full((*y.shape[:-1], len(self.rest)), -1.0)
        return self.guess(self.whole(unknown, y))[..., self.rest]

    def guess_model(self, x: Tensor, y: Tensor) -> None:
        """x ~ Bernoulli(guess(y)): no latent variable."""
        pv.module("guess", self.guess)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", pixels(self.guess_x(y)), obs=x)

    def guess_guide(self, x: Tensor, y: Tensor) -> None:
        """Nothing is latent."""

    def model(self, x: Tensor, y: Tensor) -> None:
        """z ~ p(z|y), x ~ p(x|z)."""
        pv.module("prior", self.prior)
        pv.module("decoder", self.decoder)
        with torch.no_grad():
            guess = self.guess_x(y).sigmoid()
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal(self.prior(self.whole(guess, y))))
            pyro.sample("x", pixels(self.decoder(z)[..., self.rest]), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """z ~ q(z|x, y)."""
        pv.module("posterior", self.posterior)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", normal(self.posterior(self.whole(x, y))))


def normal(moments: Tensor) -> dist.Distribution:
    """Normal distributions from means and logarithms of standard deviations."""
    loc, log_scale = moments.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def pixels(logits: Tensor) -> dist.Distribution:
    """Bernoulli distributions that also take grey levels."""
    return dist.Bernoulli(logits=logits, validate_args=False).to_event(1)


class Grey(nn.Module):
    """A likelihood of the library's form for grey levels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, *given: Any) -> dist.Distribution:
        """Return p(x|z)."""
        return pixels(self.network(z))


def train_tutorial(args: argparse.Namespace, data: Data, seed: int) -> tuple[Tutorial, int]:
    """Train the guess, then the CVAE, each with early stopping; return the epochs of the latter."""
    method = Tutorial(data.seen, data.rest, d=args.latent_dim, hidden=args.hidden)
    batches = pv.data.Batches(data.train, batch_size=128, shuffle=True, seed=seed, transform=data.transform)

    def fit(model: Any, guide: Any) -> int:
        stopping = pv.EarlyStopping(patience=3)
        svi = pv.CompiledSVI(model, guide, pv.Adam({"lr": 1e-3}), Trace_ELBO(), compile=compiler(args))
        options = {"validation": [data.validation], "transform": data.cut, "callbacks": [stopping]}
        pv.fit(svi, batches, epochs=args.max_epochs, progress=False, **options)
        return stopping.best_epoch

    fit(method.guess_model, method.guess_guide)
    method.guess.requires_grad_(False)
    return method, fit(method.model, method.guide)


def train_example(args: argparse.Namespace, data: Data, seed: int) -> tuple[pv.ConditionalVAE, int]:
    """Train the conditional VAE of examples/conditional.py with its options; return the epochs."""
    flags = ["--seed", str(seed), "--output-dir", str(args.output_dir), *args.example_flags.split()]
    options = EXAMPLE["parse_arguments"](flags)
    vae = EXAMPLE["build"](len(data.seen), len(data.rest), options.latent_dim, options.hidden)
    vae.likelihood.initialize_output_bias(pv.data.to_float(data.train)[:, data.rest])
    if args.pixels == "grey":
        network = vae.likelihood.part.part.network
        vae = pv.ConditionalVAE(vae.prior.part, Grey(network), vae.posterior.part.part)
    size, transform = options.batch_size, data.transform
    batches = pv.data.Batches(data.train, batch_size=size, shuffle=True, seed=seed, transform=transform)
    EXAMPLE["train"](options, vae, batches, data.validation, data.cut)
    return vae, options.epochs


def compiler(args: argparse.Namespace) -> str | bool:
    """Return the compile= of CompiledSVI."""
    return "graph" if args.no_compile else True


def load(args: argparse.Namespace, given: int) -> Data:
    """Load and divide the data; pixels of held-out and of test images are binarized once."""
    images = pv.data.load(args.dataset, args.data_dir)
    held_out = len(images.train_images) // 12
    sizes = (len(images.train_images) - held_out, held_out)
    train, validation = pv.data.split(images.train_images, sizes=sizes, seed=0)
    judged = validation if args.judge == "validation" else images.test_images
    seen, rest = EXAMPLE["quadrants"](given, *images.image_shape)
    if args.pixels == "grey":
        to_float = pv.data.to_float
        return Data(train, to_float(validation), to_float(judged), seen, rest, to_float)
    binarize = pv.data.binarize
    return Data(train, binarize(validation, seed=1), binarize(judged, seed=1), seen, rest, binarize)


def measure(args: argparse.Namespace, method: str, given: int, seed: int) -> tuple[dict[str, Any], Tensor]:
    """Train by one method; return its row, and the bound on log p(x|y) of each image."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    data = load(args, given)
    start = time.perf_counter()
    trained, epochs = (train_tutorial if method == "tutorial" else train_example)(args, data, seed)
    minutes = (time.perf_counter() - start) / 60
    trained.eval()
    x, y = data.cut(data.judged)
    elbo, bound = pv.bounds(trained.model, trained.guide, x, y, num_particles=args.particles)
    row = {"quadrants": given, "method": method, "seed": seed, "epochs": epochs, "minutes": round(minutes, 1)}
    if method == "tutorial":
        with torch.no_grad():
            row["guess"] = pixels(trained.guess_x(y)).log_prob(x).mean().item()
    error = (bound.std() / math.sqrt(len(bound))).item()
    return row | {"elbo": elbo.mean().item(), "log_likelihood": bound.mean().item(), "standard_error": error}, bound


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table; the guess of the tutorial is a network without latent variables."""
    lines = [
        "| given | method | seed | epochs | minutes | guess | ELBO | log p(x\\|y) | gain |",
        "|---:|---|" + "---:|" * 7,
    ]
    for row in rows:
        guess = f"{row['guess']:.2f}" if "guess" in row else ""
        figure = f"{row['log_likelihood']:.2f} ± {row['standard_error']:.2f}"
        first = f"| {row['quadrants']} | {row['method']} | {row['seed']} | {row['epochs']} | {row['minutes']:.1f} "
        gain = f"{row['gain']:+.2f} ± {row['gain_error']:.2f}" if "gain" in row else ""
        lines.append(first + f"| {guess} | {row['elbo']:.2f} | {figure} | {gain} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all, and write after each what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output-dir", type=Path, required=True)
    add("--data-dir", type=Path, help="folder of the data set; without it, the one of PYRO_VAE_DATA or the cache")
    add("--dataset", choices=pv.data.DATASETS, default="mnist")
    add("--quadrants", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3])
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--seeds", type=int, nargs="+", default=[0])
    add("--pixels", choices=("binary", "grey"), default="binary")
    add("--particles", type=int, default=500)
    add("--judge", choices=("test", "validation"), default="test")
    add("--max-epochs", type=int, default=101, help="of the tutorial's method")
    add("--latent-dim", type=int, default=200, help="of the tutorial's method")
    add("--hidden", type=int, default=500, help="of the tutorial's method")
    add("--example-flags", default="", help="options of examples/conditional.py in one string")
    add("--no-compile", action="store_true", help="run the captured graph of the tutorial's method without a compiler")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for given, seed in itertools.product(args.quadrants, args.seeds):
        bounds: dict[str, Tensor] = {}
        for method in args.methods:
            path = args.output_dir / f"{given}-{method}-{seed}.pt"
            if not path.exists():
                torch.save(measure(args, method, given, seed), path)
            row, bounds[method] = torch.load(path)
            if len(bounds) == 2:  # image by image
                gain = bounds["example"] - bounds["tutorial"]
                row |= {"gain": gain.mean().item(), "gain_error": (gain.std() / math.sqrt(len(gain))).item()}
            rows.append(row)
            print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
            (args.output_dir / "quadrants.json").write_text(json.dumps(rows, indent=1) + "\n")
            (args.output_dir / "quadrants.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
