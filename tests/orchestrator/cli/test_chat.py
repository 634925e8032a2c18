"""What is piped into `meshctl chat`."""

import io

import pytest

from orchestrator.cli.chat import piped_text
from orchestrator.errors import UsageError


def test_text_is_taken_whole() -> None:
    assert piped_text(io.TextIOWrapper(io.BytesIO("Käse\n".encode()), encoding="utf-8")) == "Käse\n"


def test_what_is_no_text_is_an_error_that_says_so() -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"\x7fELF\xff"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"^what was piped in is no text: byte 4 is not utf-8$"):
        piped_text(stdin)
