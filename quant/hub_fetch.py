"""Fetch a model of the hub into the hub's own cache, where every program of its kind finds it: nothing lies twice."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from quant.catalogue import HubSource
from quant.download import Progress, RefusedError, Remote, Say, check_disk, digest_of, fetch_file, locked, shifted
from quant.errors import ModelFetchError, ModelNotFoundError
from quant.hub import Hub, HubUnreachableError, ask_hub, refusal, remote_of
from quant.hub_cache import Repository, kept_files
from quant.hub_files import HubFile, HubModel, choose_model, models_of, names_exactly
from quant.pulled import PulledFile, pulled_file


@dataclass(frozen=True)
class HubFetch:
    """One fetch: who is asked for what, and who is told."""

    client: httpx.AsyncClient
    hub: Hub
    source: HubSource
    on_progress: Progress
    say: Say

    @property
    def repository(self) -> Repository:
        return Repository(self.hub.cache, self.source.repository)


def find_kept(hub: Hub, source: HubSource) -> tuple[Path, ...]:
    """The files of this model in the hub's cache, whoever put them there; nothing where they are not all there.

    Nor where they may be another model than the repository's: that is settled by fetching it, or by being offline.
    """
    kept = _kept_model(hub, source)
    if kept is None or not (hub.offline or names_exactly(source.wanted, kept[1])):
        return ()
    commit, model = kept
    repository = Repository(hub.cache, source.repository)
    return tuple(repository.link(commit, file) for file in model.files)


async def fetch_from_hub(work: HubFetch, *, again: bool = False) -> tuple[PulledFile, ...]:
    """The files of the model, fetched where they are not in the hub's cache; the first one names it.

    What is there already is compared with its hash once. The hub is asked only when it must be: not where exactly what
    is named is there whole, but if `again`.
    """
    kept = None if again else _kept_model(work.hub, work.source)
    if kept is not None and names_exactly(work.source.wanted, kept[1]):
        if await _are_right(work, *kept):
            return _pulled(work, *kept)
        kept = None
    try:
        held = await ask_hub(work.hub, work.source)
    except HubUnreachableError:
        if kept is None or not await _are_right(work, *kept):
            raise
        work.say(f"the hub cannot be asked: taking {kept[1].name}, which is here")
        return _pulled(work, *kept)
    choice = choose_model(models_of(held.files), work.source)
    if choice.remark:
        work.say(choice.remark)
    await _fetch(work, held.commit, choice.model)
    work.repository.remember(work.source.revision, held.commit)
    return _pulled(work, held.commit, choice.model)


def _kept_model(hub: Hub, source: HubSource) -> tuple[str, HubModel] | None:
    """What of the repository's files in the hub's cache would be taken if there were no others."""
    commit, files = kept_files(hub.cache, source)
    with suppress(ModelNotFoundError):
        if commit is not None:
            model = choose_model(models_of(files), source).model
            return (commit, model) if source.sha256 in ("", model.files[0].digest) else None
    return None


def _pulled(work: HubFetch, commit: str, model: HubModel) -> tuple[PulledFile, ...]:
    return tuple(pulled_file(work.repository.link(commit, file), file.digest) for file in model.files)


async def _are_right(work: HubFetch, commit: str, model: HubModel) -> bool:
    """Whether files that somebody else fetched have the hashes they are kept by. They stay: who fetches them again
    replaces them, and offline nobody could. A cache without links does not keep files by their hashes."""
    for file in model.files:
        if file.digest and not await _is_right(work, file, work.repository.link(commit, file)):
            return False
    return True


async def _is_right(work: HubFetch, file: HubFile, place: Path) -> bool:
    work.say(f"comparing {file.name} with its hash")
    if await digest_of(place, file.digest) == file.digest:
        return True
    work.say(f"{file.name} in {work.hub.cache} is not what was published")
    return False


async def _fetch(work: HubFetch, commit: str, model: HubModel) -> None:
    _check_published(work, model)
    repository = work.repository
    (repository.folder / "blobs").mkdir(parents=True, exist_ok=True)
    wanted = {file: remote_of(work.hub, work.source, commit, file) for file in model.files}
    missing = {repository.blob(file): remote for file, remote in wanted.items() if not repository.blob(file).exists()}
    check_disk(work.source.text, repository.folder, missing)
    before = 0
    for file, remote in wanted.items():
        await _fetch_file(work, commit, file, remote, shifted(work.on_progress, before, model.size_bytes))
        before += file.size_bytes


def _check_published(work: HubFetch, model: HubModel) -> None:
    """ModelFetchError where the hub has no hash of a file, or not the one that is wanted."""
    source = work.source
    unknown = [file.name for file in model.files if not file.digest]
    if unknown:
        raise ModelFetchError(f"{source.text}: the hub publishes no hash of {unknown[0]}", hint="check HF_ENDPOINT")
    if source.sha256 not in ("", model.files[0].digest):
        there_now = HubSource(source.repository, "main", source.wanted)
        raise ModelFetchError(
            f"{source.text}: the hub publishes the hash {model.files[0].digest}, but {source.sha256} is wanted",
            hint=f"if you trust what is there now, name it without its hash: {there_now.text}",
        )


async def _fetch_file(
    work: HubFetch, commit: str, file: HubFile, remote: Remote, on_bytes: Callable[[int], None]
) -> None:
    """Under the lock that every program takes for this file."""
    blob = work.repository.blob(file)
    try:
        async with locked(work.repository.lock(file), file.name, work.say):
            if blob.exists() and not await _is_right(work, file, blob):
                blob.unlink()
            if not blob.exists():
                await fetch_file(work.client, remote, blob, on_bytes, work.say)
            work.repository.publish(commit, file)
            on_bytes(file.size_bytes)
    except RefusedError as error:
        raise refusal(work.hub, work.source, error) from error
