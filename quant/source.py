"""What a user calls a model, read into where it comes from. Pure: nothing is looked for.

A name of the catalogue, `hf:owner/repository[@revision][:QUANTISATION]`, a link to a .gguf file, or a path: the same
words wherever a model is named.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import SplitResult, unquote, urlsplit

from quant.catalogue import CATALOGUE, CatalogueModel, HubSource
from quant.errors import ModelNameError

HUB_FORM = "write hf:OWNER/REPOSITORY or hf:OWNER/REPOSITORY:QUANTISATION, such as hf:Qwen/Qwen3-4B-GGUF:Q4_K_M"
_LINK_FORM = "name the link of the .gguf file itself, or of its first shard"

_HUB_PREFIX = "hf:"
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_HUB_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_WANTED = re.compile(r"[\w.+-]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SHA256 = re.compile(r"sha256=([0-9A-Fa-f]{64})")
_SHARD = re.compile(r".+-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_MOST_SHARDS = 1000
"""Of a link: each is asked for its size before anything is fetched."""


@dataclass(frozen=True)
class UrlSource:
    """A .gguf file, or the first of its shards, at a web server; `sha256` is that of the named file, "" if unknown."""

    url: str
    sha256: str = ""

    @property
    def file_name(self) -> str:
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


@dataclass(frozen=True)
class PathSource:
    """A file on this machine, or a word that leads nowhere."""

    path: str


Source = CatalogueModel | HubSource | UrlSource | PathSource


def read_source(name: str, catalogue: Mapping[str, CatalogueModel] = CATALOGUE) -> Source:
    """Where the model `name` comes from. ModelNameError for what cannot be the name of any."""
    if not name:
        raise ModelNameError(
            f"{name!r} is no name of a model",
            hint="name one of the catalogue (meshctl pull), or a path to a .gguf file",
        )
    if not name.isprintable():
        raise ModelNameError(
            f"{name!r} has characters that cannot be shown", hint="rename the file, or link to it under another name"
        )
    if name in catalogue:
        return catalogue[name]
    if name.startswith(_HUB_PREFIX):
        return _hub_source(name)
    if scheme := _SCHEME.match(name):
        return _link(name, scheme[0].lower())
    return PathSource(name)


def display_name(name: str) -> str:
    """What to call it in a sentence: the catalogue's name, the repository's with the quantisation, or the file's."""
    match read_source(name):
        case HubSource(repository, _, wanted):
            return ":".join(filter(None, (repository.rpartition("/")[2], wanted.rpartition("/")[2])))
        case UrlSource() as source:
            return source.file_name
        case PathSource(path):
            return PurePosixPath(path).name
        case CatalogueModel() as model:
            return model.name


def shard_names(file_name: str) -> tuple[str, ...]:
    """Of every shard of the model whose first one has this name; the name alone where it is not one of several."""
    shard = _SHARD.fullmatch(file_name)
    if shard is None:
        return (file_name,)
    count = int(shard["count"])
    start, end = shard.span("number")
    return tuple(f"{file_name[:start]}{number:05}{file_name[end:]}" for number in range(1, count + 1))


def _hub_source(name: str) -> HubSource:
    """`hf:owner/repository`, with `@revision` and `:QUANTISATION` or `:FILE.gguf` behind it."""
    place, _, wanted = name.removeprefix(_HUB_PREFIX).partition(":")
    repository, at, revision = place.partition("@")
    owner, slash, repository_name = repository.partition("/")
    if not slash or not owner or not repository_name:
        raise ModelNameError(f"{name} has no owner and repository", hint=HUB_FORM)
    for part in (owner, repository_name):
        if not _HUB_NAME.fullmatch(part) or "--" in part or ".." in part:
            raise ModelNameError(f"{name}: {part!r} cannot be a name on the hub", hint=HUB_FORM)
    if at and not is_safe_path(revision):
        raise ModelNameError(
            f"{name}: {revision!r} is no revision", hint="name a branch, a tag or a commit behind the @"
        )
    if name.endswith(":") or (wanted and not _can_be_wanted(wanted)):
        raise ModelNameError(f"{name}: {wanted!r} is neither a quantisation nor a .gguf file", hint=HUB_FORM)
    return HubSource(repository, revision or "main", wanted)


def _can_be_wanted(wanted: str) -> bool:
    return is_safe_path(wanted) if wanted.lower().endswith(".gguf") else bool(_WANTED.fullmatch(wanted))


def is_safe_path(path: str) -> bool:
    """Whether it stays below the folder it is put into: no "..", no root, no backslash, nothing unprintable."""
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and not any(part in ("", ".", "..") for part in parts)


def _link(name: str, scheme: str) -> UrlSource | HubSource:
    if scheme not in ("https://", "http://"):
        raise ModelNameError(f"{name}: {scheme} is not understood", hint="fetch it yourself and name its path")
    try:
        link = urlsplit(name)
        host, _ = link.hostname, link.port
    except ValueError as error:
        raise ModelNameError(f"{name} is no link: {error}", hint=_LINK_FORM) from error
    if not host or " " in name:
        raise ModelNameError(f"{name} is no link", hint=_LINK_FORM)
    if link.username is not None or link.password is not None:
        raise ModelNameError(
            f"the link to {host} holds a user name or a password", hint="fetch the file yourself and name its path"
        )
    digest = _pinned(name, link.fragment)
    if host in _HUB_HOSTS:
        return replace(_hub_link(name, link), sha256=digest)
    return UrlSource(_checked_link(name, link), digest)


def _pinned(name: str, fragment: str) -> str:
    """The hash that a link ends with, "" for none."""
    digest = _SHA256.fullmatch(fragment)
    if fragment and digest is None:
        raise ModelNameError(f"{name}: {fragment!r} is not understood", hint="write #sha256= and 64 digits, or nothing")
    return digest[1].lower() if digest else ""


def _hub_link(name: str, link: SplitResult) -> HubSource:
    """A page of the hub as it is in a browser: of a repository, of a branch of it, or of a file."""
    match [unquote(part) for part in link.path.strip("/").split("/")]:
        case [owner, repository]:
            return _hub_source(f"hf:{owner}/{repository}")
        case [owner, repository, "tree", revision]:
            return _hub_source(f"hf:{owner}/{repository}@{revision}")
        case [owner, repository, "resolve" | "blob", revision, *path] if path:
            return _hub_source(f"hf:{owner}/{repository}@{revision}:{'/'.join(path)}")
    raise ModelNameError(f"{name} is no page of a model", hint=HUB_FORM)


def _checked_link(name: str, link: SplitResult) -> str:
    """The link of a .gguf file, or of the first of its shards."""
    url = link._replace(fragment="").geturl()
    file_name = UrlSource(url).file_name
    if not file_name.lower().endswith(".gguf") or not is_safe_path(file_name):
        raise ModelNameError(f"{name} does not end in .gguf", hint=_LINK_FORM)
    shard = _SHARD.fullmatch(file_name)
    if shard is None:
        return url
    number, count = int(shard["number"]), int(shard["count"])
    if not 1 <= number <= count:
        raise ModelNameError(f"{name}: there is no shard {number} of {count}", hint=_LINK_FORM)
    if count > _MOST_SHARDS:
        raise ModelNameError(
            f"{name} is one of {count:,} shards; {_MOST_SHARDS:,} can be fetched by their link",
            hint="fetch them yourself and name the path of the first",
        )
    if number != 1:
        first = shard_names(file_name)[0]
        raise ModelNameError(f"{name} is a shard in the middle; a model is named by its first one", hint=f"use {first}")
    return url
