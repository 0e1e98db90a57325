"""The training worker: `python -m tunesmith.train job.json`.

With `-` for the file it stands by: it imports what takes seconds to import while its starter still checks the input
(with `- transformers` that library, too, for models that are not built without it), then reads one line from standard
input, a JSON object with `job_file` and `log`. No line: nothing was to be done.

Exit codes: 0 the artifact is whole; 1 a fault of ours; 3 data or model refused; 4 this machine cannot; 5 the run
failed; 128 + N after signal N, the state checkpointed. The last event of a failed attempt tells why.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from pydantic import ValidationError

from tunesmith.errors import InputRefused, JobFailed, MachineCannot, NotPermitted, TunesmithError, UsageFault
from tunesmith.spec.artifacts import MANIFEST_NAME
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.metrics import FailureEvent
from tunesmith.train.events import EventLog, now
from tunesmith.train.faults import classify
from tunesmith.train.loop import Run, Stopped

EXIT_CODES: dict[type[TunesmithError], int] = {
    UsageFault: 2,
    InputRefused: 3,
    MachineCannot: 4,
    JobFailed: 5,
    NotPermitted: 6,
    TunesmithError: 1,
}


def _read_job(path: Path) -> JobFile:
    try:
        job = JobFile.model_validate_json(path.read_bytes())
        job.settings.require_resolved()
        return job
    except OSError as error:
        raise InputRefused("JOB_FILE", f"{path}: {error.strerror}.", field="job.json") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputRefused("JOB_FILE", f"{path}: {place}: {first['msg']}.", field=place) from error


def _stand_by(*, needs_transformers: bool) -> Path | None:
    """Import, wait for the job, take its folder and its log for our own. None where no job came."""
    if needs_transformers:
        import transformers.modeling_utils  # noqa: F401  # most of what a start costs; loading this model needs it

    line = sys.stdin.readline()
    if not line:
        return None
    given = json.loads(line)
    job_file = Path(given["job_file"])
    os.chdir(job_file.parent)
    log = os.open(given["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    for handle, number in ((nowhere, 0), (log, 1), (log, 2)):
        os.dup2(handle, number)
    return job_file


def main(arguments: list[str]) -> int:
    stands_by = arguments[:1] == ["-"] and arguments[1:] in ([], ["transformers"])
    if len(arguments) != 1 and not stands_by:
        print("usage: python -m tunesmith.train JOB_FILE", file=sys.stderr)
        return EXIT_CODES[UsageFault]
    if stands_by:
        job_file = _stand_by(needs_transformers=len(arguments) > 1)
        if job_file is None:
            return 0
        arguments = [str(job_file)]
    path = Path(arguments[0]).resolve()
    try:
        job = _read_job(path)
    except TunesmithError as error:
        print(error, file=sys.stderr)
        return EXIT_CODES[type(error)]
    if (path.parent / "artifact" / MANIFEST_NAME).exists():
        return 0
    log = EventLog(path.parent)
    try:
        Run(job, path.parent, log).execute()
    except Stopped as stopped:
        return 128 + stopped.number
    except Exception as error:  # noqa: BLE001  # the edge of the process: recorded, then the attempt ends
        traceback.print_exc()
        told, retry = classify(error)
        try:
            log.append(FailureEvent(time=now(), error=told.form(), family=type(told).__name__, retry=retry))
            log.sync()
        except OSError as failure:
            print(f"The failure could not be logged: {failure}", file=sys.stderr)
        return EXIT_CODES[type(told)]
    finally:
        log.close()
    return 0


if __name__ == "__main__":
    # accelerate comes along with peft: transformers would import it, which takes 0.4 s and serves nothing here
    sys.modules.setdefault("accelerate", None)  # type: ignore[arg-type]  # None is how Python marks what is not there
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Tearing down torch's threads takes half a second and has nothing left to save.
    os._exit(code)
