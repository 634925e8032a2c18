"""The exact commands that `up` would run, without running them: ports are those the first free choice would give."""

import shlex

from orchestrator.cluster import devices_of, placement_of, remote_model_folder
from orchestrator.folders import Folders
from orchestrator.hosts import OpenHosts, open_hosts
from orchestrator.inventory import Inventory
from orchestrator.plan.choose import make_plan
from orchestrator.plan.values import Plan
from orchestrator.prepare import Prepared, prepare
from orchestrator.report import Report
from orchestrator.supervisor import Wishes
from orchestrator.survey.gather import default_threads
from orchestrator.tunnel import tunnel_command
from workers.engine_commands import HeadSettings, Placement, head_command, worker_command

FIRST_PORT = 20000
"""Shown in place of the port that is chosen at start."""


async def planned_commands(
    inventory: Inventory, folders: Folders, report: Report, wishes: Wishes
) -> tuple[tuple[str, str], ...]:
    """(where, command line) for every process, in the order they would start."""
    report.step("Connecting")
    async with open_hosts(inventory, folders, report) as hosts:
        prepared = await prepare(inventory, hosts, folders, report, recalibrate=wishes.recalibrate)
        plan = make_plan(
            prepared.survey, prepared.memory, goal=inventory.goal, devices=wishes.devices, mode=wishes.mode
        )
        return tuple((where, shlex.join(words)) for where, words in _commands(prepared, plan, hosts, folders))


def _commands(prepared: Prepared, plan: Plan, hosts: OpenHosts, folders: Folders) -> list[tuple[str, tuple[str, ...]]]:
    commands: list[tuple[str, tuple[str, ...]]] = []
    endpoints = []
    for index, device in enumerate(devices_of(prepared, plan) if plan.mode == "layers" else ()):
        host = hosts.by_name[device.host]
        port = FIRST_PORT + index
        program = f"{prepared.engine_folders[device.host]}/ggml-rpc-server"
        commands.append((f"{device.host}: worker", worker_command(program, port=port, threads=device.threads)))
        if not host.is_local:
            near = FIRST_PORT + 100 + index
            commands.append((f"controller: link to {host.name}", tunnel_command(host.host, hosts.ssh, near, port)))
            port = near
        endpoints.append(f"127.0.0.1:{port}")
    commands.append(_head(prepared, plan, hosts, folders, tuple(endpoints)))
    return commands


def _head(
    prepared: Prepared, plan: Plan, hosts: OpenHosts, folders: Folders, endpoints: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    host = hosts.of_head(plan.head)
    engine = prepared.engine_folders[plan.head] if plan.head else str(prepared.engine.folder)
    local = host.is_local
    settings = HeadSettings(
        model=str(prepared.model.path) if local else _remote_model(prepared, host.shell.root),
        alias=prepared.memory.model,
        port=FIRST_PORT + 200,
        key_file=str(folders.cluster(prepared.inventory.cluster).head_key) if local else "head.key",
        context=plan.context,
        parallel=plan.parallel,
        micro_batch=plan.micro_batch,
        threads=host.host.threads or default_threads(host.facts),
    )
    placement = placement_of(prepared, plan, ())
    if placement is not None:
        placement = Placement(endpoints, placement.tensor_split, placement.output_on_head, placement.output_tied)
    return (f"{plan.head or 'controller'}: head", head_command(f"{engine}/llama-server", settings, placement))


def _remote_model(prepared: Prepared, root: str) -> str:
    return f"{remote_model_folder(root, prepared.model.shards)}/{prepared.model.path.name}"
