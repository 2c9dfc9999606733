"""Memory, generators, waiting, autograd, kernels and collectives."""

from __future__ import annotations

import copy
import io
import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

from tests.on_pretend_gpu.rules import gpu, mixes, rule


@rule
def memory_of_the_cpu_alone_is_pinned() -> None:
    assert torch.empty(3, pin_memory=True).is_pinned()
    pinned = torch.ones(2).pin_memory()
    assert pinned.is_pinned()
    assert pinned[1:].is_pinned()
    assert not torch.ones(2).is_pinned()
    assert not gpu(1).is_pinned()
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        gpu(1).pin_memory()


@rule
def generators_are_apart() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2), torch.rand(2, device="cuda"), torch.rand(2, device="cuda:1")
    torch.manual_seed(5)
    torch.rand(7, device="cuda:1")
    nn.functional.dropout(torch.ones(9, device="cuda:1"))
    assert torch.equal(torch.rand(2), expected[0])
    state = torch.cuda.get_rng_state()
    assert torch.equal(torch.rand(2, device="cuda"), expected[1])
    assert not torch.equal(torch.rand(2, device="cuda:1"), expected[2])
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(2, device="cuda"), expected[1])
    before = torch.get_rng_state()
    torch.randn(3, device="cuda")
    assert torch.equal(torch.get_rng_state(), before)


@rule
def a_generator_is_of_one_device() -> None:
    of_cpu, of_gpu = torch.Generator(), torch.Generator("cuda")
    assert of_gpu.device.type == "cuda"
    for device, other in (("cuda", of_cpu), ("cpu", of_gpu)):
        with pytest.raises(RuntimeError, match=f"Expected a '{device}' device type for generator"):
            torch.randn(2, device=device, generator=other)
        with pytest.raises(RuntimeError, match=f"Expected a '{device}' device type for generator"):
            torch.empty(2, device=device).normal_(generator=other)
    first = torch.randn(2, device="cuda", generator=of_gpu.manual_seed(3))
    assert not torch.equal(torch.randn(2, device="cuda", generator=of_gpu), first)
    assert torch.equal(torch.randn(2, device="cuda", generator=of_gpu.manual_seed(3)), first)


@rule
def waiting_calls_are_counted_with_their_lines() -> None:
    from tests.pretend_gpu import counted

    x = gpu(1, 2, 3)
    kinds = {
        "item": [lambda: x.sum().item(), lambda: bool((x > 0).all()), lambda: float(x[0])],
        "device to host": [x.cpu, x.tolist, lambda: torch.empty(3).copy_(x), lambda: f"{x}"],
        "host to device": [
            torch.ones(3).cuda,
            lambda: torch.tensor(1, device="cuda"),
            lambda: x[torch.tensor([0])],
        ],
        "pageable to device": [lambda: torch.ones(3).to("cuda", non_blocking=True)],
        "nonzero": [lambda: x.nonzero(), lambda: torch.where(x > 1)],
        "mask as index": [lambda: x[x > 1]],
        "synchronize": [torch.cuda.synchronize, torch.cuda.Event().synchronize],
    }
    for kind, calls in kinds.items():
        for call in calls:
            with counted() as seen:
                call()
            assert seen.kinds == {kind: 1}, (kind, seen.lines)
            ((_, line),) = seen.lines
            assert line.startswith(f"{__file__}:"), line


@rule
def other_calls_do_not_wait() -> None:
    from tests.pretend_gpu import counted

    x, pinned = gpu(1, 2, 3), torch.ones(3).pin_memory()
    with counted() as seen:
        x = (x * 2 + 1).clamp(0, 5).sqrt()
        x = torch.where(x > 1, x, 0.0) + pinned.to("cuda", non_blocking=True)
        x.to("cpu", non_blocking=True)
        torch.zeros(3, device="cuda").copy_(x).fill_(3)
        nn.functional.one_hot(torch.arange(3, device="cuda"), 4)
        torch.nn.utils.clip_grad_norm_([x.requires_grad_()], 1.0)
    assert not seen.kinds, seen.lines


@rule
def events_take_the_time() -> None:
    first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with pytest.raises(ValueError, match="recorded"):
        first.elapsed_time(second)
    first.record()
    time.sleep(0.002)
    second.record(torch.cuda.current_stream())
    assert 2 <= first.elapsed_time(second) < 1000
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        assert torch.cuda.current_stream() is stream
    assert torch.cuda.current_stream() is not stream


@rule
def live_bytes_are_counted() -> None:
    before = torch.cuda.memory_allocated()
    x = torch.ones(1000, device="cuda")
    view = x[:10]
    assert torch.cuda.memory_allocated() - before == 4096
    other = torch.cuda.memory_allocated(1)
    y = x.to("cuda:1")
    assert torch.cuda.memory_allocated(1) - other == 4096
    del x
    assert torch.cuda.memory_allocated() - before == 4096
    del view, y
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.memory_allocated(1) == other
    torch.cuda.reset_peak_memory_stats()
    torch.ones(10_000, device="cuda").cpu()
    assert torch.cuda.max_memory_allocated() - before == 40_448
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        torch.empty(1 << 40, dtype=torch.uint8, device="cuda")


@rule
def a_module_computes_what_it_does_on_the_cpu() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
    plain = nn.Sequential(*layers)
    moved = copy.deepcopy(plain).cuda()
    assert all(p.is_cuda and isinstance(p, nn.Parameter) for p in moved.parameters())
    images = torch.randn(2, 3, 8, 8)
    for step in range(2):
        for module, x in ((plain, images), (moved, images.cuda())):
            optimizer = torch.optim.Adam(module.parameters(), fused=bool(step))
            module(x).square().mean().backward()
            optimizer.step()
    for one, other in zip(plain.parameters(), moved.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad.cpu())
        assert torch.equal(one, other.cpu())
    again = copy.deepcopy(moved)
    again.load_state_dict(plain.state_dict())
    weight = next(again.parameters())
    weight.data = weight.data.to(torch.bfloat16)
    assert weight.dtype == torch.bfloat16
    assert weight.is_cuda
    assert not next(again.cpu().parameters()).is_cuda


@rule
def gradients_of_gradients() -> None:
    x = gpu(1, 2).requires_grad_()
    (first,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    first.square().sum().backward()
    assert x.grad.tolist() == [36, 288]
    y = gpu(3).requires_grad_()
    (y.cpu() * torch.ones(1)).sum().backward()
    assert y.grad.is_cuda


@rule
def tensors_are_saved_with_their_device() -> None:
    file = io.BytesIO()
    torch.save({"x": gpu(1, 2)}, file)
    file.seek(0)
    x = torch.load(file, weights_only=False)["x"]
    assert x.is_cuda
    assert x.tolist() == [1, 2]


@rule
def threads_are_under_the_rules() -> None:
    found: list[Any] = []

    def work() -> None:
        found.append(torch.cuda.current_device())
        mixes(lambda: gpu(1) + torch.ones(1))
        found.append("refused")

    with torch.cuda.device(1):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [0, "refused"], found


@rule
def kernels_take_no_tensor_of_the_cpu() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def double(x, y, n, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.arange(0, SIZE)
        tl.store(y + at, 2 * tl.load(x + at, at < n), at < n)

    x, y = gpu(1, 2, 3), torch.zeros(3, device="cuda")
    double[(1,)](x, y, 3, SIZE=4)
    assert y.tolist() == [2, 4, 6]
    with pytest.raises(ValueError, match="cannot be accessed from Triton"):
        double[(1,)](torch.ones(3), y, 3, SIZE=4)


@rule
def our_kernels_run_on_it() -> None:
    from fasttrain_kernels import dispatch, group_norm

    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 4, 3, 3), torch.rand(4), torch.rand(4)
    expected = group_norm(x, weight, bias, groups=2, impl="reference")
    dispatch.HAVE_TRITON = True
    try:
        moved = [t.cuda().requires_grad_() for t in (x, weight, bias)]
        found = group_norm(*moved, groups=2, impl="triton")
        found.sum().backward()
    finally:
        dispatch.HAVE_TRITON = False
    assert found.is_cuda
    torch.testing.assert_close(found.detach().cpu(), expected)
    assert all(t.grad.is_cuda for t in moved)


@rule
def collectives_of_nccl_take_no_tensor_of_the_cpu() -> None:
    import torch.distributed as dist

    from fasttrain.system.processes import start, stop
    from tests.pretend_gpu import counted

    start(force_group=True)
    try:
        assert dist.get_backend() == "nccl"
        x = gpu(1, 2)
        dist.all_reduce(x)
        assert x.tolist() == [1, 2]
        for work in (
            lambda: dist.all_reduce(torch.ones(1)),
            lambda: dist.broadcast(torch.ones(1), src=0),
            lambda: dist.all_gather([torch.ones(1)], torch.ones(1)),
        ):
            with pytest.raises(RuntimeError, match="device type cpu"):
                work()
        beside = dist.new_group(backend="gloo")
        dist.all_reduce(torch.ones(1), group=beside)
        with counted() as seen:  # what it sends is a tensor of the GPU
            box: list[Any] = [None]
            dist.all_gather_object(box, "word")
        assert box == ["word"]
        assert seen.kinds["device to host"] + seen.kinds["item"] > 0
        with counted() as seen:
            dist.barrier()
        assert seen.kinds == {"barrier": 1}
    finally:
        stop()
