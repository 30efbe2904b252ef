"""The entry: hands the node its frontends and the command line its node."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from p2pstore import cli, syscalls

if TYPE_CHECKING:
    from p2pstore.config import Config


def run_node(config: Config, home: Path) -> int:
    from p2pstore import node
    from p2pstore.http import Frontends

    return node.run(config, home, Frontends)


def main() -> None:
    if syscalls.IS_LINUX:
        syscalls.leave_no_core()
    sys.exit(cli.main(run_node=run_node))


if __name__ == "__main__":
    main()
