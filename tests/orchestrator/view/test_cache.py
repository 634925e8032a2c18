"""How the caches of hosts are shown."""

import json

import pytest

from orchestrator.cache import Checked, Cleaned, Listed
from orchestrator.errors import ConnectError
from orchestrator.host_cache import Damage, HostCache, Item
from orchestrator.view.cache import age_text, caches_json, caches_view, checked_lines, cleaned_lines
from tests.orchestrator.view.rendering import rendered

MIB = 1024**2
MODEL = Item("models", "0f12", 50 * MIB, 940.0, True, True, True, (Damage("a.gguf", "is missing"),))
SLICE = Item("slices", "a.gguf", 2 * MIB, 0.0, False, True, False, (Damage("", "has 1 bytes, not 2"),))
EMPTY = Item("clusters", "", 0, 0.0, False, False, True)


def test_items_stand_under_their_host_the_largest_first() -> None:
    listed = Listed("nuc", "/home/ada/.cache/meshctl", HostCache((SLICE, EMPTY, MODEL), 100 * MIB), 76 * MIB)
    assert rendered(caches_view([listed], 1000.0)) == (
        "nuc  /home/ada/.cache/meshctl: 52.0 MiB of 76.0 MiB, disk 100 MiB free\n"
        "item                 size  last used\n"
        "  models/0f12    50.0 MiB  in use\n"
        "  slices/a.gguf   2.0 MiB  17 min ago\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 min"), (59, "1 min"), (3600, "1 h"), (47 * 3600, "47 h"), (48 * 3600, "2 d")]
)
def test_ages_are_short(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


def test_what_is_removed_is_told_item_by_item() -> None:
    cleaned = Cleaned("nuc", (SLICE,), (MODEL,))
    assert list(cleaned_lines(cleaned, dry_run=False)) == [
        "nuc: removed slices/a.gguf (2.0 MiB)",
        "nuc: 2.0 MiB are free again, 50.0 MiB stay",
    ]
    assert next(iter(cleaned_lines(cleaned, dry_run=True))) == "nuc: would remove slices/a.gguf (2.0 MiB)"


def test_damage_is_told_file_by_file_with_what_became_of_it() -> None:
    assert list(checked_lines(Checked("nuc", 5, (MODEL, SLICE), (SLICE,)))) == [
        "nuc: models/0f12/a.gguf is missing",
        "nuc: models/0f12 is in use and stays: stop what uses it, then repair",
        "nuc: slices/a.gguf has 1 bytes, not 2",
        "nuc: slices/a.gguf is removed; the next start puts it there again",
        "nuc: 3 of 5 items are as they were put there",
    ]


def test_json_has_every_host_also_one_that_failed() -> None:
    answers = {"nuc": Checked("nuc", 1, (SLICE,)), "off": ConnectError("off", "is off")}
    found = json.loads(caches_json(answers))
    assert found["off"] == {"error": "off: is off"}
    assert found["nuc"]["damaged"][0]["problems"] == [{"path": "", "why": "has 1 bytes, not 2"}]
