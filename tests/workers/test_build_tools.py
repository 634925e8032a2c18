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
from workers.engine import RECIPES, Recipe, recipe_of
from workers.facts import Gpu

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
        "-DGGML_BLAS=OFF",
        "-DGGML_METAL=OFF",
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


CUDA = replace(ALL, nvcc="/c/nvcc", cublas="/c/libcublas.so")
VULKAN = replace(
    ALL, cmake_version="3.25.1", glslc="/g", vulkan_headers="/v/vulkan.hpp", vulkan_loader="/l", spirv_headers="/s"
)


def test_a_gpus_backend_needs_more_and_all_of_it_is_named() -> None:
    assert lacking(CUDA, LINUX, RECIPES["cuda"]) == ()
    assert lacking(VULKAN, LINUX, RECIPES["vulkan"]) == ()
    assert lacking(ALL, LINUX, RECIPES["cuda"]) == ("no CUDA toolkit (nvcc)", "no cuBLAS library of the CUDA toolkit")
    assert lacking(ALL, LINUX, RECIPES["vulkan"]) == (
        "no glslc, which compiles Vulkan's shaders",
        "no Vulkan headers",
        "no Vulkan loader to link with",
        "no SPIR-V headers",
        "cmake 3.18.4 is too old for vulkan, 3.19 or later is needed",
    )


def test_metal_is_for_macs_and_the_others_are_not() -> None:
    assert lacking(ALL, LINUX, RECIPES["metal"]) == ("Metal is there on Macs only",)
    assert lacking(ALL, MAC, RECIPES["metal"]) == ()
    assert lacking(VULKAN, MAC, RECIPES["vulkan"]) == ("vulkan is not for Macs: their backend is metal",)


@pytest.mark.parametrize(
    ("manager", "hint"),
    [
        ("apt-get", "there: `sudo apt install glslc libvulkan-dev spirv-headers`"),
        ("dnf", "there: `sudo dnf install glslc vulkan-devel spirv-headers-devel`"),
        ("zypper", "there: `sudo zypper install shaderc vulkan-devel spirv-headers`"),
        ("pacman", "there: `sudo pacman -S shaderc vulkan-headers vulkan-icd-loader spirv-headers`"),
        ("apk", "there: `sudo apk add shaderc vulkan-headers vulkan-loader-dev spirv-headers`"),
        ("", "there: install the Vulkan SDK (https://vulkan.lunarg.com)"),
    ],
)
def test_what_vulkan_lacks_is_named_by_its_packages(manager: str, hint: str) -> None:
    assert install_hint(replace(ALL, package_manager=manager), LINUX, RECIPES["vulkan"]) == hint


def test_what_both_lack_is_one_hint() -> None:
    bare = replace(NONE, package_manager="apt-get")
    assert install_hint(bare, LINUX, RECIPES["vulkan"]) == (
        "there: `sudo apt install cmake ninja-build g++` and `sudo apt install glslc libvulkan-dev spirv-headers`"
    )
    assert install_hint(ALL, LINUX, RECIPES["cuda"]).startswith("there: install the CUDA toolkit, cuBLAS with it")


OLD = replace(CUDA, nvcc_version="11.8", nvcc_knows="3.5 5.0 6.1 7.5 8.0 8.6 8.9 9.0")
NEW = replace(CUDA, nvcc_version="13.0", nvcc_knows="7.5 8.0 8.6 8.9 9.0 12.0")


@pytest.mark.parametrize(
    ("tools", "capabilities", "problem", "hint"),
    [
        (OLD, ("8.6", "8.9"), (), "install newer ones there"),
        (CUDA, ("12.0",), (), "install newer ones there"),
        (
            OLD,
            ("8.9", "12.0"),
            ("CUDA toolkit 11.8 makes no code for compute capability 12.0 (RTX 5090), only for 3.5 to 9.0",),
            "there: install CUDA toolkit 12.8 or later, cuBLAS with it (",
        ),
        (
            NEW,
            ("6.1", "12.0"),
            ("CUDA toolkit 13.0 makes no code for compute capability 6.1, only for 7.5 to 12.0",),
            "there: install CUDA toolkit 12.9, the last for cards below 7.5, cuBLAS with it (",
        ),
        (
            NEW,
            ("14.0",),
            ("CUDA toolkit 13.0 makes no code for compute capability 14.0, only for 7.5 to 12.0",),
            "there: install the newest CUDA toolkit, cuBLAS with it (",
        ),
    ],
)
def test_a_toolkit_that_does_not_know_a_card_is_named_before_anything_is_compiled(
    tools: BuildTools, capabilities: tuple[str, ...], problem: tuple[str, ...], hint: str
) -> None:
    facts = replace(LINUX, gpus=(Gpu("cuda", 0, "RTX 5090", 32 * GIB, 32 * GIB, "12.0"),))
    recipe = recipe_of("cuda", capabilities)
    assert lacking(tools, facts, recipe) == problem
    assert install_hint(tools, facts, recipe).startswith(hint)
