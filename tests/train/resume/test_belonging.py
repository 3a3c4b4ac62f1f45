"""A checkpoint resumed with something else: an error that lists the differences, before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from tiny import images, make, parameters_of, same
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.infer import Adam, FusedOptim
from pyro_vae.train import (
    Checkpoint,
    CSVLog,
    EarlyStopping,
    LearningRate,
    cyclical,
    fit,
    linear_warmup,
    one_cycle,
    read_checkpoint,
)


def vae(likelihood: Any = pv.BernoulliLikelihood, activation: Any = nn.SiLU, min_scale: float = 1e-4) -> Any:
    torch.manual_seed(0)
    return pv.VAE(
        pv.StandardNormalPrior(2),
        likelihood(pv.MLP(2, 6, hidden_dims=(8,), activation=activation)),
        pv.DiagonalNormalPosterior(pv.MLP(6, 4, hidden_dims=(8,)), min_scale=min_scale),
    )


def with_a_layer_less() -> Any:
    model = vae()
    network = model.likelihood.network
    network.layers = nn.Sequential(network.layers[0], network.layers[2])  # without the activation
    return model


def svi_of(model: Any = None, optim: Any = None, loss: Any = None) -> Any:
    model = vae() if model is None else model
    return SVI(model.model, model.guide, optim or Adam({"lr": 1e-2}), loss or Trace_ELBO())


def batches(**options: Any) -> Any:
    return pv.data.Batches(options.pop("x", images(20)), **{"batch_size": 8, "shuffle": True, "seed": 4, **options})


def settings(svi: Any = None) -> dict[str, Any]:
    return {
        "svi": svi_of() if svi is None else svi,
        "train": batches(),
        "epochs": 2,
        "validation": [images(10, seed=2)],
        "schedules": {"beta": linear_warmup(2)},
        "callbacks": [EarlyStopping(patience=9), LearningRate(cyclical(4))],
        "progress": False,
    }


def run(directory: Path, **changes: Any) -> Any:
    pyro.clear_param_store()
    options = {**settings(changes.pop("svi", None)), **changes}
    options["callbacks"] = [*options["callbacks"], Checkpoint(directory, every=0)]
    return fit(**options, resume=directory)


def logit(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(0.1, 0.9)


OTHER: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "likelihood": (
        lambda: {"svi": svi_of(vae(pv.ContinuousBernoulliLikelihood))},
        "modules.0.likelihood.class: 'BernoulliLikelihood' in the checkpoint, 'ContinuousBernoulliLikelihood' now",
    ),
    "activation": (lambda: {"svi": svi_of(vae(activation=nn.Tanh))}, "'SiLU' in the checkpoint, 'Tanh' now"),
    "a layer less": (
        lambda: {"svi": svi_of(with_a_layer_less())},
        "modules.0.likelihood.network.layers.length: 3 in the checkpoint, 2 now",
    ),
    "option of a part": (lambda: {"svi": svi_of(vae(min_scale=0.1))}, "posterior.min_scale: 0.0001 in the checkpoint"),
    "shape": (lambda: {"svi": make(hidden=(9,), optim=Adam({"lr": 1e-2})).svi}, "out_features: 8 in .*, 9 now"),
    "learning rate": (
        lambda: {"svi": svi_of(optim=Adam({"lr": 1e-3}))},
        "optimizer.options.lr: 0.01 in the checkpoint, 0.001",
    ),
    "betas": (
        lambda: {"svi": svi_of(optim=Adam({"lr": 1e-2, "betas": (0.9, 0.99)}))},
        "optimizer.options.betas: none in",
    ),
    "clipping": (lambda: {"svi": svi_of(optim=Adam({"lr": 1e-2}, clip_norm=1.0))}, "optimizer.clip_norm: none in"),
    "optimizer": (lambda: {"svi": svi_of(optim=FusedOptim(torch.optim.SGD, {"lr": 1e-2}))}, "optimizer.of: 'Adam' in"),
    "Pyro's optimizer": (
        lambda: {"svi": svi_of(optim=pyro.optim.Adam({"lr": 1e-2}))},
        "optimizer.class: 'FusedOptim' in",
    ),
    "scheduler": (
        lambda: {"svi": svi_of(optim=Adam({"lr": 1e-2}, scheduler=lambda o: ExponentialLR(o, 0.9)))},
        "optimizer.scheduler: \\[\\] in the checkpoint",
    ),
    "objective": (lambda: {"svi": svi_of(loss=TraceMeanField_ELBO())}, "objective.class: 'Trace_ELBO' in"),
    "particles": (lambda: {"svi": svi_of(loss=Trace_ELBO(num_particles=2))}, "objective.num_particles: 1 in"),
    "schedule": (lambda: {"schedules": {"beta": linear_warmup(3)}}, "schedules.beta: "),
    "no schedule": (lambda: {"schedules": {}}, "schedules.beta: .* in the checkpoint, none now"),
    "patience": (
        lambda: {"callbacks": [EarlyStopping(patience=8), LearningRate(cyclical(4))]},
        "callbacks.EarlyStopping.patience: 9 in the checkpoint, 8 now",
    ),
    "cycle": (
        lambda: {"callbacks": [EarlyStopping(patience=9), LearningRate(cyclical(5))]},
        "callbacks.LearningRate.schedule: ",
    ),
    "no callback": (lambda: {"callbacks": [EarlyStopping(patience=9)]}, "callbacks.LearningRate: .* now"),
    "batch size": (lambda: {"train": batches(batch_size=10)}, "train.batch_size: 8 in the checkpoint, 10 now"),
    "order": (lambda: {"train": batches(seed=5)}, "train.seed: 4 in the checkpoint, 5 now"),
    "number of data": (lambda: {"train": batches(x=images(19))}, "train.num_data: 20 in the checkpoint, 19 now"),
    "data": (lambda: {"train": batches(x=images(20, seed=1))}, "train.fingerprint: "),
    "transform of the data": (lambda: {"train": batches(transform=lambda x, _: x)}, "train.transform: "),
    "kind of data": (lambda: {"train": list(batches())}, "train.class: 'Batches' in the checkpoint, 'list' now"),
    "validation data": (lambda: {"validation": [images(10, seed=3)]}, "validation.fingerprint: "),
    "size": (lambda: {"size": 20}, "size: none in the checkpoint, 20 now"),
    "transform": (lambda: {"transform": logit}, "transform: none in the checkpoint, 'logit' now"),
}


@pytest.mark.parametrize("optimizer", [Adam, pyro.optim.Adam])
def test_options_by_name_are_compared_by_their_values(optimizer: Any, tmp_path: Path) -> None:
    """Two functions of one name: a lambda in one place, say."""

    def slower(rate: float) -> Any:
        return optimizer(lambda name: {"lr": rate if name.endswith("bias") else 1e-2})

    run(tmp_path, svi=svi_of(optim=slower(1e-3)))
    with pytest.raises(ValueError, match=r"optimizer.of_parameter.*bias.lr: 0.001 in the checkpoint, 0.002 now"):
        run(tmp_path, svi=svi_of(optim=slower(2e-3)))
    run(tmp_path, svi=svi_of(optim=slower(1e-3)))


def test_functions_of_a_scheduler_are_compared_by_their_values(tmp_path: Path) -> None:
    def falling(factor: float) -> Any:
        return Adam({"lr": 1e-2}, scheduler=lambda o: LambdaLR(o, lambda step: factor**step))

    run(tmp_path, svi=svi_of(optim=falling(0.9)))
    with pytest.raises(ValueError, match=r"optimizer.scheduler: .*lr_lambdas"):
        run(tmp_path, svi=svi_of(optim=falling(0.8)))
    run(tmp_path, svi=svi_of(optim=falling(0.9)))


def test_class_probs_are_an_option(tmp_path: Path) -> None:
    """They are kept in a buffer, which a resume would set to the checkpoint's."""

    def labelled(probs: Any) -> Any:
        parts = (pv.BernoulliLikelihood(pv.MLP(4, 6, (8,))), pv.DiagonalNormalPosterior(pv.MLP(8, 4, (8,))))
        model = pv.SemiSupervisedVAE(
            pv.StandardNormalPrior(2),
            *map(pv.Conditional, parts),
            pv.MLP(6, 2, (8,)),
            num_classes=2,
            class_probs=probs,
        )
        return svi_of(model, loss=TraceEnum_ELBO(max_plate_nesting=1))

    run(tmp_path, svi=labelled([0.5, 0.5]))
    with pytest.raises(ValueError, match=r"modules.0.class_probs: \[0.5, 0.5\] in the checkpoint, \[0.2, 0.8\] now"):
        run(tmp_path, svi=labelled([0.2, 0.8]))


@pytest.mark.parametrize("what", OTHER)
def test_something_else_is_an_error_that_lists_it(what: str, tmp_path: Path) -> None:
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".pt"}
    change, message = OTHER[what]
    changed = change()
    model = changed["svi"].model.__self__ if "svi" in changed else vae()
    changed.setdefault("svi", svi_of(model))
    parameters, generator = parameters_of(model), torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as caught:
        run(tmp_path, epochs=2, **changed)
    assert "belongs to another run" in str(caught.value)
    assert same(parameters, parameters_of(model))
    assert torch.equal(generator, torch.get_rng_state())
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".pt"}


def captured() -> Any:
    model = vae()
    return pv.CompiledSVI(model.model, model.guide, Adam({"lr": 1e-2}), Trace_ELBO(), compile="graph")


HARMLESS: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "nothing": (lambda path: {}, ""),
    "epochs": (lambda path: {"epochs": 3}, "epochs: 2 in the checkpoint, 3 now"),
    "loggers": (
        lambda path: {"callbacks": [*settings()["callbacks"], CSVLog(path / "log.csv"), print]},
        "other callbacks: .*CSVLog",
    ),
    "on_nonfinite": (
        lambda path: {"on_nonfinite": "restore"},
        "on_nonfinite: 'raise' in the checkpoint, 'restore' now",
    ),
    "numbers of numpy": (lambda path: {"svi": svi_of(optim=Adam({"lr": np.float64(1e-2)}))}, ""),
    "CompiledSVI": (lambda path: {"svi": captured()}, "svi.class: 'SVI' in the checkpoint, 'CompiledSVI' now"),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_harmless_differences_are_told(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, epochs=2)
    capsys.readouterr()
    change, message = HARMLESS[what]
    run(tmp_path, **change(tmp_path))
    text = capsys.readouterr().err
    assert ("going on from" if what == "epochs" else "nothing to train") in text
    assert re.search(message, text)
    if not message:
        assert "in the checkpoint" not in text


def test_other_versions_and_another_seed_are_told(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    run(tmp_path)
    monkeypatch.setattr("pyro_vae.train.resume.belonging.__version__", "9.9")
    monkeypatch.setattr("pyro.__version__", "8.8")
    svi = svi_of()
    torch.manual_seed(99)
    run(tmp_path, svi=svi)
    text = capsys.readouterr().err
    assert "versions.pyro_vae: '0.1.0' in the checkpoint, '9.9' now" in text
    assert "versions.pyro: " in text
    assert "seed: 0 in the checkpoint, 99 now" in text


@pytest.mark.parametrize("other", [False, True])
def test_the_data_of_a_loader_have_a_fingerprint(other: bool, tmp_path: Path) -> None:
    def loader(seed: int) -> Any:
        return DataLoader(TensorDataset(images(20, seed=seed)), 8, shuffle=True)

    run(tmp_path, train=loader(0))
    if other:
        with pytest.raises(ValueError, match=r"train.fingerprint"):
            run(tmp_path, train=loader(1))
    else:
        run(tmp_path, train=loader(0))


# More epochs than planned: the schedules given now hold from the resumed step on.


def one_cycle_optim(steps: int) -> Any:
    return Adam({"lr": 1e-2}, scheduler=lambda o: OneCycleLR(o, 1e-2, total_steps=steps))


@pytest.mark.parametrize("whose", ["torch", "ours"])
def test_more_epochs_with_a_one_cycle_schedule(whose: str, tmp_path: Path) -> None:
    """The second half of a run of twice the length has the learning rates that a run of that length has there."""

    def rates(directory: Path, epochs: int) -> list[float]:
        noted = []
        optim = one_cycle_optim(3 * epochs) if whose == "torch" else Adam({"lr": 1e-2})
        svi = svi_of(optim=optim)

        def note(state: Any) -> None:
            noted.append(svi.optim.optimizer.param_groups[0]["lr"])

        class Noting(pv.Callback):
            def step_end(self, run: Any) -> None:
                note(run)

        callbacks = [LearningRate(one_cycle(epochs))] if whose == "ours" else []
        run(directory, svi=svi, epochs=epochs, callbacks=[*callbacks, Noting()])
        return noted

    whole = rates(tmp_path / "whole", 4)
    rates(tmp_path / "half", 2)
    assert rates(tmp_path / "half", 4) == pytest.approx(whole[6:], rel=1e-6)


def test_a_one_cycle_schedule_that_is_too_short_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"epochs: expected at most the 5 steps that OneCycleLR was made for, got 6\. Give"
    ):
        run(tmp_path, svi=svi_of(optim=one_cycle_optim(5)), callbacks=[])
    run(tmp_path, svi=svi_of(optim=one_cycle_optim(6)), callbacks=[])
    with pytest.raises(ValueError, match=r"the 6 steps that OneCycleLR was made for, got 9. Give it total_steps=9"):
        run(tmp_path, svi=svi_of(optim=one_cycle_optim(6)), callbacks=[], epochs=3)
    assert read_checkpoint(tmp_path / "step-0000000006.pt")["step"] == 6
