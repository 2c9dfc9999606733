"""Images gone bad inside shards whose hashes are right: what a converter's mistake would leave."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

__all__ = ["damage_images"]


def damage_images(folder: Path, shard: int, *places: int) -> None:
    """Damage the PNGs at these places of a shard, and give the index the hash that this makes."""
    file = folder / f"shard-{shard:06d}.tar"
    content = bytearray(file.read_bytes())
    headers = [
        at
        for at in range(0, len(content), 512)
        if content[at : at + 100].rstrip(b"\0").endswith(b".png")
    ]
    for place in places:
        middle = headers[place] + 512 + 40  # after the PNG's own header, in its compressed pixels
        content[middle : middle + 10] = bytes(10)
    file.write_bytes(content)
    index = json.loads((folder / "index.json").read_text())
    index["shards"][shard]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))
