"""The hub's own cache on this machine: what is in it, and putting files there as every other program expects them.

Files lie once, in `blobs`, by their hash; `snapshots/COMMIT` has links to them by name; `refs/REVISION` says which
commit a branch or tag was at when it was last asked for.
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from quant.catalogue import HubSource
from quant.hub_files import HubFile
from quant.whole_file import written_whole

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What disks say that have none."""


@dataclass(frozen=True)
class Repository:
    """The part of the hub's cache that belongs to one repository."""

    cache: Path
    name: str

    @property
    def folder_name(self) -> str:
        return f"models--{self.name.replace('/', '--')}"

    @property
    def folder(self) -> Path:
        return self.cache / self.folder_name

    def blob(self, file: HubFile) -> Path:
        return self.folder / "blobs" / file.digest

    def link(self, commit: str, file: HubFile) -> Path:
        return self.folder / "snapshots" / commit / file.name

    def lock(self, file: HubFile) -> Path:
        """What other programs hold while they fetch this file."""
        return self.cache / ".locks" / self.folder_name / f"{file.digest}.lock"

    def commit_of(self, revision: str) -> str | None:
        """Of a revision as it was when it was last asked for; None where it never was."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            commit = (self.folder / "refs" / revision).read_text().strip()
        except OSError:
            return None
        return commit if COMMIT.fullmatch(commit) else None

    def remember(self, revision: str, commit: str) -> None:
        """That this branch or tag is at `commit`."""
        if revision == commit:
            return
        ref = self.folder / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(ref) as partial:
            partial.write_text(commit)

    def publish(self, commit: str, file: HubFile) -> Path:
        """Give a file in `blobs` its name, at once; where there are no links, it is moved there."""
        blob, link = self.blob(file), self.link(commit, file)
        target = os.path.relpath(blob, link.parent)
        if link.is_symlink() and os.readlink(link) == target:
            return link
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            with written_whole(link) as partial:
                partial.symlink_to(target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            blob.replace(link)
        return link


def remove_file(link: Path) -> None:
    """Remove a file of a snapshot, and its bytes where no other snapshot has them.

    The hub's own library removes whole commits only: with them other quantisations, which nobody asked for. Bytes that
    are not kept by their hash are a user's own file that the link was made to lead to: they stay.
    """
    blob, snapshots = link.resolve(), next((folder for folder in link.parents if folder.name == "snapshots"), None)
    link.unlink(missing_ok=True)
    others = snapshots.rglob("*") if snapshots is not None else ()
    if DIGEST.fullmatch(blob.name) and not any(other.resolve() == blob for other in others):
        blob.unlink(missing_ok=True)


def kept_files(cache: Path, source: HubSource) -> tuple[str | None, tuple[HubFile, ...]]:
    """The commit that this revision is known to be at, and which of its files are here, whoever fetched them."""
    repository = Repository(cache, source.repository)
    commit = repository.commit_of(source.revision)
    if commit is None:
        return None, ()
    snapshot = repository.folder / "snapshots" / commit
    files = (path for path in sorted(snapshot.rglob("*")) if path.is_file())
    return commit, tuple(_kept(path, snapshot) for path in files)


def _kept(path: Path, snapshot: Path) -> HubFile:
    """Its hash is the name of what it links to."""
    blob = path.resolve().name
    return HubFile(path.relative_to(snapshot).as_posix(), path.stat().st_size, blob if DIGEST.fullmatch(blob) else "")
