"""Base classes of errors and warnings for users."""

from __future__ import annotations

from pathlib import Path

from .addresses import without_secrets


class EvenfieldError(Exception):
    """A mistake that the user can correct: what is wrong, where, and what to do about it.

    Every error for users derives from this class. The command line prints it as one line and exits
    with code 1. Any other exception is a bug in evenfield and is printed with its traceback.

    The text reads `FILE: record RECORD MESSAGE: REMEDY`, without the parts that are None. Passwords
    and signatures in addresses are removed, because messages end up in logs and bug reports.

    >>> print(EvenfieldError("has no cell", remedy="set pbc=false", file="mine.xyz", record=3))
    mine.xyz: record 3 has no cell: set pbc=false
    """

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        file: Path | str | None = None,
        record: int | str | None = None,
    ) -> None:
        """Describe a mistake.

        message: what is wrong, with the offending value.
        remedy: what to do about it; it names only options that the failing command has.
        file: file, folder or address that the error is about.
        record: index or id of the record in the file.
        """
        message = without_secrets(message)
        super().__init__(message)
        self.message = message
        self.remedy = None if remedy is None else without_secrets(remedy)
        self.file = None if file is None else without_secrets(str(file))
        self.record = record

    @property
    def reason(self) -> str:
        """The text without file and record: `MESSAGE: REMEDY`."""
        if self.remedy is None:
            return self.message
        return f"{self.message}: {self.remedy}"

    def __str__(self) -> str:
        text = self.reason
        if self.record is not None:
            text = f"record {self.record} {text}"
        if self.file is not None:
            text = f"{self.file}: {text}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        """Make errors picklable, because worker pools send them between processes."""
        return _rebuild, (type(self), dict(self.__dict__), self.args)


class EvenfieldWarning(UserWarning):
    """Something that the user should know, but that does not stop the command.

    Every warning for users has this class. The command line prints it as one line.
    """


class MissingPackageError(EvenfieldError):
    """An optional package is needed but not installed."""

    def __init__(self, package: str, *, needed_for: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed, and {needed_for} needs it",
            remedy=f"pip install 'evenfield[{extra}]'",
        )


def _rebuild(
    kind: type[EvenfieldError], attributes: dict[str, object], arguments: tuple[object, ...]
) -> EvenfieldError:
    """Recreate a pickled error without calling its constructor, whose arguments may differ."""
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(attributes)
    return error
