"""The exact commands that `up` would run, without running them: ports and sockets are named here in order."""

import shlex
from collections.abc import Iterator

from orchestrator.folders import Folders
from orchestrator.group_commands import head_names, head_place, head_settings, key_path, placement_of, worker_devices
from orchestrator.hosts import OpenHost, OpenHosts, open_hosts
from orchestrator.inventory import Inventory
from orchestrator.model_copies import remote_model
from orchestrator.plan.values import Group, Plan
from orchestrator.prepare import Prepared, prepare_ranking
from orchestrator.report import Report
from orchestrator.tunnel import tunnel_command
from orchestrator.wishes import Wishes
from workers.agent import SOCKETS
from workers.engine_commands import head_command, worker_command

FIRST_PORT = 20000
"""Shown in place of the port or the socket's name that is chosen at start, upwards for one after the other."""

Command = tuple[str, tuple[str, ...]]


async def planned_commands(
    inventory: Inventory, folders: Folders, report: Report, wishes: Wishes
) -> tuple[tuple[str, str], ...]:
    """(where, command line) for every process, in the order they would start."""
    report.step("Connecting")
    async with open_hosts(inventory, folders, report) as hosts:
        prepared, ranking = await prepare_ranking(inventory, hosts, folders, report, wishes)
        report.say("`up` keeps these in private networks, joined by bridges: run by hand, workers are open to others")
        return tuple(
            (where, shlex.join(words)) for where, words in commands_of(prepared, ranking.chosen, hosts, folders)
        )


def commands_of(prepared: Prepared, plan: Plan, hosts: OpenHosts, folders: Folders) -> list[Command]:
    """Workers and links of all groups, then their heads, each with what the host's `run_with` puts before it."""
    ports = iter(range(FIRST_PORT, FIRST_PORT + 10_000))
    commands: list[Command] = []
    endpoints = [list(_workers(prepared, group, hosts, ports, commands)) for group in plan.groups]
    for group, name, reached in zip(plan.groups, head_names(plan), endpoints, strict=True):
        _head(prepared, plan, group, name, hosts, folders, reached, ports, commands)
    return commands


def _workers(
    prepared: Prepared, group: Group, hosts: OpenHosts, ports: Iterator[int], commands: list[Command]
) -> Iterator[str]:
    """The endpoints of a group's workers, whose commands are added."""
    for device in worker_devices(prepared, group):
        host, port = hosts.by_name[device.host], next(ports)
        words = worker_command(
            f"{prepared.engine_folders[host.name]}/ggml-rpc-server",
            port=port,
            threads=device.threads,
            device=device.engine_name,
            address=host.worker_address,
        )
        commands.append((f"{host.name}: worker", (*_variables(device.environment), *host.host.run_with, *words)))
        if host.is_linked:
            far = _socket(host, ports) if host.is_private else f"127.0.0.1:{port}"
            _link(host, hosts, far, ports, commands)
            yield f"127.0.0.1:{next(ports)}"
        else:
            yield f"{host.worker_address}:{port}"


def _variables(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Those without which the engine does not see the device, as a shell takes them."""
    return ("env", *(f"{name}={value}" for name, value in environment)) if environment else ()


def _socket(host: OpenHost, ports: Iterator[int]) -> str:
    return f"{host.shell.root}/{SOCKETS}/{next(ports)}.sock"


def _link(host: OpenHost, hosts: OpenHosts, far: str, ports: Iterator[int], commands: list[Command]) -> None:
    """The tunnel to a place on the host."""
    near = _socket(hosts.controller, ports)
    commands.append((f"controller: link to {host.name}", tunnel_command(host.host, hosts.ssh, near, far)))


def _head(
    prepared: Prepared,
    plan: Plan,
    group: Group,
    name: str,
    hosts: OpenHosts,
    folders: Folders,
    endpoints: list[str],
    ports: Iterator[int],
    commands: list[Command],
) -> None:
    place = head_place(prepared, hosts, group, name)
    host, door = place.host, _socket(place.host, ports)
    model = str(prepared.model.path) if host.is_local else remote_model(prepared.model, host.shell.root)
    key_file = str(key_path(prepared, folders, place))
    settings = head_settings(prepared, plan, group, place, model=model, key_file=key_file, socket=door)
    words = head_command(f"{place.engine}/llama-server", settings, placement_of(prepared, group, endpoints))
    commands.append((f"{host.name}: {name}", (*_variables(place.environment), *host.host.run_with, *words)))
    if not host.is_local:
        _link(host, hosts, door, ports, commands)
