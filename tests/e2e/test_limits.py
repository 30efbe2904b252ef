"""A machine that gives little: said in one sentence, or lived with."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

from tests.e2e.nodes import Node


def limited(descriptors: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))


def test_too_low_a_descriptor_limit_is_said_with_its_remedy(tmp_path: Path) -> None:
    node = Node(tmp_path)
    ran = subprocess.run(
        node.command("run", "--listen", "127.0.0.1:0", "--ui", "off", "--no-mdns"),
        env=node.env,
        preexec_fn=lambda: limited(256),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 2
    assert b"ulimit -n" in ran.stderr
    assert b"Traceback" not in ran.stderr
