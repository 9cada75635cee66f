"""Files behind addresses such as s3:// and https://, with limits on size and time.

If a server is overloaded or out of reach, fsspec reports that a file does not exist. Users would be
told that a file is missing although it may well be there. Here, a file counts as absent only if the
server says so. Other failures are retried if they may be temporary, and then raised.
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

# seconds to wait before the second and third attempt
DELAYS = (0.5, 2.0)
# Seconds that a web server may be silent. aiohttp's default limit is five minutes for the whole
# request, which is too long for a silent server and too short for large weights.
SILENCE = 10.0
# seconds for reading a small file or asking about it, including all attempts
SMALL_FILE_SECONDS = 25.0
# bytes per second; a slower server is given up
LEAST_RATE = 10_000
WEB = ("http", "https")
ABSENT_STATUS = (404, 410)
# besides 500 and above, status codes that say nothing about whether the file exists
TEMPORARY_STATUS = (408, 425, 429)
# definite answers, so another attempt would not help
FINAL_ERRORS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


class TooLargeError(EvenfieldError):
    """A file has more bytes than the caller accepts."""


class TooSlowError(EvenfieldError):
    """A file arrives so slowly that it might never end."""


def file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path within it."""
    options: dict[str, Any] = {}
    if is_web_address(address):
        options["client_kwargs"] = {
            "timeout": _web_timeout(None),
            # A compressed answer could unpack to a thousand times its size. So files are requested
            # uncompressed. If a server compresses them anyway, their hashes do not match.
            "auto_decompress": False,
            "headers": {"Accept-Encoding": "identity"},
        }
    system, path = fsspec.url_to_fs(address, **options)
    return system, path


def _web_timeout(seconds: float | None) -> Any:
    """aiohttp limits for one request: SILENCE between bytes, and `seconds` in total (None: any)."""
    # slow to import, and most files are local
    import aiohttp

    return aiohttp.ClientTimeout(total=seconds, sock_connect=SILENCE, sock_read=SILENCE)


def is_web_address(address: str) -> bool:
    """Whether an address is plain http(s), without another fsspec layer in front of it."""
    return "::" not in address and get_protocol(address) in WEB


def read_small_file(fs: Any, path: str, limit: int) -> bytes | None:
    """Read a file of at most `limit` bytes; returns None if the store has no such file.

    Raises TooLargeError, TooSlowError, or the storage library's own error if the store fails.
    """

    end = time.monotonic() + SMALL_FILE_SECONDS

    def read() -> bytes:
        content = b""
        # the time that earlier attempts took is deducted
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
    """fsspec's information about a file; None if the store says that it does not exist.

    Raises the storage library's own error if the store fails.
    """

    def ask() -> dict[str, Any]:
        try:
            return dict(fs.info(path))
        except FileNotFoundError as error:
            # fsspec's HTTP file system raises this for every kind of failure
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
    """Open a file of a store for reading from beginning to end.

    seconds: total time limit for a web server, including its headers, which could go on forever.

    Raises FileNotFoundError if the store says that the file does not exist.
    """
    if get_protocol(path) in WEB:
        # Read as one stream: in blocks, fsspec would keep in memory whatever the server sends as a
        # block. Any size saves a request for it, and need not be right.
        timeout = _web_timeout(seconds)
        file = fs.open(path, "rb", block_size=0, size=1, timeout=timeout)
    else:
        file = fs.open(path, "rb")
    with file:
        yield file


def chunks(file: IO[bytes], limit: int, seconds: float, size: int = 1 << 20) -> Iterator[bytes]:
    """Yield the content of an open file in chunks of at most `size` bytes.

    Raises TooLargeError as soon as the content exceeds `limit` bytes, and TooSlowError if it takes
    more than `seconds`.
    """
    end = time.monotonic() + seconds
    num_bytes = 0
    while True:
        # read one byte more than allowed, to distinguish a file that is too large from a full one
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
    """Seconds that the download of a file of this size may take."""
    return SMALL_FILE_SECONDS + num_bytes / LEAST_RATE


def is_temporary(error: BaseException) -> bool:
    """Whether a failure may be temporary, so that another attempt may succeed."""
    if isinstance(error, (EvenfieldError, *FINAL_ERRORS)):
        return False
    status = http_status(error)
    if status is not None:
        return status >= 500 or status in TEMPORARY_STATUS
    # aiohttp's connection errors derive from OSError or from aiohttp.ClientError
    is_of_connection = any(kind.__name__ == "ClientError" for kind in type(error).__mro__)
    return isinstance(error, (asyncio.TimeoutError, OSError)) or is_of_connection


def retried(
    call: Callable[[], Result],
    may_pass: Callable[[BaseException], bool] = is_temporary,
    seconds: float = math.inf,
) -> Result:
    """Return the result of a call, which is repeated after temporary failures.

    may_pass: whether a failure is temporary.
    seconds: total time limit. The call is not repeated if another attempt as long as the last one
        would exceed it.

    Raises the last error of the call.
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
    """The HTTP status (400 or above) with which a web server refused; None for other errors."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) and status >= 400 else None


def reason_of(error: BaseException) -> str:
    """Describe an error in one line, without secrets."""
    status = http_status(error)
    if status is not None:
        phrase = " ".join(str(getattr(error, "message", "")).split())[:80]
        return f"it answers {status} {phrase}".strip()
    text = " ".join(str(error).split())
    if isinstance(error, asyncio.TimeoutError):
        return f"no answer within {SILENCE:.0f} s, or none that ends"
    return without_secrets(text)[:300] or type(error).__name__
