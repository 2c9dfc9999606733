"""A pretend GPU: code written for CUDA runs on a machine without one, under CUDA's device rules.

    import pretend_gpu                     # before torch
    pretend_gpu.install(gpus=2)            # for good, so in a process of its own
    x = torch.randn(3, device="cuda")      # x.is_cuda; its values are on the CPU
    x + torch.ones(3)                      # RuntimeError: Expected all tensors to be on the same
    with pretend_gpu.counted() as waits:
        x.sum().item()
    waits.kinds, waits.lines               # the calls that made the host wait, and whose they were

or, for a whole command, with `tests` on the path:

    PRETEND_GPUS=2 python -m pretend_gpu -m fasttrain doctor
    python -m pretend_gpu SCRIPT ARGS...

How. A `PretendTensor` is a wrapper whose C++ side says `cuda:N` and has no memory; inside is the
CPU tensor with the values. `operators.run` is every operator: it checks the devices, runs the
operator on the CPU tensors and wraps what comes out. It is reached by `__torch_dispatch__` and, for
what makes tensors out of nothing (`torch.empty(device="cuda")`), as the fallback of the dispatch
key CUDA, for which a build without CUDA has no kernels. Neither is a mode, so all threads (readers,
autograd's thread of a device) are under the rules. `native.cpp` adds what only C++ can: a device
guard and CUDA's hooks, without which autograd refuses and nothing is pinned; generators of a GPU; a
count of live bytes.

What it finds: tensors of the CPU and of a GPU, or of two GPUs, mixed where CUDA refuses them;
`numpy()` of a GPU's tensor; CPU tensors given to NCCL or to a Triton kernel; generators of another
device; GPUs that are not there or not visible; a GPU used in a forked child; code for GPUs that
never ran (bfloat16, channels_last, pinned batches, kernels' wrappers, DeepSpeed's CUDA
accelerator); calls that make the host wait, with their lines.

What it cannot show:
- numerics: TF32, cuDNN, atomics, orders of reduction; operators or dtypes that only one side has;
- races and the order of streams: copies that are read too early, events without a wait;
- compiled Triton: kernels run under its interpreter;
- `torch.compile` and CUDA graphs: dynamo does not trace these tensors;
- NCCL itself: hangs, its order and its streams (collectives are gloo's);
- memory as CUDA has it: bytes of live tensors are counted, and refused beyond the GPU's, but the
  workspaces are the CPU's, and nothing is cached or fragmented;
- fused attention: the CPU's is used;
- a GPU's times: events and profiles have the host's;
- C++ extensions that take addresses;
- its rules against a real GPU: where they are too lenient, what passes here still fails there.
"""

from . import native as native  # first: it loads what torch asks for while it is imported

# isort: split

from .devices import fresh
from .install import install
from .tensor import PretendTensor
from .waits import Waits, counted

__all__ = ["PretendTensor", "Waits", "counted", "fresh", "install"]
