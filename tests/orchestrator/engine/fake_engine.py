"""Engine folders of shell scripts: real processes that load the best library there is and crash in one of them."""

from pathlib import Path

from orchestrator.engine.store import MANIFEST, Engine, describe_file
from workers.engine import Manifest

BEST, NEXT = "libggml-cpu-best.so", "libggml-cpu-next.so"
GPU = "libggml-vulkan.so"

_BENCH = """#!/bin/sh
here=$(dirname "$0")
echo run >>"$here/../runs"
for library in {best} {next}; do
    if [ -f "$here/$library" ]; then
        echo "load_backend: loaded CPU backend from $here/$library" >&2
        case " {crashing} " in *" $library "*) kill -{signal} $$ ;; esac
        one='{{"avg_ts": 1.5}}'
        echo "[$one, $one, $one, $one, $one, $one]"
        [ ! -f "$here/{gpu_library}" ] || kill -{signal} $$
        exit 0
    fi
done
echo "no CPU backend found" >&2
exit 1
"""


def make_engine(
    folder: Path, *, crashing: tuple[str, ...] = (), signal: str = "ILL", platform: str, gpu_crashes: bool = False
) -> Engine:
    """An engine whose llama-bench dies by `signal` while a library of `crashing` is the best one in the folder.

    `gpu_crashes`: it is for a GPU whose driver ends every program in that way at its end.
    """
    folder.mkdir(parents=True)
    gpu_library = GPU if gpu_crashes else "none"
    bench = _BENCH.format(best=BEST, next=NEXT, crashing=" ".join(crashing), signal=signal, gpu_library=gpu_library)
    for name, text in (("llama-bench", bench), ("ggml-rpc-server", "#!/bin/sh\nexit 0\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    for name in (BEST, NEXT, *((GPU,) if gpu_crashes else ())):
        (folder / name).write_text(f"code of {name}")
    files = tuple(describe_file(folder, path) for path in sorted(folder.iterdir()))
    backend = "vulkan" if gpu_crashes else "cpu"
    manifest = Manifest(folder.name, "abc", "7.0.0", backend, platform, "", files)
    (folder / MANIFEST).write_bytes(manifest.to_json())
    return Engine(folder, manifest)


def runs(engine: Engine) -> int:
    """How often llama-bench was started in this folder."""
    log = engine.folder.parent / "runs"
    return len(log.read_text().splitlines()) if log.exists() else 0
