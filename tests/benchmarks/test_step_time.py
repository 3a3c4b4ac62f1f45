"""The side-by-side benchmark runs, writes what it says, and notices a contestant that computes something else."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ["--architectures", "784-24-8", "--batch-sizes", "64", "--steps", "2", "--repeats", "3", "--threads", "1"]

WRONG_KL_SIGN = """
import torch
import torch.nn.functional as F
from contest.contestants.hand_written import adam
from contest.torch_parts import batches, loop, networks


def run(problem):
    encoder, decoder = networks(problem)
    optimizer = adam(encoder, decoder)

    def step(x):
        loc, log_scale = encoder(x).chunk(2, dim=-1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        reconstruction = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        loss = reconstruction - kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return loop(step, batches(problem))
"""


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # the folder of a script is where its imports come from
    return importlib.import_module("step_time").main


@pytest.mark.slow
def test_a_missing_package_is_named_and_a_wrong_sign_of_the_kl_is_noticed(main, tmp_path, capsys) -> None:
    missing, wrong = tmp_path / "missing.py", tmp_path / "wrong.py"
    missing.write_text("import a_package_that_nobody_has\n")
    wrong.write_text(WRONG_KL_SIGN)
    names = ["hand_written", f"{wrong}:run", f"{missing}:run"]
    assert main([*TINY, "--output-dir", str(tmp_path), "--contestants", *names]) == 1

    results = json.loads((tmp_path / "step_time.json").read_text())
    (cell,) = results["cells"]
    assert {name: check["agrees"] for name, check in cell["agreement"].items()} == {names[0]: True, names[1]: False}
    assert cell["times"].keys() == {names[0], names[1]}
    assert all(len(times) == 3 and min(times) > 0 for times in cell["times"].values())
    assert "a_package_that_nobody_has" in results["left_out"][names[2]]

    table = (tmp_path / "step_time.md").read_text()
    assert table in capsys.readouterr().out
    assert "| PyTorch by hand |" in table
    assert "1.00x" in table
    assert "**NO**" in table
    assert "a_package_that_nobody_has" in table
    assert (tmp_path / "step_time.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_contestants_that_compute_the_same_agree(main, tmp_path) -> None:
    names = ["hand_written", "pyro_svi", "pyro_svi_unvalidated", "compiled_svi"]
    assert main([*TINY, "--output-dir", str(tmp_path), "--contestants", *names]) == 0

    (cell,) = json.loads((tmp_path / "step_time.json").read_text())["cells"]
    assert cell["times"].keys() == cell["agreement"].keys() == set(names)
    closed, sampled, unvalidated, _ = (check["loss"] for check in cell["agreement"].values())
    # The two forms of the Kullback-Leibler term are estimates of one loss: near each other, and not the same number.
    assert closed != sampled == unvalidated
    assert closed == pytest.approx(sampled, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--contestants", "nobody"], "expected file.py:function or one of hand_written"),
        (["--architectures", "784-50-0"], "expected 784-HIDDEN-...-LATENT"),
        (["--repeats", "0"], "expected 1 or more, got 0"),
    ],
)
def test_bad_options_are_refused(main, options, message, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(["--output-dir", str(tmp_path), *options])
    assert exit_code.value.code != 0
    assert message in f"{exit_code.value.code} {capsys.readouterr().err}"


def test_ratios_are_paired_turn_by_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from contest import report

    # The machine was slow in the second repeat for both: the median ratio is 2, the ratio of the medians 4 / 3.
    assert report.ratio([2.0, 20.0, 4.0], [3.0, 10.0, 2.0])[1] == 2.0
    assert report.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


def test_agreement_is_tight_where_the_noise_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from contest.agreement import Reference, verdict

    against = Reference(same_noise=100.0, mean=101.0, standard_error=0.5)
    assert verdict([99.999, 100.002], against, same_noise=True, arithmetic=1e-4).agrees
    assert not verdict([100.02, 100.02], against, same_noise=True, arithmetic=1e-4).agrees
    assert verdict([103.0, 103.0], against, same_noise=False, arithmetic=0.0).agrees
    assert not verdict([105.0, 105.0], against, same_noise=False, arithmetic=0.0).agrees
