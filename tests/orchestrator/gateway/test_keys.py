"""API keys: what is kept of them, who changes the file, and what a change does to a gateway that runs."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.errors import GatewayError, UsageError
from orchestrator.gateway.keys import (
    OWN_NAME,
    ApiKeys,
    KeyFile,
    add_key,
    ensure_own_key,
    known_key,
    make_key,
    read_keys,
    read_own_key,
    revoke_key,
)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "demo" / "gateway.keys.json"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "demo" / "gateway.key"


def names(path: Path) -> list[str]:
    return [key.name for key in read_keys(path).keys]


def test_a_key_has_the_prefix_and_is_never_the_same() -> None:
    first, second = make_key(), make_key()
    assert first.startswith("mesh-")
    assert len(first) >= 48
    assert first != second


def test_a_key_that_is_added_opens_and_is_nowhere_in_the_file(keys: Path) -> None:
    key = add_key(keys, "phone")
    assert read_keys(keys).name_of(key) == "phone"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert key not in keys.read_text()
    assert key.removeprefix("mesh-")[:8] not in keys.read_text()
    assert [key[-4:]] == [one["end"] for one in json.loads(keys.read_text())]


def test_a_revoked_key_opens_nothing_and_the_others_go_on(keys: Path, own: Path) -> None:
    phone, laptop = add_key(keys, "phone"), add_key(keys, "laptop")
    revoke_key(keys, "phone", own)
    assert read_keys(keys).name_of(phone) is None
    assert read_keys(keys).name_of(laptop) == "laptop"


@pytest.mark.parametrize(
    ("presented", "name"), [("mesh-a", "a"), ("mesh-b", "b"), ("mesh-", None), ("", None), ("ä", None)]
)
def test_only_whole_keys_open(presented: str, name: str | None) -> None:
    assert ApiKeys((known_key("a", "mesh-a"), known_key("b", "mesh-b"))).name_of(presented) == name


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "a" * 65, "a\n"])
def test_names_that_would_confuse_are_refused(keys: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a key"):
        add_key(keys, name)
    assert not keys.exists()


def test_a_name_is_given_once_and_what_is_not_there_cannot_be_revoked(keys: Path, own: Path) -> None:
    add_key(keys, "phone")
    before = keys.read_text()
    with pytest.raises(UsageError, match="there is a key named phone already"):
        add_key(keys, "phone")
    with pytest.raises(UsageError, match="there is no key named laptop") as caught:
        revoke_key(keys, "laptop", own)
    assert caught.value.hint == "the keys are phone"
    assert keys.read_text() == before


def test_many_programs_that_add_at_once_lose_nothing(keys: Path) -> None:
    wanted = [f"key{number}" for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda name: add_key(keys, name), wanted))
    assert sorted(names(keys)) == sorted(wanted)
    assert [read_keys(keys).name_of(key) for key in made] == wanted


def test_a_gateway_that_runs_sees_every_change_at_once(keys: Path, own: Path) -> None:
    ensure_own_key(keys, own)
    there = KeyFile(keys)
    key = add_key(keys, "phone")
    assert there.now().name_of(key) == "phone"
    revoke_key(keys, "phone", own)
    assert there.now().name_of(key) is None
    assert there.now().name_of(read_own_key(own)) == OWN_NAME


@pytest.mark.parametrize("damage", ["gone", "no JSON", "open to others"])
def test_while_the_file_cannot_be_read_nobody_is_let_in(keys: Path, damage: str) -> None:
    add_key(keys, "phone")
    there = KeyFile(keys)
    there.now()
    if damage == "gone":
        keys.unlink()
    elif damage == "no JSON":
        keys.write_text("no JSON at all, and longer than it was" * 20)
    else:
        keys.write_text(keys.read_text() + " ")
        keys.chmod(0o644)
    for _ in range(2):
        with pytest.raises(GatewayError, match="key"):
            there.now()


def test_a_users_own_key_is_made_once_and_made_anew_after_it_was_revoked(keys: Path, own: Path) -> None:
    key, made = ensure_own_key(keys, own)
    assert made
    assert ensure_own_key(keys, own) == (key, False)
    assert (read_own_key(own), names(keys)) == (key, [OWN_NAME])
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    revoke_key(keys, OWN_NAME, own)
    assert not own.exists()
    other, made = ensure_own_key(keys, own)
    assert made
    assert other != key
    assert read_keys(keys).name_of(key) is None


def test_a_key_of_an_earlier_version_goes_on_opening(keys: Path, own: Path) -> None:
    """There was only that file then."""
    own.parent.mkdir()
    own.write_text("mesh-old\n")
    own.chmod(0o600)
    assert ensure_own_key(keys, own) == ("mesh-old", False)
    assert read_keys(keys).name_of("mesh-old") == OWN_NAME


def test_keys_do_not_show_in_representations(keys: Path) -> None:
    key = add_key(keys, "phone")
    assert key not in repr(read_keys(keys))


def test_files_that_others_can_read_are_refused(keys: Path, own: Path) -> None:
    ensure_own_key(keys, own)
    for path in (keys, own):
        path.chmod(0o644)
    for read, path in ((read_keys, keys), (read_own_key, own)):
        with pytest.raises(GatewayError, match="other users can read this key file") as caught:
            read(path)
        assert f"chmod 600 {path}" in caught.value.hint


@pytest.mark.parametrize(("content", "message"), [(None, "there is no key file"), ("\n", "the key file is empty")])
def test_a_missing_or_empty_own_key_is_said_so(own: Path, content: str | None, message: str) -> None:
    if content is not None:
        own.parent.mkdir()
        own.write_text(content)
        own.chmod(0o600)
    with pytest.raises(GatewayError, match=message):
        read_own_key(own)
