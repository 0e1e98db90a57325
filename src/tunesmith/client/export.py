"""A version's files on their way into a folder: each held against the manifest, the folder there when it is whole.

In: a manifest, and the files as they are downloaded. Out: the folder under its name, or nothing. What an export is
written as follows from its name alone, for the client and the command line alike.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path, PurePosixPath

from tunesmith.client.streams import Progress, writing
from tunesmith.errors import Conflict, MachineCannot, UsageFault
from tunesmith.files import is_other_archive
from tunesmith.spec.artifacts import MANIFEST_NAME, Manifest, ManifestFile


def is_zip(target: Path) -> bool:
    """True: one zip file; False: a folder. Raises UsageFault (EXPORT_FORM) for the name of another archive."""
    if is_other_archive(target):
        raise UsageFault(
            "EXPORT_FORM", f"{target} is named as an archive that an export is not written as.", field="FILE",
            hint="Name a file that ends in .zip, or a folder.",
        )  # fmt: skip
    return target.suffix.lower() == ".zip"


class ExportFolder:
    """A folder in the making, under a temporary name beside its own."""

    def __init__(self, target: Path, manifest: Manifest, *, progress: Progress | None) -> None:
        self._target, self._manifest, self._progress = target.absolute(), manifest, progress
        self._part = self._target.with_name(f".{self._target.name}.part-{os.getpid()}")
        self._bytes, self._total = 0, sum(file.size for file in manifest.files)

    def __enter__(self) -> ExportFolder:
        require_free(self._target)
        with writing(self._target):
            self._part.mkdir()
        return self

    def place(self, file: ManifestFile) -> Path:
        """Where a file goes. Its name comes from a server: it must not lead out of the folder."""
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or "\\" in file.path or not path.parts:
            raise MachineCannot(
                "UNEXPECTED_ANSWER", f"The server names a file {file.path[:80]!r}, which leads out of the folder.",
                field="FILE", hint="Is this the address of `tunesmith serve`?",
            )  # fmt: skip
        target = self._part / path
        with writing(self._target):
            target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def told(self, done: int, _of_file: int) -> None:
        if self._progress is not None:
            self._progress(self._bytes + done, self._total)

    def check(self, file: ManifestFile) -> None:
        """Holds what arrived against the manifest. Raises MachineCannot (ARTIFACT_DAMAGED)."""
        with self.place(file).open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if found != file.sha256:
            raise MachineCannot(
                "ARTIFACT_DAMAGED", f"{file.path} arrived with another SHA-256 than the manifest's.", field="FILE",
                hint="Export it again.",
            )  # fmt: skip
        self._bytes += file.size

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with writing(self._target):
                    (self._part / MANIFEST_NAME).write_text(self._manifest.model_dump_json(indent=2), encoding="utf-8")
                    self._part.replace(self._target)
        finally:
            shutil.rmtree(self._part, ignore_errors=True)


def require_new_file(target: str | os.PathLike[str]) -> Path:
    """Nothing is replaced. Raises Conflict (FILE_EXISTS)."""
    if os.path.lexists(target):
        raise Conflict("FILE_EXISTS", f"{target} is there already.", field="FILE", hint="Name a new file.")
    return Path(target)


def require_free(target: Path) -> None:
    """A folder that holds something is never written into or replaced. Raises Conflict (FILE_EXISTS)."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if os.path.lexists(target):
        raise Conflict(
            "FILE_EXISTS", f"{target} is there already.", field="FILE",
            hint="Name a folder that is not there yet; only a zip file is replaced, by --replace.",
        )  # fmt: skip
