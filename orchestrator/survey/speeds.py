"""How fast a device computes through RPC: two depths of a small model, timed by `llama-bench`, kept for reuse.

Decode time is linear in the number of layers, so the difference of two depths is the layers' own time and what is
left over is the fixed cost of a stage: measured on this engine, the line through two depths predicts a third within
3 % as long as the layers exceed the processor's last-level cache.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from orchestrator.engine.store import Engine
from orchestrator.errors import EngineError
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.processes import Worker
from orchestrator.state import write_private
from orchestrator.survey.values import Link, Speed
from orchestrator.view.sizes import bytes_text
from quant.gguf_file import read_model
from quant.model import layer_bytes
from quant.synthetic import write_calibration_model
from workers.bench_output import BenchRow, read_bench
from workers.budget import MIB
from workers.engine_commands import ENVIRONMENT, Placement, bench_command

SHALLOW_LAYERS = 2
DEEP_LAYERS = 6
PROMPT_TOKENS = 64
DECODED_TOKENS = 12
REPETITIONS = 3
BESIDE_LAYERS_BYTES = 12 * MIB
"""What a worker takes beside the layers of a calibration model: itself, output layer, buffers."""

DEADLINE_S = 240.0

_SPEED = TypeAdapter(Speed)


@dataclass(frozen=True)
class CalibrationModel:
    """One depth of the calibration model and the bytes of its layers."""

    path: Path
    layers: int
    layers_bytes: int


def calibration_models(folder: Path, tensor_type: str) -> tuple[CalibrationModel, CalibrationModel]:
    """Write both depths for this tensor type unless they are there."""
    shallow, deep = (_calibration_model(folder, layers, tensor_type) for layers in (SHALLOW_LAYERS, DEEP_LAYERS))
    return shallow, deep


def _calibration_model(folder: Path, layers: int, tensor_type: str) -> CalibrationModel:
    path = folder / f"calibration-{tensor_type}-{layers}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_calibration_model(path, layers=layers, tensor_type=tensor_type)
    return CalibrationModel(path, layers, sum(layer_bytes(read_model(path))))


def too_little_memory(available_bytes: int, deep: CalibrationModel) -> str:
    """Why a device with this much memory cannot be measured, "" when it can: the kernel would kill its worker."""
    needed = deep.layers_bytes + BESIDE_LAYERS_BYTES
    if available_bytes >= needed:
        return ""
    return f"{bytes_text(available_bytes)} of memory available, {bytes_text(needed)} needed to measure its speed"


async def measure_speed(
    hosts: OpenHosts, engine: Engine, worker: Worker, link: Link, models: tuple[CalibrationModel, CalibrationModel]
) -> Speed:
    """Time a running worker through its link; EngineError when the bench fails."""
    shallow_prefill, shallow_decode = await _bench(hosts.controller, engine, worker, models[0])
    deep_prefill, deep_decode = await _bench(hosts.controller, engine, worker, models[1])
    layers_bytes = models[1].layers_bytes - models[0].layers_bytes
    return speed_from(shallow_prefill, shallow_decode, deep_prefill, deep_decode, layers_bytes, models[0], link)


def speed_from(
    shallow_prefill: BenchRow,
    shallow_decode: BenchRow,
    deep_prefill: BenchRow,
    deep_decode: BenchRow,
    layers_bytes: int,
    shallow: CalibrationModel,
    link: Link,
) -> Speed:
    """The slope between the two depths, and what it leaves over of the shallow one less the link's round trip.

    `layers_bytes` is how much more the deep model holds. Noise can turn the slope over; then the deep model's whole
    time is the (pessimistic) estimate.
    """
    decode_s = _slope(shallow_decode.token_s, deep_decode.token_s)
    prefill_s = _slope(shallow_prefill.token_s, deep_prefill.token_s)
    fixed_s = shallow_decode.token_s - decode_s * shallow.layers_bytes / layers_bytes - link.round_trip_s
    return Speed(
        decode_bytes_per_s=layers_bytes / decode_s,
        prefill_bytes_per_s=layers_bytes / prefill_s,
        fixed_s=max(0.0, fixed_s),
        spread=max(shallow_decode.spread, deep_decode.spread),
    )


def _slope(shallow_s: float, deep_s: float) -> float:
    return deep_s - shallow_s if deep_s > shallow_s else deep_s


async def _bench(
    controller: OpenHost, engine: Engine, worker: Worker, model: CalibrationModel
) -> tuple[BenchRow, BenchRow]:
    words = bench_command(
        str(engine.program("llama-bench")),
        models=[str(model.path)],
        prompt=PROMPT_TOKENS,
        generate=DECODED_TOKENS,
        repetitions=REPETITIONS,
        threads=1,
        micro_batch=PROMPT_TOKENS,
        placement=Placement((worker.endpoint,), (model.layers + 1,), output_on_head=False, output_tied=False),
    )
    done = await controller.shell.run(words, deadline_s=DEADLINE_S, environment=ENVIRONMENT, check=False)
    if done.status != 0:
        raise EngineError(
            f"{worker.device}: its speed could not be measured: llama-bench ended with status {done.status}",
            hint=f"see the worker's own log: `meshctl logs {worker.host}`",
            details=done.stderr.decode(errors="replace")[-2000:],
        )
    return read_bench(done.stdout)


def speed_key(host: OpenHost, kind: str, threads: int, engine_id: str, tensor_type: str) -> str:
    """What a kept speed is good for: this processor and its limits, this engine, tensor type and link kind."""
    facts = host.facts
    parts = (
        *(host.name, facts.hostname, facts.cpu_name, str(facts.cores_logical), str(facts.cpu_quota)),
        *(kind, str(threads), engine_id, tensor_type, str((SHALLOW_LAYERS, DEEP_LAYERS))),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def kept_speed(folder: Path, key: str) -> Speed | None:
    """A speed measured before; anything unreadable counts as not there, since it can be measured again."""
    try:
        return _SPEED.validate_json((folder / f"{key}.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def keep_speed(folder: Path, key: str, speed: Speed) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_private(folder / f"{key}.json", _SPEED.dump_json(speed, indent=2).decode())
