"""What is looked at before anything on a host is run, as a host runs it: through stdin of its own Python."""

import hashlib
import json
import marshal
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
DOOR = Path(door.__file__).read_bytes()
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to somebody else")


def look(root: Path, agent: Path | None = None) -> dict[str, Any]:
    words = (PYTHON, "-I", "-S", "-", str(root), str(agent or root / "agent" / "agent.py"))
    done = subprocess.run(words, input=DOOR, capture_output=True, timeout=60, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def become(agent: Path, *words: str, root: Path | None = None) -> list[str]:
    """What the process says that goes on as the agent; the folder is the agent's own unless told."""
    digest = hashlib.sha256(agent.read_bytes()).hexdigest()
    door_words = (PYTHON, "-I", "-S", "-", str(root or agent.parent), str(agent), digest, *words)
    done = subprocess.run(door_words, input=DOOR, capture_output=True, timeout=60, check=True)
    return done.stdout.decode().splitlines()[1:]


def an_agent(tmp_path: Path) -> Path:
    """Says with which words it was started, and as what it was compiled."""
    agent = tmp_path / "root" / "agent.py"
    agent.parent.mkdir(mode=0o700, parents=True)
    agent.write_text("import sys\nprint(*sys.argv)\nprint(sys._getframe().f_code.co_filename)\n")
    agent.chmod(0o700)
    return agent


def replaced(kept: Path, agent: Path) -> None:
    """Other code than the agent's, with a digest as if it were."""
    version = subprocess.run((PYTHON, "-c", "import sys; print(sys.version)"), capture_output=True, check=True).stdout
    made_of = version.decode().removesuffix("\n") + hashlib.sha256(agent.read_bytes()).hexdigest()
    data = marshal.dumps(compile("print('kept')", str(agent), "exec"))
    kept.write_bytes(hashlib.sha256(made_of.encode() + data).digest() + data)


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


def test_the_process_goes_on_as_the_agent_and_keeps_what_python_made_of_it(tmp_path: Path) -> None:
    agent = an_agent(tmp_path)
    kept = agent.with_name("agent.py.code")
    for _ in range(2):
        assert become(agent, "facts", "--root") == [f"{agent} facts --root", str(agent)]
        assert mode(kept) == 0o600
    assert sorted(path.name for path in agent.parent.iterdir()) == ["agent.py", "agent.py.code"]


@pytest.mark.skipif("AGENT_PYTHON" in os.environ, reason="code of this Python is put there")
def test_what_was_kept_is_what_runs(tmp_path: Path) -> None:
    agent = an_agent(tmp_path)
    kept = agent.with_name("agent.py.code")
    replaced(kept, agent)
    kept.chmod(0o600)
    assert become(agent) == ["kept"]


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 4096])
def test_damaged_code_is_not_run_and_made_anew(tmp_path: Path, damage: bytes) -> None:
    agent = an_agent(tmp_path)
    kept = agent.with_name("agent.py.code")
    become(agent)
    whole = kept.read_bytes()
    kept.write_bytes(damage or whole[:-1] + bytes([whole[-1] ^ 1]))
    assert become(agent) == [str(agent), str(agent)]
    assert kept.read_bytes() == whole


def test_code_of_another_agent_is_not_run(tmp_path: Path) -> None:
    agent = an_agent(tmp_path)
    become(agent)
    agent.write_text("print('another')")
    assert become(agent) == ["another"]


@pytest.mark.skipif("AGENT_PYTHON" in os.environ, reason="code of this Python is put there")
@pytest.mark.parametrize("is_open", ["file", "folder"])
def test_code_that_others_could_have_written_is_not_run(tmp_path: Path, is_open: str) -> None:
    agent = an_agent(tmp_path)
    kept = agent.with_name("agent.py.code")
    replaced(kept, agent)
    (kept if is_open == "file" else agent.parent).chmod(0o777)
    assert become(agent) == [str(agent), str(agent)]


@pytest.mark.skipif("AGENT_PYTHON" in os.environ, reason="code of this Python is put there")
@pytest.mark.parametrize("opened", ["", "root", "root/agent"])
def test_code_in_a_folder_that_others_could_write_to_is_not_run(tmp_path: Path, opened: str) -> None:
    """A file of ours may have been moved there; whose folder is closed before the rest is looked at."""
    root = tmp_path / "root"
    agent = root / "agent" / "agent.py"
    agent.parent.mkdir(parents=True)
    an_agent(tmp_path / "made").rename(agent)
    replaced(agent.with_name("agent.py.code"), agent)
    agent.with_name("agent.py.code").chmod(0o600)
    root.chmod(0o755)
    if not opened:
        assert become(agent, root=root) == ["kept"]
        return
    (tmp_path / opened).chmod(0o777)
    assert become(agent, root=root) == [str(agent), str(agent)]


@needs_root
def test_code_is_forgotten_also_where_something_else_is_refused(tmp_path: Path) -> None:
    """The folder is closed then; the next time nothing tells that it was open."""
    agent = an_agent(tmp_path)
    theirs = agent.with_name("a")
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    agent.with_name("agent.py.code").write_bytes(b"")
    agent.parent.chmod(0o777)
    assert look(agent.parent, agent)["refused"].startswith(f"{theirs} belongs to")
    assert not agent.with_name("agent.py.code").exists()


@pytest.mark.skipif("AGENT_PYTHON" in os.environ, reason="code of this Python is put there")
@pytest.mark.parametrize("link", ["folder", "file", "another name"])
def test_code_behind_a_link_is_not_run(tmp_path: Path, link: str) -> None:
    """What lies there is not looked at, and others may change it."""
    agent = an_agent(tmp_path)
    root, kept = agent.parent, agent.with_name("agent.py.code")
    replaced(kept, agent)
    kept.chmod(0o600)
    if link == "folder":
        root = tmp_path / "new"
        root.mkdir(mode=0o700)
        agent = root / "agent" / "agent.py"
        agent.parent.symlink_to(kept.parent)
    elif link == "file":
        kept.rename(tmp_path / "elsewhere")
        kept.symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "elsewhere").hardlink_to(kept)
    assert become(agent, root=root) == [str(agent), str(agent)]


def test_a_folder_by_the_name_of_code_is_closed_like_others(tmp_path: Path) -> None:
    inner = tmp_path / "root" / "models" / "llama.code"
    inner.mkdir(parents=True)
    inner.chmod(0o777)
    assert (look(tmp_path / "root")["refused"], mode(inner)) == ("", 0o755)


def test_where_nothing_can_be_kept_the_agent_runs(tmp_path: Path) -> None:
    agent = an_agent(tmp_path)
    agent.with_name("agent.py.code").mkdir()
    assert become(agent) == [str(agent), str(agent)]
    assert sorted(path.name for path in agent.parent.iterdir()) == ["agent.py", "agent.py.code"]
