"""From a set-up to its carrier. What a kind needs is imported when a carrier of it is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from p2pstore.carriers.carrier import Carrier
from p2pstore.carriers.config import (
    CarrierConfig,
    FolderConfig,
    PictureFolderConfig,
    PictureHostConfig,
    S3Config,
    check_config,
)
from p2pstore.errors import IntegrityError

TRIAL: Final = 64 * 1024  # bytes; a host of pictures gets one of full size whatever is in it


def make_carrier(name: str, config: CarrierConfig) -> Carrier:
    """Nothing is connected yet, and nothing written; UsageError when it cannot work."""
    check_config(config)
    if isinstance(config, S3Config):
        from p2pstore.carriers.s3 import S3Carrier

        return S3Carrier(name, config)
    if isinstance(config, PictureHostConfig):
        from p2pstore.carriers.pictures import PictureHost

        return PictureHost(name, config)
    from p2pstore.carriers.folder import PLAIN, FolderCarrier, as_pictures

    where = Path(config.path)
    if isinstance(config, FolderConfig):
        return FolderCarrier(name, where, config.mark, PLAIN)
    shape = as_pictures(config.width, config.height)
    return FolderCarrier(name, where, config.mark, shape)


def prepare(config: CarrierConfig) -> CarrierConfig:
    """What is done once, when the user adds a carrier: a directory gets its mark.

    Returns the set-up to be kept. Blocks for some syncs of a disk; UsageError.
    """
    check_config(config)
    if isinstance(config, FolderConfig | PictureFolderConfig):
        from p2pstore.carriers.folder import prepare_folder

        return msgspec.structs.replace(config, mark=prepare_folder(Path(config.path)))
    return config


async def try_out(carrier: Carrier) -> None:
    """Put a piece of random bytes there, and read it back: the errors of `Carrier` tell the rest.

    The piece is deleted again where that is possible.
    """
    content = os.urandom(min(TRIAL, carrier.promises.piece))
    key = await carrier.put(f"trial-{os.urandom(8).hex()}", content)
    if await carrier.get(key) != content:
        raise IntegrityError("The carrier gave back other bytes than it was given.")
    if carrier.promises.deletes:
        await carrier.delete(key)
