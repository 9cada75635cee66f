"""The classes of errors and warnings that are meant for a user, and what each must say."""

from __future__ import annotations

from pathlib import Path

from .addresses import without_secrets


class EvenfieldError(Exception):
    """A mistake that a user can correct: what is wrong, where, and what to do about it.

    Every error meant for a user derives from this class. The command line prints it as one line
    and exits with 1. Any other exception is a bug of evenfield, and keeps its traceback.

    The text reads `FILE: record RECORD MESSAGE: REMEDY`, with the parts that are known. Passwords
    and signatures in addresses are left out: messages end up in logs and in reports of bugs.

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
        """`message` holds the offending value; `remedy` names only what exists for this command."""
        message = without_secrets(message)
        super().__init__(message)
        self.message = message
        self.remedy = None if remedy is None else without_secrets(remedy)
        self.file = None if file is None else without_secrets(str(file))
        self.record = record

    @property
    def reason(self) -> str:
        """The text without the place: `MESSAGE: REMEDY`."""
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
        """Errors cross process boundaries: worker pools pickle them."""
        return _rebuild, (type(self), dict(self.__dict__), self.args)


class EvenfieldWarning(UserWarning):
    """Something that a user should know, and that stops nothing.

    Every warning meant for a user is of this class. The command line prints it as one line.
    """


class MissingPackageError(EvenfieldError):
    """An optional package that the call needs is not installed."""

    def __init__(self, package: str, *, needed_for: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed, and {needed_for} needs it",
            remedy=f"pip install 'evenfield[{extra}]'",
        )


def _rebuild(
    kind: type[EvenfieldError], attributes: dict[str, object], arguments: tuple[object, ...]
) -> EvenfieldError:
    """An error of a subclass, whatever its constructor takes."""
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(attributes)
    return error
