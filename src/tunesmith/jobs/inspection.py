"""Asks the inspect worker about a model folder and datasets, and remembers its answers.

In: an `InspectRequest`. Out: facts and preparation, or the worker's own error. An answer is kept under a key of
everything that it depends on: the request, the stamps (size, times, inode) of the model's and the datasets' files, and
our own code. What control needs of a tokenizer or an architecture comes this way: it imports neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from tunesmith import __version__
from tunesmith.errors import InputRefused, MachineCannot, TunesmithError, UsageFault, from_form
from tunesmith.files import write_json
from tunesmith.jobs.home import Home
from tunesmith.jobs.launcher import INSPECTOR, worker_command, worker_environment
from tunesmith.spec.datasets import InspectRequest, InspectResponse

POLL_SECONDS = 0.2
FOLDER_SECONDS = 300  # a folder alone; with datasets it takes what their size takes
MAXIMUM_FOLDER_ENTRIES = 10_000
KEPT_ANSWERS = 200
# Options whose limits only the model knows; a worker names their field, and knows no options.
MODEL_RELATIVE_OPTIONS = frozenset({"sequence_length", "lora_rank", "target_modules"})


class Inspection:
    """One question to the inspect worker, started at once and answered later: control works meanwhile."""

    def __init__(
        self,
        request: InspectRequest,
        *,
        home: Home,
        environment: Mapping[str, str],
        is_unwanted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._request = request
        self._is_unwanted = is_unwanted
        self._folder = home.cache / "inspections"
        self._log = home.logs / "inspect.log"
        self._environment = environment
        self._key: str = ""
        self._known: InspectResponse | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._output: Path | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._key = _key(self._request)
        self._known = self._remembered()
        if self._known is None:
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._output is not None:
            self._output.unlink(missing_ok=True)
            self._output.with_suffix(".request.json").unlink(missing_ok=True)

    def answer(self) -> InspectResponse:
        """Wait for the answer. Raises the worker's own error, one that names its log, or INTERRUPTED."""
        if self._known is not None:
            return self._known
        response = self._read()
        if response.error is not None:
            error = from_form(response.error, response.family or "")
            raise _about_options(error)
        self._remember(response)
        return response

    def _start(self) -> None:
        handle, name = tempfile.mkstemp(dir=self._folder, suffix=".answer")
        self._output = Path(name)
        question = self._output.with_suffix(".request.json")
        write_json(question, self._request.as_json())
        with os.fdopen(handle, "wb") as output, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                worker_command(INSPECTOR, str(question)),
                cwd=self._folder,
                env=worker_environment(self._environment, needs_cuda=False, is_idle=False),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )

    def _read(self) -> InspectResponse:
        assert self._process is not None and self._output is not None
        code = self._wait(self._process)
        lines = self._output.read_bytes().splitlines()
        try:
            return InspectResponse.model_validate_json(lines[-1])
        except (IndexError, ValidationError) as error:
            if code == -signal.SIGKILL:
                raise MachineCannot(
                    "OUT_OF_MEMORY",
                    "The system killed the inspect worker: too little memory is the usual reason.",
                    hint="Free some memory and try again.",
                ) from error
            raise TunesmithError(
                "INSPECT_DIED",
                f"The inspect worker ended with exit code {code} and no answer.",
                hint=f"Its log is {self._log}; please report it.",
            ) from error

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        end = None if self._request.datasets else time.monotonic() + FOLDER_SECONDS
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=POLL_SECONDS)
            if self._is_unwanted():
                raise TunesmithError("INTERRUPTED", "The inspection was stopped: somebody asked for it.")
            if end is not None and time.monotonic() > end:
                raise InputRefused(
                    "MODEL_TOO_SLOW",
                    f"Looking at the model folder {self._request.model_path} took over {FOLDER_SECONDS} seconds.",
                    field="model",
                    hint="Is it on a slow or broken disk, or full of other files?",
                )

    def _remembered(self) -> InspectResponse | None:
        try:
            known = InspectResponse.model_validate_json((self._folder / f"{self._key}.json").read_bytes())
        except (OSError, ValidationError):
            return None
        return known

    def _remember(self, response: InspectResponse) -> None:
        write_json(self._folder / f"{self._key}.json", response.as_json())
        answers = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in answers[KEPT_ANSWERS:]:
            path.unlink(missing_ok=True)


def inspect(request: InspectRequest, *, home: Home, environment: Mapping[str, str]) -> InspectResponse:
    with Inspection(request, home=home, environment=environment) as inspection:
        return inspection.answer()


def _about_options(error: TunesmithError) -> TunesmithError:
    """A worker's refusal of an option's value is a usage fault here, where options have names."""
    if type(error) is InputRefused and error.field in MODEL_RELATIVE_OPTIONS:
        return UsageFault(error.code, error.message, field=error.field, hint=error.hint)
    return error


def _key(request: InspectRequest) -> str:
    stamps = [
        *_stamps(Path(request.model_path)),
        *(stamp for dataset in request.datasets for stamp in _stamps(Path(dataset.path))),
        *(_stamps(Path(request.adapter_path)) if request.adapter_path is not None else ()),
        *(stamp for package in ("data", "models") for stamp in _stamps(Path(__file__).parents[1] / package)),
    ]
    text = json.dumps([__version__, request.as_json(), stamps], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _stamps(path: Path) -> Iterator[tuple[str, int, int, int, int]]:
    """What changes when a file changes: of the file itself, or of every file below a folder, links followed once."""
    paths = sorted(path.rglob("*"))[:MAXIMUM_FOLDER_ENTRIES] if path.is_dir() else [path]
    for each in paths:
        if each.suffix == ".pyc" or each.name == "__pycache__":
            continue
        try:
            stat = each.stat()
        except OSError:
            continue  # a broken link: the worker refuses it by name
        yield str(each), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
