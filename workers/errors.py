"""The errors of this package, as a tree.

WorkersError
├── FactsError     an agent answer that cannot be read
└── ManifestError  an engine manifest that cannot be read or does not match its files
"""


class WorkersError(Exception):
    """A problem with what a host or its engine says: what happened, and `hint`, the next move."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class FactsError(WorkersError):
    """An agent answer that cannot be read."""


class ManifestError(WorkersError):
    """An engine manifest that cannot be read or does not match its files."""
