"""The errors of this package, as a tree.

WorkersError
├── FactsError     an answer of an agent or of an engine's program that cannot be read
│   └── LostResultsError  results that the program has, but did not come to write
└── ManifestError  an engine manifest that cannot be read or does not match its files
"""


class WorkersError(Exception):
    """A problem with what a host or its engine says: what happened, and `hint`, the next move."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class FactsError(WorkersError):
    """An answer of an agent or of an engine's program that cannot be read."""


class LostResultsError(FactsError):
    """Results that the program has, but did not come to write: it may the next time."""


class ManifestError(WorkersError):
    """An engine manifest that cannot be read or does not match its files."""
