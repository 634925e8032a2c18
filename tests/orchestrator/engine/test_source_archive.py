"""The source that hosts get, and what leaves out CPU libraries there: with a real cmake and a real compiler."""

import subprocess
import tarfile
from pathlib import Path

import pytest

from orchestrator.engine.build import find_program
from orchestrator.engine.source import fetch_source
from orchestrator.engine.source_archive import NEEDED, pack_source
from tests.conftest import USER_CACHE
from workers.source_edits import LEFT_OUT_WHERE_UNKNOWN

LIST = """\
cmake_minimum_required(VERSION 3.14)
project(variants CXX)
include(CheckCXXCompilerFlag)
set(GGML_SYSTEM_ARCH x86)

function(ggml_add_cpu_backend_variant tag_name)
    message(STATUS "made: ${tag_name} with ${ARGN}")
endfunction()

ggml_add_backend(CPU)

ggml_add_cpu_backend_variant(x64)
ggml_add_cpu_backend_variant(haswell SSE42 AVX2)
ggml_add_cpu_backend_variant(zen4 AVX2 AVX512_VNNI)
ggml_add_cpu_backend_variant(alderlake AVX2 AVX_VNNI)
ggml_add_cpu_backend_variant(sapphirerapids AVX512_VNNI AMX_TILE AMX_INT8)
"""

OLD_COMPILER = """#!/bin/sh
for word in "$@"; do
    shift
    case "$word" in
    -mavxvnni | -mamx-*) echo "c++: error: unrecognized command line option '$word'" >&2; exit 1 ;;
    -mavx512*) ;; # taken, on whatever machine this is
    *) set -- "$@" "$word" ;;
    esac
done
exec c++ "$@"
"""


def test_cpu_libraries_that_the_compiler_cannot_make_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(LIST.replace("ggml_add_backend(CPU)", LEFT_OUT_WHERE_UNKNOWN))
    (tmp_path / "old").write_text(OLD_COMPILER)
    (tmp_path / "old").chmod(0o755)
    words = (
        *(
            str(find_program("cmake", "CMAKE_BIN_DIR")),
            "-S",
            str(tmp_path),
            "-B",
            str(tmp_path / "build"),
            "-G",
            "Ninja",
        ),
        *(f"-DCMAKE_MAKE_PROGRAM={find_program('ninja', 'BIN_DIR')}", f"-DCMAKE_CXX_COMPILER={tmp_path / 'old'}"),
    )
    said = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    told = [line.removeprefix("-- ") for line in said.splitlines() if "made:" in line or "Left out" in line]
    assert told == [
        "made: x64 with ",
        "made: haswell with SSE42;AVX2",
        "made: zen4 with AVX2;AVX512_VNNI",
        "Left out: the CPU library alderlake, since the compiler does not take -mavxvnni",
        "Left out: the CPU library sapphirerapids, since the compiler does not take -mamx-tile",
    ]


@pytest.mark.engine
async def test_what_a_build_needs_of_the_pinned_source_is_packed() -> None:
    archive = await pack_source(USER_CACHE)
    tree = await fetch_source(USER_CACHE)
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        content = tar.extractfile("ggml/src/CMakeLists.txt")
        assert content is not None
        text = content.read().decode()
    assert text == (tree / "ggml/src/CMakeLists.txt").read_text()
    assert text.count(LEFT_OUT_WHERE_UNKNOWN) == 1
    assert {name.split("/")[0] for name in names} == set(NEEDED)
    assert 8_000_000 < archive.stat().st_size < 14_000_000
