"""CUDA graphs of the passes: the wiring, with a stand-in that has the hard part of a graph, memory
that every replay reads and writes."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from fasttrain.data import Batch
from fasttrain.models.networks import build_network
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.training.engines.local import LocalEngine
from fasttrain.training.finetune import train
from fasttrain.training.graphs import capture, check_graphs
from tests.discriminator.test_projected import build
from tests.models.networks.test_fused import randomise


class StandIn:
    """In the place of `torch.cuda.make_graphed_callables`: the same shapes, dtypes and gradients at
    every call, inputs, outputs and gradients in the memory of the capture, one derivative."""

    def __init__(self) -> None:
        self.replays: list[int] = []

    def __call__(self, run: Any, samples: tuple[Tensor, ...], allow_unused_input: bool) -> Any:
        assert allow_unused_input
        number, replays = len(self.replays), self.replays
        replays.append(0)
        flat, spec = tree_flatten(run(*samples))
        outputs = [torch.full_like(t, torch.nan).detach() for t in flat]
        sent = [torch.empty_like(t) for t in flat]
        back = [torch.full_like(t, torch.nan) if t.requires_grad else None for t in samples]
        kinds = [(t.shape, t.dtype, t.requires_grad) for t in samples]

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
                replays[number] += 1
                for sample, given in zip(samples, inputs, strict=True):
                    if sample.data_ptr() != given.data_ptr():
                        sample.detach().copy_(given)
                with torch.set_grad_enabled(any(t.requires_grad for t in samples)):
                    ctx.made = tree_flatten(run(*samples))[0]
                for output, value in zip(outputs, ctx.made, strict=True):
                    output.copy_(value.detach())
                return tuple(t.detach() for t in outputs)

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
                for static, grad in zip(sent, grads, strict=True):
                    static.copy_(grad)
                wanted = [t for t in samples if t.requires_grad]
                found = torch.autograd.grad(ctx.made, wanted, sent, allow_unused=True)
                values = iter(found)
                result: list[Tensor | None] = []
                for static in back:
                    value = None if static is None else next(values)
                    result.append(None if value is None or static is None
                                  else static.copy_(value).detach())  # fmt: skip
                return tuple(result)

        def replayed(*inputs: Tensor) -> Any:
            assert [(t.shape, t.dtype) for t in inputs] == [k[:2] for k in kinds]
            if torch.is_grad_enabled():
                assert [t.requires_grad for t in inputs] == [k[2] for k in kinds]
            return tree_unflatten(list(Replay.apply(*inputs)), spec)

        return replayed


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", made)
    return made


class Loop:
    """What `train` asks of a run: two iterations of eight images."""

    seed, images, world = 0, 0, SimpleNamespace(device=torch.device("cpu"))

    def __init__(self) -> None:
        self.applied: list[bool] = []

    @property
    def ended(self) -> bool:
        return self.images >= 16

    @property
    def seen(self) -> int:
        return self.images + 8

    def read(self, stream: Any) -> Batch:
        draws = torch.Generator().manual_seed(self.images)
        images = torch.rand(8, 3, 16, 16, generator=draws) * 2 - 1
        return _Moved(images, torch.eye(3)[torch.arange(8) % 3], torch.arange(8) + self.images)

    def step(self, engine: Any, name: str) -> bool:
        self.applied.append(engine.step())
        return self.applied[-1]

    def every(self, interval: int | None) -> bool:
        return interval is not None

    def advance(self, images: int) -> None:
        self.images += images


class _Moved(Batch):
    def to(self, device: Any) -> Batch:
        return self


def trained(graphs: bool, *words: str) -> dict[str, Tensor]:
    """Weights of both networks after two iterations of `train`."""
    torch.manual_seed(0)
    small = ["batch=8", "discriminator.norm_group=4", "r1.interval=1", "freeze=1", *words]
    settings = load_settings("digits-d2o-f", small, FinetuneSettings)
    net = build_network(
        "one_step", "SongUNet", img_resolution=16, img_channels=3, label_dim=3, model_channels=8,
        channel_mult=(1,), num_blocks=1, attn_resolutions=(), channel_mult_emb=1,
    ).eval()  # fmt: skip
    randomise(net)
    judge = build("a", norm_group=4)
    if graphs:
        capture(net)
        capture(judge, judge.heads, twice=True, state=lambda: judge.precision)
    run = Loop()
    engines: Any = (
        LocalEngine(net, settings.generator),
        LocalEngine(judge, settings.discriminator.optimizer, trained=judge.heads),
    )
    average = SimpleNamespace(update=lambda **_: None)
    train(settings, cast(Any, run), *engines, cast(Any, average), cast(Any, None))
    assert all(run.applied)
    assert len(run.applied) == 6
    return net.state_dict() | judge.state_dict()


@pytest.mark.parametrize(
    ("words", "replays"),
    [
        (["micro_batch=4", "reuse_fakes=true"], [4, 4, 4]),
        # Images of the generator without gradient, logits of real images in its step.
        (["micro_batch=4", "loss=relativistic"], [4, 4, 4, 4, 4]),
    ],
)
def test_a_training_on_graphs_is_the_same(
    words: list[str], replays: list[int], stand_in: StandIn
) -> None:
    """The same bits, with gradients of several micro-batches and images that are kept."""
    expected = trained(False, *words)
    assert stand_in.replays == []
    ours = trained(True, *words)
    assert sorted(stand_in.replays) == replays
    assert all(torch.equal(ours[name], value) for name, value in expected.items())


class Tanh(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return torch.tanh(self.layer(x)) * factor


def test_calls_that_no_graph_can_take_run_as_they_are(stand_in: StandIn) -> None:
    """A second call before the first one's backward pass, and a second derivative; a call of
    another shape or with another number is a graph of its own, up to a number of them."""
    torch.manual_seed(0)
    plain = Tanh()
    module = copy.deepcopy(plain)
    graphed = capture(module, twice=True)
    x, y = torch.randn(4, 3), torch.randn(4, 3)

    def gradient(net: nn.Module) -> Tensor:
        net.zero_grad()
        (net(x).sum() + (net(y) ** 2).sum()).backward()
        grad = net.get_parameter("layer.weight").grad
        assert grad is not None
        return grad

    for _ in range(2):
        assert torch.equal(gradient(module), gradient(plain))
    assert stand_in.replays == [2]
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(module(leaf).sum(), leaf, create_graph=True)
    first.square().sum().backward()
    assert len(graphed.graphs) == 1
    with torch.no_grad():
        for size in range(1, 12):
            assert torch.equal(
                module(x[:1].expand(size, 3), 0.5), plain(x[:1].expand(size, 3), 0.5)
            )
    assert len(graphed.graphs) == 8


def test_a_graph_reads_the_weights_where_they_lie(stand_in: StandIn) -> None:
    """Changed in place between two replays, as optimizers and checkpoints do."""
    module = Tanh()
    capture(module)
    x = torch.randn(4, 3)
    before = module(x)
    before.sum().backward()
    kept = before.clone()
    with torch.no_grad():
        module.layer.weight.mul_(2)
    after = module(x)
    assert torch.equal(before, kept)  # the next replay does not overwrite an output
    assert torch.equal(after, torch.tanh(module.layer(x)))
    assert stand_in.replays == [2]


def test_what_cannot_be_captured_is_refused() -> None:
    with pytest.raises(UserError, match="graphs: CUDA graphs need a GPU"):
        check_graphs(torch.device("cpu"), False)
    with pytest.raises(UserError, match="share groups"):
        check_graphs(torch.device("cuda"), True)
    check_graphs(torch.device("cuda"), False)
    for words, why in (
        (["engine.zero_stage=3"], "ZeRO 3 moves weights"),
        (["compile=true"], "set compile to false"),
    ):
        with pytest.raises(UserError, match=why):
            load_settings("digits-d2o-f", ["graphs=true", *words], FinetuneSettings)
