"""Image collections as WebDataset shards with proof of what is in them.

    from fasttrain_data import convert, load_index, verify
    index = convert("digits", "data/digits")

The `fasttrain-data` command does the same. This package knows nothing of training or of torch.

What is named here is imported at its first use, because Pillow, NumPy and pydantic take a third of
a second together.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fasttrain_data.contact_sheet import preview
    from fasttrain_data.conversion import Conversion, convert, run_conversion
    from fasttrain_data.errors import DataError, VerificationError
    from fasttrain_data.index import ClassInfo, Index, ShardInfo, load_index, parse_index
    from fasttrain_data.options import Options
    from fasttrain_data.reader import Record, decode_record, open_shard, read_records
    from fasttrain_data.splitting import split
    from fasttrain_data.verification import Verification, run_verification, verify

__all__ = [
    "ClassInfo",
    "Conversion",
    "DataError",
    "Index",
    "Options",
    "Record",
    "ShardInfo",
    "Verification",
    "VerificationError",
    "convert",
    "decode_record",
    "load_index",
    "open_shard",
    "parse_index",
    "preview",
    "read_records",
    "run_conversion",
    "run_verification",
    "split",
    "verify",
]

PLACES = {
    "ClassInfo": "fasttrain_data.index",
    "Conversion": "fasttrain_data.conversion",
    "DataError": "fasttrain_data.errors",
    "Index": "fasttrain_data.index",
    "Options": "fasttrain_data.options",
    "Record": "fasttrain_data.reader",
    "ShardInfo": "fasttrain_data.index",
    "Verification": "fasttrain_data.verification",
    "VerificationError": "fasttrain_data.errors",
    "convert": "fasttrain_data.conversion",
    "decode_record": "fasttrain_data.reader",
    "load_index": "fasttrain_data.index",
    "open_shard": "fasttrain_data.reader",
    "parse_index": "fasttrain_data.index",
    "preview": "fasttrain_data.contact_sheet",
    "read_records": "fasttrain_data.reader",
    "run_conversion": "fasttrain_data.conversion",
    "run_verification": "fasttrain_data.verification",
    "split": "fasttrain_data.splitting",
    "verify": "fasttrain_data.verification",
}
"""Name -> the file that has it."""


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(PLACES[name]), name)
    return value
