"""The command line of `scripts/bench-plan`: run the grid's cells, one JSON line each, then write what they say."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Protocol

import bench_plan_devices as places
from bench_plan_cells import CONTEXT, GOALS, LOCAL, MODELS, SETUPS, Cell, cells
from bench_plan_measure import QUICK, Limits, measure_cell, memory_limit
from bench_plan_record import CellRecord, append_record, read_records
from bench_plan_report import markdown, standing, write_chart
from bench_plan_yardstick import yardstick
from lab_kernel import LabError
from orchestrator.cli.run import run_shown
from orchestrator.engine.stock import Stock
from orchestrator.errors import MeshctlError
from orchestrator.folders import Folders, user_folders
from orchestrator.hosts import open_hosts
from orchestrator.inventory import Host, Inventory
from orchestrator.plan.values import ModelMemory
from orchestrator.prepare import prepare_memories, prepare_model, prepare_ranking
from orchestrator.report import Report
from orchestrator.wishes import Wishes
from quant.synthetic import ONE_BILLION, THREE_BILLION, write_random_model

SHAPES = {"1b": ONE_BILLION, "3b": THREE_BILLION}
TENSOR_TYPE = "Q6_K"
"""As fast through RPC as natively: other types are compared with kernels that workers do not have."""


def main(words: Sequence[str]) -> int:
    options = _parser().parse_args(words)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stopped)
    if not options.report_only and (reason := places.unavailable()):
        print(f"error: {reason}", file=sys.stderr)
        return 1
    try:
        if not options.report_only:
            _run_grid(options)
    except (LabError, MeshctlError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    records = standing(read_records(options.resume))
    print(markdown(records), end="")
    if options.chart:
        write_chart(records, options.chart)
    return 0


def _stopped(number: int, frame: FrameType | None) -> None:
    """Leave by way of every `finally`: the devices' cgroups go too. Also where a parent had the signal ignored."""
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench-plan",
        description="Make devices of different speed and memory here and compare the planner with the stopwatch.",
    )
    parser.add_argument("--resume", type=Path, required=True, metavar="FILE.jsonl", help="results; what it has is kept")
    parser.add_argument("--cells", type=_names(SETUPS), default=_all(SETUPS), metavar="NAME,...", help="devices")
    parser.add_argument("--goals", type=_names(GOALS), default=_all(GOALS), metavar="NAME,...")
    parser.add_argument("--models", type=_names(MODELS), default=_all(MODELS), metavar="NAME,...")
    parser.add_argument("--link", default=LOCAL, metavar="1gbit", help="hosts behind links of this rate")
    parser.add_argument("--quick", action="store_true", help="one round, shorter prompts, less patience")
    parser.add_argument("--recalibrate", action="store_true", help="measure speeds again")
    parser.add_argument("--again", action="store_true", help="run cells once more that have been; the newest counts")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg")
    return parser


def _run_grid(options: argparse.Namespace) -> None:
    done = {record.key for record in read_records(options.resume)} if not options.again else ()
    for cell in cells(options.cells, options.goals, options.models, options.link):
        if cell.key not in done:
            append_record(options.resume, _run_cell(cell, _limits(cell, options.quick), options.recalibrate))


def _limits(cell: Cell, quick: bool) -> Limits:
    """Large models are loaded for minutes, and so are others for several conversations over a link: twice, by both
    benches."""
    limits = QUICK if quick else Limits()
    slow = cell.model.large or (cell.link != LOCAL and cell.goal.parallel > 1)
    return replace(limits, run_s=3 * limits.run_s) if slow else limits


def _run_cell(cell: Cell, limits: Limits, recalibrate: bool) -> CellRecord:
    """A cell that cannot be run is a result too, with the reason."""
    begun, folders = time.monotonic(), user_folders()
    record = CellRecord(
        *(cell.key, cell.setup.name, cell.goal.name, cell.model.name, cell.link, cell.goal.parallel),
        rounds=limits.rounds,
    )
    try:
        model = _model(cell, folders)
        with ExitStack() as stack:
            stack.enter_context(places.controller_held())
            if cell.link != LOCAL:  # with known hosts of its own: other labs have had the same addresses
                state = stack.enter_context(TemporaryDirectory(prefix="meshctl-bench-plan-"))
                folders = replace(folders, state=Path(state))
            memory = _memory_bytes(cell, model, folders)
            hosts = stack.enter_context(places.devices(cell, folders.state / "bench-plan", memory))
            record = _measured(record, cell, _inventory(cell, model, hosts), folders, limits, recalibrate)
    except MeshctlError as error:
        record = replace(record, note=str(error))
    return replace(record, seconds=round(time.monotonic() - begun, 1))


def _measured(
    record: CellRecord, cell: Cell, inventory: Inventory, folders: Folders, limits: Limits, recalibrate: bool
) -> CellRecord:
    async def work(report: Report) -> CellRecord:
        report.step(f"{cell.key}: the yardstick")
        engine = await Stock(folders.cache, report).cpu()
        model = await prepare_model(inventory.model, Path.cwd(), folders, report)
        cores, repetitions = max(cell.setup.cores), cell.model.generate // 2
        with yardstick(engine.folder / "llama-bench", model.path, cores, repetitions) as passes:
            taken_s = [await passes.take()]
            report.step(cell.key)
            async with open_hosts(inventory, folders, report) as hosts:
                wishes = Wishes(recalibrate=recalibrate)
                prepared, ranking = await prepare_ranking(inventory, hosts, folders, report, wishes, winner=False)
                taken_s.append(await passes.take())
                result = await measure_cell(cell, prepared, ranking, hosts, report, limits)
                taken_s.append(await passes.take())
        found = replace(record, prompt=result.prompt, runs=result.runs, memory=result.memory)
        return replace(found, yardstick_s=tuple(taken_s))

    return run_shown(work)


def _memory_bytes(cell: Cell, model: str, folders: Folders) -> int | None:
    if cell.setup.memory_part is None:
        return None

    async def work(report: Report) -> ModelMemory:
        inventory = _inventory(cell, model, ())
        engine = await Stock(folders.cache, report).cpu()
        read = await prepare_model(model, Path.cwd(), folders, report)
        return (await prepare_memories(inventory, engine, read, folders))[0]

    return memory_limit(run_shown(work), cell.setup.memory_part)


def _inventory(cell: Cell, model: str, hosts: tuple[Host, ...]) -> Inventory:
    return Inventory(
        path=Path.cwd() / "inventory.yaml",  # of no file that is there: nothing can be tuned for it
        cluster="bench-plan",
        model=model,
        hosts=hosts,
        context=CONTEXT,
        parallel=cell.goal.parallel,
        goal="latency" if cell.goal.name == "latency" else "throughput",
    )


def _model(cell: Cell, folders: Folders) -> str:
    """The model's name or file; random weights are written once."""
    shape = SHAPES.get(cell.model.name)
    if shape is None:
        return "smollm2-135m"
    path = folders.cache / "bench-plan" / f"random-{cell.model.name}-{TENSOR_TYPE}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_random_model(path, shape, TENSOR_TYPE)
    return str(path)


class _Named(Protocol):
    @property
    def name(self) -> str: ...


def _all(known: Sequence[_Named]) -> frozenset[str]:
    return frozenset(one.name for one in known)


def _names(known: Sequence[_Named]) -> Callable[[str], frozenset[str]]:
    def read(text: str) -> frozenset[str]:
        names = frozenset(text.split(","))
        if unknown := sorted(names - _all(known)):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(sorted(_all(known)))}")
        return names

    return read


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
