"""Which quantisations of a model there are for `meshctl model fit`: on this machine, on the hub, or to be made here.

A model of the hub need not be here: the headers of its files are enough, and only these are fetched. A file that lies
here is one of this model's if it is of the repository that was named, or is known to have been made of this very model
(`quant.made`): names alone tell nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.engine.store import Engine
from orchestrator.errors import REPORTED, MeshctlError, UsageError
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.folders import Folders
from orchestrator.perplexities import measured_perplexities
from orchestrator.plan.fit import OnText, Option, Where
from orchestrator.plan.retyped import work_of
from orchestrator.report import Report
from quant.catalogue import CATALOGUE, CatalogueModel, HubSource
from quant.download import web_client
from quant.errors import ModelNotFoundError, QuantError, QuantiseError
from quant.fetch import find_model
from quant.gguf_file import read_model
from quant.hub import Hub, HubUnreachableError, ask_hub, user_hub
from quant.hub_files import PREFERRED, HubModel, choose_model, models_of, quantisation_of
from quant.made import lost_before, made_of, origin_of, read_made
from quant.model import Model
from quant.predict import Prediction, predict_quantised
from quant.quantisations import (
    LOSSLESS,
    QUANTISATIONS,
    Quantisation,
    bits_per_weight,
    find_quantisation,
    usual_bits,
)
from quant.remote_header import fetch_hub_headers, fetch_linked_headers
from quant.sizes import size_text
from quant.slice import shape_digest
from quant.source import UrlSource, read_source

USUAL = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_XS", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_K_M", "Q6_K", "Q8_0")
"""What is made where nothing is asked for: with the source itself a dozen, none of which needs an importance matrix."""

_HEADERS_AT_ONCE = 4


@dataclass(frozen=True)
class Choices:
    """The quantisations there are. `source` is one of them, or what they are made of: what is counted and timed;
    `others` are not asked for. `name`: how the inventory would name it."""

    name: str
    source: Model
    options: tuple[Option, ...]
    others: tuple[Model, ...] = ()

    def surveyed(self, shape: str) -> Model | None:
        """The model with these tensors, by its `shape_digest`."""
        models = (self.source, *(option.model for option in self.options), *self.others)
        return next((model for model in models if shape_digest(model) == shape), None)


@dataclass(frozen=True)
class _Search:
    """What is looked for: `types` by the engine's names (None: all), to be made with this importance matrix if any."""

    types: tuple[str, ...] | None
    importance: Path | None
    engine: Engine
    folders: Folders
    report: Report

    def wants(self, kind: str) -> bool:
        return self.types is None or not _names_of(kind).isdisjoint(self.types)

    def lacks(self, there: Iterable[str]) -> tuple[str, ...]:
        """Those of `types`, or of the usual ones, that are not among these."""
        names = {name for kind in there for name in _names_of(kind)}
        return tuple(kind for kind in self.types or _usual(self.importance) if kind not in names)


def _names_of(kind: str) -> set[str]:
    """What a quantisation is asked for by; publishers have more than the engine (UD-Q4_K_XL)."""
    return {_engine_name(kind), _engine_name(kind.removeprefix("UD-"))}


def _engine_name(kind: str) -> str:
    """Where it has one for it: Q4_K is Q4_K_M."""
    with suppress(QuantiseError):
        return find_quantisation(kind).name
    return kind


def _usual(importance: Path | None) -> tuple[str, ...]:
    needing = [one.name for one in QUANTISATIONS.values() if one.needs_importance and importance is not None]
    return (*needing, *USUAL)


async def find_choices(
    name: str,
    base: Path,
    types: Sequence[str] | None,
    engine: Engine,
    folders: Folders,
    report: Report,
    hub: Hub | None = None,
    importance: Path | None = None,
) -> Choices:
    """Every quantisation, or those of `types`. A model that is published is not fetched for it. `hub` None: the user's
    own; `importance`: a matrix that others would be made with. QuantError and UsageError where there is none."""
    wanted = None if types is None else tuple(dict.fromkeys(map(_engine_name, types)))
    search = _Search(wanted, importance, engine, folders, report)
    source = read_source(name, CATALOGUE)
    place = source.source if isinstance(source, CatalogueModel) else source
    unreachable = None
    if isinstance(place, HubSource):
        try:
            return await _published(search, hub or user_hub(), place)
        except HubUnreachableError as error:
            unreachable = error
    try:
        path = find_model(name, folders.cache, base, hub=hub)
    except ModelNotFoundError as error:
        if not isinstance(place, UrlSource):
            raise unreachable or error from error
        return await _linked(search, name, place)
    if unreachable is not None:
        report.warn(f"the hub cannot be asked for others ({unreachable}): what can be made of the one that is here")
    return await _of_file(search, name, read_model(path))


async def _of_file(search: _Search, name: str, model: Model) -> Choices:
    """The model itself, what it was made of, and what was or can be made of that."""
    origin = origin_of(search.folders.cache, model)
    both = (_here(origin, search.folders), _here(model, search.folders))
    there = [one for one in both if search.wants(one.name)]
    made = await _made(search, origin, str(origin.path), [one.name for one in there])
    return Choices(name, model, _each_once([*there, *made]), (origin,))


async def _linked(search: _Search, name: str, link: UrlSource) -> Choices:
    """The model that a link leads to, and what can be made of it, by the headers of its files."""
    search.report.say(f"reading the header of {link.file_name}")
    async with web_client() as client:
        path = await fetch_linked_headers(client, link, search.folders.cache)
    model = read_model(path)
    itself = replace(_here(model, search.folders), where="hub")
    there = [itself] if search.wants(itself.name) else []
    made = await _made(search, model, name, [one.name for one in there])
    return Choices(name, model, (*there, *made))


async def _made(search: _Search, origin: Model, called: str, there: Sequence[str]) -> list[Option]:
    """What was made of `origin`, which is `called` so, and what can be, beside the quantisations that are `there`."""
    folders = search.folders
    made = [_here(model, folders) for model in _models_made_of(origin, folders)]
    made = [one for one in made if search.wants(one.name) and one.name not in there]
    lacking = _quantisations(search.lacks([*there, *(one.name for one in made)]))
    kept = folders.cache / "quantised"
    predicted = await predict_quantised(search.engine.folder, origin, lacking, search.importance, kept)
    options = [_to_make(search, origin, one, predicted[one.name]) for one in lacking]
    return [*_each_once(made), *(replace(one, origin=called) for one in options if one is not None)]


def _models_made_of(origin: Model, folders: Folders) -> Iterable[Model]:
    for one in made_of(folders.cache, origin.files_digest):
        with suppress(*REPORTED, OSError):
            yield read_model(Path(one.path))


def _quantisations(kinds: Iterable[str]) -> list[Quantisation]:
    try:
        return [find_quantisation(kind) for kind in kinds]
    except QuantiseError as error:
        raise UsageError(f"--types: {error}", hint=error.hint) from error


def _to_make(
    search: _Search, origin: Model, quantisation: Quantisation, answer: Prediction | QuantiseError
) -> Option | None:
    """None where the engine makes none of it, which is said."""
    if isinstance(answer, QuantiseError):
        search.report.warn(f"{quantisation.name} is left out: {answer}")
        return None
    if answer.needs_importance:
        search.report.warn(f"{quantisation.name} is left out: it needs an importance matrix")
        return None
    lost = dict.fromkeys((*lost_before(search.folders.cache, origin), *answer.lossy))
    option = _option(quantisation.name, "make", answer.model, answer.file_bytes)
    return _of_lossy(option, tuple(lost))


def _each_once(options: Iterable[Option]) -> tuple[Option, ...]:
    """The first one of each name."""
    found: dict[str, Option] = {}
    for option in options:
        found.setdefault(option.name, option)
    return tuple(found.values())


def _here(model: Model, folders: Folders) -> Option:
    """Under the quantisation that it was made as, that its file is called by, or that most of it is."""
    made = read_made(folders.cache, model.files_digest)
    name = made.quantisation if made else quantisation_of(model.path.name) or model.quantisation
    option = _option(name, "here", model, sum(shard.stat().st_size for shard in model.shards))
    option = _of_lossy(option, made.lost if made else ())
    return replace(option, perplexities=_perplexities(model, folders))


def _perplexities(model: Model, folders: Folders) -> dict[OnText, float]:
    """The newest on each text."""
    found: dict[OnText, float] = {}
    for one in measured_perplexities(folders.cache, model.files_digest):
        of, value = one.circumstances, one.perplexity
        found[OnText(of.text_digest, value.context, value.chunks, of.engine, one.text)] = value.value
    return found


def _option(name: str, where: Where, model: Model, file_bytes: int, kind: str = "") -> Option:
    """`kind`: its quantisation, where it is not called by that."""
    bits = bits_per_weight(model)
    return Option(name, where, model, file_bytes, bits, usual_bits(kind or name) or bits, work_of(model))


def _of_lossy(option: Option, lost: tuple[str, ...]) -> Option:
    """It is no better than what it is made of."""
    bits = [usual_bits(kind) or option.quality_bits for kind in lost[:1]]
    return replace(option, lost=lost, quality_bits=min((option.quality_bits, *bits)))


async def _published(search: _Search, hub: Hub, place: HubSource) -> Choices:
    """What the repository has, and what could be made of its file of full precision, if it has one."""
    search.report.say(f"asking the hub what {place.repository} has")
    held = await ask_hub(hub, HubSource(place.repository, place.revision))
    every = models_of(held.files)
    named = choose_model(every, place).model.name if place.wanted and search.types is None else ""
    whole = [one for one in every if not one.missing] or [choose_model(every, replace(place, wanted="")).model]
    asked = [one for one in whole if search.wants(one.quantisation)]
    lacking = search.lacks(one.quantisation for one in asked)
    to_read = [one for one in whole if one in asked or (lacking and one.quantisation in LOSSLESS)]
    if not to_read:
        raise _has_none(place, lacking, whole)
    answers = await _headers(search, hub, place, held.commit, to_read)
    models = _that_can_be_read(answers, search.report)
    largest = all_or_raise({named: answers[named]})[named] if named else _largest(models.values(), place)
    alike = [one for one in to_read if one.name in models and _proportions(models[one.name]) == _proportions(largest)]
    names = _told_apart(alike)
    found = {one.name: _of_hub(hub, place, one, names[one.name], models[one.name], search) for one in alike}
    there = [one for one in alike if one in asked]
    whole_one = _whole_precision(found)
    if whole_one is None and search.types is not None and lacking:
        raise _has_none(place, lacking, whole)
    made: list[Option] = []
    if whole_one is not None:
        called = replace(place, wanted=names[whole_one]).text
        made = await _made(search, found[whole_one].model, called, [one.quantisation for one in there])
    first = named or _first(there or alike).name
    name = replace(place, wanted=names[first]).text
    options = (*(found[one.name] for one in there), *made)
    return Choices(name, found[first].model, options, tuple(option.model for option in found.values()))


async def _headers(
    search: _Search, hub: Hub, place: HubSource, commit: str, models: Iterable[HubModel]
) -> Mapping[str, Model | MeshctlError]:
    """The models as their headers tell them, by their first files' names."""

    async def fetch(model: HubModel) -> Model:
        async with web_client() as client:
            return read_model(await fetch_hub_headers(client, hub, place, commit, model, search.folders.cache))

    return await each_host({one.name: fetch(one) for one in models}, limit=_HEADERS_AT_ONCE)


def _has_none(place: HubSource, lacking: Sequence[str], there: Iterable[HubModel]) -> ModelNotFoundError:
    choices = ", ".join(f"{one.quantisation or one.name} ({size_text(one.size_bytes)})" for one in there)
    return ModelNotFoundError(
        f"{place.text}: the repository has no {', '.join(lacking)}, and nothing of full precision to make it of",
        hint=f"choose of {choices}",
    )


def _whole_precision(found: Mapping[str, Option]) -> str | None:
    """Which file others are made of: one that is here, or else the smallest."""
    files = {file: one for file, one in found.items() if one.model.quantisation in LOSSLESS}
    return min(files, key=lambda file: (files[file].where != "here", files[file].file_bytes), default=None)


def _that_can_be_read(answers: Mapping[str, Model | MeshctlError], report: Report) -> dict[str, Model]:
    """A repository may also hold files of types that meshctl does not know."""
    for name, answer in answers.items():
        if isinstance(answer, MeshctlError):
            report.warn(f"{name} is left out: {answer}")
    return {name: answer for name, answer in answers.items() if not isinstance(answer, MeshctlError)}


def _largest(models: Iterable[Model], place: HubSource) -> Model:
    """The repository's own model is larger than those that only draft for it."""
    found = max(models, key=lambda model: model.parameters, default=None)
    if found is None:
        raise ModelNotFoundError(f"{place.text}: none of its files can be read", hint="choose another repository")
    return found


def _proportions(model: Model) -> tuple[str, int, int]:
    return model.architecture, model.block_count, model.embedding_length


def _first(models: Sequence[HubModel]) -> HubModel:
    """What is fetched where no quantisation is named; of several of one quantisation the smallest."""
    order = {kind: index for index, kind in enumerate(PREFERRED)}
    return min(models, key=lambda one: order.get(one.quantisation, len(order)))


def _told_apart(models: Iterable[HubModel]) -> dict[str, str]:
    """By file: the quantisation, or the file's own name where several have the same or none."""
    files = {one.name: one.quantisation for one in models}
    kinds = list(files.values())
    return {file: kind if kind and kinds.count(kind) == 1 else file for file, kind in files.items()}


def _of_hub(hub: Hub, place: HubSource, one: HubModel, name: str, model: Model, search: _Search) -> Option:
    """Fetched already, or not."""
    published = _option(name, "hub", model, one.size_bytes, one.quantisation)
    with suppress(QuantError):
        known = replace(place, wanted=one.name).text
        here = read_model(find_model(known, search.folders.cache, Path.cwd(), hub=hub))
        return replace(_here(here, search.folders), name=name, quality_bits=published.quality_bits)
    return published
