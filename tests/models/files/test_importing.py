"""`fasttrain import` and what takes a model file: whole, exact, and saying what it is."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.origins import origin_as_base, origin_of_state
from fasttrain.models.files.importing import import_model
from fasttrain.models.files.model_file import AUGMENT
from fasttrain.models.load import load_model, load_weights, open_model
from fasttrain.models.networks import Precond, build_network
from fasttrain.settings import NetworkSettings
from fasttrain.system.errors import UserError
from fasttrain.system.files import sha256
from fasttrain.system.tensors import write_tensors
from fasttrain.training.base_model import restore_base
from tests.edm_files import edm_modules, snapshot, write_snapshot, write_training_state
from tests.runs.calling import call

DIGITS: dict[str, Any] = {
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_blocks": 2,
    "attn_resolutions": (4,),
    "dropout": 0.13,
    "augment_dim": 9,
}
"""The network of `digits-d2o-f`, with augmentation labels as EDM trains it."""


@pytest.fixture(scope="module")
def network() -> Precond:
    torch.manual_seed(0)
    return build_network("edm", "SongUNet", 8, 1, 10, **DIGITS).eval()


@pytest.fixture(scope="module")
def pickled(network: Precond, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edm") / "network-snapshot-000200.pkl"
    write_snapshot(path, network, DIGITS)
    return path


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def assert_same(found: dict[str, torch.Tensor], network: Precond) -> None:
    expected = network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_command_says_what_it_found_and_where_it_is(
    network: Precond, pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said, error = call(capsys, "import", pickled)
    assert status == 0, error
    out = pickled.with_suffix(".safetensors")
    assert said.splitlines() == [
        "found: EDMPrecond, `ema` of a checkpoint of EDM's",
        f"model: diffusion model, SongUNet, {sum(p.numel() for p in network.parameters()):,} "
        f"parameters",
        "network: img_resolution=8, img_channels=1, label_dim=10, augment_dim=9, "
        "model_channels=32, channel_mult=(1, 2), channel_mult_emb=4, num_blocks=2, "
        "attn_resolutions=(4,), dropout=0.13, label_dropout=0.0, embedding_type=positional, "
        "channel_mult_noise=1, encoder_type=standard, decoder_type=standard, "
        "resample_filter=(1, 1)",
        "prediction: edm; one step starts at noise level 80, where the network's error counts 0.5 "
        "times",
        "note: the file does not say whether it is a diffusion model or a one-step generator; it "
        "was taken for a diffusion model. Of a generator (SiD, SiDA) import it again with "
        "--one-step --sigma 2.5",
        f"weights: {out}",
    ]
    assert_same(load_file(out), network)
    said_inside = metadata_of(out)
    assert json.loads(said_inside["network"])["augment_dim"] == 9
    assert said_inside["task"] == "pretrain"
    assert said_inside["source"] == pickled.name
    assert said_inside["source_sha256"] == sha256(pickled)
    again, info = load_model(out)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(x, 80.0), network(x, 80.0))
    assert info.network == load_model(pickled)[1].network
    (tmp_path / "model.pkl").symlink_to(pickled)  # as into a cache, where files have hashes
    assert call(capsys, "import", tmp_path / "model.pkl")[0] == 0
    assert (tmp_path / "model.safetensors").is_file()


def test_what_is_imported_can_be_imported(network: Precond, pickled: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b" / "b.safetensors"
    import_model(pickled, first)
    found = import_model(first, second)
    assert found.description == "EDMPrecond, `ema` of a checkpoint of EDM's"
    assert_same(load_file(second), network)
    with pytest.raises(UserError, match="is the file itself: name another one with --out"):
        import_model(first, first)


def test_what_our_files_say_is_kept(network: Precond, tmp_path: Path) -> None:
    arguments = {"model_type": "SongUNet", "img_resolution": 8, "img_channels": 1, "label_dim": 10}
    settings = NetworkSettings(**arguments, **DIGITS)
    said = {"task": "finetune", "network": settings.model_dump_json(), "images": "12000"}
    said |= {"sigma": "40.0", "sigma_mid": "0.8"}
    save_file(network.state_dict(), tmp_path / "a.safetensors", said)
    found = import_model(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert "one-step generator" in found.text()
    assert "images: 12,000" in found.text()
    loaded, info = load_model(tmp_path / "b.safetensors")
    assert loaded.row.constants.eps == 0.002
    assert (info.task, info.sigma, info.sigma_mid, info.images) == ("finetune", 40.0, 0.8, 12000)
    assert info.network == settings


def test_where_weights_came_from_is_kept(pickled: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    import_model(pickled, first)
    before = metadata_of(first)
    assert before["source"] == pickled.name
    kept = {"base_licence": "CC BY-NC-SA 4.0", "base_sha256": "12", "data_sha256": "34"}
    save_file(load_file(first), first, before | kept)
    import_model(first, second)
    assert metadata_of(second) == before | kept
    # A run that begins with it keeps this of its base model, and what is exported of the run.
    base = origin_as_base(open_model(second).origin)
    assert base == {
        "base_licence": "CC BY-NC-SA 4.0",
        **{f"base_{name}": before[name] for name in ("origin", "source", "source_sha256")},
    }
    state = {"base": {"sha256": "56", "origin": base}, "data": {"content_sha256": "78"}}
    step = checkpoint.save(tmp_path / "run" / "checkpoints", 64, {}, state)
    expected = base | {"base_sha256": "56", "data_sha256": "78"}
    assert origin_of_state(step.state) == expected
    assert step.state["base"]["origin"] == base
    assert origin_as_base(open_model(pickled).origin) == {
        "base_source": pickled.name,
        "base_source_sha256": sha256(pickled),
    }


def test_filters_are_those_of_the_settings(network: Precond, pickled: Path, tmp_path: Path) -> None:
    """The taps in the settings compute, not the values in a file: others would be passed over."""
    path, why = tmp_path / "x.safetensors", "is not that of the setting network.resample_filter"
    import_model(pickled, path)
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("resample_filter"))
    save_file(weights | {name: weights[name] * 1.1}, path, metadata_of(path))
    with pytest.raises(UserError, match=why):
        load_model(path)
    changed = copy.deepcopy(network)
    changed.get_buffer(name).mul_(1.1)
    write_snapshot(tmp_path / "x.pkl", changed, DIGITS)
    with pytest.raises(UserError, match=why):
        load_model(tmp_path / "x.pkl")
    torch.save(changed.state_dict(), tmp_path / "x.pt")
    with pytest.raises(UserError, match=why):
        load_weights(network, tmp_path / "x.pt")


def test_a_published_one_step_generator(network: Precond, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "x.pkl", network, DIGITS, class_name="D2OPrecond")
    loaded, info = load_model(tmp_path / "x.pkl")
    assert (info.task, info.sigma) == ("finetune", 80.0)
    one_step = build_network("one_step", "SongUNet", 8, 1, 10, **DIGITS).eval()
    one_step.load_state_dict(network.state_dict())
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x, 80.0), one_step(x, 80.0))


def test_training_states_and_plain_state_dicts(
    network: Precond, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, plain, out = (tmp_path / name for name in ("s.pt", "p.pth", "o.safetensors"))
    write_training_state(state, network, DIGITS)
    assert import_model(state, out).description == "EDMPrecond, `net` of a checkpoint of EDM's"
    assert_same(load_file(out), network)

    torch.save(network.state_dict(), plain)
    status, _, error = call(capsys, "import", plain, "--out", out)
    assert (status, len(error.splitlines())) == (2, 1)
    assert "does not describe the network of its weights: name --recipe" in error
    out.unlink()
    status, said, error = call(capsys, "import", plain, "--out", out, "--recipe", "digits-d2o-f")
    assert status == 0, error
    assert "augment_dim=9" in said
    assert_same(load_model(out)[0].state_dict(), network)
    status, _, error = call(capsys, "import", plain, "--out", out, "--recipe", "ffhq64-d2o-f")
    assert (status, len(error.splitlines())) == (2, 1)
    assert "does not fit the network" in error
    with pytest.raises(UserError, match="does not describe the network of its weights"):
        load_model(plain)
    assert_same(open_model(plain).weights, network)


def test_a_generator_begins_without_the_weights_of_augmentation_labels(
    network: Precond, pickled: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    generator = build_network("one_step", "SongUNet", 8, 1, 10, **DIGITS | {"augment_dim": 0})
    load_weights(generator, pickled)
    expected = network.state_dict()
    assert expected.pop(AUGMENT).shape == (32, 9)
    assert generator.state_dict().keys() == expected.keys()
    assert all(torch.equal(generator.state_dict()[n], v) for n, v in expected.items())
    with_labels = build_network("one_step", "SongUNet", 8, 1, 10, **DIGITS)
    load_weights(with_labels, pickled)
    assert_same(with_labels.state_dict(), network)
    with pytest.raises(UserError, match="is `network` set as it was pre-trained"):
        load_weights(build_network("one_step", "SongUNet", 8, 3, 10, **DIGITS), pickled)

    write_tensors(tmp_path / "base.safetensors", generator.state_dict())
    digest = sha256(tmp_path / "base.safetensors")
    step = checkpoint.save(tmp_path, 64, {}, {"base": {"sha256": digest, "frozen": "float32"}})
    (tmp_path / "base.safetensors").unlink()
    with pytest.warns(UserWarning, match="restored from"):
        restore_base(tmp_path, step, pickled, generator)
    assert sha256(tmp_path / "base.safetensors") == digest


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("task", "teach", "describes no model: its task is teach"),
        ("network", "{}", "describes no network: img_resolution: Field required"),
        ("network", "nonsense", "describes no network: Invalid JSON"),
        ("images", "many", "describes no model: invalid literal"),
        ("task", "finetune", "describes no model: it does not say the noise level"),
        ("network", "[" * 10_001, "describes no model: it takes more than 10,000 characters"),
        ("sigma", "nan", "describes no model: the noise level of its step is none"),
    ],
)
def test_our_own_files_are_not_believed_either(
    name: str, change: str, why: str, network: Precond, pickled: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    import_model(pickled, path)
    save_file(load_file(path), path, metadata_of(path) | {name: change})
    with pytest.raises(UserError, match=why) as caught:
        load_model(path)
    assert len(str(caught.value).splitlines()) == 1


def test_our_own_files_hold_what_they_say(pickled: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    import_model(pickled, path)
    weights, said = load_file(path), metadata_of(path)
    missing = {n: w for n, w in weights.items() if n != "model.map_layer0.bias"}
    for changed, why in (
        (missing, r"x.safetensors does not fit the network: it has no model.map_layer0.bias"),
        (weights | {"more": torch.zeros(1)}, "the network has no more"),
        (
            weights | {"model.map_layer0.bias": torch.zeros(128, dtype=torch.int64)},
            "is torch.int64",
        ),
    ):
        save_file(changed, path, said)
        with pytest.raises(UserError, match=why):
            load_model(path)
    save_file({n: w.bfloat16() for n, w in weights.items()}, path, said)
    assert {p.dtype for p in load_model(path)[0].parameters()} == {torch.float32}
    save_file(weights, path)
    with pytest.raises(UserError, match="does not describe the network of its weights"):
        load_model(path)


def test_what_is_no_model_is_said_in_one_line(
    network: Precond, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("not a model, but long enough to look at")
    value = snapshot(network, DIGITS)
    value["loss_fn"] = __import__("os").getcwd
    with edm_modules():
        (tmp_path / "evil.pkl").write_bytes(pickle.dumps(value))
    for name, why in (
        ("text", "is not a safetensors file"),
        ("evil.pkl", "is refused: it names posix.getcwd, which is not allowed"),
        ("nothing", "no file"),
        ("", "is a folder: a run's model is written by `fasttrain export`"),
    ):
        out = tmp_path / "out.safetensors"
        status, _, error = call(capsys, "import", tmp_path / name, "--out", out)
        assert (status, len(error.splitlines())) == (2, 1)
        assert why in error
        assert not out.exists()
    with pytest.raises(UserError, match="neither a run directory nor a model file"):
        load_model(tmp_path / "nothing")
