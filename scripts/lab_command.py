"""The command line of `scripts/lab`: words in, labs made and shown; all the work is in `lab_hosts`."""

import argparse
import os
import pwd
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab_hosts import Lab, LabError, LabHost, LabSpec, RunningHost, down, find_lab, up
from orchestrator.sizes import parse_bytes

MIB = 1024 * 1024
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def main(words: Sequence[str], environment: Mapping[str, str]) -> int:
    options = _parser().parse_args(words)
    try:
        return int(options.action(options, environment))
    except (LabError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    about = "Make real hosts on this one Linux machine, to try meshctl in. Needs root."
    parser = argparse.ArgumentParser(prog="scripts/lab", description=about)
    actions = parser.add_subparsers(required=True, metavar="up | status | down")
    making = actions.add_parser("up", help="make the hosts, and an inventory of them")
    making.set_defaults(action=_up)
    making.add_argument("--hosts", type=int, default=3, metavar="N", help="how many (default: 3)")
    making.add_argument("--cpu", type=_cores, metavar="25%", help="of one core, for each host (default: no limit)")
    making.add_argument(
        "--memory", type=_bytes, metavar="700MiB", help="of each host, files it has read included (default: no limit)"
    )
    making.add_argument("--rate", metavar="1gbit", help="of each host's link, either way (default: no limit)")
    making.add_argument(
        "--delay", type=_seconds, default=0.0, metavar="0.3ms", help="of each link, one way (default: none)"
    )
    making.add_argument("--disk", type=_bytes, metavar="300MiB", help="room in each host's home, taken from its memory")
    making.add_argument("--folder", type=Path, help="where keys and inventory go (default: in the user's state folder)")
    making.add_argument(
        "--subnet", metavar="10.213.7.0/24", help="addresses of the hosts (default: the first free one)"
    )
    making.add_argument("--model", default="smollm2-135m", help="for the inventory (default: smollm2-135m)")
    making.add_argument("--replace", action="store_true", help="take away a lab of that name that is up")
    showing = actions.add_parser("status", help="show the hosts")
    showing.set_defaults(action=_status)
    removing = actions.add_parser("down", help="take everything away again, also after a crash")
    removing.set_defaults(action=_down)
    for action in (making, showing, removing):
        action.add_argument("--name", default="lab", help="which lab, when there are several (default: lab)")
    return parser


def _up(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    if not options.replace:
        _refuse_if_in_use(options.name)
    hosts = tuple(
        LabHost(f"host{number}", options.cpu, options.memory, options.rate, options.delay, options.disk)
        for number in range(1, options.hosts + 1)
    )
    owner = pwd.getpwuid(int(environment.get("SUDO_UID", os.getuid())))
    folder = options.folder or _state_folder(environment, owner) / "meshctl" / "lab" / options.name
    fresh = [path for path in (folder, *folder.parents) if not path.exists()]
    lab = up(LabSpec(folder, hosts, options.name, options.subnet))
    inventory = lab.inventory(model=options.model)
    for path in (*fresh, lab.client_key, inventory):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    _show(lab)
    name = "" if lab.name == "lab" else f" --name {lab.name}"
    print(f"\nnext:     meshctl trust {inventory}\n          meshctl up {inventory}")
    print(f"log in:   ssh -i {lab.client_key} {lab.hosts[0].user}@{lab.hosts[0].address}")
    print(f"the end:  scripts/lab down{name}")
    return 0


def _refuse_if_in_use(name: str) -> None:
    """What a crash left is swept without asking; a lab that works may be somebody's, perhaps at this moment."""
    lab = find_lab(name)
    if lab is not None and all(host.processes() for host in lab.hosts):
        raise LabError(
            f'lab "{name}" is up (hosts: {len(lab.hosts)}, in {lab.folder}); choose another --name, end it with'
            " scripts/lab down, or make this one in its place with --replace"
        )


def _status(options: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    lab = find_lab(options.name)
    if lab is None:
        print(f'there is no lab "{options.name}"; make one with scripts/lab up')
        return 1
    _show(lab)
    return 0


def _down(options: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    existed = down(options.name)
    print(f'lab "{options.name}" is gone' if existed else f'there was no lab "{options.name}"')
    return 0


def _show(lab: Lab) -> None:
    rows = [("host", "address", "cpu", "memory", "rate", "delay", "processes"), *map(_row, lab.hosts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"inventory: {lab.folder / 'inventory.yaml'}")


def _row(host: RunningHost) -> tuple[str, ...]:
    spec = host.spec
    used = f"{host.memory_used_bytes() / MIB:.0f}"
    return (
        host.name,
        host.address,
        f"{spec.cpu * 100:g}%" if spec.cpu else "all",
        f"{used} of {spec.memory_bytes / MIB:g} MiB" if spec.memory_bytes else f"{used} MiB, no limit",
        spec.rate or "no limit",
        f"{spec.delay_s * 1e3:g} ms" if spec.delay_s else "none",
        str(len(host.processes())),
    )


def _state_folder(environment: Mapping[str, str], owner: pwd.struct_passwd) -> Path:
    """As the XDG rules say, for the person behind `sudo`."""
    named = environment.get("XDG_STATE_HOME") if owner.pw_uid == os.getuid() else None
    return Path(named or Path(owner.pw_dir, ".local", "state"))


def _cores(text: str) -> float:
    match = re.fullmatch(r"([0-9.]+)%", text)
    if match is None:
        raise argparse.ArgumentTypeError(f'"{text}" is not a share of one core; write one such as 25%')
    return float(match[1]) / 100


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f'"{text}" is not a time; write one such as 0.3ms')
    return float(match[1]) * SECONDS[match[2]]


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
