"""Certificates: what is read, what is made, and what is said of them."""

import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.certificates import (
    RENEWED_BEFORE,
    VALID_FOR,
    check_key,
    fingerprint,
    names_of,
    read_certificate,
    self_signed,
    validity_problem,
)
from tests.orchestrator.certificate_files import NOW, write_pair


def test_a_made_certificate_is_for_its_names_and_its_key_belongs_to_it(tmp_path: Path) -> None:
    path = tmp_path / "both.pem"
    path.write_text(self_signed(("nuc", "10.0.0.2", "::1"), NOW))
    assert names_of(read_certificate(path)) == {"nuc", "10.0.0.2", "::1"}
    check_key(path, path)


@pytest.mark.parametrize(
    ("later", "problem"),
    [
        (timedelta(), ""),
        (VALID_FOR - RENEWED_BEFORE - timedelta(hours=1), ""),
        (VALID_FOR - RENEWED_BEFORE, "expires on {end}"),
        (VALID_FOR, "expired on {end}"),
        (-timedelta(days=3), "is not valid before {begin}"),
    ],
)
def test_whether_it_is_valid_is_said_in_words(tmp_path: Path, later: timedelta, problem: str) -> None:
    certificate = read_certificate(write_pair(tmp_path)[0])
    begin, end = f"{NOW - timedelta(days=1):%Y-%m-%d}", f"{NOW + VALID_FOR:%Y-%m-%d}"
    assert validity_problem(certificate, NOW + later) == problem.format(begin=begin, end=end)


def test_the_fingerprint_is_openssls(tmp_path: Path) -> None:
    path, _ = write_pair(tmp_path)
    words = ("openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", str(path))
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout
    assert said.strip().partition("=")[2] == fingerprint(read_certificate(path))
