"""`fasttrain sample`: which image comes from which seed and class, wherever and however many."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fasttrain.models.files.importing import import_model
from fasttrain.models.load import load_model
from fasttrain.sampling.draws import sample_latents
from fasttrain.sampling.generate import between, draw, generate
from fasttrain.sampling.pictures import to_uint8
from fasttrain.sampling.sample import Wanted, sample_model, tiles_of
from fasttrain.sampling.sampler import Churn, Sampler
from fasttrain.system.errors import UserError
from fasttrain_kernels import counter_normal
from tests.runs.calling import call
from tests.small_models import NCSNPP, PLAIN, write_model

NEXT = 2e-6
"""What another batch size may change: the order of sums in a convolution. Up to 8e-7 was seen."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "cond.safetensors", PLAIN)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "uncond.safetensors", NCSNPP)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), int)


def tile(path: Path, row: int, column: int, size: int = 48) -> np.ndarray:
    return pixels(path)[row * size : (row + 1) * size, column * size : (column + 1) * size]


def expected(model: Path, seed: int, label: int | None = None, size: int = 48) -> np.ndarray:
    """The image of a seed made alone, enlarged as grids enlarge it."""
    network, info = load_model(model)
    image = to_uint8(generate(Sampler.of(info), network, [seed], label=label))[0]
    wide = image.numpy().repeat(size // 8, 1).repeat(size // 8, 2).astype(int)
    return wide[0] if len(wide) == 1 else wide.transpose(1, 2, 0)


def test_a_class_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["street", "sea, open", "7", *(f"c{n}" for n in range(7))]
    model = write_model(tmp_path / "named.safetensors", PLAIN, classes=json.dumps(names))
    assert load_model(model)[1].classes == tuple(names)
    for name, label in (("street", 0), ("sea, open", 1), ("7", 2), ("8", 8)):
        sample_model(model, str(tmp_path / "one.png"), Wanted(seeds="3", classes=name))
        assert np.array_equal(tile(tmp_path / "one.png", 0, 0), expected(model, 3, label))
    grid = Wanted(seeds="0", classes="c3,street", grid="classes")
    assert [t.label for t in tiles_of(grid, 10, names)[0]] == [6, 0]
    status, _, error = call(capsys, "sample", model, "--class", "stret")
    assert (status, "no class 'stret': did you mean street?" in error) == (2, True)
    nameless = write_model(tmp_path / "nameless.safetensors", PLAIN)
    status, _, error = call(capsys, "sample", nameless, "--class", "street")
    assert (status, "no names of its classes" in error) == (2, True)


@pytest.mark.parametrize(
    "names", ['["a"]', "[" * 1000, '"abcdefghij"', "[1,2,3,4,5,6,7,8,9,10]", '["\\u001b"]']
)
def test_names_of_a_file_that_are_none(names: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", PLAIN, classes=names)
    assert load_model(model)[1].classes == ()


@pytest.mark.parametrize("kind", ["model", "plain"])
def test_a_seed_gives_one_image_in_any_batch(kind: str, request: pytest.FixtureRequest) -> None:
    network, info = load_model(request.getfixturevalue(kind))
    tiles, _ = tiles_of(Wanted(seeds="0-20"), info.network.label_dim)
    whole = generate(Sampler(), network, range(21))
    assert whole.std() > 0.1
    for batch in (1, 2, 5, 21, 256):  # 21 = 4 * 5 + 1: the last batch is smaller
        parts = list(draw(Sampler(), network, tiles, batch))
        assert [len(part) for part in parts] == [batch] * (21 // batch) + [21 % batch] * bool(
            21 % batch
        )
        assert (torch.cat(parts) - whole).abs().max() < NEXT
        assert torch.equal(
            torch.cat(list(draw(Sampler(), network, tiles, batch))), torch.cat(parts)
        )
    backwards = generate(Sampler(), network, range(20, -1, -1), batch=4).flip(0)
    assert (backwards - whole).abs().max() < NEXT


def test_single_files_are_named_by_their_seed(model: Path, tmp_path: Path) -> None:
    folder = sample_model(model, f"{tmp_path}/images/", Wanted(seeds="7,40-42", batch=3))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["000007.png", "000040.png", "000041.png", "000042.png"]
    assert pixels(folder / "000041.png").shape == (8, 8)
    assert np.abs(pixels(folder / "000041.png") - expected(model, 41, size=8)).max() <= 1
    assert sample_model(model, str(folder), Wanted(seeds="9")) == folder  # a folder that exists
    assert (folder / "000009.png").is_file()


def test_a_grid_of_classes_has_a_row_a_class_and_a_column_a_seed(
    model: Path, tmp_path: Path
) -> None:
    wanted = Wanted(grid="classes", classes="2,5-6", seeds="30-33", batch=5)
    path = sample_model(model, str(tmp_path / "grid.png"), wanted)
    assert pixels(path).shape == (3 * 48, 4 * 48)
    for row, label in enumerate((2, 5, 6)):
        for column, seed in enumerate(range(30, 34)):
            assert np.abs(tile(path, row, column) - expected(model, seed, label)).max() <= 1
    every = sample_model(model, str(tmp_path / "every.png"), Wanted(grid="classes"))
    assert pixels(every).shape == (10 * 48, 8 * 48)


def test_one_class_for_all_and_classes_in_turn(model: Path, tmp_path: Path) -> None:
    one = sample_model(model, str(tmp_path / "one.png"), Wanted(seeds="0-3", classes="7"))
    turn = sample_model(model, str(tmp_path / "turn.png"), Wanted(seeds="0-3"))
    for seed in range(4):
        row, column = divmod(seed, 2)
        assert np.abs(tile(one, row, column) - expected(model, seed, 7)).max() <= 1
        assert np.abs(tile(turn, row, column) - expected(model, seed, seed)).max() <= 1


def test_a_strip_goes_from_seed_to_seed(model: Path, plain: Path, tmp_path: Path) -> None:
    for each, label in ((model, 3), (plain, None)):
        path = sample_model(each, str(tmp_path / "s.png"), Wanted(interpolate="3,14", between=4))
        assert pixels(path).shape[:2] == (48, 6 * 48)
        assert np.abs(tile(path, 0, 0) - expected(each, 3, label)).max() <= 1
        assert np.abs(tile(path, 0, 5) - expected(each, 14, label)).max() <= 1  # of one class
        steps = [np.abs(tile(path, 0, k + 1) - tile(path, 0, k)).mean() for k in range(5)]
        assert max(steps) < np.abs(tile(path, 0, 5) - tile(path, 0, 0)).mean()
    folder = sample_model(model, f"{tmp_path}/strip/", Wanted(interpolate="3,14", between=1))
    names = sorted(path.stem for path in folder.iterdir())
    assert names == [f"000003-000014-00{k}" for k in range(3)]


def test_latents_between_seeds_lie_on_the_arc() -> None:
    shape = (3, 16, 16)
    first, second = torch.full((5,), 3), torch.full((5,), 14)
    at = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
    z = between(first, second, at, lambda seeds: sample_latents(seeds, shape))
    ends = sample_latents(torch.tensor([3, 14]), shape)
    assert torch.equal(z[0], ends[0])
    assert torch.equal(z[4], ends[1])
    flat = z.flatten(1).double()
    directions = flat / flat.norm(dim=1, keepdim=True)
    angles = (directions[1:] * directions[:-1]).sum(1).clamp(-1, 1).acos()
    assert angles.max() - angles.min() < 0.05  # equal parts, but for the ends' lengths
    assert (z.flatten(1).std(dim=1) - 1).abs().max() < 0.06  # as long as latents are


def test_diffusion_models_and_two_steps(tmp_path: Path) -> None:
    diffusion = write_model(tmp_path / "edm.safetensors", PLAIN, task="pretrain")
    two = write_model(tmp_path / "two.safetensors", PLAIN, sigma_mid="0.8")
    network, _ = load_model(diffusion)
    made = to_uint8(generate(Sampler("heun", steps=3), network, [5]))[0, 0].numpy().astype(int)
    folder = sample_model(diffusion, f"{tmp_path}/heun/", Wanted(seeds="5", steps=3))
    assert np.abs(pixels(folder / "000005.png") - made).max() <= 1
    network, info = load_model(two)
    images = generate(Sampler(sigma_mid=0.8), network, [5])
    assert torch.equal(generate(Sampler.of(info), network, [5]), images)
    folder = sample_model(two, f"{tmp_path}/two/", Wanted(seeds="5", steps=2))
    assert np.abs(pixels(folder / "000005.png") - to_uint8(images)[0, 0].numpy()).max() <= 1
    with pytest.raises(UserError, match="two-step generator"):
        sample_model(two, "x.png", Wanted(steps=1))


class Gaussian(nn.Module):
    """The ideal denoiser of Gaussian data: what it makes of an image depends on no other, bit by
    bit."""

    img_channels, img_resolution, label_dim = 1, 8, 10
    sigma_min, sigma_max = 0.0, 1e9
    decoder = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def round_sigma(self, sigma: float) -> Tensor:
        return torch.as_tensor(sigma)

    def forward(self, x: Tensor, sigma: float, class_labels: Tensor) -> Tensor:
        assert class_labels.shape == (len(x), 10)
        return x * 0.25 / (0.25 + sigma**2)


def test_churn_is_drawn_by_seed_and_step(tmp_path: Path) -> None:
    """EDM's stochastic sampler: an image is a function of its seed, in any batch."""
    diffusion = write_model(tmp_path / "edm.safetensors", PLAIN, task="pretrain")
    network, info = load_model(diffusion)
    sampler = Sampler.of(info, steps=3, churn="1.2,0.01,50,1.003")
    whole = generate(sampler, Gaussian(), range(5))
    plain = generate(Sampler.of(info, steps=3), Gaussian(), range(5))
    assert (whole - plain).abs().amin(dim=(1, 2, 3)).max() > 0
    for batch in (1, 2):
        assert torch.equal(generate(sampler, Gaussian(), range(5), batch=batch), whole)
    index, asked = torch.tensor([3, 4]), []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return counter_normal(step, 12, index, (1, 8, 8))

    z = counter_normal(0, 0, index, (1, 8, 8))
    with torch.no_grad():
        assert torch.equal(sampler(Gaussian(), z, torch.eye(10)[3:5], noise), whole[3:])
    assert asked == [1]  # of the levels 80, 2.5 and 0.002 one lies between 0.01 and 50
    wanted = Wanted(seeds="4", steps=3, churn="1.2,0.01,50,1.003")
    folder = sample_model(diffusion, f"{tmp_path}/churned/", wanted)
    drawn = to_uint8(generate(sampler, network, [4]))[0, 0].numpy().astype(int)
    assert np.abs(pixels(folder / "000004.png") - drawn).max() <= 1
    assert Sampler.of(info, churn="1,2").churn == Churn(1.0, 2.0)
    for wrong in ("", "many", "0", "-1", "nan", "1,2,1", "1,0,9,1,5", "1,0,9,inf"):
        with pytest.raises(UserError, match="write it as S_churn or S_churn,S_min"):
            Sampler.of(info, churn=wrong)
    with pytest.raises(UserError, match="--steps 1 has none: leave --churn out"):
        Sampler.of(info, steps=1, churn="40")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"seeds": ""}, "write them as 0-63"),
        ({"which": "best"}, "is a model file, not a run: leave it out"),
        ({"seeds": "5-3"}, "from a smaller to a larger seed"),
        ({"classes": "10"}, "the network has classes 0 to 9"),
        ({"classes": "1,2"}, "name one class, or add --grid classes"),
        ({"interpolate": "3"}, "name two different seeds"),
        ({"interpolate": "3,3"}, "name two different seeds"),
        ({"interpolate": "3,4", "seeds": "1"}, "leave --seeds out"),
        ({"interpolate": "3,4", "grid": "classes"}, "choose one"),
        ({"interpolate": "3,4", "between": 99_999}, ": 99,998 at most"),
        ({"seeds": "3,4", "between": 4}, "--steps-between 4: it is of the strip of --interpolate"),
        ({"steps": 4}, "one-step generator"),
        ({"churn": "40"}, "is a one-step generator: leave --churn out"),
        ({"grid": "classes", "seeds": "0-99999"}, ": 100,000 at most"),
    ],
)
def test_mistakes_are_one_line(model: Path, wanted: dict[str, str], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        sample_model(model, "x.png", Wanted(**wanted))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_unconditional_networks_have_no_classes(plain: Path) -> None:
    for wanted in (Wanted(classes="1"), Wanted(grid="classes")):
        with pytest.raises(UserError, match="unconditional"):
            sample_model(plain, "x.png", wanted)


def test_the_command(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    out = tmp_path / "strip.png"
    options = ("--interpolate", "0,1", "--steps-between", 2, "--class", 4, "--out", out)
    assert call(capsys, "sample", model, *options) == (0, f"{out}\n", "")
    assert pixels(out).shape == (48, 4 * 48)
    status, _, error = call(capsys, "sample", model, "--grid", "seeds")
    assert status == 2
    assert "the only choice is `classes`" in error


@pytest.mark.parametrize("name", ["grid.jpg", "grid.webp", "grid"])
def test_images_are_written_as_png_or_not_at_all(model: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"written as PNG: name it .*grid\.png"):
        sample_model(model, str(tmp_path / name), Wanted(seeds="0"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "refusal"),
    [
        ("", "--out is empty"),
        ("{}/file/x.png", "file is not a folder"),
        ("/proc/x.png", "cannot write /proc/x.png: "),
    ],
)
def test_where_nothing_can_be_written_nothing_is_generated(
    model: Path, tmp_path: Path, out: str, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr("fasttrain.sampling.sample.load_model", None)
    with pytest.raises(UserError, match=refusal):
        sample_model(model, out.format(tmp_path), Wanted(seeds="0"))
    for target, why in (("/proc/x.st", r"cannot write /proc/x\.st"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=why):
            import_model(model, Path(target))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = call(capsys, "--version")
    assert (status, text) == (0, f"fasttrain {version('fasttrain')}, torch {version('torch')}\n")
