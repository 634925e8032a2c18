"""The agent's verbs for packs of weights, each run as a program as a host runs it."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from workers import agent

PYTHON = os.environ.get("AGENT_PYTHON", sys.executable)
TOKEN = "0f12"


def ask(*words: str, tensors: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    (answer,) = said(*words, tensors=tensors)
    return answer


def said(*words: str, tensors: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """All that it says; the last is its answer."""
    finished = subprocess.run(
        (PYTHON, "-I", "-S", str(agent.__file__), *words),
        input=json.dumps(tensors or []).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    lines: list[dict[str, Any]] = [json.loads(line) for line in finished.stdout.splitlines()]
    assert finished.returncode == (1 if "error" in lines[-1] else 0), finished.stderr
    return lines


def tensor(content: bytes, name: str = "", offset: int = 0) -> dict[str, Any]:
    """As the controller names it: any sixteen digits do for the engine's hash here."""
    digest = hashlib.blake2b(content).hexdigest()
    return {
        "name": name or hashlib.sha256(content).hexdigest()[:16],
        "size_bytes": len(content),
        "blake2b": digest,
        "shard": "a.gguf",
        "offset": offset,
    }


A, B, C = b"first" * 1000, b"second" * 1000, b"third" * 1000


def put(item: Path, *contents: bytes) -> list[dict[str, Any]]:
    """Bring tensors as the controller does; gives what they are asked for by."""
    tensors = [tensor(content) for content in contents]
    look(item, tensors)
    for one, content in zip(tensors, contents, strict=True):
        (item / "coming" / f"{one['name']}.{TOKEN}").write_bytes(content)
        assert take(item, one) == {"right": True}
    return tensors


def look(item: Path, tensors: list[dict[str, Any]], *options: str) -> dict[str, Any]:
    return ask("pack", str(item), TOKEN, *options, tensors=tensors)


def take(item: Path, one: dict[str, Any]) -> dict[str, Any]:
    return ask("take", str(item), one["name"], TOKEN, str(one["size_bytes"]), one["blake2b"])


def files(item: Path) -> list[str]:
    there = (path for path in item.rglob("*") if path.is_file() and path.name != agent.MANIFEST)
    return sorted(str(path.relative_to(item)) for path in there)


@pytest.fixture
def item(tmp_path: Path) -> Path:
    return tmp_path / "packs" / "tiny-0f12"


NOTHING = {"missing": [], "coming": {}, "damaged": [], "spare_bytes": 0}


def test_a_tensor_that_has_come_whole_gets_its_name(item: Path) -> None:
    one, other = tensor(A), tensor(B)
    assert look(item, [one, other]) == {**NOTHING, "missing": [one["name"], other["name"]]}
    (item / "coming" / f"{one['name']}.{TOKEN}").write_bytes(A)
    assert take(item, one) == {"right": True}
    assert files(item) == [f"rpc/{one['name']}"]
    assert look(item, [one, other], "--every-byte") == {**NOTHING, "missing": [other["name"]]}
    assert look(item, [one]) == NOTHING
    assert agent.problems(str(item), hashes=True) == []


@pytest.mark.parametrize("came", [A[:-1], A + b"x", b"F" + A[1:]])
def test_what_has_not_come_as_it_was_sent_is_removed(item: Path, came: bytes) -> None:
    one = tensor(A)
    look(item, [one])
    (item / "coming" / f"{one['name']}.{TOKEN}").write_bytes(came)
    assert take(item, one) == {"right": False}
    assert files(item) == []


def test_a_transfer_that_was_cut_off_is_told_to_its_sender_and_kept_for_a_week(item: Path) -> None:
    one, other = tensor(A), tensor(B)
    look(item, [one, other])
    mine, theirs, old = (item / "coming" / f"{one['name']}.{token}" for token in (TOKEN, "1e34", "2d56"))
    for path in (mine, theirs, old):
        path.write_bytes(A[:7])
    os.utime(old, (time.time() - 8 * 24 * 3600,) * 2)
    assert look(item, [one, other]) == {
        **NOTHING,
        "missing": [one["name"], other["name"]],
        "coming": {one["name"]: 7},
    }
    assert files(item) == sorted(str(path.relative_to(item)) for path in (mine, theirs))


@pytest.mark.parametrize("damage", [A[:-1], A + b"x", b"", None, b"F" + A[1:]])
def test_what_is_damaged_is_found_and_removed_before_a_start(item: Path, damage: bytes | None) -> None:
    """Shorter, longer, empty, gone, or with another byte."""
    one, other = put(item, A, B)
    path = item / "rpc" / one["name"]
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    assert look(item, [one, other]) == {**NOTHING, "missing": [one["name"]], "damaged": [one["name"]]}
    assert files(item) == [f"rpc/{other['name']}"]


def test_damage_that_changes_nothing_but_bytes_is_found_when_every_byte_is_read(item: Path) -> None:
    """As a disk that rots: the record says that the file is unchanged since it was last right."""
    (one,) = put(item, A)
    path = item / "rpc" / one["name"]
    path.write_bytes(b"F" + A[1:])
    (record,) = agent.read_record(str(item))
    agent.write_record(str(item), record._replace(changed_ns=path.stat().st_ctime_ns))
    assert look(item, [one]) == NOTHING
    assert look(item, [one], "--every-byte") == {**NOTHING, "missing": [one["name"]], "damaged": [one["name"]]}


def test_what_no_record_speaks_of_is_removed_and_what_is_right_is_recorded(item: Path) -> None:
    """The engine's worker writes there itself, in place: half a tensor under its final name, or another model's."""
    one, other = put(item, A)[0], tensor(B)
    stray = item / "rpc" / ("0" * 16)
    stray.write_bytes(C)
    (item / "rpc" / other["name"]).write_bytes(B)
    half = tensor(C)
    (item / "rpc" / half["name"]).write_bytes(C[:100])
    (item / "elsewhere").mkdir()
    assert look(item, [one, other, half]) == {**NOTHING, "missing": [half["name"]]}
    assert files(item) == sorted([f"rpc/{one['name']}", f"rpc/{other['name']}"])
    assert sorted(path.name for path in item.iterdir()) == ["coming", agent.MANIFEST, "rpc"]


def test_tensors_of_other_plans_stay_until_there_is_no_room(item: Path) -> None:
    one, other = put(item, A, B)
    assert look(item, [one]) == {**NOTHING, "spare_bytes": len(B)}
    assert ask("thin", str(item), tensors=[one]) == {"removed_bytes": 0}  # somebody has just put it there
    os.utime(item / "rpc" / other["name"], (time.time() - 7200,) * 2)
    assert ask("thin", str(item), tensors=[one]) == {"removed_bytes": len(B)}
    assert files(item) == [f"rpc/{one['name']}"]
    assert look(item, [one, other]) == {**NOTHING, "missing": [other["name"]]}


def test_of_a_damaged_pack_only_what_is_damaged_goes(item: Path) -> None:
    one, other = put(item, A, B)
    (item / "rpc" / one["name"]).write_bytes(b"F" + A[1:])
    (found,) = agent.problems(str(item), hashes=True)
    assert found == {"path": f"rpc/{one['name']}", "why": "has changed: its blake2b is not the one it was put with"}
    assert ask("mend", str(item)) == {"removed": [one["name"]]}
    assert files(item) == [f"rpc/{other['name']}"]
    assert agent.problems(str(item), hashes=True) == []


def test_tensors_are_carved_out_of_a_copy_of_the_model(item: Path, tmp_path: Path) -> None:
    model = tmp_path / "models" / "0f12"
    model.mkdir(parents=True)
    (model / "a.gguf").write_bytes(b"header" + A + B + C[:-1])
    tensors = [tensor(A, offset=6), tensor(B, offset=7 + len(A)), tensor(C, offset=6 + len(A) + len(B))]
    look(item, tensors)
    assert ask("carve", str(item), str(model), tensors=tensors) == {"carved": [tensors[0]["name"]], "full": ""}
    assert files(item) == [f"rpc/{tensors[0]['name']}"]
    assert (item / "rpc" / tensors[0]["name"]).read_bytes() == A
    assert ask("carve", str(item), str(tmp_path / "nothing"), tensors=tensors[1:]) == {"carved": [], "full": ""}


def test_a_piece_in_runs_is_carved_out_of_its_rows(item: Path, tmp_path: Path) -> None:
    run, stride, count = 3000, 10_000, 400
    content = bytes(range(256)) * (stride * count // 256 + 1)
    wanted = b"".join(content[7 + at : 7 + at + run] for at in range(0, stride * count, stride))
    (tmp_path / "a.gguf").write_bytes(content[: 7 + stride * (count - 1) + run])
    piece = {**tensor(wanted, offset=7), "run_bytes": run, "stride_bytes": stride}
    look(item, [piece])
    assert ask("carve", str(item), str(tmp_path), tensors=[piece]) == {"carved": [piece["name"]], "full": ""}
    assert (item / "rpc" / piece["name"]).read_bytes() == wanted
    (tmp_path / "a.gguf").write_bytes(content[: 7 + stride * (count - 1) + run - 1])
    (item / "rpc" / piece["name"]).unlink()
    look(item, [piece])
    assert ask("carve", str(item), str(tmp_path), tensors=[piece]) == {"carved": [], "full": ""}


def test_how_far_reading_and_carving_have_come_is_told_before_the_answer(item: Path, tmp_path: Path) -> None:
    tensors = put(item, A, B)
    total = len(A) + len(B)
    *told, answer = said("pack", str(item), TOKEN, "--every-byte", "--tell", tensors=tensors)
    assert answer == NOTHING
    assert told == [{"done_bytes": done, "total_bytes": total} for done in (len(A), total)]
    (tmp_path / "a.gguf").write_bytes(A)
    other = tmp_path / "packs" / "other"
    look(other, tensors)
    *told, answer = said("carve", str(other), str(tmp_path), "--tell", tensors=tensors)
    assert answer == {"carved": [tensors[0]["name"]], "full": ""}
    assert told == [{"done_bytes": len(A), "total_bytes": total}]


@pytest.mark.parametrize(
    "change", [{"name": "../../evil"}, {"name": "0F" * 8}, {"shard": "../a.gguf"}, {"shard": "/a"}]
)
def test_no_name_leads_out_of_the_pack(item: Path, change: dict[str, str]) -> None:
    wrong = {**tensor(A), **change}
    assert look(item, [wrong]) == {"error": f"{wrong['name']} of {wrong['shard']} is no tensor of a pack"}
    assert not item.exists()


def test_a_worker_does_not_start_on_a_pack_that_has_lost_a_part(item: Path) -> None:
    (one,) = put(item, A)
    os.close(agent.hold_item(str(item)))
    (item / "rpc" / one["name"]).write_bytes(A[:-1])
    with pytest.raises(agent.AgentError, match=f"rpc/{one['name']} has {len(A) - 1} bytes, not the {len(A)}"):
        agent.hold_item(str(item))


def test_a_worker_does_not_start_on_a_pack_whose_manifest_is_lost(item: Path) -> None:
    put(item, A)
    (item / agent.MANIFEST).unlink()
    with pytest.raises(agent.AgentError, match="is not whole"):
        agent.hold_item(str(item))


def test_a_tensor_is_taken_once_more_when_the_answer_was_lost(item: Path) -> None:
    (one,) = put(item, A)
    assert take(item, one) == {"right": True}
    (item / "rpc" / one["name"]).write_bytes(b"F" + A[1:])
    assert take(item, one) == {"right": False}


def test_a_folder_is_one_place_by_whatever_path(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "link").symlink_to("one")
    one, two, link = (ask("place", str(tmp_path / name))["place"] for name in ("one", "two", "link"))
    assert one == link
    assert len({one, two, ""}) == 3


def test_a_pack_that_is_being_filled_is_not_removed(item: Path) -> None:
    put(item, A)
    coming = item / "coming" / f"{tensor(B)['name']}.{TOKEN}"
    coming.write_bytes(B[:7])
    assert not agent.forget_item(str(item))
    coming.unlink()
    assert agent.forget_item(str(item))
    assert not item.exists()


def test_what_cannot_be_read_counts_as_damaged(item: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector: the start goes on with what is put there anew."""
    (one,) = put(item, A)

    def bad_sector(path: str, digest: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(agent, "hash_file", bad_sector)
    read = agent.read_again(str(item), {f"rpc/{one['name']}"}, agent.Teller(False, 0))
    assert agent.remove_wrong(str(item), read) == [one["name"]]


def test_weights_of_a_transfer_that_nobody_goes_on_with_are_tidied_away_after_a_week(item: Path) -> None:
    put(item, A)
    days = {"young": 6, "old": 8}
    for name, count in days.items():
        path = item / "coming" / f"{tensor(B)['name']}.{name}"
        path.write_bytes(B)
        os.utime(path, (time.time() - count * 24 * 3600,) * 2)
    removed = ask("tidy", "--root", str(item.parents[1]))["removed"]
    assert removed == [f"packs/{item.name}/coming/{tensor(B)['name']}.old"]
