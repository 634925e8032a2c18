"""API keys and the file they are kept in."""

import stat
from pathlib import Path

import pytest

from orchestrator.errors import GatewayError
from orchestrator.gateway.keys import ApiKeys, ensure_key, make_key, read_keys, store_key


def test_a_key_has_the_prefix_and_is_never_the_same() -> None:
    first, second = make_key(), make_key()
    assert first.startswith("mesh-")
    assert len(first) >= 48
    assert first != second


def test_a_stored_key_is_readable_by_its_owner_only_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "gateway.key"
    store_key(path, "mesh-1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_keys(path) == ApiKeys(("mesh-1",))
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "gateway.key"
    key, made = ensure_key(path)
    assert made
    assert ensure_key(path) == (key, False)


@pytest.mark.parametrize(
    ("presented", "allowed"), [("mesh-a", True), ("mesh-b", True), ("mesh-", False), ("", False), ("ä", False)]
)
def test_only_whole_keys_open(presented: str, allowed: bool) -> None:
    assert ApiKeys(("mesh-a", "mesh-b")).allow(presented) is allowed


def test_keys_do_not_show_in_representations() -> None:
    assert "secret" not in repr(ApiKeys(("mesh-secret",)))


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gateway.key"
    store_key(path, "mesh-1")
    path.chmod(0o644)
    with pytest.raises(GatewayError, match="other users can read this key file") as caught:
        read_keys(path)
    assert f"chmod 600 {path}" in caught.value.hint


@pytest.mark.parametrize(("content", "message"), [(None, "there is no key file"), ("\n", "the key file is empty")])
def test_a_missing_or_empty_key_file_is_said_so(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "gateway.key"
    if content is not None:
        store_key(path, content)
    with pytest.raises(GatewayError, match=message):
        read_keys(path)
