"""Nothing in a checkpoint is run or believed."""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fasttrain.models.files.model_file import read_model_file
from tests.edm_files import Persistent, as_edm, constructed_with, edm_modules, snapshot
from tests.models.files.edm_networks import SMALL, small
from tests.models.files.pickled import (
    Built,
    Calls,
    ema,
    four_numbers,
    in_module,
    legacy_bytes,
    module_cycle,
    of_weight,
    shared_modules,
    shared_tables,
    tensor_of,
    touch,
    with_record,
)
from tests.models.files.untrusted import assert_refused, little_memory

HOSTILE_OBJECTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "os.system": (lambda m: ema(touch(m)), "names posix.system, which is not allowed"),
    "os.system beside the network": (
        lambda m: in_module(m) | {"loss_fn": touch(m)},
        "names posix.system",
    ),
    "os.system in a module": (lambda m: in_module(m, extra=touch(m)), "names posix.system"),
    "eval": (
        lambda m: ema(Calls(eval, f"open({str(m)!r}, 'w')")),
        r"names (builtins|__builtin__)\.eval",
    ),
    "getattr": (lambda m: ema(Calls(getattr, "x", "upper")), r"\.getattr, which is not allowed"),
    "torch.load": (lambda m: ema(Calls(torch.load, str(m))), r"names torch\.serialization\.load"),
    "os.system in a storage": (
        lambda m: of_weight(Calls(torch.storage._load_from_bytes, legacy_bytes(touch(m)))),
        "names posix.system",
    ),
    "a storage in a storage": (
        lambda m: of_weight(
            Calls(
                torch.storage._load_from_bytes,
                legacy_bytes(Calls(torch.storage._load_from_bytes, b"\x80\x02N.")),
            )
        ),
        r"names torch\.storage\._load_from_bytes",
    ),
    "a storage of other bytes": (
        lambda m: of_weight(Calls(torch.storage._load_from_bytes, pickle.dumps([1], 2))),
        "holds no tensors in the format of torch.save",
    ),
    "a list of storages": (
        lambda m: of_weight(Calls(torch.storage._load_from_bytes, legacy_bytes([four_numbers()]))),
        "a storage that is damaged",
    ),
    "a giant tensor": (lambda m: of_weight(tensor_of((1 << 35,), (1,))), "larger than its storage"),
    "a giant shape": (lambda m: of_weight(tensor_of((1 << 39,) * 9, (1,) * 9)), "without a shape"),
    "beyond the end": (
        lambda m: of_weight(tensor_of((2, 2), (2, 1), 1)),
        "larger than its storage",
    ),
    "before the start": (lambda m: of_weight(tensor_of((2, 2), (2, 1), -1)), "without a shape"),
    "negative strides": (lambda m: of_weight(tensor_of((2, 2), (2, -1))), "without a shape"),
    "stride 0": (lambda m: of_weight(torch.zeros(1).expand(4)), "not use each number once"),
    "overlapping": (lambda m: of_weight(tensor_of((2, 2), (1, 1))), "not use each number once"),
    "gaps": (lambda m: of_weight(torch.zeros(8)[::2]), "not use each number once"),
    "a shape of truths": (lambda m: of_weight(tensor_of((True,), (1,))), "without a shape"),
    "a tensor of no storage": (
        lambda m: of_weight(
            Calls(torch._utils._rebuild_tensor_v2, [0], 0, (1,), (1,), False, OrderedDict())
        ),
        "a tensor of an unknown kind",
    ),
    "too few arguments": (
        lambda m: of_weight(Calls(torch._utils._rebuild_tensor_v2, 1)),
        "other arguments than it has",
    ),
    "a sparse tensor": (
        lambda m: of_weight(torch.eye(2).to_sparse()),
        r"names torch\._utils\._rebuild_sparse_tensor",
    ),
    "an array as a weight": (lambda m: of_weight(np.zeros(3)), "its weight is not a tensor"),
    "an array of objects": (
        lambda m: ema(np.array([touch(m)], dtype=object)),
        "names posix.system|NumPy values that are not numbers",
    ),
    "a long array": (lambda m: ema(np.zeros(10_001)), "NumPy array of an unknown kind"),
    "an array of another shape": (
        lambda m: ema(Built(*np.zeros(3).__reduce__()[:2], (1, (4,), np.dtype("f4"), False, b"x"))),
        "array that is long or cut short",
    ),
    "an array without end": (
        lambda m: ema(
            Built(*np.zeros(3).__reduce__()[:2], (1, (10_000,) * 9, np.dtype("f4"), False, b"x"))
        ),
        "array that is long or cut short",
    ),
    "an array of another kind": (
        lambda m: ema(Calls(np.zeros(3).__reduce__()[0], dict, (0,), b"b")),
        r"names (builtins|__builtin__)\.dict|array of an unknown kind",
    ),
    "os.system in a namespace": (
        lambda m: in_module(m) | {"args": argparse.Namespace(model=touch(m))},
        "names posix.system",
    ),
    "a namespace with arguments": (
        lambda m: in_module(m) | {"args": Calls(argparse.Namespace, touch(m))},
        "names posix.system",
    ),
    "a namespace called with values": (
        lambda m: in_module(m) | {"args": Calls(argparse.Namespace, 1)},
        "other arguments than it has",
    ),
    "a namespace of no table": (
        lambda m: in_module(m) | {"args": Built(argparse.Namespace, (), [1])},
        "state of its Namespace is not a table",
    ),
    "a namespace as the network": (
        lambda m: ema(argparse.Namespace(_parameters={"w": torch.zeros(1)})),
        "record the arguments of its network",
    ),
    "another class of argparse": (
        lambda m: in_module(m) | {"args": argparse.ArgumentParser},
        r"names argparse\.ArgumentParser",
    ),
    "an average of another model": (
        lambda m: {"model": {"w": torch.zeros(2)}, "ema": {"shadow_params": [torch.zeros(3)]}},
        "its average is not of the model beside it",
    ),
    "an average that is short": (
        lambda m: {
            "model": {"v": torch.zeros(2), "w": torch.zeros(2)},
            "ema": {"shadow_params": [torch.zeros(2)]},
        },
        "its average is not of the model beside it",
    ),
    "an average without a model": (
        lambda m: {"ema": {"shadow_params": [torch.zeros(2)]}},
        "its average has no model beside it",
    ),
    "an average of no tensors": (
        lambda m: {"model": {"w": torch.zeros(2)}, "ema": {"shadow_params": touch(m)}},
        "names posix.system",
    ),
    "an object scalar": (
        lambda m: ema(np.dtype(object)),
        "NumPy values that are not numbers",
    ),
    "a big-endian scalar": (lambda m: ema(np.dtype(">f4").type(1)), "holds neither a network"),
    "a big-endian dtype": (lambda m: ema(np.dtype(">f4")), "numbers of another byte order"),
    "a module within itself": (lambda m: module_cycle(), "is not part of a tree"),
    "a module in many places": (lambda m: shared_modules(), "is not part of a tree"),
    "parameters in many places": (lambda m: shared_tables(), "of its ModuleDict are others', too"),
    "more entries than any": (
        lambda m: ema(
            Persistent("EDMPrecond", {"_buffers": dict.fromkeys(map(str, range(50_001)))})
        ),
        "more than 50,000 tensors and modules",
    ),
    "another module's parameter": (
        lambda m: in_module(m, _parameters={"model.map_layer0.bias": torch.zeros(16)}),
        "_parameters of its EDMPrecond have invalid names",
    ),
    "a parameter without a name": (
        lambda m: in_module(m, _parameters={"": torch.zeros(16)}),
        "have invalid names",
    ),
    "a buffer with a parameter's name": (
        lambda m: in_module(m, _parameters={"x": torch.ones(1)}, _buffers={"x": torch.zeros(1)}),
        "_buffers of its EDMPrecond are others', too",
    ),
    "an empty giant": (
        lambda m: of_weight(tensor_of((1 << 39, 1 << 39, 0), (1, 1, 1))),
        "which none has",
    ),
    "a large set": (lambda m: ema(Calls(set, list(range(1001)))), "a set of more than 1,000"),
    "a set of large numbers": (lambda m: ema(Calls(set, [1 << 32])), "key of more than 4,294,967"),
    "a set of truths": (lambda m: ema(Calls(set, [True])), "a key that is neither"),
    "a long list": (
        lambda m: snapshot(small(), SMALL | {"channel_mult": [None] * 101}),
        "describes no network: it has more than 100 values",
    ),
    "a tuple as key": (lambda m: {(1, 2): 3}, "a key that is neither text nor a number"),
    "items at once": (lambda m: ema(Calls(OrderedDict, [[(1, 2), 3]])), "other arguments"),
    "a list with a state": (lambda m: ema(Built(list, (), {"x": 1})), r"\.list, which is not"),
    "another class": (lambda m: ema(nn.Linear(2, 2)), r"names torch\.nn\.modules\.linear\.Linear"),
    "another version": (lambda m: with_record(version=7), "another version of EDM's persistence"),
    "another kind of record": (lambda m: with_record(type="module"), "object of an unknown kind"),
    "a record of no state": (lambda m: with_record(state=[1]), "EDMPrecond is not a table"),
    "no arguments": (
        lambda m: in_module(m, _init_kwargs=None),
        "not record the arguments of its network",
    ),
    "no network": (lambda m: {"G_ema": 1}, "holds neither a network of EDM's nor a state dict"),
    "another preconditioner": (
        lambda m: with_record(class_name="CTPrecond"),
        "class CTPrecond: the classes that are known here are EDMPrecond",
    ),
    "a sigma_data of text": (
        lambda m: snapshot(small(), SMALL | {"sigma_data": "half"}),
        "its sigma_data is half",
    ),
    "noise levels the wrong way round": (
        lambda m: snapshot(small(), SMALL | {"sigma_min": 2.0, "sigma_max": 1.0}),
        "sigma_min 2 is not below sigma_max 1",
    ),
    "another argument": (lambda m: snapshot(small(), SMALL | {"depth": 2}), "depth is no argument"),
    "another type": (
        lambda m: snapshot(small(), SMALL | {"model_type": ["SongUNet"]}),
        "model_type: .* is not one of SongUNet, DhariwalUNet, ",
    ),
    "a network without end": (
        lambda m: snapshot(small(), SMALL | {"num_blocks": 10**9}),
        "more than 1000 blocks",
    ),
    "a network without limit": (
        lambda m: snapshot(small(), SMALL | {"model_channels": 1 << 60}),
        "describes no network",
    ),
    "another network's weights": (
        lambda m: snapshot(small(), SMALL | {"model_channels": 8}),
        "does not fit the network: model.map_augment.weight is",
    ),
    "weights too many": (
        lambda m: snapshot(small(), SMALL | {"augment_dim": 0}),
        "has no model.map",
    ),
    "weights too few": (lambda m: snapshot(small(), SMALL | {"num_blocks": 2}), "it has no model."),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", HOSTILE_OBJECTS)
def test_hostile_objects_are_refused_by_name(name: str, protocol: int, tmp_path: Path) -> None:
    make, why = HOSTILE_OBJECTS[name]
    marker, path = tmp_path / "marker", tmp_path / "x.pkl"
    with edm_modules():
        path.write_bytes(pickle.dumps(make(marker), protocol=protocol))
    assert_refused(path, why)
    assert not marker.exists()


def test_source_text_is_neither_run_nor_kept(tmp_path: Path) -> None:
    marker, network = tmp_path / "marker", small()
    source = f"open({str(marker)!r}, 'w')\n" + "#" * (200 << 20)
    value = as_edm(network, "EDMPrecond", **constructed_with(network, **SMALL))
    value.meta["module_src"] = source
    with edm_modules(), (tmp_path / "x.pkl").open("wb") as file:
        pickle.dump({"ema": value}, file)
    del source
    with little_memory(300):  # the file's 200 are mapped
        assert read_model_file(tmp_path / "x.pkl").weights.keys() == network.state_dict().keys()
    assert not marker.exists()
