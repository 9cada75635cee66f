"""Decide whether the licence of data allows publishing a model trained on them.

Licences are given as SPDX identifiers. Several licences that apply together are written as
`MIT AND CC-BY-4.0`.
"""

from __future__ import annotations

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression


# Permissive licences: works derived from the data may be published under another licence. A licence
# that is not listed may be just as permissive, but is refused until someone has reviewed it.
WITHOUT_ATTRIBUTION = frozenset(
    [
        "0BSD",
        "Apache-2.0",
        "BSD-1-Clause",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC0-1.0",
        "CDLA-Permissive-1.0",
        "CDLA-Permissive-2.0",
        "ISC",
        "MIT",
        "MIT-0",
        "PDDL-1.0",
        "Unlicense",
        "Zlib",
    ]
)
# permissive licences that require attribution: derived works must name the authors of the data
WITH_ATTRIBUTION = frozenset(["CC-BY-3.0", "CC-BY-4.0", "ODC-By-1.0"])
PERMISSIVE = WITHOUT_ATTRIBUTION | WITH_ATTRIBUTION


def normalised(licence: str) -> str | None:
    """A licence expression in canonical SPDX spelling; None if it is not valid."""
    try:
        return canonicalize_license_expression(licence)
    except InvalidLicenseExpression:
        return None


def refusal(licence: str) -> str | None:
    """Why a model trained on data with this licence cannot be published; None if it can."""
    spelt = normalised(licence)
    if spelt is None:
        return f"licence '{licence}' is not an SPDX identifier such as MIT or CC-BY-4.0"
    if "(" in spelt:
        return f"licence '{licence}': write it without brackets"
    # AND binds more tightly than OR, and one permissive alternative is enough
    problems = []
    for alternative in spelt.split(" OR "):
        others = [name for name in alternative.split(" AND ") if name not in PERMISSIVE]
        if not others:
            return None
        problems += others
    return f"licence {' and '.join(problems)} is not known to allow a published model"


def needs_attribution(licence: str) -> bool:
    """Whether works derived from the data must name their authors."""
    names = (normalised(licence) or "").replace(" OR ", " AND ").split(" AND ")
    return not WITH_ATTRIBUTION.isdisjoint(names)


def together(licences: list[str]) -> str:
    """The licence expression for data from several sources: all their licences, joined by AND."""
    names: dict[str, None] = {}
    for licence in licences:
        spelt = normalised(licence) or licence
        parts = [f"({spelt})"] if " OR " in spelt else spelt.split(" AND ")
        names |= dict.fromkeys(parts)
    return " AND ".join(sorted(names))
