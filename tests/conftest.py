"""What all tests share: hypothesis profiles, and a HOME that is not the developer's."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No deadline: two busy cores make single examples slow, never wrong. CI draws the same examples at
# every run, so that a red run means a change; developers' runs go on finding new ones.
settings.register_profile(
    "developer",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("ci", settings.get_profile("developer"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "developer")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would every program that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """HOME, XDG and P2PSTORE variables point into the tests' directory, in subprocesses too."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("XDG_", "P2PSTORE_")) or name in {
                "NOTIFY_SOCKET",
                "WATCHDOG_USEC",
                "WATCHDOG_PID",
                "DBUS_SESSION_BUS_ADDRESS",
                "DISPLAY",
                "WAYLAND_DISPLAY",
            }:
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        yield home


def pytest_report_header(config: pytest.Config) -> str:
    return f"hypothesis profile: {'ci' if os.environ.get('CI') else 'developer'}"
