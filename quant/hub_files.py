"""The models among the files of a repository: which files belong together, how they are quantised, which to take.

Pure. Publishers follow no rule but habit: the quantisation is in the file's name (or in its folder's), the shards of
one model end in -00001-of-00003.gguf, and image parts and importance matrices, which are no models, say what they are.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from quant.catalogue import HubSource
from quant.errors import ModelNotFoundError
from quant.sizes import size_text
from quant.source import is_safe_path

PREFERRED = (
    *("Q4_K_M", "UD-Q4_K_XL", "Q4_K_XL", "Q4_K_L", "Q4_K_S", "MXFP4", "IQ4_XS", "IQ4_NL", "Q4_1", "Q4_0"),
    *("Q5_K_M", "UD-Q5_K_XL", "Q5_K_S", "Q6_K", "Q8_0", "Q3_K_M"),
)
"""What is taken where none is asked for: about four and a half bits, the smallest at which a model is still nearly as
good as it was; larger ones before smaller ones where there is none."""

_QUANTISATION = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:TQ[12]_0|I?Q[1-8](?:_[A-Z0-9]{1,3})*|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.IGNORECASE)
_ENDING = ".gguf"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; `digest` is its sha256 or, where it is kept in git itself, git's own hash of it."""

    name: str
    size_bytes: int
    digest: str


@dataclass(frozen=True)
class HubModel:
    """One model: its file, or its shards in order. `missing` counts shards that the repository does not have."""

    quantisation: str
    files: tuple[HubFile, ...]
    missing: int = 0

    @property
    def name(self) -> str:
        return self.files[0].name

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class Choice:
    """The model to take, and what to say of it when it was not named exactly; "" when it was."""

    model: HubModel
    remark: str = ""


def models_of(files: Iterable[HubFile]) -> tuple[HubModel, ...]:
    """Every model among them, the smallest first."""
    groups: dict[str, dict[int, HubFile]] = {}
    counts: dict[str, int] = {}
    for file in files:
        stem = file.name[: -len(_ENDING)]
        if not file.name.lower().endswith(_ENDING) or not is_safe_path(file.name) or _is_no_model(stem):
            continue
        shard = _SHARD.fullmatch(stem)
        number, count = (int(shard["number"]), int(shard["count"])) if shard else (1, 1)
        if not 1 <= number <= count:
            continue
        key = f"{shard['stem']} of {count}" if shard else stem
        counts[key] = count
        groups.setdefault(key, {})[number] = file
    models = (_model(shards, counts[key]) for key, shards in groups.items())
    return tuple(sorted(models, key=lambda model: (model.size_bytes, model.name)))


def _is_no_model(stem: str) -> bool:
    """Image parts, and importance matrices: these say so first or last, or have no quantisation. What was quantised
    with one may say so, too."""
    base = stem.rpartition("/")[2].lower()
    if "imatrix" in base:
        return base.startswith("imatrix") or base.endswith("imatrix") or not quantisation_of(base)
    return "mmproj" in base


def _model(shards: dict[int, HubFile], count: int) -> HubModel:
    files = tuple(shards[number] for number in sorted(shards))
    return HubModel(quantisation_of(files[0].name), files, count - len(shards))


def quantisation_of(name: str) -> str:
    """What a file's name says of it, such as "Q4_K_M" or "UD-IQ2_XXS"; "" where it says nothing."""
    for part in reversed(re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE).split("/")):
        found = _QUANTISATION.findall(part)
        if found:
            return str(found[-1]).upper().replace("FP16", "F16").replace("FP32", "F32")
    return ""


def choose_model(models: tuple[HubModel, ...], source: HubSource) -> Choice:
    """The model that is meant. ModelNotFoundError with what there is when none or several are."""
    if not models:
        raise ModelNotFoundError(
            f"{source.text}: the repository has no GGUF models",
            hint="a model's GGUF files are often in a repository of their own, with -GGUF at the end of its name",
        )
    found = matching(models, source.wanted) if source.wanted else _preferred(models)
    if not found:
        raise ModelNotFoundError(
            f"{source.text}: the repository has no {source.wanted}", hint=f"choose one of {_listed(models, source)}"
        )
    if len(found) > 1:
        raise ModelNotFoundError(
            f"{source.text} can be any of {len(found)} models", hint=f"choose one of {_by_file(found, source)}"
        )
    (model,) = found
    if model.missing:
        count = len(model.files) + model.missing
        raise ModelNotFoundError(
            f"{source.text}: the repository has {len(model.files)} of {count} shards of {model.name}",
            hint="choose another repository, or wait until its owner has sent the rest",
        )
    return Choice(model, _remark(model, models, source))


_Test = Callable[[HubModel, str], bool]
_EXACT: tuple[_Test, ...] = (
    lambda model, wanted: any(file.name == wanted for file in model.files),
    lambda model, wanted: any(file.name.lower().rpartition("/")[2] == wanted.lower() for file in model.files),
    lambda model, wanted: model.quantisation.lower() == wanted.lower(),
)


def _nearly(model: HubModel, wanted: str) -> bool:
    return model.quantisation.lower().removeprefix("ud-") == wanted.lower()


def matching(models: tuple[HubModel, ...], wanted: str) -> tuple[HubModel, ...]:
    """Those that `wanted` names: by a file of theirs, by its last part, or by quantisation ("UD-" may be left out)."""
    found = (tuple(model for model in models if test(model, wanted)) for test in (*_EXACT, _nearly))
    return next(filter(None, found), ())


def names_exactly(wanted: str, model: HubModel) -> bool:
    """Whether it names this model whatever else there is: by a file, or by all of its quantisation."""
    return bool(wanted) and any(test(model, wanted) for test in _EXACT)


def _preferred(models: tuple[HubModel, ...]) -> tuple[HubModel, ...]:
    """Those of the first quantisation in `PREFERRED` that there is, else the smallest model."""
    whole = tuple(model for model in models if not model.missing) or models
    by_order = (tuple(model for model in whole if model.quantisation == name) for name in PREFERRED)
    return next(filter(None, by_order), whole[:1])


def _remark(model: HubModel, models: tuple[HubModel, ...], source: HubSource) -> str:
    if source.wanted or len(models) == 1:
        return ""
    what = model.quantisation or model.name
    return f"taking {what} ({size_text(model.size_bytes)}) of {len(models)}: {_listed(models, source)}"


def _listed(models: tuple[HubModel, ...], source: HubSource) -> str:
    """Quantisations with their sizes; files where the quantisations alone do not tell them apart."""
    names = [model.quantisation for model in models]
    if "" in names or len(set(names)) < len(names):
        return _by_file(models, source)
    return ", ".join(f"{model.quantisation} ({size_text(model.size_bytes)})" for model in models)


def _by_file(models: tuple[HubModel, ...], source: HubSource) -> str:
    place = HubSource(source.repository, source.revision)
    return ", ".join(f"{place.text}:{model.name} ({size_text(model.size_bytes)})" for model in models)
