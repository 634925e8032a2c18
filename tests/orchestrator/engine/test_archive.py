import hashlib
import os
import tarfile
from pathlib import Path

from orchestrator.engine.archive import Member, packed, send_archive
from orchestrator.host_door import ensure_agent
from orchestrator.shell.local import LocalShell


async def pack(folder: Path, archive: Path) -> Path:
    members = [Member.of(folder, path) for path in folder.rglob("*") if path.is_file()]
    return await packed(archive, [*members, Member("added", b"bytes")])


def write_folder(folder: Path) -> Path:
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "program").write_bytes(b"code" * 1000)
    (folder / "below" / "program").chmod(0o755)
    (folder / "text").write_text("text")
    return folder


async def test_the_same_files_make_the_same_bytes_whenever_they_are_packed(tmp_path: Path) -> None:
    first = await pack(write_folder(tmp_path / "a"), tmp_path / "one.tar.gz")
    os.utime(write_folder(tmp_path / "b") / "text", (1, 1))
    second = await pack(tmp_path / "b", tmp_path / "two.tar.gz")
    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()
    with tarfile.open(first) as tar:
        members = [(member.name, member.mode, member.mtime) for member in tar]
    assert members == [("added", 0o644, 0), ("below/program", 0o755, 0), ("text", 0o644, 0)]


async def test_an_archive_is_packed_once(tmp_path: Path) -> None:
    folder, archive = write_folder(tmp_path / "a"), tmp_path / "one.tar.gz"
    before = (await pack(folder, archive)).stat().st_mtime_ns
    assert (await pack(folder, archive)).stat().st_mtime_ns == before


async def test_an_archive_arrives_unpacked_and_nothing_else_stays(tmp_path: Path) -> None:
    archive = await pack(write_folder(tmp_path / "a"), tmp_path / "one.tar.gz")
    shell = LocalShell("there", tmp_path / "root", tmp_path)
    agent, folder = await ensure_agent(shell), tmp_path / "root" / "engines" / "x"
    seen: list[int] = []
    size = await send_archive(shell, agent, archive, str(folder), str(folder), lambda done, total: seen.append(done))
    assert size == archive.stat().st_size == seen[-1]
    assert (folder / "below" / "program").read_bytes() == b"code" * 1000
    assert sorted(path.name for path in folder.parent.iterdir()) == ["x", "x.lock"]
