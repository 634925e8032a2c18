"""Runs one cluster from bring-up to its end: holds its lock, writes its state, serves its gateway, ends everything.

Foreground and `--detach` are this same function; only who listens to the report differs.
"""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from orchestrator.folders import Folders
from orchestrator.gateway.door import warnings_of
from orchestrator.gateway.server import check_address
from orchestrator.gateway.tls import prepare_tls
from orchestrator.inventory import Inventory
from orchestrator.keeping import Keeping
from orchestrator.report import Report
from orchestrator.state import hold
from orchestrator.state_keeper import StateKeeper, note_crash
from orchestrator.wishes import Wishes


async def supervise(
    inventory: Inventory, folders: Folders, report: Report, stop: asyncio.Event, wishes: Wishes
) -> None:
    """Bring the cluster up and keep it until `stop` is set; whatever happens, nothing it started is left.

    Raises what went wrong before the cluster has answered for the first time. Later on it is brought up again.
    """
    folder = folders.cluster(inventory.cluster)
    with hold(folder):
        note_crash(folder)
        keeper = StateKeeper(folder, inventory)
        keeper.phase("starting", "starting")
        try:
            await _until_stopped(inventory, folders, report, stop, wishes, keeper)
        except Exception as error:
            keeper.end("failed", str(error) or repr(error))
            raise
        except BaseException:
            keeper.end("stopped", "interrupted")
            raise
        keeper.end("stopped", "stopped on request")


async def _until_stopped(
    inventory: Inventory, folders: Folders, report: Report, stop: asyncio.Event, wishes: Wishes, keeper: StateKeeper
) -> None:
    """The work itself, given up as soon as `stop` is set."""
    work = asyncio.ensure_future(_work(inventory, folders, report, wishes, keeper))
    asked = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        asked.cancel()
        if not work.done():
            keeper.phase("stopping", "asked to stop")
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


async def _work(inventory: Inventory, folders: Folders, report: Report, wishes: Wishes, keeper: StateKeeper) -> None:
    settings = inventory.gateway
    check_address(settings.host, settings.port)
    tls = prepare_tls(settings, folders.cluster(inventory.cluster), datetime.now(UTC))
    for warning in warnings_of(settings, tls):
        report.warn(warning)
    async with AsyncExitStack() as gateway:
        await Keeping(inventory, folders, report, wishes, keeper, gateway, tls).go_on()
