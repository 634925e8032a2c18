"""What may be asked of a plan on the command line, and what is refused before any host is reached."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.cli import planning
from orchestrator.cli.arguments import KnownHosts, read_wishes, wish_options
from orchestrator.errors import UsageError
from orchestrator.inventory import Inventory
from orchestrator.plan.values import ModelMemory
from orchestrator.survey.values import survey_json
from orchestrator.wishes import Wishes
from tests.orchestrator.plan.examples import make_device, make_memories, make_memory, make_survey

ROOT = Path(__file__).parents[3]
HOSTS = KnownHosts(("desktop", "laptop"), "inventory.yaml")


def wishes(
    *,
    mode: str | None = None,
    devices: str | None = None,
    split: str | None = None,
    goal: str | None = None,
    cache_type: str | None = None,
) -> Wishes:
    return read_wishes(
        HOSTS, mode=mode, devices=devices, split=split, goal=goal, recalibrate=False, cache_type=cache_type
    )


def test_without_options_nothing_is_asked() -> None:
    assert wishes() == Wishes()


def test_devices_are_a_set_of_names() -> None:
    assert wishes(devices="laptop/cpu, desktop/cuda0") == Wishes(frozenset({"desktop/cuda0", "laptop/cpu"}))


def test_a_split_keeps_its_order_and_is_of_mode_layers() -> None:
    asked = wishes(split="laptop/cpu=12, desktop/cpu=20")
    assert asked == Wishes(frozenset({"desktop/cpu", "laptop/cpu"}), "layers", {"laptop/cpu": 12, "desktop/cpu": 20})
    assert list(asked.split or ()) == ["laptop/cpu", "desktop/cpu"]


@pytest.mark.parametrize(
    "asked",
    [
        Wishes(),
        Wishes(recalibrate=True),
        wishes(mode="tensor", devices="laptop/cpu,desktop/cpu", goal="throughput"),
        wishes(split="laptop/cpu=12,desktop/cpu=20", goal="latency"),
        wishes(split="laptop/cpu=12,desktop/cpu=20", cache_type="q8_0"),
        wishes(cache_type="f16"),
    ],
)
def test_a_supervisor_is_started_with_the_same_wishes(asked: Wishes) -> None:
    words = list(wish_options(asked))
    values: dict[str, str | None] = dict.fromkeys(("mode", "devices", "split", "goal", "cache-type"))
    recalibrate = "--recalibrate" in words
    words = [word for word in words if word != "--recalibrate"]
    values.update({option[2:]: value for option, value in zip(words[::2], words[1::2], strict=True)})
    assert (
        read_wishes(
            HOSTS,
            mode=values["mode"],
            devices=values["devices"],
            split=values["split"],
            goal=values["goal"],
            recalibrate=recalibrate,
            cache_type=values["cache-type"],
        )
        == asked
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": ","}, '--devices "," names no device'),
        ({"devices": "lapdog/cpu"}, "--devices lapdog/cpu: no such host in inventory.yaml"),
        ({"devices": "laptop"}, "--devices laptop: not the name of a device"),
        ({"devices": "laptop/gpu"}, "--devices laptop/gpu: not the name of a device"),
        ({"split": " "}, '--split " " names no device'),
        ({"split": "laptop/cpu"}, '--split: "laptop/cpu" is not a device and its layers'),
        ({"split": "laptop/cpu=0"}, '--split: "laptop/cpu=0" is not a device and its layers'),
        ({"split": "laptop/cpu=many"}, '--split: "laptop/cpu=many" is not a device and its layers'),
        ({"split": "laptop/cpu=1,laptop/cpu=2"}, "--split: laptop/cpu is there twice"),
        ({"split": "lapdog/cpu=1"}, "--split lapdog/cpu: no such host in inventory.yaml"),
        ({"split": "laptop/cpu=1", "mode": "tensor"}, "--split and --mode tensor exclude each other"),
        ({"split": "laptop/cpu=1", "devices": "desktop/cpu"}, "--split and --devices name other devices"),
        ({"cache_type": "f32"}, '--cache-type: "f32" takes twice the memory of f16'),
        (
            {"cache_type": "q8_0,q4_0"},
            "--cache-type: keys and values of different types are not known to be safe over RPC, and CUDA has no"
            " kernels of its own for them",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_hint(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        wishes(**options)
    assert str(refused.value) == message
    assert refused.value.hint


@pytest.mark.parametrize("command", ["up", "plan", "bench", "supervise"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--split", "left/cpu=x"), 'error: --split: "left/cpu=x" is not a device and its layers\nhint: write each'),
        (("--split", "left/cpu=3", "--mode", "single"), "error: --split and --mode single exclude each other\nhint: "),
    ],
)
def test_a_wrong_split_reaches_no_host(tmp_path: Path, command: str, words: tuple[str, ...], message: str) -> None:
    done = meshctl(tmp_path, command, "inventory.yaml", *words)
    assert done.stderr.startswith(message)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--without", "middle"), "error: --without middle: no such host\nhint: name one of left, right\n"),
        (
            ("--add", "new=1GiB"),
            'error: --add "new=1GiB": needs a name, a memory, a speed and a link\nhint: write NAME=',
        ),
        (("--add", "new=1GiB,rihgt*2,wifi"), "error: --add new: its speed is that of rihgt, and there is no such host"),
        (("--add", "left=1GiB,right,wifi"), "error: --add left: this host is there already\nhint: choose another name"),
        (("--add", "new=0GiB,left,wifi"), 'error: --add "new=0GiB,left,wifi": "0GiB" is too little to hold anything'),
        (("--add", "=1GiB,left,wifi"), 'error: --add "=1GiB,left,wifi": needs a name, a memory, a speed and a link'),
        (("--devices", "left/cpu,left/cpu"), "error: --devices: left/cpu is there twice\nhint: name each device once"),
        (
            ("--without", "left", "--devices", "left/cpu"),
            "error: --devices left/cpu: no such host in inventory.yaml without left\n",
        ),
        (("--survey", "here.json"), "error: here.json: No such file or directory\nhint: write one with"),
        (("--survey", "here.json", "--recalibrate"), "error: --survey and --recalibrate exclude each other\nhint: "),
    ],
)
def test_wrong_what_ifs_reach_no_host(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = meshctl(tmp_path, "plan", "inventory.yaml", *words)
    assert done.stderr.startswith(message)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("words", "allowed"),
    [(("--mode", "layer"), "'replicas'"), (("--goal", "speed"), "'throughput'")],
)
def test_other_modes_and_goals_are_refused_with_those_there_are(
    tmp_path: Path, words: tuple[str, str], allowed: str
) -> None:
    done = meshctl(tmp_path, "plan", "inventory.yaml", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert allowed in done.stderr


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved survey of two hosts, the inventory beside it, and a model counted beforehand."""
    shutil.copy(ROOT / "inventory.yaml", tmp_path)
    devices = [make_device("left/cpu", 700), make_device("right/cpu", 800)]
    survey = make_survey(devices, local=["left"])
    (tmp_path / "survey.json").write_text(survey_json(survey))
    monkeypatch.setattr(planning, "_memories", lambda *others: counted())
    return tmp_path


def counted() -> tuple[ModelMemory, ...]:
    return make_memories(make_memory())


def test_a_saved_survey_is_planned_from_without_any_host(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planning.plan(saved / "inventory.yaml", survey=saved / "survey.json", mode="layers")
    shown = capsys.readouterr().out
    assert shown.startswith("llama.gguf: layers over 2 devices")
    assert "left/cpu" in shown
    assert "right/cpu" in shown


DOUBTS = (
    "s.json was measured on left, right: these are planned for, not left, up",
    "s.json was not measured with 3 conversations at once: their speed is worked out between others",
)


@pytest.mark.parametrize(
    ("hosts", "parallel", "what_if", "doubts"),
    [
        ("left right", 1, {}, ()),
        ("left up", 3, {}, DOUBTS),
        ("left", 1, {"without": ["right"]}, ()),
        ("left new", 1, {"without": ["right"], "add": ["new=1GiB,left,gigabit"]}, ()),
    ],
)
def test_what_a_saved_survey_is_not_of_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hosts: str,
    parallel: int,
    what_if: dict[str, list[str]],
    doubts: tuple[str, ...],
) -> None:
    """As `model fit` does; hosts that are taken away or added on purpose are no doubt."""
    monkeypatch.chdir(tmp_path)
    survey = make_survey([make_device("left/cpu", 2000), make_device("right/cpu", 2000)])
    Path("s.json").write_text(survey_json(survey))
    there = "".join(f"  - {{name: {name}, connection: ssh, address: {name}.invalid}}\n" for name in hosts.split())
    Path("inventory.yaml").write_text(f"cluster: demo\nmodel: smollm2-135m\nparallel: {parallel}\nhosts:\n{there}")
    engine = SimpleNamespace(folder=tmp_path, manifest=SimpleNamespace(engine=survey.engine))
    monkeypatch.setattr("orchestrator.engine.stock.Stock.cpu", answering(engine))
    monkeypatch.setattr("orchestrator.prepare.prepare_model", answering(None))
    monkeypatch.setattr("quant.slice.shape_digest", lambda model: survey.shape)
    monkeypatch.setattr("orchestrator.prepare.prepare_memories", answering(counted()))
    planning.plan(Path("inventory.yaml"), survey=Path("s.json"), without=what_if.get("without"), add=what_if.get("add"))
    said = " ".join(capsys.readouterr().err.split())
    assert [doubt for doubt in DOUBTS if doubt in said] == [*doubts]


def answering(answer: object) -> Callable[..., Awaitable[object]]:
    async def ask(*asked: object) -> object:
        return answer

    return ask


def test_a_narrow_terminal_loses_no_figure(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wraps lines that are longer; figures cut off at its edge would be others."""
    for columns in ("80", "40"):
        monkeypatch.setenv("COLUMNS", columns)
        planning.plan(saved / "inventory.yaml", survey=saved / "survey.json", mode="layers")
    shown = capsys.readouterr().out
    assert shown[: len(shown) // 2] == shown[len(shown) // 2 :]


def test_what_a_terminal_cannot_show_is_a_question_mark(tmp_path: Path) -> None:
    done = meshctl(tmp_path, "status", "--cluster", "größe", PYTHONIOENCODING="ascii")
    assert done.stderr.startswith("error: no cluster gr??e is known")


def test_one_machine_more_may_hold_everything(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planning.plan(
        saved / "inventory.yaml",
        survey=saved / "survey.json",
        json=True,
        mode="single",
        without=["right"],
        add=["new=16GiB,left*2,gigabit"],
    )
    chosen = json.loads(capsys.readouterr().out)["plans"][0]
    assert [share["device"] for group in chosen["groups"] for share in group["shares"]] == ["new/cpu"]


def test_a_forced_split_is_the_plan(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planning.plan(saved / "inventory.yaml", survey=saved / "survey.json", json=True, split="right/cpu=6,left/cpu=4")
    chosen = json.loads(capsys.readouterr().out)["plans"][0]
    assert [(one["device"], one["layers"]) for one in chosen["groups"][0]["shares"]] == [
        ("right/cpu", 6),
        ("left/cpu", 4),
    ]


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_the_goal_asked_for_overrides_the_inventory(saved: Path, capsys: pytest.CaptureFixture[str], goal: str) -> None:
    planning.plan(saved / "inventory.yaml", survey=saved / "survey.json", json=True, goal=goal)  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out)["goal"] == goal


def test_the_cache_type_asked_for_overrides_the_inventory(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is counted with it, and the plan says so."""

    def count(inventory: Inventory, *others: object) -> tuple[ModelMemory, ...]:
        return tuple(replace(memory, cache_type=inventory.cache_type) for memory in counted())

    monkeypatch.setattr(planning, "_memories", count)
    planning.plan(saved / "inventory.yaml", survey=saved / "survey.json", json=True, cache_type="q8_0", mode="layers")
    told = json.loads(capsys.readouterr().out)
    assert (told["cache_type"], told["plans"][0]["groups"][0]["flash_attention"]) == ("q8_0", "on")
    assert told["plans"][0]["reasons"][:2] == [
        "mode layers was asked for",
        "keys and values are kept as q8_0: 34 bytes for 32 numbers, where f16 takes 64",
    ]
    planning.plan(saved / "inventory.yaml", survey=saved / "survey.json", json=True, mode="layers")
    told = json.loads(capsys.readouterr().out)
    assert (told["cache_type"], told["plans"][0]["groups"][0]["flash_attention"]) == ("f16", "auto")


def test_flash_attention_that_is_off_in_the_inventory_is_in_the_plan_and_its_reasons(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory = saved / "inventory.yaml"
    inventory.write_text(f"{inventory.read_text()}flash_attention: off\n")

    def count(inventory: Inventory, *others: object) -> tuple[ModelMemory, ...]:
        return tuple(replace(memory, flash_attention=inventory.flash_attention) for memory in counted())

    monkeypatch.setattr(planning, "_memories", count)
    planning.plan(inventory, survey=saved / "survey.json", json=True, mode="layers")
    (plan, *_) = json.loads(capsys.readouterr().out)["plans"]
    assert plan["groups"][0]["flash_attention"] == "off"
    assert "flash attention is off, as the inventory has it" in plan["reasons"]


def test_a_saved_survey_proposes_no_mode_that_the_engine_refuses_of_this_cache_type(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The survey was taken with another one."""
    refused = tuple(replace(memory, tensor_refused="q8_0 cannot be cut") for memory in counted())
    monkeypatch.setattr(planning, "_memories", lambda *others: refused)
    planning.plan(saved / "inventory.yaml", survey=saved / "survey.json", json=True)
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert "tensor" not in {plan["mode"] for plan in plans}
    assert "no tensor: the engine cannot cut this model's layers (q8_0 cannot be cut)" in plans[0]["reasons"]


def meshctl(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program as a user starts it, beside a copy of the root inventory of the hosts left and right."""
    shutil.copy(ROOT / "inventory.yaml", folder)
    own = {"XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"}
    return subprocess.run(
        (sys.executable, "-m", "orchestrator", *words),
        cwd=folder,
        env={**os.environ, **own, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
