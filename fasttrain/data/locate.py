"""The storage of a shard set, from a path or settings.

storage = storage_of(settings.data)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fasttrain.data.foreign import TarStorage, View
from fasttrain.data.mix import MixedStorage
from fasttrain.data.remote import Remote, RemoteStorage
from fasttrain.data.storage import FolderStorage, Storage
from fasttrain.system.errors import UserError
from fasttrain_data import DataError
from fasttrain_data.fetching import PROTOCOLS, is_url
from fasttrain_data.tars import cached_index, holds_tars, parts_of

if TYPE_CHECKING:
    from fasttrain.settings import DataSettings, NetworkSettings
from pathlib import Path

__all__ = ["open_storage", "storage_of"]


def storage_of(
    data: DataSettings, network: NetworkSettings | None = None, *, trust_urls: bool = True
) -> Storage:
    """The storage of the shard set.

    network: the network, whose input says what is made of images of any size.
    trust_urls: whether the user named the data. A run directory may come from anyone, so a URL in
        it is opened only at the user's request.

    Raises UserError for a URL that is not trusted, or of a protocol that cannot be opened.
    """
    places = [place for each in data.sets() for place in (each.path, each.index or "")]
    url = next(filter(is_url, places), None)
    if url is not None and not trust_urls:
        raise UserError(
            f"the run's data are at {url!a:.200}, and a URL in a run is not opened: add "
            f"--trust-urls if you trust the author of the run"
        )
    folder = {} if data.cache is None else {"cache": data.cache}
    remote = Remote(
        cache_bytes=int(data.cache_gigabytes * 1e9),
        timeout=data.timeout,
        attempts=data.attempts,
        options=data.storage,
        any_protocol=data.any_protocol,
        **folder,
    )
    view = View(
        resolution=data.resolution or (network.img_resolution if network else None),
        channels=network.img_channels if network else None,
        crop=data.crop,
    )
    try:
        parts = [open_storage(each.path, remote, view, each.index) for each in data.sets()]
        return MixedStorage(parts, [each.weight for each in data.mix]) if data.mix else parts[0]
    except DataError as error:
        raise UserError(str(error)) from error


def open_storage(
    path: str | Path,
    remote: Remote | None = None,
    view: View | None = None,
    index: str | Path | None = None,
) -> Storage:
    """The storage that a path or URL names; nothing is read yet. Raises DataError for a protocol
    that is not one of PROTOCOLS, is unknown or needs a package.

    view: what is made of the images of tars of others, of which `index` is the index's place.
    """
    spec, remote = str(path), remote or Remote()
    for part in (*parts_of(spec), str(index or "")):
        protocol = part.partition("://")[0]
        if is_url(part) and protocol not in PROTOCOLS and not remote.any_protocol:
            raise DataError(
                f"{part} is not opened: use one of {', '.join(PROTOCOLS)}, copy the set, or set "
                f"data.any_protocol=true if you trust its source"
            )
    if index is not None or holds_tars(spec) or (is_url(spec) and cached_index(spec).is_dir()):
        return TarStorage(spec, remote, view or View(), index)
    if is_url(spec):
        return RemoteStorage(spec, remote)
    return FolderStorage(Path(path), remote.attempts)
