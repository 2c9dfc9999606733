"""Which tensors meet, where they are made, and whose GPU it is."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

from tests.on_pretend_gpu.rules import gpu, in_child, mixes, rule


@rule
def mixed_devices_are_refused() -> None:
    cpu, x = torch.ones(2), gpu(1, 2)
    mixes(lambda: x + cpu)
    mixes(lambda: cpu + x)
    mixes(lambda: x.add_(cpu))
    mixes(lambda: x + gpu(1, 2, index=1))
    mixes(lambda: torch.ones(2, 2, device="cuda") @ torch.ones(2, 2))
    mixes(lambda: torch.cat([x, cpu]))
    mixes(lambda: nn.Linear(2, 2).cuda()(cpu))
    mixes(lambda: nn.functional.conv2d(torch.ones(1, 1, 4, 4).cuda(), torch.ones(1, 1, 3, 3)))
    assert (x + gpu(3, 4)).tolist() == [4, 6]


@rule
def scalars_of_the_cpu_are_taken_by_pointwise_operators_alone() -> None:
    three, x = torch.tensor(3.0), gpu(1, 2)
    assert (x * three).tolist() == (three * x).tolist() == [3, 6]
    assert torch.where(x > 1, x, three).tolist() == [3, 2]
    assert x.clone().masked_fill_(x > 1, three).tolist() == [1, 3]
    assert x.clone().fill_(three).tolist() == [3, 3]
    assert (x * np.float64(2)).tolist() == [2, 4]
    mixes(lambda: torch.stack([three, gpu(1)[0]]))
    mixes(lambda: torch.ones(2) * gpu(3)[0])
    mixes(lambda: torch.lerp(torch.ones(2), x, 0.5))


@rule
def indices_may_be_on_the_cpu() -> None:
    x, places = gpu(5, 6, 7), torch.tensor([0, 2])
    assert x[places].tolist() == x[places.cuda()].tolist() == [5, 7]
    x[places] = gpu(1, 2)
    assert x.tolist() == [1, 6, 2]
    mixes(lambda: torch.ones(3)[places.cuda()])
    mixes(lambda: x.index_select(0, places))
    mixes(lambda: x.index_put_((places,), torch.ones(2)))


@rule
def foreach_operators_go_place_by_place() -> None:
    lists = [gpu(1), torch.ones(1)], [gpu(2), torch.ones(1)]
    found = torch._foreach_add(*lists)
    assert [x.device.type for x in found] == ["cuda", "cpu"]
    assert [x.item() for x in found] == [3, 2]
    mixes(lambda: torch._foreach_add(lists[0], lists[1][::-1]))


@rule
def copies_go_between_any_devices() -> None:
    x = torch.zeros(4, device="cuda")
    x[:2] = torch.ones(2)
    x[2:].copy_(gpu(5, 6, index=1))
    assert x.tolist() == [1, 1, 5, 6]
    assert torch.zeros(4).copy_(x).tolist() == [1, 1, 5, 6]
    assert x.to("cuda:1").device == torch.device("cuda", 1)
    assert x.to("cuda") is x


@rule
def factories_know_their_device() -> None:
    made = [
        torch.empty(2, device="cuda"),
        torch.randn(2, device="cuda"),
        torch.arange(2, device="cuda"),
        torch.full((2,), 3.0, device="cuda"),
        torch.tensor([1.0, 2.0], device="cuda"),
        torch.zeros_like(torch.ones(2), device="cuda"),
        gpu(1).new_zeros(2),
        gpu(1).new_tensor([1.0, 2.0]),
        torch.as_tensor([1.0, 2.0], device="cuda"),
        torch.from_numpy(np.ones(2)).cuda(),
    ]
    assert all(x.is_cuda and x.device.index == 0 and x.shape == (2,) for x in made)
    with torch.device("cuda:1"):
        assert nn.Linear(2, 2).weight.device == torch.device("cuda", 1)
        assert torch.tensor([1]).device == torch.device("cuda", 1)
    with torch.cuda.device(1):
        assert torch.ones(2, device="cuda").device.index == 1
    assert torch.empty_like(gpu(1), device="meta").is_meta
    assert nn.Linear(2, 2, device="meta").to_empty(device="cuda").weight.is_cuda


@rule
def numpy_takes_no_tensor_of_a_gpu() -> None:
    with pytest.raises(TypeError, match="copy the tensor to host"):
        gpu(1).numpy()
    with pytest.raises(TypeError, match="copy the tensor to host"):
        np.asarray(gpu(1))
    assert gpu(1).cpu().numpy() == [1]


@rule
def ordinals_must_exist() -> None:
    for work in (lambda: torch.ones(1, device="cuda:2"), lambda: torch.cuda.set_device(2)):
        with pytest.raises(torch.AcceleratorError, match="invalid device ordinal"):
            work()
    assert torch.cuda.device_count() == 2


@rule
def visible_devices_are_counted_from_zero() -> None:
    def one_visible() -> None:
        assert torch.cuda.device_count() == 1
        assert torch.ones(1, device="cuda").device.index == 0
        with pytest.raises(torch.AcceleratorError):
            torch.ones(1, device="cuda:1")

    def none_visible() -> None:
        assert not torch.cuda.is_available()
        with pytest.raises(RuntimeError, match="No CUDA GPUs"):
            torch.ones(1, device="cuda")

    for chosen, work in (("1", one_visible), ("", none_visible), ("7", none_visible)):
        os.environ["CUDA_VISIBLE_DEVICES"] = chosen
        try:
            assert in_child(work, fresh=True) == 0
        finally:
            del os.environ["CUDA_VISIBLE_DEVICES"]


@rule
def a_forked_child_may_not_use_the_gpu_of_its_parent() -> None:
    x = gpu(1)

    def refused() -> None:
        for work in (lambda: x + 1, lambda: torch.ones(1, device="cuda")):
            with pytest.raises(RuntimeError, match="Cannot re-initialize CUDA in forked"):
                work()
        assert (torch.ones(2) + 1).tolist() == [2, 2]

    assert in_child(refused, fresh=False) == 0
    assert in_child(lambda: refused(), fresh=True) == 1
