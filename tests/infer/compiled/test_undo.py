"""What runs inside `undone` leaves no trace."""

from __future__ import annotations

import torch

from pyro_vae.infer.compiled.undo import undone


def test_what_was_written_is_put_back() -> None:
    a, b = torch.arange(6.0), torch.zeros(3)
    expanded = b[:1].expand(4)
    with undone():
        a.mul_(2)
        a[2:4] = 7
        b.add_(1.0)
        torch.rand(3)
    assert torch.equal(a, torch.arange(6.0))
    assert torch.equal(b, torch.zeros(3))
    assert torch.equal(expanded, torch.zeros(4))


def test_a_tensor_that_an_operator_resizes_is_put_back() -> None:
    """An operator with out= gives an empty tensor the size of its result, as compiled convolutions do."""
    out, x = torch.empty(0), torch.randn(3, 4)
    other = torch.full((2,), 5.0)
    with undone():
        torch.mm(x, x.T, out=out)
        other.resize_(10).fill_(1.0)
    assert out.untyped_storage().nbytes() == 0
    assert other.untyped_storage().nbytes() == 8
    assert torch.frombuffer(bytearray(other.untyped_storage()), dtype=torch.float32).tolist() == [5.0, 5.0]
