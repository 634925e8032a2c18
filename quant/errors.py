"""The errors of this package, as a tree.

QuantError
├── ModelFileError      a file that is not a usable GGUF
├── ModelNotFoundError  a name that leads to no model
├── SliceError          a model that cannot be cut to its first layers
└── BindingsError       the Python bindings cannot be loaded on an engine
"""


class QuantError(Exception):
    """A model problem a user can act on: what happened, and `hint`, the next move."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ModelFileError(QuantError):
    """A file that is not a usable GGUF: not GGUF at all, truncated, or a shard is missing."""


class ModelNotFoundError(QuantError):
    """A model name that is neither in the catalogue nor a file."""


class BindingsError(QuantError):
    """The Python bindings of llama.cpp cannot be loaded on the libraries of an engine."""


class ModelFetchError(QuantError):
    """A model of the catalogue that could not be fetched; nothing of it is left behind."""


class SliceError(QuantError):
    """A model that cannot be cut to its first layers; devices are then timed on a synthetic one of like shapes."""
