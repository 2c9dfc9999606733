"""Checkpoints of EDM's and of other families, read without running what they hold.

`edm-*.pkl` and `network-snapshot-*.pkl` are pickles of {"ema": network, ...}, and
`training-state-*.pt` is a file of `torch.save` with {"net": network, ...}. Each object in them is
a record of EDM's persistence (class name, source text, state), whose source EDM's own reader
executes. Here a record is its class name and its state, and the source is left where it lies.
Plain state dicts, and what the training code of other families writes around theirs, are read by
the same means; of several sets of weights the average is taken.

    checkpoint = read_checkpoint(Path("edm-imagenet-64x64-cond-adm.pkl"))
    checkpoint.class_name, checkpoint.arguments["model_channels"]        # "EDMPrecond", 192
    checkpoint.tensors["model.out_conv.bias"].tensor()

Raises Refused for everything that such files do not need: `fasttrain_data.pickle_data`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fasttrain.models.files.numpy_data import NUMPY_NAMES
from fasttrain.models.files.torch_storage import StoredTensor, TorchReader
from fasttrain_data.pickle_data import LongText, Refused, check_key, load, new_table, shown

__all__ = ["Checkpoint", "is_pickle", "is_zip", "read_checkpoint"]

PERSISTENCE_VERSION = 6
MAX_FILE = 64 << 30
MAX_ENTRIES = 50_000
"""Largest number of parameters, buffers and modules together."""
MAX_DEPTH = 32
MAX_NAME = 100
MAX_PATH = 500
"""Largest length of a tensor's full name, in characters."""
MAX_SET = 1000
PARTS = ("ema", "net")
"""Keys of the network in a file: the average of a snapshot, the network of a training state."""
KINDS = ("_parameters", "_buffers", "_modules")
"""A module's tables."""
STATE_DICTS = (*PARTS, "ema_model", "model_ema", "state_dict", "model")
UNTRAINED = ("sigmas", "all_modules.0.W")
"""How names of score_sde end that its average leaves out."""

COMMON = ("img_resolution", "img_channels", "label_dim", "use_fp16")
RANGE = ("sigma_min", "sigma_max")
POSITIONAL = {
    "VPPrecond": (*COMMON, "beta_d", "beta_min", "M", "epsilon_t", "model_type"),
    "VEPrecond": (*COMMON, *RANGE, "model_type"),
    "iDDPMPrecond": (*COMMON, "C_1", "C_2", "M", "model_type"),
    "Precond": (*COMMON, "sigma_data", "logvar_channels"),
}
"""Order of the arguments of a preconditioner."""
EDM_POSITIONAL = (*COMMON, *RANGE, "sigma_data", "model_type")
"""Of all others."""


@dataclass(frozen=True)
class Checkpoint:
    """A network in a file. A plain state dict has neither class nor arguments."""

    tensors: dict[str, StoredTensor]
    part: str | None = None
    class_name: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    """Those that its constructor was given."""
    beside: dict[str, Any] = field(default_factory=dict)
    """What the file holds beside the network: `encoder`, an object of EDM2's; `args`, the arguments
    of a training."""


@dataclass(eq=False)
class Module:
    """A pickled object: its class's name and its attributes."""

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)

    def set_state(self, state: Any) -> None:
        if type(state) is not dict:
            raise Refused(f"the state of its {shown(self.class_name)} is not a table")
        self.state = state


def is_zip(start: bytes) -> bool:
    """Whether a file with this start is one of `torch.save`."""
    return start[:4] == b"PK\3\4"


def is_pickle(start: bytes) -> bool:
    """Whether a file with this start is a pickle of protocol 2 or later."""
    return start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")


def read_checkpoint(path: Path) -> Checkpoint:
    """The network in a pickle of EDM's or in a file of `torch.save`. Weights stay in the file."""
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE:
        raise Refused(f"it has {size:,} bytes")
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    reader = TorchReader(size)
    start = bytes(data[:16])
    if is_zip(start):
        value = reader.read_zip(path, data, NAMES)
    elif is_pickle(start) and start[2:4] == b"\x8a\x0a":  # the magic number's opcode and length
        value = reader.read_legacy(data, NAMES)
    elif is_pickle(start):
        value, _ = load(data, reader.names | NAMES, reader.budget)
    else:
        raise Refused("it is neither a pickle nor a file of torch.save")
    return _network_in(value)


def _network_in(value: Any) -> Checkpoint:
    """The network, or the plain state dict, in a file's object."""
    if type(value) is not dict:
        value = {"ema": value}
    beside = {name: v for name in ("encoder", "args") if type(v := value.get(name)) is Module}
    for part in PARTS:
        module = value.get(part)
        if type(module) is Module:
            tensors = dict(_tensors(module))
            return Checkpoint(tensors, part, module.class_name, _arguments(module), beside)
    average = value.get("ema")
    if type(average) is dict and "shadow_params" in average:
        return Checkpoint(_averaged(value.get("model"), average["shadow_params"]), "ema")
    for tensors, place in ((value, None), *((value.get(part), part) for part in STATE_DICTS)):
        if _is_state_dict(tensors):
            return Checkpoint(tensors, place, beside=beside)
    raise Refused("it holds neither a network of EDM's nor a state dict")


def _averaged(model: Any, shadow: Any) -> dict[str, StoredTensor]:
    """score_sde's average: a list, in the order of a model's parameters that train. Its buffers and
    its random frequencies are the model's own."""
    if not _is_state_dict(model) or type(shadow) is not list:
        raise Refused("its average has no model beside it")
    tensors: dict[str, StoredTensor] = dict(model)
    trained = [name for name in model if not name.endswith(UNTRAINED)]
    same = len(trained) == len(shadow) and all(
        type(tensor) is StoredTensor and tensor.shape == model[name].shape
        for name, tensor in zip(trained, shadow, strict=False)
    )
    if not same:
        raise Refused("its average is not of the model beside it")
    return tensors | dict(zip(trained, shadow, strict=True))


def _is_state_dict(value: Any) -> bool:
    return (
        type(value) is dict
        and bool(value)
        and all(type(k) is str and type(v) is StoredTensor for k, v in value.items())
    )


def _tensors(root: Module) -> Iterator[tuple[str, StoredTensor]]:
    """A module's state dict: its parameters and buffers and those of its submodules, by name."""
    seen: set[int] = set()  # modules and their tables, because a pickle may repeat them
    count = 0
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        deep = prefix.count(".") > MAX_DEPTH or len(prefix) > MAX_PATH
        if type(module) is not Module or id(module) in seen or deep:
            raise Refused(f"its module {shown(prefix) or '(the network)'} is not part of a tree")
        seen.add(id(module))
        names: set[str] = set()
        for kind in KINDS:
            table = _table(module, kind)
            count += len(table)
            if count > MAX_ENTRIES:
                raise Refused(f"it has more than {MAX_ENTRIES:,} tensors and modules")
            if table and (id(table) in seen or not names.isdisjoint(table)):
                raise Refused(f"the {kind} of its {shown(module.class_name)} are others', too")
            seen.add(id(table))
            names.update(table)
            for name, value in table.items():
                if value is None:
                    continue
                if kind == "_modules":
                    waiting.append((f"{prefix}{name}.", value))
                elif type(value) is StoredTensor:
                    yield prefix + name, value
                else:
                    raise Refused(f"its {shown(prefix + name)} is not a tensor")


def _table(module: Module, kind: str) -> dict[str, Any]:
    """One of a module's tables, with names that torch allows."""
    table = module.state.setdefault(kind, {})
    if type(table) is not dict:
        raise Refused(f"the {kind} of its {shown(module.class_name)} are not a table")
    for name in table:
        if type(name) is not str or not 0 < len(name) <= MAX_NAME or "." in name:
            raise Refused(f"the {kind} of its {shown(module.class_name)} have invalid names")
    return table


def _arguments(module: Module) -> dict[str, Any]:
    """The arguments of a network's constructor, by name."""
    given, named = module.state.get("_init_args"), module.state.get("_init_kwargs")
    names = POSITIONAL.get(module.class_name, EDM_POSITIONAL)
    if type(given) is not tuple or type(named) is not dict or len(given) > len(names):
        raise Refused("it does not record the arguments of its network")
    return dict(zip(names, given, strict=False)) | named


def _module_of(record: Any) -> Module:
    """`torch_utils.persistence._reconstruct_persistent_obj`, without its source text."""
    if type(record) is not dict or record.get("type") != "class":
        raise Refused("it has a persistent object of an unknown kind")
    version, name = record.get("version"), record.get("class_name")
    if type(version) is not int or version != PERSISTENCE_VERSION:
        raise Refused(
            f"it was written by another version of EDM's persistence than {PERSISTENCE_VERSION}"
        )
    if type(name) is not str or type(record.get("module_src")) not in (str, LongText):
        raise Refused("it has a persistent object of an unknown kind")
    module = Module(name)
    module.set_state(record.get("state"))
    return module


def _namespace() -> Module:
    """`argparse.Namespace`: the arguments of a training, as data."""
    return Module("Namespace")


def _set(items: Any = ()) -> set[Any]:
    """A small set: a pickle may request the same one many times, and each is a copy."""
    if type(items) not in (list, tuple) or len(items) > MAX_SET:
        raise Refused(
            f"it has a set of more than {MAX_SET:,}, or with other members than text and numbers"
        )
    for item in items:
        check_key(item)
    return set(items)


CALLBACKS = (
    "model_checkpoint.ModelCheckpoint",
    "early_stopping.EarlyStopping",
    "lr_monitor.LearningRateMonitor",
)
"""Classes that Lightning 1.4 keys the states of its callbacks with."""
NAMES: dict[str, Any] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _module_of,
    "torch.nn.modules.container.ModuleDict": lambda: Module("ModuleDict"),
    "dnnlib.util.EasyDict": new_table,
    "argparse.Namespace": _namespace,
    "builtins.set": _set,
    "__builtin__.set": _set,
    **NUMPY_NAMES,
    **{f"pytorch_lightning.callbacks.{name}": None for name in CALLBACKS},
}
"""All that these files name but for tensors. What stands for None can be no more than a name."""
