"""Detect different spellings of the same level of theory.

    plain_name("MP PBE") == plain_name("mp_pbe ") == "mppbe"

Each name gets its own head and its own zero of energy. Two spellings of one name would silently
divide the data between two heads.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Iterable

from .errors import EvenfieldError


# characters between the parts of a name, besides blanks
SEPARATORS = "_-"


def plain_name(name: str) -> str:
    """A name without case, blanks, separators, invisible characters and Unicode variants.

    Two spellings of the same name have the same plain name.
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    # case folding can separate letters from their accents, so normalise again
    letters = unicodedata.normalize("NFKC", folded)
    return "".join(letter for letter in letters if _counts(letter))


def _counts(letter: str) -> bool:
    # blanks and invisible characters do not count
    is_blank = letter.isspace() or unicodedata.category(letter) in ("Cf", "Cc")
    return not is_blank and letter not in SEPARATORS


def spelt_alike(name: str, others: Iterable[str]) -> str | None:
    """The first of `others` that is another spelling of `name`, or None."""
    plain = plain_name(name)
    for other in others:
        if other != name and plain_name(other) == plain:
            return other
    return None


def two_spellings(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two of the names that are spellings of the same name, or None."""
    seen: dict[str, str] = {}
    for name in names:
        earlier = seen.setdefault(plain_name(name), name)
        if earlier != name:
            return earlier, name
    return None


def refuse_two_spellings(
    names: Iterable[str], kind: type[EvenfieldError], *, file: str | None, remedy: str
) -> None:
    """Raise an error of class `kind` if two of the names are spellings of the same name.

    file, remedy: parts of the error.
    """
    found = two_spellings(names)
    if found is not None:
        first, second = found
        raise kind(
            f"has the levels of theory {first!r} and {second!r}, which are spelt almost alike and "
            "would be learned apart",
            file=file,
            remedy=remedy,
        )


def refuse_other_spelling(
    names: Iterable[str],
    known: Iterable[str],
    kind: type[EvenfieldError],
    *,
    owner: str,
    file: str | None,
    remedy: Callable[[str], str],
) -> None:
    """Raise an error of class `kind` for a new name that is another spelling of a known one.

    owner: what the known names belong to, such as "the model".
    file: part of the error.
    remedy: returns the remedy, given the known name.
    """
    known = list(known)
    for name in names:
        other = spelt_alike(name, known)
        if other is not None and name not in known:
            raise kind(
                f"level of theory {name!r} is spelt almost like {other!r} of {owner}, and would "
                "get a head of its own",
                file=file,
                remedy=remedy(other),
            )


def likely_meant(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: another spelling or a similar name, or None."""
    known = list(known)
    alike = spelt_alike(name, known)
    if alike is not None:
        return alike
    by_plain = {plain_name(other): other for other in known}
    close = difflib.get_close_matches(plain_name(name), by_plain, n=1, cutoff=0.75)
    return by_plain[close[0]] if close else None
