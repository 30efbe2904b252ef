"""The command line: translates what is typed into calls of the node and answers into sentences.

It decides nothing; what the node answers is specified in `p2pstore.http.control`. Imports that
cost time happen inside commands, so that `--help` and completion are quick.
"""

from p2pstore.cli.app import main

__all__ = ["main"]
