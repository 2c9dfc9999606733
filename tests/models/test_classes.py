"""A model's class embedding for other classes: what is kept computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fasttrain.models.build import new_network
from fasttrain.models.classes import with_classes
from fasttrain.models.load import fit
from fasttrain.settings import NetworkSettings
from tests.models.test_adapters import ALL

CONDITIONAL = [name for name in ALL if ALL[name]["label_dim"]]
OTHERS = ["fox", "c1", "owl", "C0", "elk", "bee", "ant"]


def built(name: str, classes: int) -> Any:
    torch.manual_seed(classes)
    network = new_network("edm", NetworkSettings(**ALL[name] | {"label_dim": classes})).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def images(network: Any, label: int | None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, network.img_channels, 8, 8, generator=generator)
    labels = None if label is None else torch.eye(network.label_dim)[label][None]
    return network(x, 1.0, labels)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_class_of_the_same_name_computes_the_same(name: str) -> None:
    count = ALL[name]["label_dim"]
    model, network = built(name, count), built(name, 7)
    theirs = [f"c{number}" for number in range(count)]
    weights, line = with_classes(network, model.state_dict(), OTHERS, theirs)
    fit(network, weights, "model")
    assert line == (
        f"{count} classes of the model, 7 here; kept by name: c1, C0; made anew, from the mean of "
        f"all: fox, owl, elk, bee, ant"
    )
    anew = images(network, 0)
    assert torch.equal(images(network, 2), anew)
    assert torch.equal(images(network, 6), anew)
    if name != "EDM2":  # normalises the rows of all classes together
        for ours, old in ((1, 1), (3, 0)):
            torch.testing.assert_close(
                images(network, ours), images(model, old), rtol=1e-4, atol=1e-5
            )
    for label in (1, 3):
        assert not torch.allclose(images(network, label), anew, atol=1e-3)
    if name == "DiT":  # the row of no class stays
        torch.testing.assert_close(images(network, None), images(model, None))


def test_the_same_number_of_classes_is_kept_by_number_unless_names_say_more() -> None:
    model, network = built("DiT", 4), built("DiT", 4)
    names = ["a", "b", "c", "d"]
    weights, line = with_classes(network, model.state_dict(), names, None)
    assert line == "4 classes, kept by number: the model's have no names"
    assert all(torch.equal(weights[n], v) for n, v in model.state_dict().items())
    table = "model.y_embedder.embedding_table.weight"
    weights, line = with_classes(network, model.state_dict(), names, names[::-1])
    assert torch.equal(weights[table][:4], model.state_dict()[table][:4].flip(0))
    assert "kept by name: a, b, c, d" in line


def test_classes_come_and_go() -> None:
    with_some, without = built("DDPM++", 7), built("DDPM++", 0)
    weights, line = with_classes(with_some, without.state_dict(), OTHERS, None)
    assert line == "the model has no classes; the embedding of 7 is made anew"
    own = with_some.state_dict()
    assert torch.equal(weights["model.map_label.bias"], own["model.map_label.bias"])
    fit(built("DDPM++", 7), weights, "model")
    tables = with_some.model.class_tables()
    weights, line = with_classes(without, own, [], None, tables)
    assert line == "no classes; those of the model are dropped"
    fit(without, weights, "model")
