"""`fasttrain analyze`: experiments on tiny runs, their JSON and their page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fasttrain.analysis.findings.lab import Lab
from fasttrain.analysis.findings.page import EXPERIMENTS, analyze, shades, write_page
from fasttrain.analysis.findings.result import Curve, HeatMap, Result, Table
from fasttrain.models.files.shelf import read_shelf
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings, to_yaml
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World
from tests.analysis.report.support import fabricate
from tests.evaluation.conftest import write_model
from tests.runs.calling import call


@pytest.fixture(scope="module")
def recipe(quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`quick` as a recipe's file: 256 images, of which --quick takes 32."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    changes = [*quick, "images=256", "run=none", "checkpoint.every=256"]
    changes += ["batch=16", "report_every=16"]
    path.write_text(to_yaml(load_settings("digits-d2o-f", changes, FinetuneSettings)))
    return path


@pytest.mark.slow
def test_every_experiment_writes_its_numbers_and_its_section(
    recipe: Path, diffusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--base", diffusion, "--recipe", recipe, "--out", out, "--quick"]
    status, said, _ = call(capsys, "analyze", "all", *words)
    assert status == 0
    assert f"findings: {out / 'findings.html'}" in said
    page = (out / "findings.html").read_text()
    for name in EXPERIMENTS:
        result = json.loads((out / f"{name}.json").read_text())
        assert result["found"]
        assert f'id="{name}"' in page
    assert "<script" not in page
    budget = json.loads((out / "budget.json").read_text())
    assert [images for images, _ in budget["data"]["curves"]["D2O"][0]] == [16, 32]
    share = json.loads((out / "freezing.json").read_text())["data"]["share"]
    assert share["1"] + share["all-but-1"] == pytest.approx(1)
    assert 0 < share["all-but-norms"] < share["3"]
    for adapters in ("lora", "rotate"):  # the highest rank that trains no more than level 1
        assert 0.7 * share["1"] < share[adapters] <= share["1"]
    frequency = json.loads((out / "frequency.json").read_text())
    assert all(heat["rows"] for heat in frequency["maps"])
    # Again: nothing is made a second time.
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    status, _, err = call(capsys, "analyze", "all", *words)
    assert status == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.json")} == before
    assert "images seen" not in err


def test_mistakes_are_one_line(
    diffusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = call(
        capsys, "analyze", "budgets", "--base", diffusion, "--out", tmp_path / "o"
    )
    assert status == 2
    assert "no experiment 'budgets': choose one of budget, freezing" in err
    status, _, err = call(capsys, "analyze", "budget", "--base", tmp_path, "--out", tmp_path / "o")
    assert status == 2
    assert "is not a run directory" in err
    assert "Traceback" not in err
    assert not (tmp_path / "o").exists()


def test_a_model_of_the_shelf_is_a_base(tmp_path: Path) -> None:
    lab = Lab(Path("emoji-edm"), "emoji32-d2o-f", tmp_path / "o", World(0, 1, torch.device("cpu")))
    assert lab.data == load_settings("emoji32-d2o-f", [], FinetuneSettings).data
    assert lab.settings("run", 3).init == Path("emoji-edm")
    assert lab.about()["base"] == "emoji-edm"
    assert lab.about()["base_images"] == 460_800
    own = read_shelf("emoji-edm").weights["model.map_layer1.weight"].float()
    assert torch.equal(lab.teacher().state_dict()["model.map_layer1.weight"], own)
    with pytest.raises(UserError, match="which emoji-edm does not say: name a run of"):
        lab.pretrained(0.25)
    one_step = Lab(Path("emoji"), "emoji32-d2o-f", tmp_path / "o", World(0, 1, torch.device("cpu")))
    with pytest.raises(UserError, match="emoji is not a diffusion model"):
        one_step.about()
    assert not (tmp_path / "o").exists()


def result_of(lab: Lab) -> Result:
    return Result("", "title", "claim", "found", "protocol", lab.about(), {})


def test_a_folder_is_one_base_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished runs are taken as they are, so another's must not be."""
    for name in EXPERIMENTS:
        monkeypatch.setitem(EXPERIMENTS, name, result_of)
    lab = Lab(Path("emoji-edm"), "emoji32-d2o-f", tmp_path, World(0, 1, torch.device("cpu")))
    analyze("all", lab)
    assert "without pretraining: emoji-edm is not a run" in capsys.readouterr().out
    made = {path.stem for path in tmp_path.glob("*.json")} - {"lab"}
    assert made == set(EXPERIMENTS) - {"pretraining"}
    analyze("budget", replace(lab, seeds=3))
    for other in (
        replace(lab, quick=True),
        replace(lab, base=Path("fashion-mnist-edm"), recipe="fashion-mnist-cpu-d2o-f"),
    ):
        with pytest.raises(UserError, match="runs of another base model, recipe or with --quick"):
            analyze("budget", other)


def test_runs_of_other_weights_or_settings_are_not_taken(tmp_path: Path) -> None:
    """Whose names are the same."""
    recipe = tmp_path / "recipe.yaml"
    base = write_model(tmp_path / "base.safetensors", "pretrain")

    def lab(*changes: str) -> Lab:
        settings = load_settings("digits-d2o-f", ["run=none", *changes], FinetuneSettings)
        recipe.write_text(to_yaml(settings))
        return Lab(base, str(recipe), tmp_path / "o", World(0, 1, torch.device("cpu")))

    first = lab().about()
    assert lab().about() == first
    for change in ("generator.rate=3e-5", "images=4000", "data.crop=none", "data.path=elsewhere"):
        assert lab(change).about() != first
    made = lab()
    fabricate(made.settings("level", 0, "freeze=1"), 1)
    run = made.tuned("level", 0, "freeze=1")  # finished: taken as it is
    with pytest.raises(
        UserError, match=r"level-0 was made with generator\.rate=0\.\d+, which is now"
    ):
        lab("generator.rate=3e-5").tuned("level", 0, "freeze=1")
    with pytest.raises(UserError, match=r"was made with freeze=1, which is now 'none'"):
        lab().tuned("level", 0, "freeze=none")
    assert run == tmp_path / "o" / "runs" / "level-0"
    weights = load_file(base)
    changed = {name: 1.1 * x if name.endswith("weight") else x for name, x in weights.items()}
    save_file(changed, base, metadata=metadata_of(base))
    assert lab().about() == first | {"base_weights": lab().about()["base_weights"]}
    assert lab().about() != first


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_the_data_of_a_base_run_are_whole(tmp_path: Path) -> None:
    """Not only their path; but streams go with a batch."""
    mix = "data.mix=[{path: a, weight: 3}, {path: b, weight: 1}]"
    common = [f"run={tmp_path / 'edm'}", "network.model_channels=16", "network.num_blocks=1"]
    settings = load_settings("digits-edm", [*common, mix, "data.streams=2"], PretrainSettings)
    fabricate(settings, 1)
    lab = Lab(settings.run, "digits-d2o-f", tmp_path / "o", World(0, 1, torch.device("cpu")))
    found = lab.settings("like", 0).data
    assert found.mix == settings.data.mix
    assert found.streams is None


def test_the_page_escapes_and_colours(tmp_path: Path) -> None:
    heat = HeatMap("map", ["a"], ["x", "y", "z"], [[1.0, None, 3.0]])
    assert [cell["share"] for cell in shades(heat)[0]] == [0, 0, 100]
    result = Result(
        name="budget",
        title="<b>title</b>",
        claim="claim",
        found="found & lost",
        protocol="how.",
        about={"base": "b", "base_images": 1000, "recipe": "r", "seeds": 1, "quick": True},
        data={},
        tables=[Table(("one", "two"), [("1", "<i>")])],
        curves=[Curve("curve", {"line": [(0, 1.0), (10, 2.0)]})],
        maps=[heat],
    )
    (tmp_path / "budget.json").write_text(json.dumps(result.to_dict()))
    (tmp_path / "minima.json").write_text("{")  # damaged: left out
    page = write_page(tmp_path).read_text()
    assert "&lt;b&gt;title&lt;/b&gt;" in page
    assert "found &amp; lost" in page
    assert "&lt;i&gt;" in page
    assert "<svg" in page
    assert "minima" not in page
