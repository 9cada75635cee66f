"""Names that users give: is it a path of this machine, and which part of it is a secret?

    without_secrets("https://me:pw@host/set.db?X-Amz-Signature=1f") == "https://host/set.db"

An address with its password is needed to read a file, and nowhere else. What is stored, printed or
raised holds the address without it.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from urllib.parse import parse_qsl


# user:password@ of any scheme. A user alone is kept: it is no secret, and the stores of Azure put
# the name of a container there. Passwords may hold an unescaped @, so the last one counts.
USER_AND_PASSWORD = re.compile(r"(?<=://)[^/\s?#'\"<>@]*:[^/\s?#'\"<>]*@")
# On the web, what is alone in front of the @ is a token.
TOKEN = re.compile(r"(?<=://)[^/\s?#'\"<>]*@")
WEB_ADDRESS = re.compile(r"https?://[^\s'\"<>]*", re.IGNORECASE)
# the query of an address of any scheme, with its question mark
QUERY = re.compile(r"(?<=://)([^\s?'\"<>]*)\?([^\s'\"<>)]*)")
# names of parameters that carry a signature, or that belong to one
SECRET_PARAMETERS = re.compile(
    r"x-(amz|goog|ms|oss|cos)-.*|.*signature.*|.*token.*|.*secret.*|.*passw(or)?d.*|.*api-?key.*"
    r"|.*credential.*|sig|se|sp|sv|sr|st|spr|pw|pwd|pass|key|auth|jwt|code|hmac|policy|expires"
    r"|key-pair-id|awsaccesskeyid|googleaccessid"
)
# a value of this length is a signature under another name more often than not
LONGEST_VALUE = 24

# how the names of files end that people hand to evenfield
FILE_SUFFIXES = (
    *(".safetensors", ".pt", ".pth", ".bin", ".model"),
    *(".xyz", ".extxyz", ".traj", ".cif", ".vasp", ".db", ".aselmdb", ".lmdb", ".parquet"),
    *(".json", ".jsonl", ".yaml", ".yml", ".csv", ".txt", ".md", ".npz", ".h5", ".hdf5"),
    *(".zip", ".tar", ".gz", ".xz", ".bz2"),
)


def without_secrets(text: str) -> str:
    """A text whose addresses have lost passwords, tokens and signed queries."""
    # nearly every text: this function sees all messages
    if "://" not in text:
        return text

    text = USER_AND_PASSWORD.sub("", text)
    text = WEB_ADDRESS.sub(lambda address: TOKEN.sub("", address[0]), text)
    return QUERY.sub(_harmless_query, text)


def _harmless_query(match: re.Match[str]) -> str:
    """The address with its query, or without it if any part of it may be a secret."""
    address, query = match.groups()
    for name, value in parse_qsl(query, keep_blank_values=True):
        plain_name = name.lower().replace("_", "-")
        if SECRET_PARAMETERS.fullmatch(plain_name) or len(value) > LONGEST_VALUE:
            return address
    return match[0]


def without_query(name: str) -> str:
    """A web address up to its query, so that it ends in the name of a file; other names as is."""
    return name.partition("?")[0] if WEB_ADDRESS.match(name) else name


def local_path(name: Path | str) -> Path:
    """The path of a local name, with or without file://, with ~ as the home folder."""
    path = Path(str(name).removeprefix("file://"))
    try:
        return path.expanduser()
    except RuntimeError:
        # nobody of that name has a home here: the name is taken as it is
        return path


def looks_like_path(name: str) -> bool:
    """Whether a name of the form `a/b` is meant as a path of this machine.

    Names on a public hub have the same form. A mistyped path must not be sent there: it tells the
    hub what somebody works on, and somebody else may own that name.
    """
    if name.startswith(("/", "./", "../", "~", "file://")) or name in (".", ".."):
        return True
    before_revision, at, _ = name.partition("@")
    if "\\" in name or name.endswith("/") or before_revision.count("/") > 1:
        return True
    if name.lower().endswith(FILE_SUFFIXES):
        return True
    # `runs/modle` next to a folder `runs`; with a revision it cannot be meant as a path
    first, slash, _ = name.partition("/")
    return bool(slash) and not at and Path(first).is_dir()


def similar_names(path: Path) -> list[str]:
    """Paths that exist and are spelt almost like `path`, the most similar first."""
    try:
        # not the path itself, which is there and of no use
        present = [entry.name for entry in path.parent.iterdir() if entry.name != path.name]
    except OSError:
        return []
    found = difflib.get_close_matches(path.name, present, n=3, cutoff=0.6)
    return [str(path.with_name(name)) for name in found]
