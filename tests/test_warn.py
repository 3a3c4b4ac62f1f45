"""Warnings point at the user's own line."""

from __future__ import annotations

import contextlib
import warnings

import pytest

from pyro_vae._warn import warn


def test_the_first_line_outside_the_libraries_is_named():
    namespace = {"__name__": "pyro_vae.somewhere", "warn": warn}
    exec("def inner(): warn('said', RuntimeWarning)\ndef outer(): inner()", namespace)
    other = {"__name__": "torch.somewhere", "outer": namespace["outer"]}
    exec("def through(): outer()", other)
    with pytest.warns(RuntimeWarning, match="said") as caught:
        other["through"]()
    assert caught[0].filename == __file__


def test_without_such_a_line_the_outermost_is_named():
    code = "import warnings\nfrom pyro_vae._warn import warn\nwarn('said')"
    with pytest.warns(UserWarning, match="said"), contextlib.suppress(KeyError):
        exec(code, {"__name__": "pyro_vae.main"})


def test_filters_hold():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DeprecationWarning, match="old"):
            warn("old", DeprecationWarning)
