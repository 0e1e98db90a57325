"""The deploy worker: `python -m tunesmith.deploy request.json`.

It connects to the socket that the request names, loads the base, says so, and answers what comes until the other side
closes: with its starter gone there is nobody to answer. One thread receives, the other one computes.

Exit codes: 0 the other side closed; 1 a fault of ours; 2 usage; 3 the base was refused; 4 this machine cannot.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import traceback
from pathlib import Path

import torch
from pydantic import ValidationError

from tunesmith.deploy.engine import Engine, RequestFailed
from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.frames import receive_frame, send_frame
from tunesmith.spec.serving import (
    TO_WORKER,
    CancelFrame,
    DeployRequest,
    FailedFrame,
    FromWorker,
    ReadyFrame,
    RefusedFrame,
    ToWorker,
)

EXIT_CODES: dict[type[TunesmithError], int] = {InputRefused: 3, MachineCannot: 4}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m tunesmith.deploy REQUEST_FILE", file=sys.stderr)
        return 2
    try:
        request = DeployRequest.model_validate_json(Path(arguments[0]).read_bytes())
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(request.socket)
    except (OSError, ValidationError) as error:
        print(f"{arguments[0]} cannot be used: {str(error)[:1000]}", file=sys.stderr)
        return 2
    with connection:
        torch.set_num_threads(request.threads)
        try:
            engine = Engine(request)
        except Exception as error:  # noqa: BLE001  # the edge of the process: told, recorded, ended
            told = classify(error)
            _tell(connection, FailedFrame(error=told.form(), family=type(told).__name__))
            return EXIT_CODES.get(type(told), 1)
        device_name = torch.cuda.get_device_name() if request.device == "cuda" else "cpu"
        if _tell(connection, ReadyFrame(device_name=device_name)):
            serve(engine, connection)
    return 0


def serve(engine: Engine, connection: socket.socket) -> None:
    """Answer until the other side closes."""
    incoming: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, incoming), name="receive", daemon=True).start()
    while True:
        while engine.is_idle or not incoming.empty():
            frame = incoming.get()
            if frame is None:
                return
            if isinstance(frame, CancelFrame):
                engine.cancel(frame.id)
            else:
                engine.add(frame)
        try:
            frames = engine.step()
        except RequestFailed as failed:
            told = classify(failed.__cause__ or failed)
            frames = [RefusedFrame(id=failed.request_id, error=told.form(), family=type(told).__name__)]
        for each in frames:
            if not _tell(connection, each):
                return


def _receive(connection: socket.socket, incoming: queue.SimpleQueue[ToWorker | None]) -> None:
    """Whatever ends the receiving ends the worker: no frame is ever lost in between."""
    try:
        while (content := receive_frame(connection)) is not None:
            incoming.put(TO_WORKER.validate_json(content))
    except (OSError, ValueError):
        traceback.print_exc()
    finally:
        incoming.put(None)


def _tell(connection: socket.socket, frame: FromWorker) -> bool:
    """False where nobody listens any more."""
    try:
        send_frame(connection, frame.model_dump_json().encode())
    except OSError:
        return False
    return True


def classify(error: BaseException) -> TunesmithError:
    """What is told of an exception; the log gets the traceback of a fault of ours."""
    if isinstance(error, TunesmithError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return MachineCannot(
            "OUT_OF_MEMORY",
            "Memory ran out while the model was loaded or answered.",
            hint="Ask for fewer tokens, or free some memory and try again.",
        )
    traceback.print_exception(error)
    return TunesmithError(
        "INTERNAL",
        f"A fault of ours in the deploy worker: {type(error).__name__}.",
        hint="The worker's log holds the traceback; please report it.",
    )


if __name__ == "__main__":
    # accelerate comes along with peft: transformers would import it, which takes 0.4 s and serves nothing here
    sys.modules.setdefault("accelerate", None)  # type: ignore[arg-type]  # None is how Python marks what is not there
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Tearing down torch's threads takes half a second and has nothing left to save.
    os._exit(code)
