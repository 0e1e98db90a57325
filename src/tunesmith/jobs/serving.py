"""Answers requests by deploy workers: one for each base model, started on demand, ended when idle.

In: a `ServedModel` and a request. Out: frames of the answer. Each worker has one thread here, which starts it, hands on
what it says, and ends it. A worker that dies takes its requests with it (503, try again); the next request starts
another, later and later while it keeps dying.
"""

from __future__ import annotations

import itertools
import os
import queue
import select
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.errors import MachineCannot, TunesmithError, from_form
from tunesmith.files import write_json
from tunesmith.frames import receive_frame, send_frame
from tunesmith.jobs.launcher import (
    exit_code,
    is_running,
    machine_is_idle,
    signal_worker,
    start_logged,
    worker_command,
    worker_environment,
)
from tunesmith.jobs.served_model import ServedModel, find_served
from tunesmith.jobs.state import State
from tunesmith.plan.machine import Machine, this_machine
from tunesmith.plan.memory import RUNTIME_BYTES, VALUE_BYTES
from tunesmith.spec.catalog import DEFAULT_PROJECT
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.serving import (
    FROM_WORKER,
    CancelFrame,
    ChatTurn,
    DeployRequest,
    DoneFrame,
    FailedFrame,
    GenerateFrame,
    PieceFrame,
    ReadyFrame,
    RefusedFrame,
    Sampling,
    StartedFrame,
    ToWorker,
)

DEPLOYER = "tunesmith.deploy"
IDLE_SECONDS = 600.0
START_SECONDS = 120.0  # until a worker has connected: imports, on a busy machine
LOAD_SECONDS = 1800.0
LOOK_SECONDS = 0.25  # how often a waiting thread looks whether it is to stop
END_SECONDS = 5.0
MAXIMUM_REQUESTS = 64  # of one worker, answered and waiting
CACHED_TOKENS = 4096  # of each active request, counted into the memory that a worker needs
MAXIMUM_ACTIVE = 4
MAXIMUM_ADAPTERS = 16
SOCKET_NAME = "control.socket"
MAXIMUM_SOCKET_PATH = 100  # Linux takes 107 bytes, macOS 103
MAXIMUM_LOG_BYTES = 4 << 20
BREAKER_CRASHES = 5
BREAKER_SECONDS = 300.0
NO_ROOM = "MODEL_TOO_LARGE_NOW"  # no fault of the worker: it was never started

Chunk = StartedFrame | PieceFrame | DoneFrame
Delivered = Chunk | TunesmithError | None  # None: the answer is whole
Deliver = Callable[[Delivered], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """prompt: its text; or messages: the turns of a conversation up to the answer."""

    prompt: str | None = None
    messages: list[ChatTurn] | None = None
    sampling: Sampling


@dataclass(slots=True, kw_only=True)
class _Crashes:
    count: int = 0
    last: float = 0.0
    error: TunesmithError | None = None


class Completion:
    """One request on its way. `cancel` may come at any time, from any thread."""

    def __init__(self, worker: _Worker, frame: GenerateFrame, deliver: Deliver) -> None:
        self._worker = worker
        self.frame = frame
        self.deliver = deliver
        self.choices_left = frame.sampling.choices

    def cancel(self) -> None:
        self._worker.cancel(self)


class ServingPool:
    """All deploy workers of one process. Safe to use from several threads."""

    def __init__(
        self,
        state: State,
        environment: Mapping[str, str],
        *,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.state = state
        self.environment = environment
        self.idle_seconds = idle_seconds
        self.lock = threading.Lock()
        self.loading = threading.Lock()  # one base is loaded at a time: what is free is known before the next
        self.numbers = itertools.count(1)
        self._workers: dict[str, _Worker] = {}
        self._crashes: dict[str, _Crashes] = {}
        self._is_stopping = False
        self.folder = state.home.root / "serving"
        self.folder.mkdir(mode=0o700, exist_ok=True)
        _remove_left_over(self.folder)

    def find(self, target: str, *, project: str, allows_folders: bool = False) -> ServedModel:
        """project: whose versions are meant. Raises as `find_served`."""
        return find_served(
            target, state=self.state, environment=self.environment, project=project, allows_folders=allows_folders
        )

    def complete(
        self, target: str | ServedModel, question: Question, *, project: str = DEFAULT_PROJECT
    ) -> Iterator[Chunk]:
        """The answer's frames as they come; a reader that leaves stops it. Raises what refuses or ends the request."""
        model = self.find(target, project=project) if isinstance(target, str) else target
        delivered: queue.SimpleQueue[Delivered] = queue.SimpleQueue()
        completion = self.submit(model, question, delivered.put)
        try:
            while (each := delivered.get()) is not None:
                if isinstance(each, TunesmithError):
                    raise each
                yield each
        finally:
            completion.cancel()

    def submit(self, model: ServedModel, question: Question, deliver: Deliver) -> Completion:
        """Have `deliver` called with each frame, then with None or an error; from another thread, never for long.

        Raises UsageFault (CHAT_NOT_OFFERED), MachineCannot (SERVING_BUSY, MODEL_KEEPS_FAILING, SERVER_STOPPING).
        """
        if question.messages is not None:
            model.require_chat()
        frame = GenerateFrame(
            id=next(self.numbers),
            adapter=model.adapter,
            # an untuned base goes on with the text as it stands; a tuned one gets prompts as it learned them
            render="plain" if question.messages is None and model.adapter is None else model.render,
            prompt=question.prompt,
            messages=question.messages,
            sampling=question.sampling,
        )
        digest = model.base.digest
        with self.lock:
            if self._is_stopping:
                raise _stopping()
            worker = self._workers.get(digest)
            if worker is None:
                self._require_patience(model)
                worker = self._workers[digest] = _Worker(self, model.base)
                worker.thread.start()
            completion = Completion(worker, frame, deliver)
            worker.take(completion)
        worker.send_taken()
        return completion

    def loaded(self) -> list[str]:
        """Names of the bases that a worker holds or loads."""
        with self.lock:
            return sorted(worker.facts.name for worker in self._workers.values())

    def pids(self) -> list[int]:
        with self.lock:
            return [worker.pid for worker in self._workers.values() if worker.pid is not None]

    def stop(self) -> None:
        """End every worker; requests on their way are refused. Returns when their processes are gone."""
        with self.lock:
            self._is_stopping = True
            workers = list(self._workers.values())
            for worker in workers:
                worker.is_wanted = False
        for worker in workers:
            worker.thread.join()

    # ---- for the workers' threads

    def forget(self, worker: _Worker) -> None:
        """Called with the lock held: the next request for its base gets a new worker."""
        if self._workers.get(worker.facts.digest) is worker:
            del self._workers[worker.facts.digest]

    def crashed(self, worker: _Worker, error: TunesmithError) -> None:
        with self.lock:
            crashes = self._crashes.setdefault(worker.facts.digest, _Crashes())
            crashes.count += 1
            crashes.last = time.monotonic()
            crashes.error = error

    def answered(self, worker: _Worker) -> None:
        if worker.facts.digest in self._crashes:
            with self.lock:
                self._crashes.pop(worker.facts.digest, None)

    def unload_idle(self, besides: _Worker) -> bool:
        """Ask idle workers to end; whether there were any."""
        with self.lock:
            idle = [worker for worker in self._workers.values() if worker is not besides and worker.is_idle]
            for worker in idle:
                worker.is_wanted = False
                self.forget(worker)
        for worker in idle:
            worker.thread.join(END_SECONDS)
        return bool(idle)

    def _require_patience(self, model: ServedModel) -> None:
        crashes = self._crashes.get(model.base.digest)
        if crashes is None or crashes.count < 2:
            return
        is_open = crashes.count >= BREAKER_CRASHES
        wait = BREAKER_SECONDS if is_open else 2.0 ** (crashes.count - 1)
        left = crashes.last + wait - time.monotonic()
        if left > 0:
            reason = f" Last: {crashes.error.message}" if crashes.error else ""
            raise MachineCannot(
                "MODEL_KEEPS_FAILING",
                f"The worker of {model.base.name} ended {crashes.count} times in a row.{reason}",
                field="model",
                hint=f"Try again in {left:.0f} seconds; its log is logs/{_log_name(model.base)} of the state folder.",
            )


class _Worker:
    """One deploy worker, from its start to its end."""

    def __init__(self, pool: ServingPool, facts: ModelFacts) -> None:
        self.pool = pool
        self.facts = facts
        self.pid: int | None = None
        self.is_wanted = True
        self.thread = threading.Thread(target=self._run, name=f"serve {facts.name}", daemon=True)
        self._requests: dict[int, Completion] = {}
        self._unsent: list[ToWorker] = []
        self._connection: socket.socket | None = None
        self._sending = threading.Lock()
        self._last_used = time.monotonic()
        self._folder: Path | None = None
        self._socket_folder: Path | None = None

    @property
    def is_idle(self) -> bool:
        return self._connection is not None and not self._requests

    def take(self, completion: Completion) -> None:
        """With the pool's lock held. Raises MachineCannot (SERVING_BUSY)."""
        if len(self._requests) >= MAXIMUM_REQUESTS:
            raise MachineCannot(
                "SERVING_BUSY",
                f"{MAXIMUM_REQUESTS} requests to {self.facts.name} are on their way already.",
                field="model",
                hint="Try again in a moment.",
            )
        self._requests[completion.frame.id] = completion
        self._unsent.append(completion.frame)

    def cancel(self, completion: Completion) -> None:
        with self.pool.lock:
            if self._requests.pop(completion.frame.id, None) is None:
                return
            self._last_used = time.monotonic()
            self._unsent.append(CancelFrame(id=completion.frame.id))
        self.send_taken()

    def send_taken(self) -> None:
        """Send what was taken, in its order; while the worker still loads, it waits."""
        with self._sending:
            with self.pool.lock:
                connection = self._connection
                frames, self._unsent = ([], self._unsent) if connection is None else (self._unsent, [])
            try:
                for frame in frames:
                    assert connection is not None
                    send_frame(connection, frame.model_dump_json().encode())
            except OSError:
                return  # its thread sees the end, and tells everybody

    # ---- in its own thread

    def _run(self) -> None:
        error: TunesmithError | None = None
        try:
            connection = self._start()
            with connection:
                self._hand_on(connection)
        except _NotWanted:
            pass
        except TunesmithError as ended:
            error = ended
        except Exception as fault:  # noqa: BLE001  # the edge of a thread: whoever waits is told
            error = TunesmithError("INTERNAL", f"A fault of ours while serving: {type(fault).__name__}: {fault}")
        finally:
            self._leave(error)
            self._end()

    def _leave(self, error: TunesmithError | None) -> None:
        """No request reaches this worker any more; those that wait for it are told."""
        if error is not None and error.code != NO_ROOM:
            self.pool.crashed(self, error)
        with self.pool.lock:
            self.pool.forget(self)
            self._connection = None
            left, self._requests = list(self._requests.values()), {}
        for completion in left:
            completion.deliver(error or _stopping())

    def _start(self) -> socket.socket:
        """Start the process and have it load its base. Raises TunesmithError, _NotWanted."""
        while not self.pool.loading.acquire(timeout=LOOK_SECONDS):
            self._require_wanted()
        try:
            machine = self._require_memory()
            home = self.pool.state.home
            folder = self._folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self.pool.folder))
            self._socket_folder = _socket_folder(folder)
            path = self._socket_folder / SOCKET_NAME
            request = DeployRequest(
                socket=str(path),
                base=self.facts,
                device="cuda" if machine.device == "cuda" else "cpu",
                precision=_precision(machine),
                threads=machine.threads,
                cache_folder=str(home.cache),
                maximum_adapters=MAXIMUM_ADAPTERS,
                maximum_active=MAXIMUM_ACTIVE,
            )
            write_json(folder / "request.json", request.as_json())
            log = home.logs / _log_name(self.facts)
            if log.exists() and log.stat().st_size > MAXIMUM_LOG_BYTES:
                log.unlink()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(str(path))
                listener.listen(1)
                self.pid = start_logged(
                    worker_command(DEPLOYER, str(folder / "request.json")),
                    folder=folder,
                    log=log,
                    environment=worker_environment(
                        self.pool.environment, needs_cuda=machine.device == "cuda", is_idle=machine_is_idle()
                    ),
                )
                connection = self._accept(listener)
            path.unlink()
            try:
                self._await_ready(connection)
            except BaseException:
                connection.close()
                raise
            return connection
        finally:
            self.pool.loading.release()

    def _accept(self, listener: socket.socket) -> socket.socket:
        deadline = time.monotonic() + START_SECONDS
        listener.settimeout(LOOK_SECONDS)
        while True:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                self._require_wanted()
                if self._code() is not None or time.monotonic() > deadline:
                    raise self._died("while it started") from None
                continue
            connection.settimeout(None)
            return connection

    def _await_ready(self, connection: socket.socket) -> None:
        deadline = time.monotonic() + LOAD_SECONDS
        while not _readable(connection):
            self._require_wanted()
            if time.monotonic() > deadline:
                raise self._died(f"after {LOAD_SECONDS:.0f} seconds of loading")
        content = receive_frame(connection)
        if content is None:
            raise self._died("while it loaded the model")
        match FROM_WORKER.validate_json(content):
            case ReadyFrame():
                return
            case FailedFrame(error=form, family=family):
                raise from_form(form, family)
            case other:
                raise TunesmithError("INTERNAL", f"The deploy worker began with {other.kind!r}.")

    def _hand_on(self, connection: socket.socket) -> None:
        """Everything the worker says, to whoever waits for it, until it is idle for too long or not wanted."""
        with self.pool.lock:
            self._connection = connection
            self._last_used = time.monotonic()
        self.send_taken()
        while True:
            if not _readable(connection):
                with self.pool.lock:
                    is_idle = not self._requests and time.monotonic() - self._last_used >= self.pool.idle_seconds
                    if is_idle or not self.is_wanted:
                        self.pool.forget(self)
                        return
                continue
            content = receive_frame(connection)
            if content is None:
                raise self._died("while it answered")
            self._deliver(FROM_WORKER.validate_json(content))

    def _deliver(self, frame: object) -> None:
        if not isinstance(frame, StartedFrame | PieceFrame | DoneFrame | RefusedFrame):
            raise TunesmithError("INTERNAL", f"The deploy worker said {type(frame).__name__} in the middle.")
        with self.pool.lock:
            completion = self._requests.get(frame.id)
            if completion is None:
                return  # cancelled meanwhile
            if isinstance(frame, DoneFrame):
                completion.choices_left -= 1
            is_over = isinstance(frame, RefusedFrame) or completion.choices_left == 0
            if is_over:
                del self._requests[frame.id]
                self._last_used = time.monotonic()
        if isinstance(frame, RefusedFrame):
            completion.deliver(from_form(frame.error, frame.family))
            return
        completion.deliver(frame)
        if is_over:
            self.pool.answered(self)
            completion.deliver(None)

    def _require_wanted(self) -> None:
        if not self.is_wanted:
            raise _NotWanted

    def _require_memory(self) -> Machine:
        """Raises MachineCannot (MODEL_TOO_LARGE_NOW) where the base would not fit; idle models make room first."""
        machine = this_machine(self.pool.environment)
        needed = needed_bytes(self.facts, machine)
        if needed > machine.free_device_bytes and self.pool.unload_idle(self):
            machine = this_machine(self.pool.environment)
        if needed <= machine.free_device_bytes:
            return machine
        raise MachineCannot(
            NO_ROOM,
            f"{self.facts.name} needs about {needed / 1e9:.1f} GB of memory to answer; "
            f"{machine.free_device_bytes / 1e9:.1f} GB are free on {machine.device_name}.",
            field="model",
            hint="Wait for running jobs to end, or free some memory, and try again.",
        )

    def _code(self) -> int | None:
        return exit_code(self.pid) if self.pid is not None else None

    def _died(self, when: str) -> TunesmithError:
        code = self._code()
        if code is None:
            time.sleep(0.05)  # the connection closes a moment before the process is gone
            code = self._code()
        killed = code == -signal.SIGKILL
        reason = " It was killed; too little memory is the usual reason." if killed else ""
        return MachineCannot(
            "MODEL_WORKER_DIED",
            f"The worker of {self.facts.name} ended {when}.{reason}",
            field="model",
            hint="Try the request again: another worker is started for it.",
        )

    def _end(self) -> None:
        """No process and no file is left. A worker ends by itself when its connection closes."""
        if self.pid is not None:
            deadline = time.monotonic() + END_SECONDS
            while self._code() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            signal_worker(self.pid, signal.SIGKILL, whole_group=True)
            while self._code() is None:
                time.sleep(0.02)
        for folder in (self._socket_folder, self._folder):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


class _NotWanted(Exception):  # named for what happened
    """The pool is stopped, or needs the memory."""


def _stopping() -> MachineCannot:
    return MachineCannot("SERVER_STOPPING", "The server is being stopped.", hint="Try again in a moment.")


def needed_bytes(facts: ModelFacts, machine: Machine) -> int:
    """What a worker of this base needs: weights, the caches of its active requests, the libraries themselves."""
    value = VALUE_BYTES[_precision(machine)]
    per_token = 2 * facts.num_layers * facts.num_key_value_heads * facts.head_dim * value
    tokens = MAXIMUM_ACTIVE * min(facts.context_length, CACHED_TOKENS)
    return facts.parameters * value + tokens * per_token + RUNTIME_BYTES[machine.device]


def _precision(machine: Machine) -> Literal["float32", "bf16"]:
    return "bf16" if machine.device == "cuda" else "float32"


def _log_name(facts: ModelFacts) -> str:
    return f"deploy-{facts.digest[:12]}.log"


def _readable(connection: socket.socket) -> bool:
    waiting = select.poll()  # select() takes no descriptor above 1,023
    waiting.register(connection, select.POLLIN)
    return bool(waiting.poll(LOOK_SECONDS * 1000))


def _socket_folder(folder: Path) -> Path:
    """The worker's own folder (mode 0700), or one of that mode with a path that is short enough for a socket."""
    if len(os.fsencode(folder / SOCKET_NAME)) <= MAXIMUM_SOCKET_PATH:
        return folder
    return Path(tempfile.mkdtemp(prefix="tunesmith-", dir="/tmp"))  # the one short path there is


def _remove_left_over(folder: Path) -> None:
    """Folders of processes that were killed; their workers ended with them."""
    for path in folder.iterdir():
        owner = path.name.partition("-")[0]
        if owner.isdecimal() and not is_running(int(owner), started_at=None):
            shutil.rmtree(path, ignore_errors=True)
