"""Files behind addresses such as s3:// and https://, with limits, and honest about failures.

fsspec answers "is it there?" with no when a server is overloaded or out of reach. Callers would
tell users that something does not exist, which may well exist. Here only the store's own answer
counts as an absence. Any other failure is retried if it may pass, and raised.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import fsspec
from fsspec.utils import get_protocol

from .addresses import without_secrets
from .errors import EvenfieldError


Result = TypeVar("Result")

# seconds to wait before the second and the third try
DELAYS = (0.5, 2.0)
# Seconds without a byte from a web server. aiohttp's own limit is five minutes for everything,
# which is too long for a silent server and too short for large weights.
SILENCE = 10.0
# seconds for a small file or an answer about one, however it arrives and however often it is tried
SMALL_FILE_SECONDS = 25.0
# bytes per second; a server that is slower than this keeps a load waiting for ever
LEAST_RATE = 10_000
WEB = ("http", "https")
ABSENT_STATUS = (404, 410)
# answers of a web server that say nothing about what it holds, besides those of 500 and above
TEMPORARY_STATUS = (408, 425, 429)
# The answer is certain: trying again would only take longer.
FINAL_ERRORS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


class TooLargeError(EvenfieldError):
    """A file has more bytes than the caller takes."""


class TooSlowError(EvenfieldError):
    """A file arrives so slowly that it might have no end."""


def file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it."""
    options: dict[str, Any] = {}
    if is_web_address(address):
        options["client_kwargs"] = {
            "timeout": _web_timeout(None),
            # A compressed answer could be a thousand times larger than what arrives. Files are
            # asked for as they are; hashes reveal a server that compresses them all the same.
            "auto_decompress": False,
            "headers": {"Accept-Encoding": "identity"},
        }
    system, path = fsspec.url_to_fs(address, **options)
    return system, path


def _web_timeout(seconds: float | None) -> Any:
    """Limits for one request: for a silence, and for everything."""
    # slow to import, and most files are local
    import aiohttp

    return aiohttp.ClientTimeout(total=seconds, sock_connect=SILENCE, sock_read=SILENCE)


def is_web_address(address: str) -> bool:
    """Whether a web server answers for an address, without another layer in front of it."""
    return "::" not in address and get_protocol(address) in WEB


def read_small_file(fs: Any, path: str, limit: int) -> bytes | None:
    """The content of a file of at most `limit` bytes; None when the store has no such file.

    Raises TooLargeError, TooSlowError, and what the storage library raises when the store fails.
    """

    end = time.monotonic() + SMALL_FILE_SECONDS

    def read() -> bytes:
        content = b""
        # what earlier tries took is gone
        seconds = end - time.monotonic()
        with opened(fs, path, seconds) as file:
            for chunk in chunks(file, limit, seconds):
                content += chunk
        return content

    try:
        return retried(read, seconds=SMALL_FILE_SECONDS)
    except (FileNotFoundError, NotADirectoryError):
        return None


def file_info(fs: Any, path: str) -> dict[str, Any] | None:
    """What a store knows about a file; None when it answers that there is none."""

    def ask() -> dict[str, Any]:
        try:
            return dict(fs.info(path))
        except FileNotFoundError as error:
            # fsspec's file system of the web raises this, whatever went wrong
            if error.__cause__ is not None and get_protocol(path) in WEB:
                raise error.__cause__ from None
            raise

    try:
        return retried(ask, seconds=SMALL_FILE_SECONDS)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:
        if http_status(error) in ABSENT_STATUS:
            return None
        raise


@contextmanager
def opened(fs: Any, path: str, seconds: float | None = None) -> Iterator[IO[bytes]]:
    """An open file of a store, to be read from its beginning to its end.

    A web server gets `seconds` for it. Its headers alone could come without an end.

    FileNotFoundError when the store answers that there is none.
    """
    if get_protocol(path) in WEB:
        # As one stream. A size, which need not be right, saves a request for it. In blocks, fsspec
        # would hold in memory whatever the server sends as one of them.
        timeout = _web_timeout(seconds)
        file = fs.open(path, "rb", block_size=0, size=1, timeout=timeout)
    else:
        file = fs.open(path, "rb")
    with file:
        yield file


def chunks(file: IO[bytes], limit: int, seconds: float, size: int = 1 << 20) -> Iterator[bytes]:
    """The content of an open file in chunks.

    Raises TooLargeError as soon as it exceeds `limit` bytes, TooSlowError after `seconds`.
    """
    end = time.monotonic() + seconds
    num_bytes = 0
    while True:
        # one byte more than allowed tells a file that is too large from one that fits exactly
        chunk = file.read(min(size, limit + 1 - num_bytes))
        if not chunk:
            return
        num_bytes += len(chunk)
        if num_bytes > limit:
            raise TooLargeError(f"has more than {limit:,} bytes")
        if time.monotonic() > end:
            raise TooSlowError(f"sends only {num_bytes:,} bytes in {seconds:.0f} s")
        yield chunk


def seconds_for(num_bytes: int) -> float:
    """How long a file of this size may take."""
    return SMALL_FILE_SECONDS + num_bytes / LEAST_RATE


def is_temporary(error: BaseException) -> bool:
    """Whether a failure says nothing about the file, so that a later try may succeed."""
    if isinstance(error, (EvenfieldError, *FINAL_ERRORS)):
        return False
    status = http_status(error)
    if status is not None:
        return status >= 500 or status in TEMPORARY_STATUS
    # aiohttp's errors of connections derive from OSError, or from its ClientError
    is_of_connection = any(kind.__name__ == "ClientError" for kind in type(error).__mro__)
    return isinstance(error, (asyncio.TimeoutError, OSError)) or is_of_connection


def retried(
    call: Callable[[], Result],
    may_pass: Callable[[BaseException], bool] = is_temporary,
    seconds: float = math.inf,
) -> Result:
    """The result of a call, which is repeated after a failure that may pass.

    It is not repeated if that would take more than `seconds` in all, should the next try take as
    long as the last one.
    """
    begin = time.monotonic()
    for delay in DELAYS:
        begin_of_try = time.monotonic()
        try:
            return call()
        except Exception as error:
            now = time.monotonic()
            expected_end = now + delay + (now - begin_of_try)
            if not may_pass(error) or expected_end > begin + seconds:
                raise
        time.sleep(delay)
    return call()


def http_status(error: BaseException) -> int | None:
    """The status with which a web server refused, if that is what went wrong."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) and status >= 400 else None


def reason_of(error: BaseException) -> str:
    """What went wrong, on one line, without secrets."""
    status = http_status(error)
    if status is not None:
        phrase = " ".join(str(getattr(error, "message", "")).split())[:80]
        return f"it answers {status} {phrase}".strip()
    text = " ".join(str(error).split())
    if isinstance(error, asyncio.TimeoutError):
        return f"no answer within {SILENCE:.0f} s, or none that ends"
    return without_secrets(text)[:300] or type(error).__name__
