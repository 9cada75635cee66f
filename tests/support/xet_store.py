"""The store behind a hub with Xet: that of the real hf_xet, kept in a folder."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import hf_xet


class XetStore:
    """A `local://` store of hf_xet. `expect` fills the index from sha256 to Xet's own hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, tuple[str, int]] = {}  # sha256 -> Xet's hash, size

    @property
    def address(self) -> str:
        return f"local://{self.folder}"

    def expect(self, *paths: Path) -> None:
        """Announce files that will be uploaded; a real hub learns their hashes from its store."""
        hashes = hf_xet.hash_files([str(path) for path in paths])
        for path, found in zip(paths, hashes, strict=True):
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            self.files[sha256] = (found.hash, found.file_size)

    def content(self, sha256: str) -> bytes:
        """What a client has uploaded under that sha256; raises when it has not."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            with hf_xet.XetSession().new_file_download_group(endpoint=self.address) as group:
                group.start_download_file(hf_xet.XetFileInfo(*self.files[sha256]), str(path))
            return path.read_bytes()
