"""`meshctl engine`: build, list, find and check the pinned llama.cpp on this machine, and bring it to hosts.

Everything heavy is imported inside the commands, so that `meshctl --help` stays quick.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import DEFAULT_INVENTORY
from orchestrator.cli.run import answer, run, run_shown, talk

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.engine.install import Installed
    from orchestrator.engine.store import Engine
    from orchestrator.errors import MeshctlError
    from orchestrator.inventory import Inventory
    from orchestrator.report import Report

app = typer.Typer(
    name="engine",
    help="Build and check llama.cpp, the engine that does the inference.",
    no_args_is_help=True,
)

Backend = Annotated[str, typer.Option("--backend", help="What it computes on: cpu, cuda, metal or vulkan.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


@app.command()
def build(
    backend: Backend = "cpu",
    again: Annotated[bool, typer.Option("--again", help="Build even if it is there already.")] = False,
) -> None:
    """Build the engine (once; 10 to 20 minutes on two cores), prove that it computes here, and print its folder."""
    engine = run_shown(lambda report: _build_and_prove(backend, again, report))
    typer.echo(engine.folder)


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """Show every engine on this machine."""
    from orchestrator.engine.store import list_engines

    engines = list_engines(_cache())
    if as_json:
        typer.echo(json.dumps([_as_json(engine) for engine in engines], indent=2))
    elif engines:
        answer().print(engines_table(engines))
    else:
        talk().print("No engine is built yet: meshctl engine build")


@app.command()
def path(backend: Backend = "cpu") -> None:
    """Print the engine's folder, with llama-server and the other programs in it."""
    typer.echo(_built(backend).folder)


@app.command()
def check(backend: Backend = "cpu") -> None:
    """Compare every file with its hash in the manifest, then let the engine compute on this machine."""
    proven = run(_prove(_built(backend), again=True))
    talk().print(f"{len(proven.manifest.files)} files are whole, and the engine computes here.", markup=False)
    for library in proven.manifest.excluded:
        talk().print(f"{library} is not used: its code crashes on this machine.", markup=False)


@app.command()
def install(
    hosts: Annotated[
        list[str] | None, typer.Argument(metavar="[HOST]...", help="Only these; else every host of the inventory.")
    ] = None,
    inventory: Annotated[Path, typer.Option("--inventory", "-i", help="The inventory file.")] = DEFAULT_INVENTORY,
    as_json: AsJson = False,
) -> None:
    """Make sure that hosts have the engine, as `up` does: sent where it runs, else built there. Says what was done."""
    from orchestrator.fanout import all_or_raise
    from orchestrator.folders import user_folders
    from orchestrator.inventory_file import load_inventory
    from orchestrator.prepare import install_engines

    wanted = _only(load_inventory(inventory), hosts or ())
    installed = run_shown(lambda report: install_engines(wanted, user_folders(), report))
    if as_json:
        typer.echo(json.dumps(installed_json(installed), indent=2))
    else:
        answer().print(installed_table(installed))
    all_or_raise(installed)


def _only(inventory: "Inventory", names: Sequence[str]) -> "Inventory":
    from orchestrator.errors import UsageError

    known = [host.name for host in inventory.hosts]
    if unknown := sorted(set(names) - set(known)):
        raise UsageError(
            f"{', '.join(unknown)}: no such host in {inventory.path}", hint=f"the hosts are {', '.join(known)}"
        )
    return replace(inventory, hosts=tuple(host for host in inventory.hosts if not names or host.name in names))


async def _build_and_prove(backend: str, again: bool, report: "Report") -> "Engine":
    from orchestrator.engine.build import build_engine

    last_title = ""

    def on_progress(title: str, done: int, total: int) -> None:
        nonlocal last_title
        if title != last_title:
            last_title = title
            report.step(title)
        if total:
            report.progress("files", done, total)

    engine = await build_engine(_cache(), backend, on_progress, again=again)
    report.step("Let the engine compute")
    proven = await _prove(engine, again=False)
    for library in proven.manifest.excluded:
        report.warn(f"{library} crashes on this machine and is not used")
    return proven


async def _prove(engine: "Engine", *, again: bool) -> "Engine":
    from orchestrator.engine.install import prove_here
    from orchestrator.host_agent import ask_facts, ensure_agent
    from orchestrator.shell.local import LocalShell

    shell = LocalShell("controller", _cache(), Path.home())
    facts = await ask_facts(shell, await ensure_agent(shell))
    return await prove_here(shell, facts, engine, again=again)


def _cache() -> Path:
    from orchestrator.folders import user_folders

    return user_folders().cache


def _built(backend: str) -> "Engine":
    from orchestrator.engine.build import local_platform
    from orchestrator.engine.store import find_engine
    from orchestrator.errors import EngineError

    engine = find_engine(_cache(), backend, local_platform())
    if engine is None:
        raise EngineError(f"the {backend} engine is not built yet", hint="meshctl engine build")
    return engine


def _as_json(engine: "Engine") -> dict[str, object]:
    manifest = engine.manifest
    return {
        "engine": manifest.engine,
        "folder": str(engine.folder),
        "backend": manifest.backend,
        "platform": manifest.platform,
        "commit": manifest.commit,
        "protocol": manifest.protocol,
        "libc": manifest.libc,
        "size_bytes": manifest.size_bytes,
        "excluded": list(manifest.excluded),
    }


def engines_table(engines: "tuple[Engine, ...]") -> "Table":
    """One row per engine."""
    from rich.table import Table
    from rich.text import Text

    table = Table("engine", "commit", "needs", "size", "taken out", box=None, pad_edge=False)
    for engine in engines:
        manifest = engine.manifest
        size = f"{manifest.size_bytes / 2**20:.0f} MiB"
        words = (manifest.engine, manifest.commit, manifest.libc, size, ", ".join(manifest.excluded))
        table.add_row(*(Text(word) for word in words))
    return table


_HOW = {"there": "was there already", "sent": "sent", "built": "built there", "own": "its own, examined"}


def installed_table(installed: "Mapping[str, Installed | MeshctlError]") -> "Table":
    """One row per host that has its engine; the others are reported as errors."""
    from rich.table import Column, Table
    from rich.text import Text

    from orchestrator.errors import MeshctlError
    from orchestrator.view.sizes import bytes_text, duration_text

    table = Table("host", "engine", "sent", "took", Column("folder", overflow="fold"), box=None, pad_edge=False)
    for host, one in installed.items():
        if not isinstance(one, MeshctlError):
            sent = bytes_text(one.sent_bytes) if one.sent_bytes else "-"
            words = (host, _HOW[one.how], sent, duration_text(one.seconds), one.folder)
            table.add_row(*(Text(word) for word in words))
    return table


def installed_json(installed: "Mapping[str, Installed | MeshctlError]") -> list[dict[str, object]]:
    """One object per host: what was done, or the error."""
    from dataclasses import asdict

    from orchestrator.errors import MeshctlError

    return [
        {"host": host, "error": str(one), "hint": one.hint}
        if isinstance(one, MeshctlError)
        else {"host": host, **asdict(one), "excluded": list(one.excluded)}
        for host, one in installed.items()
    ]
