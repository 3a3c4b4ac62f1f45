"""Ways to infer z, side by side on a linear-Gaussian model, whose posterior and log p(x) are exact.

    python benchmarks/inference_methods.py --output-dir DIR

The model is probabilistic PCA (z in R^L, x = W z + b + noise), fitted to simulated data, its latent space rotated at
random so that the posterior is correlated; it is then held fixed. Each method infers z of the same data. Reported, as
means over the data:

- error of the mean: root mean square of |m - m*|, divided by the root of the trace of the exact covariance;
- error of the covariance: root mean square of the Frobenius norm of C - C*, divided by that of C*;
- CPU seconds, of one thread, training included;
- nats lost per datum, KL(q || p(z|x)) = log p(x) - ELBO, in closed form; of methods that draw, the KL of the normal
  distribution with the mean and covariance of the draws;
- of these nats, the approximation gap (the best q of the family) and the rest, which for an encoder is the
  amortization gap (Cremer et al. 2018).

Writes inference_methods.json and inference_methods.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_vae as pv

DATA_DIM = 20


class Problem(NamedTuple):
    """A linear-Gaussian model, data, new data, and the steps of an optimization."""

    ppca: pv.ProbabilisticPCA
    x: Tensor  # (N, d)
    new: Tensor  # (N, d), on which no encoder was trained
    steps: int

    @property
    def latent_dim(self) -> int:
        """L."""
        return int(self.ppca.prior().event_shape[0])


class Found(NamedTuple):
    """What a method found: means ``(N, L)``, covariances ``(N, L, L)``, and what the ELBO loses beside their KL."""

    mean: Tensor
    covariance: Tensor
    extra: float = 0.0  # nats per datum


def problem(latent_dim: int, args: argparse.Namespace) -> Problem:
    """Return the model, fitted to simulated data, and rotated."""
    basis = torch.linalg.qr(torch.randn(DATA_DIM, latent_dim))[0] * torch.linspace(2.0, 0.5, latent_dim)
    x = torch.randn(2 * args.data, latent_dim) @ basis.T + 0.5 * torch.randn(2 * args.data, DATA_DIM) + 1.0
    ppca = pv.ProbabilisticPCA.fit(x[: args.data], latent_dim).requires_grad_(False)
    weight = ppca.likelihood.network.weight
    weight.copy_(weight @ torch.linalg.qr(torch.randn(latent_dim, latent_dim))[0])
    return Problem(ppca, x[: args.data], x[args.data :], args.steps)


def train(p: Problem, guide: Callable[..., Any], objective: Any, learning_rate: float = 0.02) -> None:
    """Fit the parameters of a guide; those of the model stay as they are."""
    optimizer = pv.Adam({"lr": learning_rate}, scheduler=lambda adam: CosineAnnealingLR(adam, p.steps))
    svi = SVI(p.ppca.model, guide, optimizer, objective)
    for _ in range(p.steps):
        svi.step(p.x)


# The methods. Each returns what it found of z given p.x.


def encoder(p: Problem, posterior: Any = pv.DiagonalNormalPosterior) -> pv.VAE:
    """Return a VAE with the model's prior and likelihood, and a trained encoder of one hidden layer."""
    below = p.latent_dim * (p.latent_dim - 1) // 2 if posterior is pv.MultivariateNormalPosterior else 0
    network = pv.MLP(DATA_DIM, 2 * p.latent_dim + below, hidden_dims=(max(8, 2 * p.latent_dim),), activation=nn.Tanh)
    vae = pv.VAE(p.ppca.prior, p.ppca.likelihood, posterior(network))
    train(p, vae.guide, pv.TraceSTL_ELBO(), 0.01)
    return vae


@torch.no_grad()
def moments(guide: Callable[..., Any], x: Tensor) -> Found:
    """Return the moments of a guide's q(z|x)."""
    q = pyro.poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    covariance = q.covariance_matrix if hasattr(q, "covariance_matrix") else q.variance.diag_embed()
    return Found(q.mean.detach(), covariance.detach())


def per_datum(p: Problem, family: str, objective: Any = None, **infer: Any) -> Found:
    """Return what variational parameters of each datum find, without an encoder."""

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", x.new_zeros(len(x), p.latent_dim))
        if family == "full":
            unit = torch.eye(p.latent_dim).expand(len(x), -1, -1)
            scale_tril = pyro.param("scale_tril", unit, constraint=constraints.lower_cholesky)
            q: Any = dist.MultivariateNormal(loc, scale_tril=scale_tril)
        else:
            scale = pyro.param("scale", torch.ones_like(loc), constraint=constraints.positive)
            normal = dist.Normal if family == "diagonal" else NonreparameterizedNormal
            q = normal(loc, scale).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", q, infer=infer)

    train(p, guide, objective or pv.TraceSTL_ELBO())
    return moments(guide, p.x)


def auto_normal(p: Problem) -> Found:
    """Return what Pyro's mean-field guide finds."""
    guide = AutoNormal(p.ppca.model, init_scale=1.0)
    train(p, guide, pv.TraceSTL_ELBO())
    return Found(guide.locs.z.detach(), guide.scales.z.detach().square().diag_embed())


def auto_multivariate_normal(p: Problem) -> Found:
    """Return what Pyro's guide finds: one covariance over z of all data, (N L, N L)."""
    guide = AutoMultivariateNormal(p.ppca.model, init_scale=1.0)
    train(p, guide, pv.TraceSTL_ELBO(), 0.01)
    joint = guide.get_posterior()
    n = len(p.x)
    blocks = joint.covariance_matrix.detach().unflatten(0, (n, -1)).unflatten(2, (n, -1))  # (N, L, N, L)
    own = blocks[range(n), :, range(n), :]
    extra = (torch.logdet(own).sum() - 2 * joint.scale_tril.detach().diagonal().log().sum()) / (2 * n)
    return Found(joint.loc.detach().unflatten(0, (n, -1)), own, extra.item())


def coordinate_ascent(p: Problem) -> Found:
    """Return the best diagonal normal by coordinate ascent (Bishop 2006, equation 10.12)."""
    likelihood = p.ppca.likelihood
    weight, bias, variance = likelihood.network.weight, likelihood.network.bias, likelihood.scale([]).square()
    precision = torch.eye(p.latent_dim) + weight.T @ weight / variance  # of p(z|x)
    linear = (p.x - bias) @ weight / variance  # log p(z|x) = linear . z - z . precision z / 2 + const
    mean, change = torch.zeros_like(linear), 1.0
    while change > 1e-5:
        before = mean.clone()
        for i in range(p.latent_dim):
            others = mean @ precision[i] - mean[:, i] * precision[i, i]
            mean[:, i] = (linear[:, i] - others) / precision[i, i]
        change = (mean - before).abs().max().item()
    return Found(mean, precision.diagonal().reciprocal().diag().expand(len(mean), -1, -1))


@torch.no_grad()
def importance_resampling(p: Problem, vae: pv.VAE, draws: int) -> Found:
    """Return the moments of draws from the encoder, drawn again with probabilities proportional to their weights."""
    q = vae.encode(p.x)
    z = q.sample((draws,))  # (K, N, L)
    log_w = vae.prior().log_prob(z) + vae.decode(z).log_prob(p.x) - q.log_prob(z)
    chosen = dist.Categorical(logits=log_w.T).sample((draws,))  # (K, N)
    return moments_of_draws(z.gather(0, chosen[..., None].expand_as(z)))


def nuts(p: Problem, draws: int) -> Found:
    """Return the moments of the draws of NUTS, of z of all data at once."""
    mcmc = MCMC(NUTS(p.ppca.model), num_samples=draws, warmup_steps=draws // 2, disable_progbar=True)
    mcmc.run(p.x)
    return moments_of_draws(mcmc.get_samples()["z"])


def moments_of_draws(z: Tensor) -> Found:
    """Return mean and covariance of draws ``(K, N, L)``."""
    centered = z - z.mean(0)
    return Found(z.mean(0), torch.einsum("kni,knj->nij", centered, centered) / (len(z) - 1))


# The table.


def errors(p: Problem, x: Tensor, found: Found, diagonal: bool) -> dict[str, float]:
    """Return the errors of a method, against the exact posterior."""
    exact = p.ppca.encode(x)
    covariance, precision = exact.covariance_matrix, exact.precision_matrix
    mean_error = (found.mean - exact.mean).square().sum(-1).mean() / covariance.diagonal(dim1=-2, dim2=-1).sum(
        -1
    ).mean()
    covariance_error = (found.covariance - covariance).square().sum((-2, -1)).mean() / covariance.square().sum(
        (-2, -1)
    ).mean()
    lost = kl_divergence(dist.MultivariateNormal(found.mean, found.covariance), exact).mean() + found.extra
    best = (
        (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - torch.logdet(precision)).mean() / 2 if diagonal else 0.0
    )
    return {
        "mean": mean_error.sqrt().item(),
        "covariance": covariance_error.sqrt().item(),
        "nats": lost.item(),
        "approximation": float(best),
        "rest": float(lost - best),
    }


def methods(p: Problem, draws: int) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    rows: list[dict[str, Any]] = []

    def row(name: str, family: str, run: Callable[[], Any], x: Tensor = p.x) -> Any:
        pyro.clear_param_store()
        start = time.process_time()
        result = run()
        seconds = time.process_time() - start
        found = result if isinstance(result, Found) else moments(result.guide, x)
        gain = result.gain.mean().item() if isinstance(result, pv.Refined) else None
        rows.append({"method": name, "family": family, **errors(p, x, found, family == "diagonal"), "seconds": seconds})
        rows[-1]["gain"] = gain
        print({k: round(v, 5) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
        return result

    row("exact posterior (`ProbabilisticPCA`)", "full", lambda: p.ppca)
    for family, posterior in (("diagonal", pv.DiagonalNormalPosterior), ("full", pv.MultivariateNormalPosterior)):
        vae = row("encoder", family, lambda posterior=posterior: encoder(p, posterior))
        row("encoder, then `refine`", family, lambda vae=vae: pv.refine(vae.model, vae.guide, p.x))
        row("encoder, new data", family, lambda vae=vae: vae, p.new)
        row("encoder, then `refine`, new data", family, lambda vae=vae: pv.refine(vae.model, vae.guide, p.new), p.new)
        if family == "diagonal":
            row(
                "importance resampling, from the encoder", "draws", lambda vae=vae: importance_resampling(p, vae, draws)
            )
    row("parameters per datum", "diagonal", lambda: per_datum(p, "diagonal"))
    row("parameters per datum", "full", lambda: per_datum(p, "full"))
    row("`AutoNormal`", "diagonal", lambda: auto_normal(p))
    few = p._replace(x=p.x[:20])
    row("`AutoMultivariateNormal`, 20 data", "full", lambda: auto_multivariate_normal(few), few.x)
    row("coordinate ascent", "diagonal", lambda: coordinate_ascent(p))
    row("parameters per datum, `Trace_ELBO`", "diagonal", lambda: per_datum(p, "diagonal", Trace_ELBO()))
    row("score function", "diagonal", lambda: per_datum(p, "score", TraceGraph_ELBO()))
    average = {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}
    row("score function, baseline", "diagonal", lambda: per_datum(p, "score", TraceGraph_ELBO(), baseline=average))
    row("NUTS", "draws", lambda: nuts(p, draws))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table."""
    head = ("method", "q", "mean", "covariance", "nats lost", "approximation", "rest", "gain", "s")
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * 7]
    for row in rows:
        figures = [f"{row[name]:.3f}" for name in ("mean", "covariance", "nats", "approximation", "rest")]
        gain = "" if row["gain"] is None else f"{row['gain']:.3f}"
        lines.append(f"| {row['method']} | {row['family']} | {' | '.join(figures)} | {gain} | {row['seconds']:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--data", type=int, default=200)
    parser.add_argument("--latent-dim", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500, help="of each optimization")
    parser.add_argument("--draws", type=int, default=1000, help="of NUTS, after half as many, and of resampling")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(args.seed)
    rows = methods(problem(args.latent_dim, args), args.draws)
    (args.output_dir / "inference_methods.json").write_text(json.dumps(rows, indent=1) + "\n")
    (args.output_dir / "inference_methods.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
