"""`profile_recipe` from end to end on a CPU, and what it does when something is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fasttrain.analysis.profiling import bench as bench_module
from fasttrain.analysis.profiling import profile as profile_module
from fasttrain.analysis.profiling import profile_recipe
from fasttrain.analysis.profiling.columns import Column, columns_for
from fasttrain.analysis.profiling.sizes import fitted, parameters_of
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from tests.analysis.profiling.support import CPU, TINY

KEYS = {
    *("schema", "recipe", "overrides", "notes", "shrunk", "machine", "model"),
    *("configuration", "settings"),
    *("method", "rates", "columns", "phases", "classes", "failed", "wrong", "remarks", "files"),
}
FEWER_PIXELS = (
    "discriminator.backbones="
    "[{name: deit_base_distilled, resolution: 96}, {name: lite0, resolution: 96}]"
)
ERROR = RuntimeError("no [compiler] here\nand a long story")


class Profiled(NamedTuple):
    result: dict[str, Any]
    folder: Path
    output: str


def with_two_bad_columns(settings: FinetuneSettings, *arguments: Any) -> tuple[Column, ...]:
    """Between eager and ours one that computes something else, and one that cannot run."""

    def other(qkv: torch.Tensor, *, heads: int, impl: str = "auto") -> torch.Tensor:
        return qkv[:, : qkv.shape[1] // 3] * 1.0

    def broken(*_: Any, **__: Any) -> Any:
        raise ERROR

    eager, *_, ours = columns_for(settings, *arguments)
    return (
        eager,
        Column("mistaken", "attention to nothing", patches={"attention": other}),
        Column("broken", "cannot run", patches={"group_norm": broken}),
        ours,
    )


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    """The only whole run of these tests."""
    folder = tmp_path_factory.mktemp("profile")
    patch, lines = pytest.MonkeyPatch(), []
    patch.setattr(bench_module, "columns_for", with_two_bad_columns)

    class Console(profile_module.Console):
        def __init__(self, **options: Any) -> None:
            super().__init__(record=True, **options)
            lines.append(self)

    patch.setattr(profile_module, "Console", Console)
    try:
        result = profile_recipe(
            "imagenet64-d2o-f",
            [*TINY, FEWER_PIXELS],
            device="cpu",
            batch=2,
            iterations=2,
            out=folder,
        )
    finally:
        patch.undo()
    return Profiled(result, folder, lines[-1].export_text())


def test_the_file_holds_what_was_returned(profiled: Profiled) -> None:
    assert json.loads((profiled.folder / "profile.json").read_text()) == profiled.result
    assert set(profiled.result) == KEYS
    assert profiled.result["schema"] == 1
    configuration = profiled.result["configuration"]
    assert (configuration["batch"], configuration["iterations"]) == (2, 2)
    assert (configuration["dtype"], configuration["implementation"]) == ("float32", "reference")
    assert profiled.result["settings"]["network"]["model_channels"] == 32


def test_the_first_lines_say_that_it_is_not_the_published_size(profiled: Profiled) -> None:
    assert profiled.result["shrunk"]
    assert "NOT THE RECIPE'S SIZE" in profiled.result["notes"][0]
    first = " ".join(" ".join(profiled.output.splitlines()[:5]).split())
    assert "NOT THE RECIPE'S SIZE: on a CPU this is a small DhariwalUNet" in first
    assert "batch norm of the heads over 2 images instead of 128" in first


def test_columns_have_times_counts_and_memory(profiled: Profiled) -> None:
    columns = profiled.result["columns"]
    assert list(columns) == ["eager", "mistaken", "ours"]
    for column in columns.values():
        generator = column["generator"]
        for timing in (generator["forward"], generator["total"], column["step"]["time"]):
            assert 0 < timing["p20_ms"] <= timing["median_ms"] <= timing["p80_ms"]
            assert timing["repetitions"] == 2
        assert generator["peak_bytes_above_weights"] is None
        assert generator["classes"]["bytes"] > generator["saved_activation_bytes"] > 0
        assert generator["classes"]["flops"] > 0
    assert (
        columns["ours"]["generator"]["saved_activation_bytes"]
        < columns["eager"]["generator"]["saved_activation_bytes"]
    )


def test_wrong_and_failed_columns_do_not_go_unnoticed(profiled: Profiled) -> None:
    assert profiled.result["wrong"] == ["mistaken"]
    assert "images" in profiled.result["columns"]["mistaken"]["check"]["wrong"]
    assert profiled.result["columns"]["ours"]["check"]["wrong"] == []
    assert "WRONG: column mistaken has wrong results" in profiled.output
    assert profiled.result["failed"] == {"broken": "RuntimeError: no [compiler] here"}
    assert "no [compiler] here" in profiled.output


def test_phases_add_up_to_the_iteration(profiled: Profiled) -> None:
    phases = profiled.result["phases"]
    total = sum(row["amortised_ms"] for row in phases["rows"])
    assert phases["sum_ms"] == pytest.approx(total)
    assert phases["difference_ms"] == pytest.approx(total - phases["measured_ms"])
    # Two repetitions on a busy machine: the same thing is measured, no more.
    assert total == pytest.approx(phases["measured_ms"], rel=0.8)
    assert len(phases["rows"]) == 18
    assert phases["iteration_with_r1"] is not None
    assert phases["images_per_second"] == pytest.approx(2e3 / phases["measured_ms"])
    assert "Sum of the phases" in profiled.output


def test_classes_know_nearly_every_operator(profiled: Profiled) -> None:
    everything = [profiled.result["classes"]]
    everything += [c["generator"]["classes"] for c in profiled.result["columns"].values()]
    for classes in everything:
        rows = {row["class"]: row for row in classes["rows"]}
        assert set(rows) >= {"convolution", "matrix product", "norm", "elementwise"}
        other = rows.get("other", {"bytes": 0})
        assert other["bytes"] <= 0.02 * classes["bytes"]
        assert sum(row["bytes"] for row in rows.values()) == classes["bytes"]
        assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
        copy = profiled.result["rates"]["copy"]["per_second"]
        norm = rows["norm"]
        assert norm["of_copy"] == pytest.approx(norm["bytes"] / norm["time_ms"] * 1e3 / copy)
        assert rows["convolution"]["flops_per_second"] > 0
    assert {"optimizer", "resampling"} <= {row["class"] for row in everything[0]["rows"]}


def test_the_trace_names_the_phases(profiled: Profiled) -> None:
    trace = json.loads(Path(profiled.result["files"]["trace"]).read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert names >= {"iteration", "forward G", "forward D", "backward", "optimizer", "EMA"}


def test_remarks_tell_how_the_numbers_came_about(profiled: Profiled) -> None:
    remarks = " ".join(profiled.result["remarks"])
    for words in ("must read and write (each input", "are the same code", "save no input",
                  "torch.compile is not measured on a CPU"):  # fmt: skip
        assert words in remarks
        assert words.split()[0] in profiled.output


def test_the_published_size_on_a_gpu_and_a_small_network_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fit(name: str, device: str, batch: int | None = None, *more: str) -> Any:
        settings = load_settings(name, more, FinetuneSettings)
        return fitted(settings, torch.device(device), batch)

    monkeypatch.delenv("FASTTRAIN_WEIGHTS", raising=False)
    settings, notes = fit("imagenet64-d2o-f", "cuda")
    assert (parameters_of(settings), settings.batch, len(notes)) == (295_899_267, 128, 1)
    assert "no weights of deit_base_distilled here" in notes[0]
    assert [b.weights for b in settings.discriminator.backbones] == ["random", None]
    assert fit("imagenet64-d2o-f", "cuda", None, "micro_batch=256")[0].batch == 256
    settings, notes = fit("imagenet64-d2o-f", "cuda", 96)
    assert (settings.batch, settings.discriminator.norm_group, len(notes)) == (96, 32, 2)

    for recipe in ("imagenet64-d2o-f", "cifar10-uncond-d2o-f"):
        whole = load_settings(recipe, [], FinetuneSettings).network
        settings, notes = fit(recipe, "cpu")
        small = settings.network
        assert parameters_of(settings) < 10_000_000
        assert (small.model_channels, small.num_blocks, small.img_resolution) == (32, 1, 16)
        for name in ("model_type", "channel_mult", "attn_resolutions", "label_dim"):
            assert getattr(small, name) == getattr(whole, name)
        assert (settings.batch, settings.discriminator.norm_group) == (4, 4)
        assert settings.discriminator.backbones[0].resolution == 64
    settings, notes = fit("digits-d2o-f", "cpu")
    assert settings.network == load_settings("digits-d2o-f", [], FinetuneSettings).network
    assert len(notes) == 1  # of batch norm


class Stop(Exception):
    pass


def test_a_batch_that_does_not_fit_is_halved_and_the_output_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tried: list[tuple[int, int]] = []

    def bench(settings: FinetuneSettings, *_: Any, **__: Any) -> Any:
        tried.append((settings.batch, settings.discriminator.norm_group))
        if settings.batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")
        raise Stop

    monkeypatch.setattr(profile_module.Meter, "rates", lambda *_: {})
    monkeypatch.setattr(profile_module, "Bench", bench)
    run = run_with(tmp_path)
    with pytest.raises(Stop):
        run(batch=8)
    assert tried == [(8, 8), (4, 4), (2, 2)]
    output = " ".join(capsys.readouterr().out.split())
    assert "out of memory at batch 8: halved to 4" in output
    assert "out of memory at batch 4: halved to 2" in output

    monkeypatch.setattr(profile_module, "Bench", lambda *_, **__: bench(tiny_batch_of(8)))
    with pytest.raises(UserError, match="one image does not fit in memory: CUDA out of memory"):
        run(batch=1)


def tiny_batch_of(batch: int) -> FinetuneSettings:
    return fitted(load_settings("imagenet64-d2o-f", TINY, FinetuneSettings), CPU, batch)[0]


def run_with(folder: Path) -> Callable[..., Any]:
    return lambda **options: profile_recipe(
        "imagenet64-d2o-f", TINY, device="cpu", out=folder, **options
    )


def test_a_gpu_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in (None, "cuda", "cuda:1"):
        profile_module._device(name)
    assert [device.index for device in chosen] == [0, 0, 1]
    with pytest.raises(UserError, match="--device cuda:9: this machine has 2 GPUs"):
        profile_module._device("cuda:9")


def test_devices_that_are_not_there_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, message in (
        ("cuda", "no CUDA device here: use --device cpu"),
        ("gpu", "no device 'gpu': choose cuda or cpu"),
        ("meta", "cannot profile on meta: choose cuda or cpu"),
    ):
        with pytest.raises(UserError, match=message):
            profile_recipe("digits-d2o-f", device=device)
