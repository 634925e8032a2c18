import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.engine.source import check_archive, download_words, edit_tree, fetch_source, unpack_tree
from orchestrator.errors import EngineError
from workers.engine import SOURCE
from workers.source_edits import Edit


def make_archive(path: Path, files: dict[str, str], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            entry.mode = 0o755 if name.endswith(".sh") else 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.SYMTYPE
            entry.linkname = target
            tar.addfile(entry)
    return path


def all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_only_the_llama_cpp_tree_is_unpacked(tmp_path: Path) -> None:
    archive = make_archive(
        tmp_path / "a.tar.gz",
        {
            "pkg-1/setup.py": "no",
            "pkg-1/vendor/other/x": "no",
            "pkg-1/vendor/llama.cpp/.git": "no",
            "pkg-1/vendor/llama.cpp/CMakeLists.txt": "yes",
            "pkg-1/vendor/llama.cpp/scripts/run.sh": "yes",
        },
    )
    unpack_tree(archive, tmp_path / "tree")
    assert all_files(tmp_path / "tree") == ["CMakeLists.txt", "scripts/run.sh"]
    assert (tmp_path / "tree/scripts/run.sh").stat().st_mode & 0o777 == 0o755


def test_nothing_is_written_outside_the_tree(tmp_path: Path) -> None:
    archive = make_archive(
        tmp_path / "a.tar.gz",
        {
            "pkg-1/vendor/llama.cpp/CMakeLists.txt": "yes",
            "pkg-1/vendor/llama.cpp/../../../../escaped": "no",
            "/etc/absolute": "no",
        },
        {"pkg-1/vendor/llama.cpp/link": "/etc/passwd"},
    )
    home = tmp_path / "home" / "of" / "the"
    home.mkdir(parents=True)
    unpack_tree(archive, home / "tree")
    assert all_files(tmp_path) == ["a.tar.gz", "home/of/the/tree/CMakeLists.txt"]


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x1f\x8b\x08cut"])
def test_a_broken_archive_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "broken.tar.gz"
    archive.write_bytes(content)
    with pytest.raises(EngineError, match=r"^broken\.tar\.gz cannot be unpacked"):
        unpack_tree(archive, tmp_path / "tree")


def test_an_archive_without_the_tree_is_an_error(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", {"pkg-1/setup.py": "no"})
    with pytest.raises(EngineError, match=r"has no vendor/llama\.cpp/CMakeLists\.txt"):
        unpack_tree(archive, tmp_path / "tree")


def test_an_archive_with_another_hash_is_refused(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", {"x": "y"})
    with pytest.raises(EngineError, match=rf"not the pinned {SOURCE.sha256}$"):
        check_archive(archive, SOURCE)


def test_pip_takes_only_the_pinned_source_distribution(tmp_path: Path) -> None:
    assert download_words(Path("/r.txt"), Path("/d"), SOURCE)[1:] == (
        *("-P", "-m", "pip", "download", "--disable-pip-version-check", "--no-input"),
        *("--no-deps", "--no-binary", "llama-cpp-python", "--require-hashes"),
        *("--requirement", "/r.txt", "--dest", "/d"),
    )


async def test_a_source_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    nowhere = replace(SOURCE, package="no such package", sha256="0" * 64)
    tree = tmp_path / "sources" / nowhere.digest / "llama.cpp"
    tree.mkdir(parents=True)
    assert await fetch_source(tmp_path, nowhere) == tree


async def test_a_failed_fetch_shows_what_pip_said_and_leaves_only_its_log(tmp_path: Path) -> None:
    nowhere = replace(SOURCE, package="no such package")
    with pytest.raises(EngineError, match="pip could not fetch the engine's source, no such package") as caught:
        await fetch_source(tmp_path, nowhere)
    assert "Invalid requirement" in caught.value.details
    assert all_files(tmp_path / "sources" / SOURCE.digest) == ["lock", "pip.log"]


def test_our_changes_are_made_to_the_source(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text("one = 1;\ntwo = 2;\n")
    edit_tree(tmp_path, [Edit("a.cpp", "two = 2;", "two = 3;")])
    assert (tmp_path / "a.cpp").read_text() == "one = 1;\ntwo = 3;\n"


@pytest.mark.parametrize("text", ["one = 1;", "two = 2; two = 2;", None])
def test_a_change_that_does_not_fit_the_source_is_an_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "a.cpp").write_text(text)
    said = r"^the engine's source has no line `two = 2;` in a\.cpp, which is to be changed$"
    with pytest.raises(EngineError, match=said):
        edit_tree(tmp_path, [Edit("a.cpp", "two = 2;", "two = 3;")])
