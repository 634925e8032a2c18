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
    from workers.devices import EngineGpu
    from workers.engine import Recipe

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
    architectures: Annotated[
        list[str] | None,
        typer.Option("--architecture", help="CUDA only: compute capability, such as 8.9; else this machine's GPUs."),
    ] = None,
) -> None:
    """Build the engine (once; 10 to 25 minutes on two cores), prove that it computes here, and print its folder."""
    from orchestrator.engine.store import known_backend
    from workers.engine import recipe_of

    recipe = recipe_of(known_backend(backend), _capabilities(backend, architectures or ()))
    engine = run_shown(lambda report: _build_and_prove(recipe, again, report))
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
    if backend != "cpu":
        gpus = run_shown(lambda report: _gpus_here(proven, report))
        talk().print(f"It computes on {_named(gpus)}.", markup=False)
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
            f"{', '.join(unknown)}: no such host in {inventory.path}", hint=f"name some of {', '.join(known)}"
        )
    return replace(inventory, hosts=tuple(host for host in inventory.hosts if not names or host.name in names))


async def _build_and_prove(recipe: "Recipe", again: bool, report: "Report") -> "Engine":
    from orchestrator.engine.build import build_engine

    last_title = ""

    def on_progress(title: str, done: int, total: int) -> None:
        nonlocal last_title
        if title != last_title:
            last_title = title
            report.step(title)
        if total:
            report.progress("files", done, total)

    engine = await build_engine(_cache(), recipe, on_progress, again=again)
    report.step("Let the engine compute")
    proven = await _prove(engine, again=False)
    for library in proven.manifest.excluded:
        report.warn(f"{library} crashes on this machine and is not used")
    if recipe.plugin:
        report.say(f"it computes on {_named(await _gpus_here(proven, report))}")
    return proven


async def _gpus_here(engine: "Engine", report: "Report") -> "tuple[EngineGpu, ...]":
    """What of this machine it can use beside the CPU; what it cannot is told."""
    from orchestrator.engine.gpus import Wanted, usable_gpus
    from orchestrator.shell.local import LocalShell

    shell = LocalShell("this machine", _cache(), Path.home())
    return await usable_gpus(shell, str(engine.folder), Wanted(engine.manifest.backend), report)


def _named(gpus: "tuple[EngineGpu, ...]") -> str:
    names = ", ".join(f"{gpu.name} ({gpu.description})" for gpu in gpus)
    return f"the CPU and {names}" if names else "the CPU alone"


async def _prove(engine: "Engine", *, again: bool) -> "Engine":
    from orchestrator.engine.install import prove_here
    from orchestrator.folders import user_folders
    from orchestrator.host_agent import ask_facts
    from orchestrator.own_machine import own_shell

    async with own_shell(user_folders()) as (shell, agent):
        return await prove_here(shell, await ask_facts(shell, agent), engine, again=again)


def _capabilities(backend: str, named: Sequence[str]) -> tuple[str, ...]:
    """What CUDA code is compiled for; UsageError where that is not known, or means nothing."""
    import re

    from orchestrator.errors import UsageError
    from workers.agent import current_memory, nvidia_gpus

    if backend != "cuda":
        if named:
            raise UsageError("--architecture is for --backend cuda", hint="leave it out")
        return ()
    wrong = [one for one in named if not re.fullmatch(r"\d{1,2}\.\d", one)]
    if wrong:
        raise UsageError(f"--architecture {wrong[0]} is no compute capability", hint="such as 8.9 for an RTX 4090")
    found = named or [gpu["compute_capability"] for gpu in nvidia_gpus(current_memory()) if gpu["compute_capability"]]
    if not found:
        raise UsageError(
            "this machine has no NVIDIA GPU that tells its compute capability",
            hint="name what the engine is for, such as --architecture 8.9 (https://developer.nvidia.com/cuda-gpus)",
        )
    return tuple(found)


def _cache() -> Path:
    from orchestrator.folders import user_folders

    return user_folders().cache


def _built(backend: str) -> "Engine":
    from orchestrator.engine.build import local_platform
    from orchestrator.engine.store import find_engine, known_backend, list_engines
    from orchestrator.errors import EngineError
    from workers.engine import SOURCE

    known_backend(backend)
    found = [
        engine
        for engine in list_engines(_cache())
        if (engine.manifest.backend, engine.manifest.platform, engine.manifest.commit)
        == (backend, local_platform(), SOURCE.commit)
    ]
    current = find_engine(_cache(), backend, local_platform())
    if current is None and len(found) > 1:  # for several cards, or of older recipes
        names = ", ".join(engine.manifest.engine for engine in found)
        raise EngineError(f"there are several {backend} engines: {names}", hint=f"they lie in {found[0].folder.parent}")
    engine = current or (found[0] if found and backend == "cuda" else None)
    if engine is None:
        option = "" if backend == "cpu" else f" --backend {backend}"
        raise EngineError(f"the {backend} engine is not built yet", hint=f"meshctl engine build{option}")
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


def gpu_json(gpu: "EngineGpu") -> dict[str, object]:
    """Memory in bytes, as the engine counts it."""
    return {
        "name": gpu.name,
        "description": gpu.description,
        "memory_total_bytes": gpu.memory_total_bytes,
        "memory_free_bytes": gpu.memory_free_bytes,
    }


_HOW = {"there": "was there already", "sent": "sent", "built": "built there", "own": "its own, examined"}


def installed_table(installed: "Mapping[str, Installed | MeshctlError]") -> "Table":
    """One row per host that has its engine; the others are reported as errors."""
    from rich.table import Column, Table
    from rich.text import Text

    from orchestrator.errors import MeshctlError
    from orchestrator.view.sizes import bytes_text, duration_text

    columns = ("host", "engine", "computes on", "sent", "took", Column("folder", overflow="fold"))
    table = Table(*columns, box=None, pad_edge=False)
    for host, one in installed.items():
        if not isinstance(one, MeshctlError):
            sent = bytes_text(one.sent_bytes) if one.sent_bytes else "-"
            computes_on = ", ".join(("CPU", *(gpu.name for gpu in one.gpus)))
            words = (host, _HOW[one.how], computes_on, sent, duration_text(one.seconds), one.folder)
            table.add_row(*(Text(word) for word in words))
    return table


def installed_json(installed: "Mapping[str, Installed | MeshctlError]") -> list[dict[str, object]]:
    """One object per host: what was done, or the error."""
    from dataclasses import asdict

    from orchestrator.errors import MeshctlError

    return [
        {"host": host, "error": str(one), "hint": one.hint}
        if isinstance(one, MeshctlError)
        else {"host": host, **asdict(one), "excluded": list(one.excluded), "gpus": [gpu_json(gpu) for gpu in one.gpus]}
        for host, one in installed.items()
    ]
