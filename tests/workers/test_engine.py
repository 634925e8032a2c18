from dataclasses import replace

import pytest

from workers.engine import (
    RECIPES,
    SOURCE,
    EngineFile,
    Manifest,
    configure_flags,
    engine_id,
    libc_problem,
    read_manifest,
    recipe_of,
)
from workers.errors import ManifestError

MANIFEST = Manifest(
    engine="cpu-linux-x86_64-0123456789ab",
    commit="0c1e57098",
    protocol="7.0.0",
    backend="cpu",
    platform="linux-x86_64",
    libc="glibc 2.34",
    files=(EngineFile("llama-server", "aa", 10), EngineFile("libggml-cpu-x.so", "bb", 5)),
)


def test_the_source_is_pinned_by_version_and_hash() -> None:
    assert SOURCE.requirement == (
        "llama-cpp-python==0.3.36 --hash=sha256:832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
    )


def test_the_cpu_recipe_is_portable_and_has_rpc_without_rdma() -> None:
    flags = set(RECIPES["cpu"].cmake_flags)
    assert {
        *("-DCMAKE_BUILD_TYPE=Release", "-DGGML_RPC=ON", "-DGGML_RPC_RDMA=OFF", "-DLLAMA_CURL=OFF"),
        *("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_UI=OFF", "-DGGML_NATIVE=OFF"),
        *("-DGGML_CPU_ALL_VARIANTS=ON", "-DGGML_BACKEND_DL=ON"),
    } <= flags


def test_programs_find_their_libraries_beside_them() -> None:
    assert "-DCMAKE_INSTALL_RPATH=$ORIGIN" in configure_flags(RECIPES["cpu"], "linux-aarch64")
    assert "-DCMAKE_INSTALL_RPATH=@loader_path" in configure_flags(RECIPES["metal"], "darwin-arm64")


def test_an_engine_id_names_backend_and_platform_and_changes_with_every_flag() -> None:
    recipe = RECIPES["cpu"]
    identity = engine_id(recipe, "linux-x86_64")
    assert identity.startswith("cpu-linux-x86_64-")
    assert len(identity) == len("cpu-linux-x86_64-") + 12
    others = {
        engine_id(replace(recipe, cmake_flags=(*recipe.cmake_flags, "-DX=ON")), "linux-x86_64"),
        engine_id(replace(recipe, programs=recipe.programs[1:]), "linux-x86_64"),
        engine_id(recipe, "linux-aarch64"),
        *(engine_id(RECIPES[name], "linux-x86_64") for name in ("cuda", "metal", "vulkan")),
    }
    assert len(others) == 6
    assert identity not in others


def test_a_manifest_comes_back_as_it_was_written() -> None:
    assert read_manifest(MANIFEST.to_json()) == MANIFEST
    taken_out = MANIFEST.without("libggml-cpu-x.so")
    assert read_manifest(taken_out.to_json()) == taken_out
    assert taken_out.size_bytes == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: Invalid JSON"),
        ('{"engine": 1}', "engine: Input should be a valid string"),
        (MANIFEST.to_json().replace(b'"size_bytes": 5', b'"size_bytes": "many"'), "files.1.size_bytes: "),
    ],
)
def test_a_manifest_that_cannot_be_read_says_where(text: str | bytes, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(text)
    assert str(caught.value).startswith(f"the engine's manifest cannot be read: {message}")


def test_builds_are_the_same_whatever_each_machine_took_out() -> None:
    taken_out = MANIFEST.without("libggml-cpu-x.so")
    assert MANIFEST.is_same_build(MANIFEST)
    assert MANIFEST.is_same_build(taken_out)
    assert taken_out.is_same_build(MANIFEST)


@pytest.mark.parametrize(
    "other",
    [
        replace(MANIFEST, engine="cpu-linux-x86_64-ffffffffffff"),
        replace(MANIFEST, files=MANIFEST.files[:1]),
        replace(MANIFEST, files=(EngineFile("llama-server", "cc", 10), MANIFEST.files[1])),
    ],
)
def test_other_ids_files_or_hashes_are_another_build(other: Manifest) -> None:
    assert not MANIFEST.is_same_build(other)


@pytest.mark.parametrize(
    ("needed", "offered", "problem"),
    [
        ("glibc 2.34", "glibc 2.34", None),
        ("glibc 2.9", "glibc 2.34", None),
        ("", "musl 1.2", None),
        ("glibc 2.34", "", None),
        ("glibc 2.34", "glibc 2.31", "it needs glibc 2.34 or later, the host has glibc 2.31"),
        ("glibc 2.34", "musl 1.2.4", "it needs glibc, the host has musl 1.2.4"),
    ],
)
def test_a_libc_fits_when_it_is_the_same_kind_and_not_older(needed: str, offered: str, problem: str | None) -> None:
    assert libc_problem(needed, offered) == problem


def test_cuda_is_compiled_for_the_very_cards_of_a_host() -> None:
    """Another set of cards is another engine; more of the same cards is not."""
    flags = [flag for flag in recipe_of("cuda", ("8.9", "6.1", "8.9")).cmake_flags if "ARCHITECTURES" in flag]
    assert flags == ["-DCMAKE_CUDA_ARCHITECTURES=61;89"]
    assert recipe_of("cuda", ("8.9", "8.9")) == recipe_of("cuda", ("8.9",))
    assert recipe_of("vulkan", ("8.9",)) == RECIPES["vulkan"]
    ids = {engine_id(recipe_of("cuda", cards), "linux-x86_64") for cards in ((), ("8.9",), ("9.0",), ("8.9", "9.0"))}
    assert len(ids) == 4
