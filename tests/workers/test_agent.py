"""The agent's smaller verbs, each run as a program as a host runs it."""

import hashlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workers import agent

AGENT = Path(agent.__file__)
PYTHON = os.environ.get("AGENT_PYTHON", sys.executable)  # the agent under another interpreter than the tests
MIB = 1024**2


def run_agent(*words: str) -> dict[str, Any]:
    finished = subprocess.run((PYTHON, "-I", "-S", str(AGENT), *words), capture_output=True, timeout=60, check=False)
    answer: dict[str, Any] = json.loads(finished.stdout)
    assert finished.returncode == (1 if "error" in answer else 0), finished.stderr
    return answer


def test_wrong_usage_is_status_2() -> None:
    finished = subprocess.run((PYTHON, str(AGENT), "dance"), capture_output=True, timeout=60, check=False)
    assert finished.returncode == 2


# archives


def archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> tuple[str, str]:
    """Writes a tar.gz; gives its path and sha256."""
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, mode
    return member


def test_an_archive_is_unpacked_whole_replaces_the_old_folder_and_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "engines" / "cpu-1"
    members = [
        (entry("bin", tarfile.DIRTYPE), b""),
        (entry("bin/server", mode=0o755), b"program"),
        (entry("lib/libx.so.1.2"), b"library"),
        (entry("lib/libx.so", tarfile.SYMTYPE, "libx.so.1.2"), b""),
    ]
    for content in (b"program", b"newer"):
        members[1] = (members[1][0], content)
        path, digest = archive(tmp_path / "engine.tar.gz", members)
        assert run_agent("unpack", path, str(folder), digest) == {"folder": str(folder)}
    assert (folder / "bin/server").read_bytes() == b"newer"
    assert os.access(folder / "bin/server", os.X_OK)
    assert not os.access(folder / "lib/libx.so.1.2", os.X_OK)
    assert (folder / "lib/libx.so").read_bytes() == b"library"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engines"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["cpu-1", "cpu-1.lock"]


def test_what_an_unpacking_that_was_killed_has_left_goes_with_the_next_one(tmp_path: Path) -> None:
    """Seen: a host with 40 MiB ended the agent, which was asked again, and half an engine stayed beside the whole."""
    folder = tmp_path / "engine"
    left, other = tmp_path / "engine.tmp-55", tmp_path / "engine2.tmp-7"
    for one in (left, other):
        (one / "bin").mkdir(parents=True)
    path, digest = archive(tmp_path / "engine.tar.gz", [(entry("program"), b"1")])
    assert run_agent("unpack", path, str(folder), digest) == {"folder": str(folder)}
    assert (left.exists(), other.exists()) == (False, True)


HOSTILE = {
    "an absolute path": ([(entry("/tmp/meshctl-hostile"), b"x")], "lies outside"),
    "a path upwards": ([(entry("a/../../meshctl-hostile"), b"x")], "lies outside"),
    "a link to an absolute path": ([(entry("a", tarfile.SYMTYPE, "/etc/passwd"), b"")], "leads outside"),
    "a link upwards": ([(entry("a/b", tarfile.SYMTYPE, "../../x"), b"")], "leads outside"),
    "a hard link": ([(entry("a"), b"x"), (entry("b", tarfile.LNKTYPE, "a"), b"")], "no file, folder or"),
    "a device": ([(entry("a", tarfile.CHRTYPE), b"")], "no file, folder or"),
    "a pipe": ([(entry("a", tarfile.FIFOTYPE), b"")], "no file, folder or"),
    "a file through a link": (
        [(entry("a", tarfile.SYMTYPE, "b"), b""), (entry("b", tarfile.DIRTYPE), b""), (entry("a/x"), b"x")],
        "File exists",
    ),
    "one file twice": ([(entry("a"), b"x"), (entry("a"), b"y")], "File exists"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    members, message = HOSTILE[name]
    path, digest = archive(tmp_path / "a.tar.gz", members)
    folder = tmp_path / "into" / "folder"
    assert message in run_agent("unpack", path, str(folder), digest)["error"]
    assert [path.name for path in folder.parent.iterdir()] == ["folder.lock"]
    assert not (tmp_path / "meshctl-hostile").exists()


def test_an_archive_with_another_hash_is_refused(tmp_path: Path) -> None:
    path, digest = archive(tmp_path / "a.tar.gz", [(entry("a"), b"x")])
    error = run_agent("unpack", path, str(tmp_path / "folder"), "0" * 64)["error"]
    assert error == f"{path} has the sha256 {digest}, expected {'0' * 64}: send it again"


def test_a_truncated_archive_is_refused_and_the_old_folder_stays(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = Path(archive(tmp_path / "a.tar.gz", [(entry("a"), os.urandom(100_000))])[0])
    path.write_bytes(path.read_bytes()[:50_000])
    error = run_agent("unpack", str(path), str(folder), hashlib.sha256(path.read_bytes()).hexdigest())["error"]
    assert "is not a whole tar.gz" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "folder", "folder.lock"]


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    error = run_agent("unpack", str(tmp_path / "none"), str(tmp_path / "folder"), "0" * 64)["error"]
    assert error == f"{tmp_path}/none: No such file or directory"


def test_a_full_disk_is_said_with_what_is_free(tmp_path: Path) -> None:
    message = agent.disk_message(OSError(28, "No space left on device"), str(tmp_path / "engine"))
    assert message.startswith(f"the disk is full: {tmp_path}/engine does not fit, ")


# folders


def test_a_folder_is_compared_with_its_manifest(tmp_path: Path) -> None:
    contents = {"good": b"good", "bin/changed": b"same size", "short": b"longer", "gone": b"x"}
    files = [
        {"path": name, "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        for name, data in contents.items()
    ]
    (tmp_path / "bin").mkdir()
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "manifest.json").write_text(json.dumps({"engine": "cpu", "files": files}))
    assert run_agent("check", str(tmp_path)) == {"ok": True}
    (tmp_path / "bin/changed").write_bytes(b"SAME SIZE")
    (tmp_path / "short").write_bytes(b"long")
    (tmp_path / "gone").unlink()
    answer = run_agent("check", str(tmp_path))
    assert answer == {"ok": False, "wrong": ["bin/changed", "short"], "missing": ["gone"], "extra": []}


def test_a_file_that_no_manifest_speaks_of_is_found(tmp_path: Path) -> None:
    """The engine loads every `libggml-*.so` beside its programs."""
    (tmp_path / "manifest.json").write_text('{"files": []}')
    for name in ("proofs.json", ".manifest.json.0f.part", "excluded/libggml-cpu-amx.so", ".smoke/a.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert run_agent("check", str(tmp_path)) == {"ok": True}
    for name in ("libggml-cpu-best.so", "libggml-cpu-x.tmp-1.so"):
        (tmp_path / name).touch()
    assert run_agent("check", str(tmp_path))["extra"] == ["libggml-cpu-best.so", "libggml-cpu-x.tmp-1.so"]


@pytest.mark.parametrize("text", ["", "[]", '{"files": [{"path": "a"}]}'])
def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert run_agent("check", str(tmp_path))["error"].startswith(f"{tmp_path}/manifest.json cannot be read: ")


def test_the_tail_of_a_log_reaches_back_into_the_older_file(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    (tmp_path / "worker.log.1").write_text("1\n2\n3\n")
    log.write_text("4\n5\n")
    assert run_agent("tail", str(log), "--lines", "3") == {"text": "3\n4\n5"}
    assert run_agent("tail", str(tmp_path / "none")) == {"error": f"{tmp_path}/none: there is no such log"}


def put(root: Path, name: str, content: str = "x", *, age_s: float = 0) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_folder_of_sockets_is_no_item_that_can_go(tmp_path: Path) -> None:
    """What runs is reached by them."""
    (tmp_path / "run").mkdir()
    (tmp_path / "slices").mkdir()
    (tmp_path / "slices" / "a.gguf").write_text("x")
    assert agent.stored_items(str(tmp_path)) == [("slices", "a.gguf")]


def test_no_socket_goes_where_it_cannot_be_known_who_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = tmp_path / agent.socket_name(socket.gethostname(), "dead")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(dead))
    assert agent.dead_sockets(str(tmp_path)) == {dead.name}
    monkeypatch.setattr(agent, "read_text", lambda *parts: "")
    assert agent.dead_sockets(str(tmp_path)) == set()


def test_only_what_has_the_digest_is_recorded(tmp_path: Path) -> None:
    item = tmp_path / "a.gguf"
    item.write_text("12345")
    assert run_agent("record", str(item), "", "5", "0f") == {"right": False}
    assert agent.read_record(str(item)) == []
    assert run_agent("record", str(item), "", "5", agent.sha256_of(str(item))) == {"right": True}
    assert run_agent("look", str(item), "") == {"size_bytes": 5, "recorded": True, "damaged": False}


def test_of_sockets_only_those_of_this_host_go_at_which_nobody_listens(tmp_path: Path) -> None:
    """Whatever network they listen in; one that has just died goes at once."""
    folder = tmp_path / "run"
    folder.mkdir()
    dead, alive = (folder / agent.socket_name(socket.gethostname(), name) for name in ("dead", "alive"))
    other = folder / agent.socket_name("another host", "x")
    listening = []
    for path in (dead, alive, other):
        one = socket.socket(socket.AF_UNIX)
        one.bind(str(path))
        listening.append(one)
    listening[0].close()
    listening[2].close()
    assert run_agent("tidy", "--root", str(tmp_path)) == {"removed": [f"run/{dead.name}"]}
    listening[1].close()
    assert run_agent("tidy", "--root", str(tmp_path)) == {"removed": [f"run/{alive.name}"]}
    assert other.is_socket()


def test_tidy_removes_only_what_is_ours_temporary_and_untouched_for_a_while(tmp_path: Path) -> None:
    hour_s = 3600.0
    gone = ["clusters/demo/head-0f.key", "models/.a.gguf.0f.part", "slices/a.gguf.0f.partial"]
    stays = ["clusters/demo/gateway.key", "engines/cpu.lock", "models/a.gguf"]
    for name in (*gone, *stays, "engines/cpu.tmp-12/bin/server", "engines/new.tmp-13/bin/server"):
        put(tmp_path, name, age_s=hour_s)
    for name in ("engines/cpu.tmp-12/bin", "engines/cpu.tmp-12"):
        os.utime(tmp_path / name, (time.time() - hour_s,) * 2)
    fresh = ["models/.b.gguf.0f.part", "clusters/other/head2-1e.key"]
    for name in fresh:
        put(tmp_path, name)
    assert run_agent("tidy", "--root", str(tmp_path)) == {"removed": sorted([*gone, "engines/cpu.tmp-12"])}
    assert files_below(tmp_path) == sorted([*stays, *fresh, "engines/new.tmp-13/bin/server"])


# what is kept


def stored(root: Path, check: str = "none") -> dict[str, dict[str, Any]]:
    answer = run_agent("stored", "--root", str(root), "--check", check)
    assert answer["disk_free_bytes"] > 0
    return {f"{item['kind']}/{item['name']}".rstrip("/"): item for item in answer["items"]}


def record(item: Path, name: str, content: str) -> None:
    digest = hashlib.sha256(content.encode()).hexdigest()
    run_agent("record", str(item), name, str(len(content)), digest)


def test_what_is_kept_is_listed_by_what_can_go_by_itself(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root, "models/0f12/a-1.gguf", "12345", age_s=500)
    put(root, "models/0f12/a-2.gguf", "123", age_s=100)
    put(root, "models/fetched.gguf", "12", age_s=50)
    put(root, "engines/cpu-1/bin/server", "1234")
    put(root, "engines/cpu-1.tar.gz", "12")
    put(root, "engines/cpu-1.lock", "")
    put(root, "calibration/a.json", "{}")
    put(root, "slices/.b.gguf.0f.part")
    put(tmp_path, "elsewhere/x", "123456")
    (root / "slices").joinpath("elsewhere").symlink_to(tmp_path / "elsewhere")
    (root / "sources").symlink_to(tmp_path / "elsewhere")
    items = stored(root)
    assert {place: item["size_bytes"] for place, item in items.items()} == {
        "calibration": 2,
        "engines/cpu-1": 6,
        "models/0f12": 8,
        "models/fetched.gguf": 2,
    }
    os.utime(root / "models/0f12", (1, 1))
    assert 90 < time.time() - stored(root)["models/0f12"]["used_s"] < 200
    assert [items[place]["is_folder"] for place in ("models/0f12", "models/fetched.gguf")] == [True, False]


def test_a_file_is_compared_with_what_was_put_there(tmp_path: Path) -> None:
    item = tmp_path / "models" / "0f12"
    for name, content in (("a", "12345"), ("b", "12345"), ("c", "12345")):
        put(item, name, content)
        record(item, name, content)
    assert run_agent("look", str(item), "a") == {"size_bytes": 5, "recorded": True, "damaged": False}
    assert run_agent("look", str(item), "d") == {"size_bytes": None, "recorded": False, "damaged": False}
    assert stored(tmp_path, "hashes")["models/0f12"]["problems"] == []
    put(item, "a", "12x45")
    put(item, "b", "123")
    (item / "c").unlink()
    short = {"path": "b", "why": "has 3 bytes, not the 5 that were put there"}
    gone = {"path": "c", "why": "is missing"}
    assert run_agent("look", str(item), "a") == {"size_bytes": 5, "recorded": True, "damaged": True}
    changed = {"path": "a", "why": "has changed: its sha256 is not the one it was put with"}
    assert stored(tmp_path, "sizes")["models/0f12"]["problems"] == [short, gone]
    assert stored(tmp_path, "hashes")["models/0f12"]["problems"] == [changed, short, gone]


def test_a_file_is_read_again_only_when_it_was_changed_since_it_was_last_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a record does not say when that was, as those of earlier versions do not, it is read once."""
    item = put(tmp_path, "models/a.gguf", "12345")
    digests = [hashlib.sha256(text).hexdigest() for text in (b"12345", b"54321")]
    read: list[str] = []

    def read_it(path: str) -> str:
        read.append(path)
        return digests[0]

    monkeypatch.setattr(agent, "sha256_of", read_it)
    agent.write_record(str(item), agent.Recorded("", 5, digests[0]))
    (known,) = agent.read_record(str(item))
    assert (agent.is_damaged(str(item), known), read) == (False, [])
    for changed_ns, digest, damaged in ((0, digests[0], False), (known.changed_ns - 1, digests[1], True)):
        assert agent.is_damaged(str(item), agent.Recorded("", 5, digest, changed_ns)) is damaged
    assert read == [str(item)] * 2
    assert agent.read_record(str(item)) == [known]


def test_an_engine_is_compared_with_its_own_manifest(tmp_path: Path) -> None:
    put(tmp_path, "engines/cpu-1/server", "good")
    files = [{"path": "server", "size_bytes": 4, "sha256": hashlib.sha256(b"good").hexdigest()}]
    put(tmp_path, "engines/cpu-1/manifest.json", json.dumps({"files": files}))
    assert stored(tmp_path, "hashes")["engines/cpu-1"]["problems"] == []
    put(tmp_path, "engines/cpu-1/server", "evil")
    assert [one["path"] for one in stored(tmp_path, "hashes")["engines/cpu-1"]["problems"]] == ["server"]


def test_looking_at_an_item_marks_it_as_used(tmp_path: Path) -> None:
    item = put(tmp_path, "slices/a.gguf", "12345", age_s=5000)
    record(item, "", "12345")
    os.utime(f"{item}.mark", (1, 1))
    assert time.time() - stored(tmp_path)["slices/a.gguf"]["used_s"] > 4000
    run_agent("look", str(item), "")
    assert time.time() - stored(tmp_path)["slices/a.gguf"]["used_s"] < 100


def test_items_are_removed_with_what_lies_beside_them_but_not_while_they_are_used(tmp_path: Path) -> None:
    for name in ("slices/a.gguf", "slices/b.gguf", "engines/cpu-1/server", "engines/cpu-1.tar.gz", "bench-plan/x/y"):
        put(tmp_path, name)
    record(tmp_path / "slices/a.gguf", "", "x")
    held = agent.hold_item(str(tmp_path / "slices/b.gguf"))
    try:
        assert [place for place, item in stored(tmp_path).items() if item["in_use"]] == ["slices/b.gguf"]
        asked = ("slices/a.gguf", "slices/b.gguf", "engines/cpu-1", "bench-plan", "../outside", "engines/none")
        answer = run_agent("forget", "--root", str(tmp_path), *asked)
    finally:
        os.close(held)
    assert answer == {"removed": ["slices/a.gguf", "engines/cpu-1", "bench-plan"]}
    assert files_below(tmp_path) == ["slices/b.gguf", "slices/b.gguf.mark"]


def test_everybody_else_who_is_here_is_named() -> None:
    answer = run_agent("others")
    assert not {"root", agent.user_name()} & {*answer["login"], *answer["running"]}
    assert not set(answer["login"]) & set(answer["running"])


# sockets


def test_the_measuring_server_ends_when_nothing_is_heard_for_a_while() -> None:
    """As on a path that is lost: its stdin stays open, and brings nothing."""
    code = f"import sys; sys.path[:0] = [{str(AGENT.parent)!r}]; import agent; agent.LINK_PATIENCE_S = 0.3; "
    words = (PYTHON, "-c", f"{code}sys.exit(agent.main(['link']))")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert b"port" in process.stdout.read()


def test_ports_are_free_and_below_those_of_outgoing_connections() -> None:
    ports = run_agent("ports", "--count", "5")["ports"]
    assert len(set(ports)) == 5
    assert all(agent.FIRST_PORT <= port < 60999 for port in ports)
    for port in ports:
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))


def test_a_port_in_use_is_passed_over() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        taken = server.getsockname()[1]
        assert agent.free_ports(1, taken, taken + 20, seed=0) != [taken]
        with pytest.raises(agent.AgentError, match="only 0 of 1 ports are free"):
            agent.free_ports(1, taken, taken + 1, seed=0)


def test_two_callers_at_once_begin_at_different_ports() -> None:
    assert agent.free_ports(2, 20000, 32768, seed=4001) != agent.free_ports(2, 20000, 32768, seed=4002)


@pytest.mark.skipif(agent.is_mac(), reason="lsof shows other columns for our own process")
def test_a_listening_socket_is_listed_with_its_process() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        mine = [one for one in run_agent("listen")["listening"] if one["port"] == port]
    assert [(one["address"], one["pid"]) for one in mine] == [("127.0.0.1", os.getpid())]


@pytest.fixture
def link_port() -> Iterator[int]:
    words = (PYTHON, "-I", "-S", str(AGENT), "link")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            yield json.loads(server.stdout.readline())["port"]
            assert server.stdin is not None
            server.stdin.close()
            assert server.wait(10) == 0
        finally:
            server.kill()


def request(operation: bytes, size: int, count: int = 1) -> bytes:
    return struct.pack(">cQQ", operation, size, count)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        assert part, "the server closed the connection"
        data += part
    return data


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def test_the_measuring_server_echoes_takes_and_gives(link_port: int) -> None:
    message = os.urandom(16 * 1024)
    with connected(link_port) as connection:
        connection.sendall(request(b"E", len(message), 3))
        for _ in range(3):
            connection.sendall(message)
            assert read_exactly(connection, len(message)) == message
        began = time.monotonic()
        connection.sendall(request(b"S", 32 * MIB) + bytes(32 * MIB))
        assert read_exactly(connection, 1) == b"k"
        connection.sendall(request(b"R", 8 * MIB))
        assert len(read_exactly(connection, 8 * MIB)) == 8 * MIB
        assert 40 * MIB / (time.monotonic() - began) > 20 * MIB


def test_the_measuring_server_serves_several_at_once(link_port: int) -> None:
    with connected(link_port) as idle, connected(link_port) as connection:
        connection.sendall(request(b"E", 1) + b"a")
        assert read_exactly(connection, 1) == b"a"
        idle.sendall(request(b"E", 1) + b"b")
        assert read_exactly(idle, 1) == b"b"


@pytest.mark.parametrize(
    "header",
    [request(b"R", 2 * 1024 * MIB), request(b"E", 17 * MIB), request(b"E", MIB, 2000), request(b"E", 0), b"X" * 17],
)
def test_a_request_out_of_bounds_closes_the_connection(link_port: int, header: bytes) -> None:
    with connected(link_port) as connection:
        connection.sendall(header)
        assert connection.recv(1) == b""
