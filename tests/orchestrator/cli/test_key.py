"""`meshctl key` as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.gateway.keys import read_keys

ROOT = Path(__file__).parents[3]


def meshctl(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, "-m", "orchestrator", "key", *words),
        env={**os.environ, "XDG_STATE_HOME": str(folder), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def clusters(tmp_path: Path) -> Path:
    folder = tmp_path / "meshctl" / "clusters"
    (folder / "home").mkdir(parents=True)
    return folder


def test_a_key_is_printed_once_listed_without_itself_and_revoked(tmp_path: Path, clusters: Path) -> None:
    file = clusters / "home" / "gateway.keys.json"
    assert meshctl(tmp_path, "list").stderr == "there is no key: meshctl key add NAME\n"
    made = meshctl(tmp_path, "add", "phone")
    key = made.stdout.strip()
    assert read_keys(file).name_of(key) == "phone"
    assert made.stderr == "a key for phone, shown this once (`meshctl key revoke phone` ends it):\n"
    listed = meshctl(tmp_path, "list").stdout
    assert listed.splitlines()[1].split()[:2] == ["phone", f"…{key[-4:]}"]
    (told,) = json.loads(meshctl(tmp_path, "list", "--json").stdout)
    assert told.keys() == {"name", "end", "made_at"}
    assert meshctl(tmp_path, "revoke", "phone").stderr == "the key for phone opens nothing any more\n"
    assert read_keys(file).keys == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("add", "a b"), "error: 'a b' cannot be the name of a key\nhint: use letters"),
        (("revoke", "phone"), "error: there is no key named phone\nhint: the keys are none\n"),
        (("add", "phone", "--cluster", "lab"), "error: no cluster lab is known\nhint: known are home\n"),
    ],
)
def test_what_cannot_be_meant_is_said_so(tmp_path: Path, clusters: Path, words: tuple[str, ...], message: str) -> None:
    done = meshctl(tmp_path, *words)
    assert done.stderr.startswith(message)
    assert (done.returncode, done.stdout) == (2, "")


def test_which_cluster_is_meant_must_be_clear(tmp_path: Path, clusters: Path) -> None:
    (clusters / "lab").mkdir()
    assert meshctl(tmp_path, "add", "phone").stderr.startswith(
        "error: which cluster? There are home, lab\nhint: name one"
    )
    assert meshctl(tmp_path, "add", "phone", "--cluster", "lab").returncode == 0


def test_without_a_cluster_there_is_nothing_to_open(tmp_path: Path) -> None:
    assert meshctl(tmp_path, "list").stderr.startswith("error: there is no cluster yet\nhint: `meshctl up")
