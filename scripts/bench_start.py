"""The command line of `scripts/bench-start`: from `up` to the first answer, and what crosses the network meanwhile.

Two hosts of a lab (as root, Linux), each with half the layers, behind slow links. Engines are installed and speeds
known before the first start that is timed. In turn: every weight over RPC as llama.cpp does by itself (the hosts may
keep no weights), first and once more, as the first one of a plan is measured; weights as files for the first time; and
starts with everything there.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab_hosts import Lab, LabHost, LabSpec, unavailable, up
from orchestrator.folders import user_folders
from orchestrator.view.sizes import bytes_text
from quant.fetch import find_model
from quant.gguf_file import read_model
from quant.model import device_tensors
from quant.synthetic import ONE_BILLION, write_random_model
from tests.end_to_end.inventories import free_port
from tests.program import Meshctl

MIB = 1024 * 1024
TENSOR_TYPE = "Q6_K"
WANTED_RATIO, WANTED_PART = 8.0, 0.05
NOTHING_KEPT = "1MiB"


@dataclass(frozen=True)
class Start:
    """One `up`: seconds until it answered, by step, and the bytes on both links, both ways."""

    name: str
    seconds: float
    steps: tuple[tuple[str, float], ...]
    carried_bytes: int


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench-start", description=__doc__)
    parser.add_argument("--rate", default="100mbit", help="of each link, in tc's words (default: 100mbit)")
    parser.add_argument("--model", choices=("135m", "1b"), default="1b")
    parser.add_argument("--warm", type=int, default=2, metavar="N", help="starts with everything there (default: 2)")
    options = parser.parse_args(words)
    for number in (signal.SIGTERM, signal.SIGHUP):  # leave by way of every `finally`: the lab goes, too
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if reason := unavailable():
        print(f"error: {reason}", file=sys.stderr)
        return 1
    model = _model(options.model)
    with tempfile.TemporaryDirectory(prefix="meshctl-bench-start-") as folder:
        hosts = tuple(LabHost(name, rate=options.rate) for name in ("host1", "host2"))
        with up(LabSpec(Path(folder, "lab"), hosts, f"bench-start-{os.getpid()}")) as lab:
            starts = _starts(lab, Path(folder), model, options.warm)
    return _report(starts, _sent_bytes(model), options.rate)


def _model(name: str) -> Path:
    cache = user_folders().cache
    if name == "135m":
        return find_model("smollm2-135m", cache, Path.cwd())
    path = cache / "bench-plan" / f"random-text-1b-{TENSOR_TYPE}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_random_model(path, ONE_BILLION, TENSOR_TYPE, reads_text=True)
    return path


def _sent_bytes(path: Path) -> int:
    """The weights of all layers: what workers have; the rest stays on the head."""
    model = read_model(path)
    return sum(tensor.size_bytes for tensor in device_tensors(model, 0, model.block_count, output=False))


def _starts(lab: Lab, folder: Path, model: Path, warm: int) -> list[Start]:
    program = Meshctl(folder, {**os.environ, "XDG_STATE_HOME": f"{folder}/state"})
    keeping = lab.inventory(model=str(model), context=512, gateway_port=free_port())
    plain = keeping.with_name("plain.yaml")
    plain.write_text(
        f"cache: 50%\n{keeping.read_text()}".replace("    user:", f'    cache: "{NOTHING_KEPT}"\n    user:')
    )
    blocks = read_model(model).block_count
    split = f"host1/cpu={blocks - blocks // 2},host2/cpu={blocks // 2}"
    program.ok("trust", str(keeping), "--yes")
    print("engines and speeds ...", file=sys.stderr)
    program.ok("plan", str(keeping), "--split", split)
    runs = [("over RPC, first", plain), ("over RPC", plain), ("files, first", keeping)]
    runs += [(f"files, again ({number})", keeping) for number in range(1, warm + 1)]
    return [_start(lab, program, name, inventory, split) for name, inventory in runs]


def _start(lab: Lab, program: Meshctl, name: str, inventory: Path, split: str) -> Start:
    print(f"{name} ...", file=sys.stderr)
    before, began = _carried(lab), time.monotonic()
    try:
        program.ok("up", str(inventory), "--detach", "--split", split)
        seconds = time.monotonic() - began
        carried = _carried(lab) - before
        took = program.ok("status", "--json").json["took"]
    finally:
        program.run("down")
    return Start(name, seconds, tuple((step["title"], step["seconds"]) for step in took), carried)


def _carried(lab: Lab) -> int:
    return sum(host.carried_bytes() for host in lab.hosts)


def _report(starts: Sequence[Start], weights: int, rate: str) -> int:
    print(f"{bytes_text(weights)} of weights on two workers, links of {rate}\n")
    print("| start | seconds | times the first | on the links | of the weights |\n| --- | --: | --: | --: | --: |")
    first = starts[0]
    for start in starts:
        ratio, part = first.seconds / start.seconds, start.carried_bytes / weights
        carried = bytes_text(start.carried_bytes)
        print(f"| {start.name} | {start.seconds:.1f} | {ratio:.1f} | {carried} | {part:.1%} |")
    print("\n| step | " + " | ".join(start.name for start in starts) + " |")
    print("| --- |" + " --: |" * len(starts))
    for title in dict.fromkeys(title for start in starts for title, _ in start.steps):
        cells = [f"{sum(s for name, s in start.steps if name == title):.1f}" for start in starts]
        print(f"| {title} | " + " | ".join(cells) + " |")
    last = starts[-1]
    met = first.seconds / last.seconds >= WANTED_RATIO and last.carried_bytes <= WANTED_PART * weights
    print(f"\nWanted: {WANTED_RATIO:g} times as fast, {WANTED_PART:.0%} of the bytes: {'met' if met else 'missed'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
