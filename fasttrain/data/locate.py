"""The storage of a shard set, from a path or settings.

storage = storage_of(settings.data)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fasttrain.data.remote import Remote, RemoteStorage
from fasttrain.data.storage import FolderStorage, Storage
from fasttrain.system.errors import UserError
from fasttrain_data import DataError
from fasttrain_data.fetching import PROTOCOLS, is_url

if TYPE_CHECKING:
    from fasttrain.settings import DataSettings
from pathlib import Path

__all__ = ["open_storage", "storage_of"]


def storage_of(data: DataSettings, *, trust_urls: bool = True) -> Storage:
    """The storage of the shard set.

    trust_urls: whether the user named the data. A run directory may come from anyone, so a URL in
        it is opened only at the user's request.

    Raises UserError for a URL that is not trusted, or of a protocol that cannot be opened.
    """
    if is_url(data.path) and not trust_urls:
        raise UserError(
            f"the run's data are at {data.path!a:.200}, and a URL in a run is not opened: add "
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
    try:
        return open_storage(data.path, remote)
    except DataError as error:
        raise UserError(str(error)) from error


def open_storage(path: str | Path, remote: Remote | None = None) -> Storage:
    """The storage that a path or URL names; nothing is read yet. Raises DataError for a protocol
    that is not one of PROTOCOLS, is unknown or needs a package."""
    if is_url(path):
        protocol = str(path).partition("://")[0]
        if protocol not in PROTOCOLS and not (remote and remote.any_protocol):
            raise DataError(
                f"{path} is not opened: use one of {', '.join(PROTOCOLS)}, copy the set, or set "
                f"data.any_protocol=true if you trust its source"
            )
        return RemoteStorage(str(path), remote or Remote())
    return FolderStorage(Path(path), (remote or Remote()).attempts)
