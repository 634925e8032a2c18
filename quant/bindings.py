"""Load the Python bindings of llama-cpp-python on the libraries of an engine, so that llama.cpp is compiled once.

The bindings read `LLAMA_CPP_LIB_PATH` when they are imported, and a process can load them on one engine only. Never
imported by anything that only wants facts of a GGUF file: this loads native code.
"""

import ctypes
import importlib
import os
from pathlib import Path
from types import ModuleType

from quant.errors import BindingsError

_VARIABLE = "LLAMA_CPP_LIB_PATH"


def load_bindings(engine_folder: Path) -> ModuleType:
    """The module `llama_cpp` on the libraries in `engine_folder`, the engine's backends loaded.

    BindingsError: the folder has no libraries, the package is missing, or this process has them on another engine.
    """
    folder = engine_folder.resolve()
    ggml = next((path for path in (folder / "libggml.so", folder / "libggml.dylib") if path.is_file()), None)
    if ggml is None:
        raise BindingsError(f"{folder} has no engine libraries", hint="build the engine: meshctl engine build")
    os.environ.setdefault(_VARIABLE, str(folder))
    if Path(os.environ[_VARIABLE]).resolve() != folder:
        raise BindingsError(
            f"the bindings of this process use the libraries in {os.environ[_VARIABLE]}, not those in {folder}",
            hint=f"unset {_VARIABLE}, or start another process for another engine",
        )
    bindings = _import_bindings(folder)
    _load_backends(ggml, folder)
    return bindings


def _import_bindings(folder: Path) -> ModuleType:
    try:
        bindings = importlib.import_module("llama_cpp")
    except ImportError as error:
        raise BindingsError(
            f"the Python bindings of the engine cannot be imported: {error}",
            hint="install meshctl again with scripts/install",
        ) from error
    except (OSError, RuntimeError, AttributeError) as error:
        raise BindingsError(
            f"the Python bindings do not load on the libraries in {folder}: {error}",
            hint="build the engine again: meshctl engine build --again",
        ) from error
    loaded_from = Path(bindings.llama_cpp._lib._name).resolve().parent
    if loaded_from != folder:
        raise BindingsError(
            f"the bindings of this process were loaded on the libraries in {loaded_from}, not those in {folder}",
            hint="import llama_cpp through meshctl only",
        )
    return bindings


def _load_backends(ggml: Path, folder: Path) -> None:
    """Backends are libraries of their own in our recipes, and nothing loads them for the bindings."""
    library = ctypes.CDLL(str(ggml))
    library.ggml_backend_reg_count.restype = ctypes.c_size_t
    if library.ggml_backend_reg_count() > 0:  # a second loading would list every device twice
        return
    library.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    library.ggml_backend_load_all_from_path.restype = None
    library.ggml_backend_load_all_from_path(os.fsencode(folder))
