from dataclasses import replace

import pytest

from tests.orchestrator.plan.examples import FACTS
from workers.build_tools import (
    BuildTools,
    compile_command,
    configure_command,
    install_hint,
    jobs_for,
    lacking,
    read_counter,
)
from workers.engine import Recipe

GIB = 1024**3
ALL = BuildTools("/c/cmake", "3.18.4", "/c/ninja", "", "/c/cc", "/c/c++", "gcc", "10", "apt-get")
NONE = BuildTools("", "", "", "", "", "", "", "", "apt-get")
LINUX = replace(FACTS, os="Linux", architecture="x86_64", user="ada")
MAC = replace(FACTS, os="Darwin", architecture="arm64", user="ada")


def test_a_host_with_everything_lacks_nothing() -> None:
    assert lacking(ALL, LINUX) == ()
    assert lacking(replace(ALL, ninja="", make="/c/make"), LINUX) == ()


def test_everything_that_is_missing_or_too_old_is_named_at_once() -> None:
    assert lacking(NONE, LINUX) == ("no cmake", "no ninja or make", "no C compiler", "no C++ compiler")
    old = replace(ALL, cmake_version="3.13.4", compiler_version="8")
    assert lacking(old, LINUX) == (
        "cmake 3.13.4 is too old, 3.14 or later is needed",
        "gcc 8 is too old, gcc 9 or later is needed",
    )


@pytest.mark.parametrize(
    ("kind", "version", "architecture", "problems"),
    [
        ("gcc", "9", "x86_64", ()),
        ("gcc", "9", "aarch64", ("gcc 9 is too old, gcc 10 or later is needed",)),
        ("clang", "9", "x86_64", ("clang 9 is too old, clang 10 or later is needed",)),
        ("clang", "14", "arm64", ()),
    ],
)
def test_how_old_a_compiler_may_be(kind: str, version: str, architecture: str, problems: tuple[str, ...]) -> None:
    tools = replace(ALL, compiler_kind=kind, compiler_version=version)
    assert lacking(tools, replace(LINUX, architecture=architecture)) == problems


@pytest.mark.parametrize(
    ("manager", "hint"),
    [
        ("apt-get", "there: `sudo apt install cmake ninja-build g++`"),
        ("dnf", "there: `sudo dnf install cmake ninja-build gcc-c++`"),
        ("zypper", "there: `sudo zypper install cmake ninja gcc-c++`"),
        ("pacman", "there: `sudo pacman -S cmake ninja gcc`"),
        ("apk", "there: `sudo apk add cmake make g++`"),
        ("", "install there: cmake, ninja, a C++ compiler such as g++"),
    ],
)
def test_the_hint_is_the_command_of_the_hosts_own_package_manager(manager: str, hint: str) -> None:
    assert install_hint(replace(NONE, package_manager=manager), LINUX) == hint


def test_the_hint_names_only_what_is_missing() -> None:
    assert install_hint(replace(ALL, cxx_compiler=""), LINUX) == "there: `sudo apt install g++`"
    assert install_hint(replace(ALL, cmake=""), replace(LINUX, user="root")) == "there: `apt install cmake`"
    assert install_hint(ALL, LINUX).startswith("install newer ones there")


def test_a_mac_gets_its_compiler_from_apple_and_the_rest_from_brew() -> None:
    tools = replace(NONE, package_manager="brew")
    both = "there: `xcode-select --install` and `brew install cmake ninja` (https://brew.sh)"
    assert install_hint(tools, MAC) == both
    assert install_hint(replace(ALL, c_compiler=""), MAC) == "there: `xcode-select --install`"


def test_the_words_that_configure_and_compile() -> None:
    recipe = Recipe("cpu", ("-DGGML_RPC=ON",), ("llama-bench",))
    assert configure_command(ALL, "/s", "/b", recipe, "darwin-arm64") == (
        *("/c/cmake", "-S", "/s", "-B", "/b", "-G", "Ninja", "-DCMAKE_MAKE_PROGRAM=/c/ninja"),
        *("-DCMAKE_C_COMPILER=/c/cc", "-DCMAKE_CXX_COMPILER=/c/c++", "-DGGML_RPC=ON"),
        "-DCMAKE_INSTALL_RPATH=@loader_path",
    )
    assert compile_command(ALL, "/b", recipe.programs, 3) == ("/c/ninja", "-C", "/b", "-j", "3", "llama-bench")
    with_make = replace(ALL, ninja="", make="/c/make")
    assert "Unix Makefiles" in configure_command(with_make, "/s", "/b", recipe, "linux-x86_64")
    assert compile_command(with_make, "/b", ("a",), 1) == ("/c/make", "-C", "/b", "-j", "1", "a")


@pytest.mark.parametrize(
    ("cores", "quota", "available_bytes", "jobs"),
    [(8, None, 64 * GIB, 8), (8, 2.5, 64 * GIB, 2), (8, 0.25, 64 * GIB, 1), (4, None, 3 * GIB, 2), (4, None, 1, 1)],
)
def test_compilers_at_once_by_processors_and_memory(
    cores: int, quota: float | None, available_bytes: int, jobs: int
) -> None:
    facts = replace(LINUX, cores_logical=cores, cpu_quota=quota, memory_available_bytes=available_bytes)
    assert jobs_for(facts) == jobs


def test_the_counters_of_ninja_and_make_are_read() -> None:
    assert read_counter("[12/345] Building CXX object a.o") == (12, 345)
    assert read_counter("[  7%] Building CXX object a.o") == (7, 100)
    assert read_counter("-- The C compiler identification is GNU 10.2.1") is None
