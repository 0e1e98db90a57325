"""A service to be killed: the queue of one home as a process of its own, as `tunesmith serve` runs it.

Arguments: the home, and how many jobs the CPU holds. Standard input: one submission a line, as JSON; answered by a line
with the job's id once it is durable. The end of the input stops the service in good order; its workers run on.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from tunesmith.jobs.home import Home, open_home
from tunesmith.jobs.service import JobService, Submission, check_submission, submit
from tunesmith.jobs.settings import read_flat
from tunesmith.jobs.state import open_state


def main(root: str, cpu_jobs: str) -> None:
    logging.basicConfig(level=logging.INFO)
    home: Home = open_home({**os.environ, "TUNESMITH_HOME": root})
    state = open_state(home)
    service = JobService(state, {**os.environ, "TUNESMITH_HOME": root}, cpu_jobs=int(cpu_jobs))
    service.start()
    print("serving", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        key, limit = asked.pop("key", None), asked.pop("run_limit_seconds", None)
        request, settings = read_flat(asked)
        submission = Submission(request=request, settings=settings, run_limit_seconds=limit)
        new = check_submission(submission, state=state)
        record, _ = state.database.write_grouped(
            lambda connection, new=new, key=key: submit(connection, submission, new, state=state, key=key)  # noqa: B023  # runs before the next line
        )
        print(record.job_id, flush=True)
        service.wake()
    service.stop()


if __name__ == "__main__":
    assert Path(sys.argv[1]).is_absolute()
    main(*sys.argv[1:])
