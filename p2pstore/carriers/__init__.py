"""Carriers: any place that stores bytes can hold sealed blocks. See `carrier` for what they are."""

from p2pstore.carriers.carrier import (
    MAX_KEY,
    MAX_NAME,
    Carrier,
    CarrierName,
    NotThere,
    Promises,
)
from p2pstore.carriers.config import (
    CarrierConfig,
    FolderConfig,
    PictureFolderConfig,
    PictureHostConfig,
    S3Config,
    config_of,
    encode_config,
    load_config,
    parse_config,
    save_config,
)
from p2pstore.carriers.making import make_carrier, prepare, try_out

__all__ = [
    "MAX_KEY",
    "MAX_NAME",
    "Carrier",
    "CarrierConfig",
    "CarrierName",
    "FolderConfig",
    "NotThere",
    "PictureFolderConfig",
    "PictureHostConfig",
    "Promises",
    "S3Config",
    "config_of",
    "encode_config",
    "load_config",
    "make_carrier",
    "parse_config",
    "prepare",
    "save_config",
    "try_out",
]
