"""Kept: what makes a derived value anew, and what does not."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import Tensor

from fasttrain.system.kept import Kept


def test_a_value_is_made_once_for_each_key_and_again_after_a_change() -> None:
    weight = torch.ones(3)
    made: list[str] = []
    kept = Kept[Tensor]()

    def doubled(key: str = "a") -> Tensor:
        return kept.get([weight], key, lambda: made.append(key) or 2 * weight)  # type: ignore[func-returns-value]

    assert doubled() is doubled()
    doubled("b")
    assert made == ["a", "b"]
    weight.add_(1)
    assert torch.equal(doubled(), torch.full((3,), 4.0))
    weight.data = torch.full((3,), 5.0)
    assert torch.equal(doubled(), torch.full((3,), 10.0))
    assert made == ["a", "b", "a", "a"]


def test_a_new_tensor_is_never_taken_for_an_old_one() -> None:
    """The memory of the old one is held, so that the new one cannot lie there."""
    kept = Kept[float]()
    for value in range(50):
        weight = torch.full((1000,), float(value))
        assert kept.get([weight], None, lambda w=weight: float(w[0])) == value  # type: ignore[misc]
        del weight


def test_what_inference_mode_makes_can_be_differentiated_through() -> None:
    weight, kept = torch.ones(3), Kept[Tensor]()
    with torch.inference_mode():
        kept.get([weight], None, lambda: 2 * weight)
    x = torch.ones(3, requires_grad=True)
    (x * kept.get([weight], None, lambda: 2 * weight)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2, 2, 2]


def test_a_tensor_of_inference_mode_counts_no_writes_so_nothing_is_kept() -> None:
    with torch.inference_mode():
        weight = torch.ones(3)
    kept = Kept[Tensor]()
    assert kept.get([weight], None, lambda: 2 * weight).tolist() == [2, 2, 2]
    with torch.inference_mode():
        weight.add_(1)
    assert kept.get([weight], None, lambda: 2 * weight).tolist() == [4, 4, 4]


def test_a_copy_holds_nothing() -> None:
    weight, kept = torch.ones(3), Kept[Tensor]()
    first = kept.get([weight], None, lambda: 2 * weight)
    for other in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert other.get([weight], None, lambda: 2 * weight) is not first
