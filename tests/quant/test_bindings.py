"""The bindings load once per process, so each test on the real libraries runs in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.engine.store import Engine
from quant.bindings import load_bindings
from quant.errors import BindingsError
from quant.synthetic import calibration_shape, write_random_model

_FACTS = """
import ctypes, sys
from pathlib import Path
from quant.bindings import load_bindings

folder, path = Path(sys.argv[1]), sys.argv[2]
bindings = load_bindings(folder)
assert load_bindings(folder) is bindings
defaults = bindings.llama_model_quantize_default_params()
parameters = bindings.llama_model_default_params()
parameters.vocab_only = False
model = bindings.llama_model_load_from_file(path.encode(), parameters)
text = ctypes.create_string_buffer(100)
bindings.llama_model_desc(model, text, 100)
print(text.value.decode(), "|", bindings.llama_model_n_layer(model), "|", defaults.nthread, file=sys.stdout)
bindings.llama_model_free(model)
"""


def run_python(program: str, *arguments: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    words = (sys.executable, "-c", program, *arguments)
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.engine
def test_facts_of_a_model_are_read_through_the_engines_own_libraries(engine: Engine, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    write_random_model(model, calibration_shape(2), "Q4_K")

    ended = run_python(_FACTS, str(engine.folder), str(model), environment={"PYTHONPATH": ":".join(sys.path)})

    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout == "llama ?B (guessed) Q4_K - Medium | 2 | 0\n"


@pytest.mark.engine
def test_a_process_that_has_the_bindings_on_another_folder_says_so(engine: Engine, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": ":".join(sys.path), "LLAMA_CPP_LIB_PATH": str(tmp_path)}
    ended = run_python(_FACTS, str(engine.folder), "", environment=environment)
    assert ended.returncode == 1
    assert f"BindingsError: the bindings of this process use the libraries in {tmp_path}" in ended.stderr


def test_a_folder_without_libraries_is_an_error_with_the_next_move(tmp_path: Path) -> None:
    with pytest.raises(BindingsError, match="has no engine libraries") as caught:
        load_bindings(tmp_path)
    assert caught.value.hint == "build the engine: meshctl engine build"


def test_libraries_that_do_not_load_are_an_error_that_names_the_folder(tmp_path: Path) -> None:
    for name in ("libggml.so", "libggml.dylib", "libllama.so", "libllama.dylib"):
        (tmp_path / name).write_text("no library")
    program = "import sys, pathlib; from quant.bindings import load_bindings; load_bindings(pathlib.Path(sys.argv[1]))"
    ended = run_python(program, str(tmp_path), environment={"PYTHONPATH": ":".join(sys.path)})
    assert ended.returncode == 1
    assert f"BindingsError: the Python bindings do not load on the libraries in {tmp_path}" in ended.stderr
