"""torchvision loads in a fresh process, quietly, and only what is missing is declared."""

import subprocess
import sys
import types

import pytest

from pyro_vae.data import _torchvision, import_torchvision


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_a_fresh_process_imports_it_on_demand_and_quietly():
    code = """
import sys
from pyro_vae.data import _torchvision, import_torchvision
print("torchvision" in sys.modules)
module = import_torchvision()
import torchvision, torchvision.datasets, torchvision.transforms, torchvision.utils
print(torchvision is module is import_torchvision())
print(torchvision.extension._has_ops() == (_torchvision._declarations == []))
"""
    assert run(code).split() == ["False", "True", "True"]


@pytest.mark.slow
def test_it_works_after_a_plain_import_that_failed():
    code = """
try:
    import torchvision
except RuntimeError:
    pass
from pyro_vae.data import import_torchvision
print(import_torchvision().datasets.KMNIST.__name__)
"""
    assert run(code) == "KMNIST"


@pytest.fixture
def failing(monkeypatch):
    """A torchvision whose import fails as told, beside one operator that may be declared."""

    def install(*messages: str) -> types.SimpleNamespace:
        state = types.SimpleNamespace(attempts=0, modules={"torch": "kept", "torchvisionary": "kept"})

        def import_module(name: str) -> str:
            state.modules["torchvision.extension"] = "half"
            state.attempts += 1
            if state.attempts <= len(messages):
                raise RuntimeError(messages[state.attempts - 1])
            return name

        monkeypatch.setattr(_torchvision, "importlib", types.SimpleNamespace(import_module=import_module))
        monkeypatch.setattr(_torchvision, "sys", types.SimpleNamespace(modules=state.modules))
        monkeypatch.setattr(_torchvision, "_declarations", [])
        monkeypatch.setattr(_torchvision, "_SCHEMAS", {"made_up": "made_up(Tensor x) -> Tensor"})
        return state

    return install


def test_a_working_import_is_left_alone(failing):
    state = failing()
    assert import_torchvision() == "torchvision"
    assert (state.attempts, _torchvision._declarations) == (1, [])


def test_a_missing_operator_is_declared_once(failing):
    state = failing("operator torchvision::made_up does not exist")
    assert import_torchvision() == "torchvision"
    assert (state.attempts, len(_torchvision._declarations)) == (2, 1)


@pytest.mark.parametrize(
    "messages",
    [
        ["operator torchvision::unheard_of does not exist"],
        ["operator elsewhere::made_up does not exist"],
        ["compiled with different CUDA major versions"],
        ["operator torchvision::made_up does not exist"] * 2,
    ],
)
def test_any_other_failure_is_reported_and_leaves_nothing_behind(messages, failing):
    state = failing(*messages)
    with pytest.raises(ImportError, match=f"torchvision: cannot be imported with torch .*: {messages[-1]}"):
        import_torchvision()
    assert state.attempts == len(messages)
    assert list(state.modules) == ["torch", "torchvisionary"]
