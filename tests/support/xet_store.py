"""What stands behind the hub where Xet is on: the store of the real hf_xet, kept in a folder."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import hf_xet


class XetStore:
    """`local://` in hf_xet; the hub's own index from sha256 to Xet's hash is filled by `expect`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, tuple[str, int]] = {}  # sha256 -> Xet's hash, size

    @property
    def address(self) -> str:
        return f"local://{self.folder}"

    def expect(self, *paths: Path) -> None:
        """Files that will be uploaded; a hub on the web learns their hashes from its store."""
        for path, about in zip(
            paths, hf_xet.hash_files([str(path) for path in paths]), strict=True
        ):
            self.files[hashlib.sha256(path.read_bytes()).hexdigest()] = (
                about.hash,
                about.file_size,
            )

    def content(self, sha256: str) -> bytes:
        """What a client has put into the store under that sha256; raises when it is not there."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            with hf_xet.XetSession().new_file_download_group(endpoint=self.address) as group:
                group.start_download_file(hf_xet.XetFileInfo(*self.files[sha256]), str(path))
            return path.read_bytes()
