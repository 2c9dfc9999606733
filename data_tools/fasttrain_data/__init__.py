"""Image collections as WebDataset shards with proof of what is in them.

    from fasttrain_data import convert, load_index, verify
    index = convert("digits", "data/digits")

The `fasttrain-data` command does the same. This package knows nothing of training or of torch.
"""

from fasttrain_data.contact_sheet import preview
from fasttrain_data.conversion import Conversion, convert, run_conversion, split
from fasttrain_data.errors import DataError, VerificationError
from fasttrain_data.index import ClassInfo, Index, ShardInfo, load_index, parse_index
from fasttrain_data.options import Options
from fasttrain_data.reader import Record, decode_record, open_shard, read_records
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
