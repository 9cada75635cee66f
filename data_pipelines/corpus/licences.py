"""Which licences of data allow a model that was trained on them to be published.

Licences are named by SPDX identifiers, several that hold together by `MIT AND CC-BY-4.0`.
"""

from __future__ import annotations

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression


# Permissive: what is made from the data may be published under another licence. A licence that is
# not listed here may be as permissive, and is refused until somebody has read it.
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
# what is made from the data has to name their authors
WITH_ATTRIBUTION = frozenset(["CC-BY-3.0", "CC-BY-4.0", "ODC-By-1.0"])
PERMISSIVE = WITHOUT_ATTRIBUTION | WITH_ATTRIBUTION


def normalised(licence: str) -> str | None:
    """The expression in SPDX's spelling; None for a text that is none."""
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
    # AND binds more closely, and of alternatives one is enough
    problems = []
    for alternative in spelt.split(" OR "):
        others = [name for name in alternative.split(" AND ") if name not in PERMISSIVE]
        if not others:
            return None
        problems += others
    return f"licence {' and '.join(problems)} is not known to allow a published model"


def needs_attribution(licence: str) -> bool:
    """Whether what is made from the data has to name their authors."""
    names = (normalised(licence) or "").replace(" OR ", " AND ").split(" AND ")
    return not WITH_ATTRIBUTION.isdisjoint(names)


def together(licences: list[str]) -> str:
    """The licence of data from several sources: all of theirs."""
    names: dict[str, None] = {}
    for licence in licences:
        spelt = normalised(licence) or licence
        parts = [f"({spelt})"] if " OR " in spelt else spelt.split(" AND ")
        names |= dict.fromkeys(parts)
    return " AND ".join(sorted(names))
