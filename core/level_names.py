"""Names of levels of theory: which of them are the same name, spelt in two ways.

    plain_name("MP PBE") == plain_name("mp_pbe ") == "mppbe"

Each name has a head and a zero of energy of its own. Two spellings of one name would silently
divide the data between two heads.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Iterable

from .errors import EvenfieldError


# what people put between the parts of a name, or leave out
SEPARATORS = "_-"


def plain_name(name: str) -> str:
    """A name without what two spellings of it may differ in: case, blanks, forms of Unicode."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    # a letter and its accent may come apart again when the case is folded
    letters = unicodedata.normalize("NFKC", folded)
    return "".join(letter for letter in letters if _counts(letter))


def _counts(letter: str) -> bool:
    # blanks of all kinds, and marks that nobody can see
    is_blank = letter.isspace() or unicodedata.category(letter) in ("Cf", "Cc")
    return not is_blank and letter not in SEPARATORS


def spelt_alike(name: str, others: Iterable[str]) -> str | None:
    """The first of the other names that is another spelling of this one, or None."""
    plain = plain_name(name)
    for other in others:
        if other != name and plain_name(other) == plain:
            return other
    return None


def two_spellings(names: Iterable[str]) -> tuple[str, str] | None:
    """Two of some names that are one name in two spellings, or None."""
    seen: dict[str, str] = {}
    for name in names:
        earlier = seen.setdefault(plain_name(name), name)
        if earlier != name:
            return earlier, name
    return None


def refuse_two_spellings(
    names: Iterable[str], kind: type[EvenfieldError], *, file: str | None, remedy: str
) -> None:
    """Raise an error of this kind where two of the names are one name in two spellings."""
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
    """Raise an error of this kind for a name that is new and another spelling of a known one.

    owner: what has the known names, such as "the model".
    remedy: what to do about it, by the known name.
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
    """The known name that was probably meant: another spelling, or one with few other letters."""
    known = list(known)
    alike = spelt_alike(name, known)
    if alike is not None:
        return alike
    by_plain = {plain_name(other): other for other in known}
    close = difflib.get_close_matches(plain_name(name), by_plain, n=1, cutoff=0.75)
    return by_plain[close[0]] if close else None
