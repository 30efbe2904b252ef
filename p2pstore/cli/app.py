"""The command group, its global options, and how errors become sentences and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from p2pstore import __version__
from p2pstore.cli.shell import INTERRUPTED, RunNode, Shell
from p2pstore.errors import P2PStoreError

# name -> (module, attribute, line in --help): modules are imported when their command is used.
_COMMANDS: dict[str, tuple[str, str, str]] = {
    "init": ("process", "init", "Make a new node and group; shows the 24 recovery words."),
    "run": ("process", "run", "Run the node in the foreground."),
    "add-folder": ("folders", "add_folder", "Watch a folder: its files become .f placeholders."),
    "remove-folder": ("folders", "remove_folder", "Stop watching a folder."),
    "folders": ("folders", "folders", "List the watched folders and their settings."),
    "status": ("status", "status", "Is it safe, how many copies, what is missing?"),
    "ls": ("folders", "ls", "List files by their real names, sizes and states."),
    "open": ("files", "open_", "Bring an original back and open it."),
    "hydrate": ("files", "hydrate", "Bring originals back."),
    "dehydrate": ("files", "dehydrate", "Replace files by placeholders now."),
    "free-up": ("files", "free_up", "Replace now and free the local copies."),
    "pin": ("files", "pin", "Keep the originals here."),
    "unpin": ("files", "unpin", "Undo pin."),
    "evict": ("files", "evict", "Drop local copies that enough others hold."),
    "cat": ("files", "cat", "Write a file's content to standard output."),
    "inspect": ("files", "inspect", "Say what a .f file says."),
    "restore": ("files", "restore", "Write a copy elsewhere, touching nothing."),
    "undelete": ("files", "undelete", "Bring a deleted placeholder back."),
    "upload": ("shares", "upload", "Share one file: prints its download key."),
    "download": ("shares", "download", "Fetch the file that a key stands for."),
    "shares": ("shares", "shares", "List what was uploaded, and until when."),
    "unshare": ("shares", "unshare", "Take an upload back."),
    "carriers": ("carriers", "carriers", "Set up places that store bytes."),
    "pause": ("folders", "pause", "Leave a folder alone for now."),
    "resume": ("folders", "resume", "Go on with a paused folder."),
    "invite": ("members", "invite", "Let another device into your group."),
    "join": ("members", "join", "Join a group with an invitation."),
    "peers": ("members", "peers", "List the other nodes."),
    "connect": ("members", "connect", "Connect to a node by its address."),
    "check": ("upkeep", "check", "Verify the store."),
    "rebuild-catalog": ("upkeep", "rebuild_catalog", "Rebuild the catalog from what it describes."),
    "doctor": ("upkeep", "doctor", "Say what is wrong here and how to mend it."),
    "words": ("words", "words", "Show or confirm the 24 recovery words."),
    "recover": ("recover", "recover", "Bring everything back from the 24 words."),
    "leave": ("members", "leave", "Bring everything back and stop using p2pstore."),
    "service": ("upkeep", "service", "Run the node always, with systemd."),
    "desktop": ("upkeep", "desktop", "Open .f files by a double click."),
    "completion": ("upkeep", "completion", "Print a completion script for a shell."),
    "demo": ("upkeep", "demo", "Show the main job with three nodes on this machine."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(
            importlib.import_module(f"p2pstore.cli.{module}"), attribute
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in _COMMANDS.items()])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
First steps:
  p2pstore run                    start the node (service install: always)
  p2pstore add-folder ~/Vault     its files become .f; open one and it is back
  p2pstore invite                 let another computer hold copies
  p2pstore status                 is it safe, what is missing?""",
)
@click.option("--home", metavar="DIR", help="Where the node lives (also P2PSTORE_HOME).")
@click.option("-q", "--quiet", is_flag=True, help="Results and errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Say more; tracebacks with errors.")
@click.version_option(__version__, prog_name="p2pstore", message="%(prog)s %(version)s")
@click.pass_context
def commands(ctx: click.Context, home: str | None, quiet: bool, verbose: bool) -> None:
    """A folder becomes a window on your own swarm: drop a file in, it is stored encrypted on your
    other computers and replaced by a small .f file; open the .f and the original is back."""
    shell = ctx.ensure_object(Shell)
    shell.home_option, shell.quiet, shell.verbose = home, quiet, verbose


def main(argv: Sequence[str] | None = None, *, run_node: RunNode | None = None) -> int:
    """Run one command line; return its exit code. `run_node` is what `run` calls."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is written as an escape, not as a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    shell = Shell(run_node=run_node)
    try:
        outcome = commands.main(
            args=None if argv is None else list(argv),
            prog_name="p2pstore",
            standalone_mode=False,
            obj=shell,
        )
        sys.stdout.flush()
    except Exception as exc:
        return _explain(exc, shell)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED
    return outcome if isinstance(outcome, int) else 0


def _explain(exc: Exception, shell: Shell) -> int:
    """Tell the user in one sentence; return the exit code."""
    if isinstance(exc, click.exceptions.Exit):
        return exc.exit_code
    if shell.verbose:
        traceback.print_exception(exc, file=sys.stderr)
    if isinstance(exc, click.ClickException):
        exc.show()
        return 2
    if isinstance(exc, click.Abort):
        print("\nStopped; nothing more was done.", file=sys.stderr)
        return INTERRUPTED
    if isinstance(exc, BrokenPipeError):
        # Who read us has enough (`| head`); the interpreter must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(exc, P2PStoreError):
        print(str(exc) or type(exc).__name__, file=sys.stderr)
        return exc.exit_code
    if isinstance(exc, OSError):
        print(f"The system refused: {exc}", file=sys.stderr)
        return 1
    print(
        f"Unexpected error: {type(exc).__name__}: {exc} (p2pstore -v ... shows where)",
        file=sys.stderr,
    )
    return 1
