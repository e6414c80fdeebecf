"""What packed files and document files have in common: .bin/.idx pairs of one prefix, with a manifest beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset.hash_verification import HashedFile, verify_files
from mindspeed_llm.indexed_dataset.idx_header import PREPROCESS_AGAIN
from mindspeed_llm.manifest import ENDINGS, Manifest
from mindspeed_llm.storage.hashing import FileDigest


def read_manifest(path: Path) -> Manifest | None:
    """Read the manifest of a set of files before the files are opened; None if there is none.

    While a set is being replaced, its files may be missing or not match each other.

    Args:
        path: path of the manifest.

    Raises:
        DataError: The manifest is damaged, or its files are not complete.
    """
    manifest = Manifest.read(path) if path.exists() else None
    if manifest is not None and manifest.state != "complete":
        raise DataError(
            f"{path}: the files of this prefix are not complete (the run that writes them was interrupted, "
            "or is still running); run the same preprocess_data.py command again"
        )
    return manifest


class FileSet(ABC):
    """Base of the sets of files of one prefix.

    Attributes:
        prefix: path that --data-path names.
        manifest: the manifest, or None if there is none.
    """

    prefix: Path
    manifest: Manifest | None

    @property
    @abstractmethod
    def manifest_path(self) -> Path:
        """Path of the manifest, whether it exists or not."""

    @property
    @abstractmethod
    def pairs(self) -> Mapping[Path, str]:
        """Pairs of the set: path without .bin or .idx → the end of it that remains if the set is renamed."""

    def check_sizes(self) -> None:
        """Compare the sizes of the files with the manifest, without reading them.

        Raises:
            DataError: A size differs, or the manifest does not list a file.
        """
        for file in self.hashed_files():
            size = file.path.stat().st_size
            if size != file.facts.size:
                raise DataError(
                    f"{file.path}: {size} bytes, but {file.facts.size} according to {self.manifest_path.name}: "
                    f"{PREPROCESS_AGAIN}"
                )

    def hashed_files(self) -> list[HashedFile]:
        """Return all files with their sizes and hashes from the manifest.

        Returns:
            The files, or an empty list without a manifest.

        Raises:
            DataError: The manifest does not list a file.
        """
        if self.manifest is None:
            return []
        listed = []
        for pair, kept in self.pairs.items():
            for ending in ENDINGS:
                file = Path(f"{pair}.{ending}")
                # Compared without the prefix: a set of files may have been renamed after it was written.
                known = [facts for name, facts in self.manifest.files.items() if name.endswith(f"{kept}.{ending}")]
                if len(known) != 1:
                    raise DataError(f"{self.manifest_path}: does not list {file.name}: {PREPROCESS_AGAIN}")
                listed.append(HashedFile(file, known[0]))
        return listed

    def fingerprint(self) -> dict[Path, str]:
        """Compute values that differ if two copies of the files differ, without reading all data.

        Returns:
            SHA-256 of the manifest, which contains the hashes of all files. Without a manifest, SHA-256 of each .idx
            file and size of each .bin file ("N bytes").
        """
        if self.manifest is not None:
            return {self.manifest_path: FileDigest.of(self.manifest_path).sha256}
        values = {}
        for pair in self.pairs:
            index, data = Path(f"{pair}.idx"), Path(f"{pair}.bin")
            values[index] = FileDigest.of(index).sha256
            values[data] = f"{data.stat().st_size} bytes"
        return values

    def verify_hashes(self) -> None:
        """Read all files and compare their SHA-256 with the manifest, without a time limit.

        Raises:
            DataError: A file differs, or there is no manifest.
        """
        if self.manifest is None:
            raise DataError(f"{self.manifest_path}: no such file, so there are no hashes to compare with")
        verify_files(self.hashed_files())
