"""The errors of this package, as a tree.

QuantError
├── ModelFileError      a file that is not a usable GGUF
│   └── UnfinishedHeaderError   of which not enough has come to say so
├── ModelNameError      a name that cannot be one of a model (exit code 2)
├── ModelNotFoundError  a name that leads to no model
├── ModelFetchError     a model that could not be fetched
├── SliceError          a model that cannot be cut to its first layers
├── SplitError          a model that cannot be split into shards, or joined, as asked
├── NoRoomError         a disk without room for what is to be written
├── QuantiseError       a model that cannot be quantised as asked
└── BindingsError       the Python bindings cannot be loaded on an engine
"""


class QuantError(Exception):
    """A model problem a user can act on: what happened, and `hint`, the next move."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ModelFileError(QuantError):
    """A file that is not a usable GGUF: not GGUF at all, truncated, or a shard is missing."""


class UnfinishedHeaderError(ModelFileError):
    """A file of which not even all of the header has come yet."""


class ModelNameError(QuantError):
    """A name that cannot be one of a model, such as half of a repository's name."""


class ModelNotFoundError(QuantError):
    """A model name that leads to nothing: not in the catalogue, in no repository, no file."""


class BindingsError(QuantError):
    """The Python bindings of llama.cpp cannot be loaded on the libraries of an engine."""


class ModelFetchError(QuantError):
    """A model that could not be fetched; no file that is not whole has its name."""


class SliceError(QuantError):
    """A model that cannot be cut to its first layers; devices are then timed on a synthetic one of like shapes."""


class SplitError(QuantError):
    """A model that cannot be split into shards, or joined of them, as asked; nothing was written."""


class NoRoomError(QuantError):
    """A disk without room for what is to be written; nothing was."""


class QuantiseError(QuantError):
    """A model that cannot be quantised as asked; `details` is the end of what the engine said, if anything."""

    def __init__(self, message: str, *, hint: str = "", details: str = "") -> None:
        super().__init__(message, hint=hint)
        self.details = details
