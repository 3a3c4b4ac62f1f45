"""Makes ``tiny`` importable from the folders below."""

from __future__ import annotations

from typing import Any

import pytest

from pyro_vae.infer import CompiledSVI


@pytest.fixture(autouse=True, scope="session")
def _state_of_a_compiled_svi() -> None:
    """Until ``CompiledSVI`` has a ``state_dict``: one without contents."""

    def state_dict(self: Any) -> dict[str, Any]:
        return {}

    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        pass

    if not hasattr(CompiledSVI, "state_dict"):
        CompiledSVI.state_dict = state_dict  # type: ignore[attr-defined]
        CompiledSVI.load_state_dict = load_state_dict  # type: ignore[attr-defined]
