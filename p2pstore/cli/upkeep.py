"""Commands about the installation: check, rebuild-catalog, doctor, service, desktop, and such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2pstore.cli import show
from p2pstore.cli.params import PATH
from p2pstore.cli.shell import Shell, example, gravest, pass_shell
from p2pstore.errors import NotRunning, P2PStoreError
from p2pstore.text import plural

PROBLEM = 1
_MARKS = {"ok": "ok", "hint": "--", "problem": "!!"}


@click.command(epilog=example("p2pstore check --read-data", "p2pstore check --repair"))
@click.option("--read-data", is_flag=True, help="Read and verify every stored byte; takes long.")
@click.option("--repair", is_flag=True, help="Bring back from holders what is damaged or missing.")
@click.option("--report", metavar="FILE", type=PATH, help="Check a signed report instead.")
@pass_shell
def check(shell: Shell, read_data: bool, repair: bool, report: str | None) -> int:
    """Verify the store. Exit 4 when something is wrong, and was not mended."""
    if report is not None:
        from p2pstore.cli.report import check_report

        return check_report(shell, report)
    with shell.any_node() as node, shell.waiting("Checking has stopped; run it again to go on."
                                                 ) as meter:  # fmt: skip
        done = node.call("check", meter, read_data=read_data, repair=repair)
    problems = done.get("problems", [])
    left = [problem for problem in problems if not problem.get("healed")]
    for problem in problems:
        text = show.name(problem.get("text", ""))
        if problem.get("healed"):
            shell.result(f"{text}  Mended.")
        else:
            remedy = show.name(problem.get("remedy", ""))
            shell.fail(f"{text}  Mend it: {remedy}" if remedy else text)
    what = "every byte read" if read_data else "p2pstore check --read-data reads every byte"
    verdict = plural(len(left), "problem") if left else "good"
    if len(left) < len(problems):
        verdict += f", {len(problems) - len(left)} mended"
    shell.result(
        f"{plural(done.get('bundles', 0), 'bundle')}, {plural(done.get('blocks', 0), 'block')}, "
        f"{show.size(done.get('bytes', 0))}: {verdict} ({what})"
    )
    return gravest([int(problem.get("code", 4)) for problem in left] or [0])


@click.command("rebuild-catalog", epilog=example("p2pstore rebuild-catalog"))
@pass_shell
def rebuild_catalog(shell: Shell) -> int:
    """Rebuild the catalog from bundles, .f files, heads and what holders tell."""
    with shell.any_node() as node, shell.waiting("Run it again to finish; nothing is lost."
                                                 ) as meter:  # fmt: skip
        done = node.call("rebuild_catalog", meter)
    missing = done.get("missing", 0)
    shell.result(
        f"Rebuilt: {show.files(done.get('files', 0))}, {done.get('placeholders', 0):,} of them "
        f"placeholders, {plural(done.get('bundles', 0), 'bundle')}"
        + (
            f"; {plural(missing, 'bundle')} nowhere at the moment (p2pstore doctor)"
            if missing
            else ""
        )
    )
    return 0


@click.command(epilog=example("p2pstore doctor"))
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@pass_shell
def doctor(shell: Shell, as_json: bool) -> int:
    """Say what is wrong here (ports, clock, disk, peers, reachability) and how to mend it.

    Exit 1 when there is a problem.
    """
    findings: list[dict[str, Any]] = []
    running = shell.running() is not None
    if not running:
        findings.append(
            {
                "level": "problem",
                "text": "The node is not running.",
                "command": "p2pstore service install (always) or p2pstore run (now)",
            }
        )
    try:
        with shell.any_node() as node:
            findings += node.call("doctor").get("findings", [])
    except NotRunning as exc:
        findings.append({"level": "problem", "text": str(exc)})
    except P2PStoreError as exc:
        if running:
            raise
        findings.append({"level": "problem", "text": str(exc)})
    if as_json:
        shell.json({"findings": findings})
    for finding in [] if as_json else findings:
        command = f"   {show.name(finding['command'])}" if finding.get("command") else ""
        mark = _MARKS.get(str(finding.get("level")), "--")
        shell.result(f"{mark}  {show.name(finding.get('text', ''))}{command}")
    return PROBLEM if any(one.get("level") == "problem" for one in findings) else 0


# -- service and desktop ---------------------------------------------------------------------

_system = click.option("--system", is_flag=True, help="The system's service, not the user's.")


def _tell(shell: Shell, sentences: str) -> None:
    for sentence in sentences.splitlines():
        shell.result(show.name(sentence))


@click.group(epilog=example("p2pstore service install"))
def service() -> None:
    """Run the node always, as a systemd service."""


@service.command("install", epilog=example("p2pstore service install"))
@_system
@pass_shell
def service_install(shell: Shell, system: bool) -> int:
    """Write, enable and start the unit."""
    from p2pstore.cli import service as units

    home = shell.home if shell.home_is_chosen else None
    _tell(shell, units.install(system=system, home=home))
    if not system and (shell.home / "words.txt").exists():
        shell.say("Its 24 recovery words, to be written on paper: p2pstore words show")
    return 0


@service.command("uninstall", epilog=example("p2pstore service uninstall"))
@_system
@pass_shell
def service_uninstall(shell: Shell, system: bool) -> int:
    """Stop, disable and remove the unit; no file of yours is touched."""
    from p2pstore.cli import service as units

    _tell(shell, units.uninstall(system=system))
    return 0


@service.command("allow", epilog=example("p2pstore service allow /media/usb/Photos"))
@click.argument("dir", type=PATH)
@_system
@pass_shell
def service_allow(shell: Shell, dir: str, system: bool) -> int:
    """Let the sandboxed service write in DIR too."""
    from p2pstore.cli import service as units

    _tell(shell, units.allow(Path(dir), system=system))
    return 0


@click.group(epilog=example("p2pstore desktop install"))
def desktop() -> None:
    """Open .f files by a double click."""


@desktop.command("install", epilog=example("p2pstore desktop install"))
@pass_shell
def desktop_install(shell: Shell) -> int:
    """Register the file type and the handler, for this user."""
    from p2pstore.cli import desktop as entries

    _tell(shell, entries.install())
    return 0


@desktop.command("remove", epilog=example("p2pstore desktop remove"))
@pass_shell
def desktop_remove(shell: Shell) -> int:
    """Take both back."""
    from p2pstore.cli import desktop as entries

    _tell(shell, entries.remove())
    return 0


# -- completion and demo ---------------------------------------------------------------------


@click.command(
    epilog=example(
        "p2pstore completion bash > ~/.local/share/bash-completion/completions/p2pstore",
        "p2pstore completion fish > ~/.config/fish/completions/p2pstore.fish",
    )
)
@click.argument("name", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, name: str) -> int:
    """Print a completion script for bash, zsh or fish."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(name)
    if kind is None:
        raise click.UsageError(f"No completion for {name}.")
    click.echo(kind(ctx.find_root().command, {}, "p2pstore", "_P2PSTORE_COMPLETE").source())
    return 0


@click.command(epilog=example("p2pstore demo --keep"))
@click.option("--keep", is_flag=True, help="Leave the three homes and say where they are.")
def demo(keep: bool) -> int:
    """Show the main job with three nodes on this machine, in about a minute."""
    from p2pstore.cli import demo as show_case

    code = show_case.main(keep)
    return code if isinstance(code, int) else 0
