"""What is looked at before anything on a host is run, as a host runs it: through stdin of its own Python."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workers import door

PYTHON = os.environ.get("AGENT_PYTHON", sys.executable)
NOBODY = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to somebody else")


def look(root: Path, agent: Path | None = None) -> dict[str, Any]:
    words = (PYTHON, "-I", "-S", "-", str(root), str(agent or root / "agent" / "agent.py"))
    done = subprocess.run(words, input=Path(door.__file__).read_bytes(), capture_output=True, timeout=60, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_that_is_not_there_is_made_for_us_alone(tmp_path: Path) -> None:
    root = tmp_path / "cache" / "meshctl"
    assert look(root) == {"agent": "", "mended": [], "refused": ""}
    assert mode(root) == 0o700


def test_the_agents_digest_is_told_without_running_it(tmp_path: Path) -> None:
    agent = tmp_path / "agent.py"
    agent.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    os.utime(agent, (1, 1))
    assert look(tmp_path / "root", agent)["agent"] == hashlib.sha256(agent.read_bytes()).hexdigest()
    assert not (tmp_path / "ran").exists()
    assert agent.stat().st_mtime > 1  # used just now


def test_what_others_could_write_to_is_closed_and_told(tmp_path: Path) -> None:
    root = tmp_path / "root"
    inner = root / "engines" / "llama-server"
    inner.parent.mkdir(parents=True)
    inner.touch()
    inner.chmod(0o777)
    (root / "link").symlink_to("/etc/passwd")
    root.chmod(0o777)
    answer = look(root)
    (mended,) = answer["mended"]
    assert mended.startswith(f"{root} could be written to by other users (mode 777): it is closed to them now")
    assert (answer["refused"], mode(root), mode(inner)) == ("", 0o700, 0o755)
    assert look(root)["mended"] == []


def test_a_folder_that_others_could_only_read_is_closed_without_a_word(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o755)
    assert look(root)["mended"] == []
    assert mode(root) == 0o700


@needs_root
@pytest.mark.parametrize("name", ["", "agent", "agent/agent.py"])
def test_what_belongs_to_another_user_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    """The other way round, as one user among others: root's own files are no danger."""
    root = tmp_path / "root"
    (root / "agent").mkdir(parents=True)
    (root / "agent" / "agent.py").touch()
    theirs = root / name
    os.chown(theirs, NOBODY, NOBODY)
    answer = look(root)
    assert answer["refused"] == f"{theirs} belongs to the user nobody, who could change what runs here"
    assert (answer["agent"], theirs.stat().st_uid) == ("", NOBODY)
