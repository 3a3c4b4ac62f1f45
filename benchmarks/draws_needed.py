"""Draws that an estimate of log p(x) needs: from the prior, and from encoders by importance weighting.

    python benchmarks/draws_needed.py --output-dir DIR

On the linear-Gaussian models of inference_methods.py, whose log p(x) is exact, with L latent dimensions. Ten data are
new to the encoders, one of which has a diagonal covariance and one a full one. Needed is the least K, a power of two,
for which the root mean square error of log (1/K) sum_k w_k, over 50 repetitions and the ten data, is at most 0.1 nats.

Beside it: what K would be by the first term of the error's expansion, the mean over the data of
E_q[(w / p(x))^2] - 1, divided by 0.1^2, in closed form. It is infinite where the tails of q are too light. Writes
draws_needed.json and draws_needed.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from inference_methods import encoder, moments, problem
from torch import Tensor

import pyro_vae as pv

TOLERANCE, REPETITIONS = 0.1, 50


def log_second_moment(posterior: Any, q: Any) -> Tensor:
    """Return log E_q[(w / p(x))^2] of each datum, for normal distributions; infinite where q's tails are too light."""
    precision, other = posterior.precision_matrix, q.precision_matrix
    both = 2 * precision - other
    linear = 2 * (precision @ posterior.mean[..., None]) - other @ q.mean[..., None]

    def log_constant(matrix: Tensor, vector: Tensor) -> Tensor:  # of exp(vector . z - z . matrix z / 2)
        return (vector * torch.linalg.solve(matrix, vector)).sum((-2, -1)) / 2 - torch.logdet(matrix) / 2

    constants = [
        log_constant(matrix, matrix @ of.mean[..., None]) for matrix, of in ((precision, posterior), (other, q))
    ]
    log_moment = log_constant(both, linear) - 2 * constants[0] + constants[1]
    finite = torch.linalg.eigvalsh(both).min(-1).values > 0
    return log_moment.where(finite, torch.inf)


@torch.no_grad()
def draws_needed(
    model: Callable[..., Any], guide: Callable[..., Any], x: Tensor, log_px: Tensor, most: int
) -> int | None:
    """Return the least power of two of draws whose root mean square error is within the tolerance; None above most."""
    draws = 1
    while draws <= most:
        repetitions = [pv.iwae(pv.log_weights(model, guide, x, num_particles=draws)) for _ in range(REPETITIONS)]
        if (torch.stack(repetitions) - log_px).square().mean().sqrt() <= TOLERANCE:
            return draws
        draws *= 2
    return None


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    rows = []
    for latent_dim in args.latent_dims:
        pyro.set_rng_seed(args.seed)
        p = problem(latent_dim, args)
        x = p.new[:10]
        exact, log_px = p.ppca.encode(x), p.ppca.log_likelihood(x)

        def from_the_prior(x: Tensor, prior: Any = p.ppca.prior) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", prior())

        row: dict[str, Any] = {"latent_dim": latent_dim}
        guides = {"prior": from_the_prior}
        for name, posterior in {"diagonal": pv.DiagonalNormalPosterior, "full": pv.MultivariateNormalPosterior}.items():
            pyro.clear_param_store()
            guides[name] = encoder(p, posterior).guide
        for name, guide in guides.items():
            found = moments(guide, x)
            q = dist.MultivariateNormal(found.mean, found.covariance)
            row[name] = draws_needed(p.ppca.model, guide, x, log_px, args.most_draws)
            row[f"{name}_formula"] = (log_second_moment(exact, q).exp() - 1).mean().item() / TOLERANCE**2
        print(row, flush=True)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], most: int) -> str:
    """Return the table."""
    head = "| L | from the prior | by formula | diagonal encoder | by formula | full encoder | by formula |"
    lines = [head, "|" + "---:|" * 7]
    for row in rows:
        cells = []
        for name in ("prior", "diagonal", "full"):
            cells += [f"above {most:,}" if row[name] is None else f"{row[name]:,}", f"{row[f'{name}_formula']:,.3g}"]
        lines.append(f"| {row['latent_dim']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--latent-dims", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--most-draws", type=int, default=2**16)
    parser.add_argument("--data", type=int, default=200, help="that the encoder is trained on")
    parser.add_argument("--steps", type=int, default=1500, help="of its training")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows = measure(args)
    (args.output_dir / "draws_needed.json").write_text(json.dumps(rows, indent=1) + "\n")
    (args.output_dir / "draws_needed.md").write_text(table(rows, args.most_draws))
    print(table(rows, args.most_draws))


if __name__ == "__main__":
    main()
