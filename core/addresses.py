"""Handle names that users give: recognise local paths, and remove secrets from addresses.

    without_secrets("https://me:pw@host/set.db?X-Amz-Signature=1f") == "https://host/set.db"

A password in an address is needed only to read the file. Addresses that are stored, printed or part
of an error message must not contain it.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from urllib.parse import parse_qsl


# user:password@ for any scheme. A user name alone is kept: it is not a secret, and Azure addresses
# have the container name there. Passwords may contain an unescaped @, so the last one counts.
USER_AND_PASSWORD = re.compile(r"(?<=://)[^/\s?#'\"<>@]*:[^/\s?#'\"<>]*@")
# in web addresses, a single word in front of the @ is a token
TOKEN = re.compile(r"(?<=://)[^/\s?#'\"<>]*@")
WEB_ADDRESS = re.compile(r"https?://[^\s'\"<>]*", re.IGNORECASE)
# an address of any scheme with its query
QUERY = re.compile(r"(?<=://)([^\s?'\"<>]*)\?([^\s'\"<>)]*)")
# names of query parameters that contain a signature or belong to one
SECRET_PARAMETERS = re.compile(
    r"x-(amz|goog|ms|oss|cos)-.*|.*signature.*|.*token.*|.*secret.*|.*passw(or)?d.*|.*api-?key.*"
    r"|.*credential.*|sig|se|sp|sv|sr|st|spr|pw|pwd|pass|key|auth|jwt|code|hmac|policy|expires"
    r"|key-pair-id|awsaccesskeyid|googleaccessid"
)
# a longer value is more likely than not a signature under some other name
LONGEST_VALUE = 24

# file name endings that users commonly pass to evenfield
FILE_SUFFIXES = (
    *(".safetensors", ".pt", ".pth", ".bin", ".model"),
    *(".xyz", ".extxyz", ".traj", ".cif", ".vasp", ".db", ".aselmdb", ".lmdb", ".parquet"),
    *(".json", ".jsonl", ".yaml", ".yml", ".csv", ".txt", ".md", ".npz", ".h5", ".hdf5"),
    *(".zip", ".tar", ".gz", ".xz", ".bz2"),
)


def without_secrets(text: str) -> str:
    """Remove passwords, tokens and signed queries from all addresses in a text."""
    # fast path, because all messages pass through this function
    if "://" not in text:
        return text

    text = USER_AND_PASSWORD.sub("", text)
    text = WEB_ADDRESS.sub(lambda address: TOKEN.sub("", address[0]), text)
    return QUERY.sub(_harmless_query, text)


def _harmless_query(match: re.Match[str]) -> str:
    """The matched address, without its query if any part of the query may be a secret."""
    address, query = match.groups()
    for name, value in parse_qsl(query, keep_blank_values=True):
        plain_name = name.lower().replace("_", "-")
        if SECRET_PARAMETERS.fullmatch(plain_name) or len(value) > LONGEST_VALUE:
            return address
    return match[0]


def without_query(name: str) -> str:
    """A web address without its query, so that it ends in a file name; other names unchanged."""
    return name.partition("?")[0] if WEB_ADDRESS.match(name) else name


def local_path(name: Path | str) -> Path:
    """The path of a local name, without file:// and with ~ expanded."""
    path = Path(str(name).removeprefix("file://"))
    try:
        return path.expanduser()
    except RuntimeError:
        # there is no such user, so ~ stays as it is
        return path


def looks_like_path(name: str) -> bool:
    """Whether a name of the form `a/b` is meant as a local path.

    Names on a public hub have the same form. A mistyped path must not be sent to the hub: it could
    reveal what the user works on, and someone else may own the name there.
    """
    if name.startswith(("/", "./", "../", "~", "file://")) or name in (".", ".."):
        return True
    before_revision, at, _ = name.partition("@")
    if "\\" in name or name.endswith("/") or before_revision.count("/") > 1:
        return True
    if name.lower().endswith(FILE_SUFFIXES):
        return True
    # for example `runs/modle` if there is a folder `runs`; a name with a revision is not a path
    first, slash, _ = name.partition("/")
    return bool(slash) and not at and Path(first).is_dir()


def similar_names(path: Path) -> list[str]:
    """At most three existing paths with a name similar to `path`, the most similar first."""
    try:
        # without the path itself, which would not be a useful suggestion
        present = [entry.name for entry in path.parent.iterdir() if entry.name != path.name]
    except OSError:
        return []
    found = difflib.get_close_matches(path.name, present, n=3, cutoff=0.6)
    return [str(path.with_name(name)) for name in found]
