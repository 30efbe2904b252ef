"""Carriers: any place that stores bytes can hold sealed blocks. See `carrier` for what they are."""

from p2pstore.carriers.carrier import (
    MAX_KEY,
    MAX_NAME,
    Carrier,
    CarrierName,
    NotThere,
    Promises,
)

__all__ = ["MAX_KEY", "MAX_NAME", "Carrier", "CarrierName", "NotThere", "Promises"]
