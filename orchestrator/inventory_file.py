"""Read inventory.yaml into an `Inventory`, or say everything that is wrong with it at once.

This is the one place where text of the user's becomes inventory values, and the only one that knows pydantic for
them. It opens the file, looks at the keys and certificates that it names, and does nothing else: no host is touched.
"""

import stat
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Tag, ValidationError

from orchestrator import inventory_fields as fields
from orchestrator.errors import InventoryError
from orchestrator.inventory import GatewaySettings, Host, Inventory, TlsFiles
from orchestrator.inventory_rules import Problem, broken_rules, problem_of, spelled
from orchestrator.inventory_yaml import Document, YamlError, read_yaml
from workers.budget import MemoryCap
from workers.engine_commands import CacheType, FlashAttention

LARGEST_FILE_BYTES = 1024 * 1024


def load_inventory(path: Path) -> Inventory:
    """Read, check and complete the inventory; `key` and a model's path become absolute, relative to the file's folder.

    Raises InventoryError whose message has one line per problem, `FILE: hosts[1].memory: what is wrong; the fix`, in
    the order of the file.
    """
    data = _data(path)
    document = _document(path, _decoded(path, data))
    checked, problems = _checked(document.content, path.absolute().parent)
    problems += [*document.repeated, *broken_rules(document.content)]
    if checked is None or problems:
        raise _error(path, [str(problem) for problem in sorted(problems, key=document.line_of)])
    return _inventory(path, checked, sha256(data).hexdigest())


def inventory_reference_keys() -> tuple[str, ...]:
    """Every key an inventory may have, as paths such as `context`, `gateway.port` and `hosts[].memory`."""
    groups: dict[str, type[_Keys]] = {
        "": _InventoryKeys,
        "gateway.": _GatewayKeys,
        "gateway.tls.": _TlsKeys,
        "hosts[].": _HostKeys,
    }
    return tuple(f"{group}{name}" for group, keys in groups.items() for name in keys.model_fields)


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)


class _HostKeys(_Keys):
    name: Annotated[str, BeforeValidator(fields.host_name)]
    connection: Annotated[Literal["local", "ssh"], BeforeValidator(fields.connection)]
    address: Annotated[str, BeforeValidator(fields.address)] = ""
    user: Annotated[str | None, BeforeValidator(fields.user)] = None
    port: Annotated[int | None, BeforeValidator(fields.port)] = None
    key: Annotated[str | None, BeforeValidator(fields.key)] = None
    jump: Annotated[str | None, BeforeValidator(fields.jump)] = None
    host_key: Annotated[str | None, BeforeValidator(fields.host_key)] = None
    backend: Annotated[Literal["auto", "cpu", "cuda", "metal", "vulkan"], BeforeValidator(fields.backend)] = "auto"
    memory: Annotated[MemoryCap, BeforeValidator(fields.memory)] = Host.memory
    threads: Annotated[int | None, BeforeValidator(fields.threads)] = None
    link: Annotated[Literal["tunnel", "direct"], BeforeValidator(fields.link)] = "tunnel"
    plaintext_rpc: Annotated[Literal["refuse", "accept"], BeforeValidator(fields.plaintext_rpc)] = "refuse"
    run_with: Annotated[tuple[str, ...], BeforeValidator(fields.run_with)] = ()
    cache: Annotated[MemoryCap | None, BeforeValidator(fields.cache)] = None
    engine: Annotated[str | None, BeforeValidator(fields.engine)] = None


class _TlsKeys(_Keys):
    certificate: Annotated[str, BeforeValidator(fields.certificate)]
    key: Annotated[str, BeforeValidator(fields.certificate_key)]


_WORD, _FILES = "\0word", "\0files"
"""The two kinds of `tls`. The checking library puts them into paths; no key of a file can be one of them."""

_Tls = Annotated[
    Annotated[Literal["self-signed"], Tag(_WORD)] | Annotated[_TlsKeys, Tag(_FILES)],
    Discriminator(lambda value: _WORD if isinstance(value, str) else _FILES),
]


class _GatewayKeys(_Keys):
    host: Annotated[str, BeforeValidator(fields.address)] = GatewaySettings.host
    port: Annotated[int, BeforeValidator(fields.port)] = GatewaySettings.port
    tls: Annotated[_Tls | None, BeforeValidator(fields.tls)] = None
    allowed_origins: Annotated[tuple[str, ...], BeforeValidator(fields.allowed_origins)] = ()
    connections: Annotated[int, BeforeValidator(fields.connections)] = GatewaySettings.connections
    waiting: Annotated[int, BeforeValidator(fields.waiting)] = GatewaySettings.waiting
    wait: Annotated[int, BeforeValidator(fields.wait)] = GatewaySettings.wait_s
    deadline: Annotated[int, BeforeValidator(fields.deadline)] = GatewaySettings.deadline_s
    body: Annotated[int, BeforeValidator(fields.body)] = GatewaySettings.body_bytes


class _InventoryKeys(_Keys):
    cluster: Annotated[str, BeforeValidator(fields.cluster_name)]
    model: Annotated[str, BeforeValidator(fields.model)]
    context: Annotated[int, BeforeValidator(fields.context)] = Inventory.context
    parallel: Annotated[int, BeforeValidator(fields.parallel)] = Inventory.parallel
    cache_type: Annotated[CacheType, BeforeValidator(fields.cache_type)] = Inventory.cache_type
    flash_attention: Annotated[FlashAttention, BeforeValidator(fields.flash_attention)] = Inventory.flash_attention
    minimum_context: Annotated[int | None, BeforeValidator(fields.context)] = None
    goal: Annotated[Literal["latency", "throughput"], BeforeValidator(fields.goal)] = "latency"
    survive: Annotated[int, BeforeValidator(fields.survive)] = Inventory.survive
    gateway: Annotated[_GatewayKeys, BeforeValidator(fields.mapping('"host: ..." and "port: ..." below it'))] = (
        _GatewayKeys()
    )
    weights_from: Annotated[Literal["controller", "nearest"], BeforeValidator(fields.weights_from)] = "controller"
    cache: Annotated[MemoryCap | None, BeforeValidator(fields.cache)] = None
    hosts: Annotated[
        tuple[Annotated[_HostKeys, BeforeValidator(fields.mapping('"- name: ..." and its keys'))], ...],
        BeforeValidator(fields.hosts),
    ]


def _document(path: Path, text: str) -> Document:
    try:
        document = read_yaml(text)
    except YamlError as error:
        raise _error(path, error.problems) from error
    if document.content is None:
        raise _error(path, ['the file is empty; begin with "cluster: NAME", "model: NAME" and "hosts:"'])
    if not isinstance(document.content, dict):
        kind = fields.kind(document.content)
        raise _error(path, [f'the file is {kind}, not keys with values; begin with "cluster: NAME"'])
    return document


def _data(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            what = "is a folder" if path.is_dir() else "is not a file"
            raise _error(path, [f"{what}; name the inventory file itself, such as {path / 'inventory.yaml'}"])
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise _error(path, ["there is no such file; name an existing one, or write it"]) from error
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise _error(path, [f"cannot be read ({reason}); check the path and its permissions"]) from error
    if len(data) > LARGEST_FILE_BYTES:
        raise _error(path, ["is larger than 1 MiB; an inventory is a short text, name the right file"])
    return data


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _error(path, [f"line {line}: not UTF-8 text; save the file as UTF-8"]) from error


def _checked(content: Mapping[str, Any], folder: Path) -> tuple[_InventoryKeys | None, list[Problem]]:
    try:
        return _InventoryKeys.model_validate(content, context=folder), []
    except ValidationError as error:
        return None, list(_problems(error))


def _problems(error: ValidationError) -> Iterator[Problem]:
    for one in error.errors(include_url=False):
        where = tuple(part for part in one["loc"] if part not in (_WORD, _FILES))
        match one["type"]:
            case "missing":
                yield Problem(where, fields.missing(str(where[-1])), missing=True)
            case "extra_forbidden" | "invalid_key":
                key = str(where[-1])
                yield Problem((*where[:-1], key), spelled(key, _known_keys(where)))
            case _:
                yield problem_of(where, one.get("ctx", {}).get("error"), one["msg"])


def _known_keys(where: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys of the group that `where` lies in: the file itself, `gateway`, its `tls`, or one of `hosts`."""
    match where[:-1]:
        case ():
            return tuple(_InventoryKeys.model_fields)
        case ("gateway",):
            return tuple(_GatewayKeys.model_fields)
        case ("gateway", *_):
            return tuple(_TlsKeys.model_fields)
    return tuple(_HostKeys.model_fields)


def _inventory(path: Path, checked: _InventoryKeys, digest: str) -> Inventory:
    gateway = _gateway(checked.gateway)
    hosts = tuple(Host(**{**dict(host), "cache": host.cache or checked.cache}) for host in checked.hosts)
    return Inventory(**{**dict(checked), "path": path, "gateway": gateway, "hosts": hosts, "sha256": digest})


def _gateway(checked: _GatewayKeys) -> GatewaySettings:
    tls = TlsFiles(checked.tls.certificate, checked.tls.key) if isinstance(checked.tls, _TlsKeys) else checked.tls
    return GatewaySettings(
        host=checked.host,
        port=checked.port,
        tls=tls,
        allowed_origins=checked.allowed_origins,
        connections=checked.connections,
        waiting=checked.waiting,
        wait_s=checked.wait,
        deadline_s=checked.deadline,
        body_bytes=checked.body,
    )


def _error(path: Path, problems: list[str]) -> InventoryError:
    return InventoryError(
        "\n".join(f"{path}: {problem}" for problem in problems),
        hint="every key is explained in the inventory.yaml that comes with meshctl",
    )
