"""A word to systemd over NOTIFY_SOCKET; nothing happens where systemd did not start us.

The node says READY=1 when it serves, STATUS=... when there is something to tell, WATCHDOG=1 twice
within each `watchdog_s`, and STOPPING=1 when it ends (sd_notify(3)).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def notify(state: str, env: Mapping[str, str] = os.environ) -> bool:
    """Send one message (`READY=1`, lines joined by newlines); False when nobody listens."""
    address = env.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # the abstract name space
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            sock.sendall(state.encode())
    except OSError:
        return False  # systemd went away or is no longer told: no reason to stop storing files
    return True


def watchdog_s(env: Mapping[str, str] = os.environ) -> float | None:
    """Seconds after which systemd takes us for dead without WATCHDOG=1; None: it does not watch."""
    if env.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = env.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdigit() and int(text) > 0 else None
