"""What each key of the inventory may hold, one function per key: the value as YAML gives it in, the checked value out.

Every refusal is a `ValueError` in plain words: what is wrong, a semicolon, and what to write. Only `key` and the files
of `tls` look at the file system, because a path that leads nowhere is a mistake in the inventory.
"""

import re
import shlex
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationInfo

from orchestrator.inventory import CONTROLLER, SELF_SIGNED
from orchestrator.sizes import EXAMPLES, parse_bytes, parse_cap, shown
from quant.errors import ModelNameError
from quant.source import PathSource, read_source
from workers.budget import MIB, MemoryCap
from workers.engine_commands import CACHE_TYPES, FLASH_ATTENTION, CacheType, FlashAttention

Word = TypeVar("Word", bound=str)

KIB = 1024
CONTEXT_RANGE = (256, 16 * 1024 * 1024)
PARALLEL_RANGE = (1, 256)
SURVIVE_RANGE = (0, 1)
THREADS_RANGE = (1, 1024)
PORT_RANGE = (1, 65535)
CONNECTIONS_RANGE = (8, 65536)
WAITING_RANGE = (1, 65536)
WAIT_RANGE_S = (1, 86400)
DEADLINE_RANGE_S = (1, 86400)
BODY_RANGE_BYTES = (KIB, 64 * MIB)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST_KEY = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_ADDRESS = re.compile(r"[A-Za-z0-9_:\[][A-Za-z0-9_.:%\[\]-]*")
_USER = re.compile(r"[^\s@:/-][^\s@:/]*")
_JUMP = re.compile(r"[^\s,-][^\s,]*(,[^\s,-][^\s,]*)*")
_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")

_OTHER_CACHE_TYPES = {
    "f32": "takes twice the memory of f16",
    "bf16": "takes as much memory as f16, and is not known to be safe over RPC",
    **dict.fromkeys(
        ("q4_1", "q5_0", "q5_1", "iq4_nl"),
        "is not known to be safe over RPC, and CUDA has no kernels of its own for it",
    ),
}
"""Types that the engine knows, and why they are not taken."""

_MISSING = {
    "cluster": 'add "cluster: " and a name of your choice',
    "model": 'add "model: smollm2-135m", or the path of a .gguf file',
    "hosts": 'add "hosts:" and below it one "- name: ..." per machine',
    "name": 'add "name: " and a name of your choice',
    "certificate": 'add "certificate: " and the path of a PEM file',
    "key": 'add "key: " and the path of the private key that belongs to the certificate',
    "connection": 'add "connection: ssh", or "connection: local" for this machine',
}


def missing(key: str) -> str:
    """What to say of a required key that is not there."""
    return f"missing; {_MISSING[key]}"


def kind(value: object) -> str:
    """A value in plain words, for the middle of a sentence."""
    match value:
        case None:
            return "empty"
        case bool():
            return f"the truth value {str(value).lower()}"
        case int() | float():
            return f"the number {value:g}" if isinstance(value, float) else f"the number {value}"
        case str():
            return f"the text {shown(value)}" if value.strip() else "an empty text"
        case list():
            return "a list"
        case dict():
            return "a group of keys"
        case _:
            return "of a kind that is not used here"


def cluster_name(value: object) -> str:
    return _name(value, "demo")


def host_name(value: object) -> str:
    name = _name(value, "desktop")
    if name == CONTROLLER:
        raise ValueError(f'"{name}" means the machine where meshctl runs; give the host another name')
    return name


def connection(value: object) -> str:
    return _one_of(value, ("local", "ssh"))


def backend(value: object) -> str:
    return _one_of(value, ("auto", "cpu", "cuda", "metal", "vulkan"))


def goal(value: object) -> str:
    return _one_of(value, ("latency", "throughput"))


def weights_from(value: object) -> str:
    return _one_of(value, ("controller", "nearest"))


def cache_type(value: object) -> CacheType:
    """Of keys and values alike."""
    if isinstance(value, list | dict) or (isinstance(value, str) and _named_types(value) > 1):
        raise ValueError(
            "keys and values of different types are not known to be safe over RPC, and CUDA has no kernels of its own"
            f" for them; write one type for both, {_either(CACHE_TYPES)}"
        )
    if isinstance(value, str) and (why := _OTHER_CACHE_TYPES.get(value.lower())):
        raise ValueError(f"{shown(value)} {why}; write {_either(CACHE_TYPES)}")
    return _one_of(value, CACHE_TYPES)


def flash_attention(value: object) -> FlashAttention:
    return _one_of(value, FLASH_ATTENTION)


def _named_types(text: str) -> int:
    return sum(word in (*CACHE_TYPES, *_OTHER_CACHE_TYPES) for word in re.split(r"[\s,/:+-]+", text.lower()))


def link(value: object) -> str:
    return _one_of(value, ("tunnel", "direct"))


def plaintext_rpc(value: object) -> str:
    return _one_of(value, ("refuse", "accept"))


def address(value: object) -> str:
    text = _text(value, 'write a name or an address such as "192.168.1.20"')
    if "@" in text:
        user_part, _, rest = text.rpartition("@")
        raise ValueError(f'{shown(text)} has a user in it; write "user: {user_part}" and "address: {rest}"')
    if re.fullmatch(r"[^:]+:[0-9]+", text):
        host, _, number = text.partition(":")
        raise ValueError(f'{shown(text)} has a port in it; write "port: {number}" and "address: {host}"')
    if not _ADDRESS.fullmatch(text) or len(text) > 253:
        raise ValueError(f'{shown(text)} is not an address; write a name or an address such as "192.168.1.20"')
    return text


def user(value: object) -> str:
    text = _text(value, 'write a user name such as "ada"')
    if not _USER.fullmatch(text):
        raise ValueError(f'{shown(text)} is not a user name; write one such as "ada"')
    return text


def jump(value: object) -> str:
    text = _text(value, 'write it as for "ssh -J", such as "ada@gate.example"')
    if not _JUMP.fullmatch(text):
        raise ValueError(f'{shown(text)} is not a way to jump; write it as for "ssh -J", such as "ada@gate.example"')
    return text


def host_key(value: object) -> str:
    ask = 'write the fingerprint that "ssh-keygen -lf" shows on the host, "SHA256:" and 43 characters'
    text = _text(value, ask)
    if not _HOST_KEY.fullmatch(text):
        raise ValueError(f"{shown(text, 60)} is not a SHA256 fingerprint; {ask}")
    return text


def key(value: object, info: ValidationInfo) -> str:
    """The private key's absolute path; a relative one is relative to the inventory's folder (`info.context`)."""
    text = _text(value, 'write the path of a private key such as "~/.ssh/id_ed25519"')
    path = _path(text, info)
    if path.suffix == ".pub":
        raise ValueError(f"{shown(text)} is the public half; name the private key {shown(text.removesuffix('.pub'))}")
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise ValueError(f"{path} {what}; name an existing private key or remove the line to use ssh's own")
    return str(path)


def model(value: object, info: ValidationInfo) -> str:
    """A catalogue name, `hf:owner/repo:QUANT` and a link as they are; a path as an absolute one."""
    text = _text(value, 'write a model\'s name such as "smollm2-135m", or the path of a .gguf file')
    try:
        source = read_source(text)
    except ModelNameError as error:
        raise ValueError(f"{error}; {error.hint}") from error
    if not isinstance(source, PathSource):
        return text
    if "/" in text or text.startswith("~") or text.endswith(".gguf"):
        return str(_path(text, info))
    return text


def memory(value: object) -> MemoryCap:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"the number {value:g} has no unit; {EXAMPLES}")
    return parse_cap(_text(value, EXAMPLES))


def cache(value: object) -> MemoryCap:
    """What may be kept on a disk; the form is that of `memory`."""
    return memory(value)


def threads(value: object) -> int | None:
    """None for `auto`."""
    return None if value == "auto" else _whole(value, THREADS_RANGE, ' or "auto"')


def run_with(value: object) -> tuple[str, ...]:
    """The words before every command on the host; a text is cut as a shell does, but nothing in it is expanded."""
    ask = 'write a command and its options such as "numactl --cpunodebind=0 --membind=0", as a text or a list of words'
    words = value if isinstance(value, list) else _split(_text(value, ask), ask)
    if not words or not all(isinstance(word, str) and word for word in words):
        wrong = [kind(word) for word in words if not (isinstance(word, str) and word)]
        raise ValueError(f"is a list with {wrong[0]} in it; {ask}" if wrong else f"is an empty list; {ask}")
    if any("\0" in word or "\n" in word for word in words):
        raise ValueError(f"has a line break in it; {ask}")
    return tuple(words)


def engine(value: object) -> str:
    """The folder of an engine on the host: a path there, which is not looked at here."""
    ask = 'write the absolute path of an engine folder on that host, such as "/opt/meshctl/engine"'
    text = _text(value, ask)
    if not text.startswith("/") or "\0" in text or "\n" in text:
        raise ValueError(f"{shown(text)} is not an absolute path; {ask}")
    return text.rstrip("/") or "/"


def port(value: object) -> int:
    return _whole(value, PORT_RANGE)


def context(value: object) -> int:
    return _whole(value, CONTEXT_RANGE)


def survive(value: object) -> int:
    return _whole(value, SURVIVE_RANGE)


def parallel(value: object) -> int:
    return _whole(value, PARALLEL_RANGE)


def tls(value: object) -> object:
    """The word, or the two files, whose own checks follow."""
    ask = 'write "self-signed", or "certificate: ..." and "key: ..." below it'
    if value == SELF_SIGNED or isinstance(value, dict) or type(value).__module__ != "builtins":
        return value
    raise ValueError(f"is {kind(value)}; {ask}")


def certificate(value: object, info: ValidationInfo) -> str:
    """The absolute path of a PEM file that begins with the gateway's certificate."""
    from orchestrator.certificates import read_certificate  # only inventories with TLS wait for the library

    path = _path(_text(value, 'write the path of a PEM file such as "gateway.crt"'), info)
    read_certificate(path)
    return str(path)


def certificate_key(value: object, info: ValidationInfo) -> str:
    """The absolute path of the PEM file with the private key that belongs to the certificate."""
    from orchestrator.certificates import check_key

    path = _path(_text(value, 'write the path of a PEM file such as "gateway.key"'), info)
    certificate = info.data.get("certificate")
    check_key(path, Path(certificate) if certificate else None)
    return str(path)


def allowed_origins(value: object) -> tuple[str, ...]:
    ask = 'write a list of origins such as ["https://chat.example"]'
    if not isinstance(value, list):
        raise ValueError(f"is {kind(value)}, not a list; {ask}")
    for origin in value:
        if origin == "*":
            raise ValueError('"*" would let every web page ask with a key it has got; name the origins one by one')
        if not isinstance(origin, str) or not _ORIGIN.fullmatch(origin):
            said = shown(origin) if isinstance(origin, str) else kind(origin)
            raise ValueError(
                f"{said} is not an origin; write scheme, name and port as browsers send them, such as"
                ' "https://chat.example", in small letters and without a path'
            )
    return tuple(dict.fromkeys(value))


def connections(value: object) -> int:
    return _whole(value, CONNECTIONS_RANGE)


def waiting(value: object) -> int:
    return _whole(value, WAITING_RANGE)


def wait(value: object) -> int:
    return _whole(value, WAIT_RANGE_S)


def deadline(value: object) -> int:
    return _whole(value, DEADLINE_RANGE_S)


def body(value: object) -> int:
    """The most bytes of one request's body."""
    ask = 'write a size such as "8MiB", from "1KiB" to "64MiB"'
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"the number {value:g} has no unit; {ask}")
    text = _text(value, ask)
    size_bytes = parse_bytes(text)
    low, high = BODY_RANGE_BYTES
    if not low <= size_bytes <= high:
        raise ValueError(f"{shown(text)} is out of range; {ask}")
    return size_bytes


def mapping(ask: str) -> Callable[[object], object]:
    """A check that the value is a group of keys; `ask` is what to write otherwise."""

    def check(value: object) -> object:
        if not isinstance(value, dict) and type(value).__module__ == "builtins":
            raise ValueError(f"is {kind(value)}, not a group of keys; write {ask}")
        return value

    return check


def hosts(value: object) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise ValueError(f'is {kind(value)}, not a list of hosts; write one "- name: ..." per machine below it')
    if not value:
        raise ValueError('is an empty list; write one "- name: ..." per machine below it')
    return tuple(value)


def _name(value: object, example: str) -> str:
    text = _text(value, f'write a name such as "{example}"')
    if len(text) > 63:
        raise ValueError(f"{shown(text, 20)} has {len(text)} characters; write at most 63")
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is not a possible name; use letters, digits, '-', '_' and '.', beginning with a letter or"
            " a digit"
        )
    return text


def _text(value: object, ask: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int | float):
        raise ValueError(f"is {kind(value)} where text is needed; write it in quotes")
    raise ValueError(f"is {kind(value)}; {ask}")


def _split(text: str, ask: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{shown(text)} has a quotation mark without its second one; {ask}") from error


def _one_of(value: object, words: tuple[Word, ...]) -> Word:
    if isinstance(value, str) and value in words:
        return words[words.index(value)]
    near = get_close_matches(value.lower(), words, n=1) if isinstance(value, str) else []
    fix = f'did you mean "{near[0]}"?' if near else f"write {_either(words)}"
    raise ValueError(f"{_said(value)} is not possible here; {fix}")


def _either(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _said(value: object) -> str:
    if isinstance(value, str) and value.strip():
        return shown(value)
    return "an empty value" if value is None else kind(value)


def _whole(value: object, limits: tuple[int, int], alternative: str = "") -> int:
    low, high = limits
    ask = f"write a whole number from {low} to {high}{alternative}"
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()) and low <= int(value) <= high:
        raise ValueError(f"is the text {shown(value)}, not a number; write {int(value)} without quotes")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"is {kind(value)}, not a whole number; {ask}")
    if not low <= value <= high:
        raise ValueError(f"the number {value} is out of range; {ask}")
    return value


def _path(text: str, info: ValidationInfo) -> Path:
    path = Path(text)
    if text.startswith("~"):
        try:
            path = path.expanduser()
        except RuntimeError as error:
            raise ValueError(f"{shown(text)} names the home of an unknown user; write the whole path") from error
    return Path(info.context or ".", path)
