"""A device whose worker the kernel would kill is not measured."""

from pathlib import Path

from orchestrator.survey.speeds import CalibrationModel, too_little_memory
from workers.budget import MIB

DEEP = CalibrationModel(Path("deep.gguf"), 6, 54 * MIB)


def test_the_numbers_are_said_when_the_calibration_model_does_not_fit() -> None:
    assert too_little_memory(66 * MIB, DEEP) == ""
    assert too_little_memory(48 * MIB, DEEP) == ("48.0 MiB of memory available, 66.0 MiB needed to measure its speed")
