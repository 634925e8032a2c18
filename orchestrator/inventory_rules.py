"""What must hold between the keys of an inventory, beyond each key's own form: pure, on the values as YAML gave them.

It looks at unchecked values so that these problems are reported together with those of single keys; where a value is
of the wrong kind it keeps silent, because the key's own check has spoken.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from orchestrator.inventory import Inventory
from orchestrator.sizes import parse_cap
from workers.engine_commands import CACHE_TYPES

SSH_ONLY = ("address", "user", "port", "key", "jump", "host_key", "cache", "plaintext_rpc")
DEFAULT_CAP = "80%"

Where = tuple[int | str, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; `where` is the way down to it through keys and list positions."""

    where: Where
    text: str
    missing: bool = False

    def __str__(self) -> str:
        return f"{path_text(self.where)}: {self.text}"


def path_text(where: Where) -> str:
    """`("hosts", 1, "memory")` as `hosts[1].memory`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return text.removeprefix(".")


def spelled(key: str, known: Sequence[str]) -> str:
    """What to say of a key that is not known."""
    near = get_close_matches(key.lower(), known, n=1)
    return f'unknown key; did you mean "{near[0]}"?' if near else f"unknown key; the keys here are {', '.join(known)}"


def problem_of(where: Where, error: object, otherwise: str) -> Problem:
    """A refusal of a key's own check, or what the checking library said if it was not one of ours."""
    return Problem(where, str(error) if isinstance(error, ValueError) else otherwise)


def broken_rules(content: Mapping[str, Any]) -> list[Problem]:
    """Every rule between keys that the inventory breaks."""
    hosts = content.get("hosts")
    numbered = [(i, host) for i, host in enumerate(hosts if isinstance(hosts, list) else ()) if isinstance(host, dict)]
    problems = [problem for i, host in numbered for problem in _connection_problems(i, host)]
    problems += _context_problems(content)
    problems += _attention_problems(content)
    problems += [problem for i, host in numbered for problem in _link_problems(i, host)]
    return problems + list(_repeated_names(numbered)) + list(_shared_memory(numbered))


def _context_problems(content: Mapping[str, Any]) -> Iterator[Problem]:
    least, context = content.get("minimum_context"), content.get("context", Inventory.context)
    if isinstance(least, int) and isinstance(context, int) and least > context:
        yield Problem(("minimum_context",), f"the number {least} is more than `context`, which is {context}; lower it")


def _attention_problems(content: Mapping[str, Any]) -> Iterator[Problem]:
    cache_type = content.get("cache_type", Inventory.cache_type)
    if content.get("flash_attention") == "off" and cache_type in CACHE_TYPES and cache_type != Inventory.cache_type:
        yield Problem(
            ("flash_attention",),
            f'off does not go with "cache_type: {cache_type}": the engine reads such keys and values by flash attention'
            f' only; write "auto", or "cache_type: {Inventory.cache_type}"',
        )


def _connection_problems(i: int, host: Mapping[str, Any]) -> Iterator[Problem]:
    if host.get("connection") == "ssh" and "address" not in host:
        yield Problem(("hosts", i, "address"), 'missing; "connection: ssh" needs an address to reach', missing=True)
    if host.get("connection") == "local":
        for key in SSH_ONLY:
            if key in host:
                yield Problem(("hosts", i, key), 'only for hosts reached by ssh; remove it or write "connection: ssh"')


def _link_problems(i: int, host: Mapping[str, Any]) -> Iterator[Problem]:
    where = ("hosts", i, "link")
    if host.get("link") != "direct":
        return
    if host.get("connection") == "local":
        yield Problem(where, 'direct is only for hosts reached by ssh; remove it or write "connection: ssh"')
    elif host.get("plaintext_rpc") != "accept":
        yield Problem(
            where,
            "direct goes without password and encryption: whoever reaches the worker's port runs code as its user;"
            ' write "plaintext_rpc: accept" beside it if nobody else is on that network, or "link: tunnel"',
        )
    elif "jump" in host:
        yield Problem(where, 'direct does not go through a jump; remove "jump", or write "link: tunnel"')


def _repeated_names(numbered: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for i, host in numbered:
        name = host.get("name")
        if not isinstance(name, str):
            continue
        if name in first:
            text = f'"{name}" is already the name of hosts[{first[name]}]; give each host its own name'
            yield Problem(("hosts", i, "name"), text)
        first.setdefault(name, i)


def _shared_memory(numbered: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[Problem]:
    """Entries that are one machine draw on one memory: sizes for all of them, or shares of at most 100 % together."""
    machines: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    hosts = dict(numbered)
    for i, host in numbered:
        machine = _machine(host)
        if machine is not None:
            machines[machine].append(i)
    for entries in machines.values():
        caps = [_share(hosts[i]) for i in entries]
        shares = [share for share in caps if share is not None]
        if len(entries) < 2 or not shares or (len(shares) == len(caps) and sum(shares) <= 1 + 1e-9):
            continue
        last = max(i for i in entries if _share(hosts[i]) is not None)
        names = " and ".join(f"hosts[{i}]" for i in entries)
        together = f"take {sum(shares) * 100:g}% together" if len(shares) == len(caps) else "mix shares and sizes"
        text = (
            f'{names} are one machine and {together}; give each a size such as "4GiB",'
            ' or shares of at most "100%" together'
        )
        yield Problem(("hosts", last, "memory"), text, missing="memory" not in hosts[last])


def _machine(host: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What tells one machine's memory from another's. Beside a GPU's own memory every host's processor is a device."""
    if host.get("connection") == "local":
        return ("local",)
    if host.get("connection") == "ssh" and isinstance(host.get("address"), str):
        return (host["address"].lower(), str(host.get("port", 22)), str(host.get("jump", "")))
    return None


def _share(host: Mapping[str, Any]) -> float | None:
    cap = host.get("memory", DEFAULT_CAP)
    try:
        return parse_cap(cap).share if isinstance(cap, str) else None
    except ValueError:
        return None
