"""The whole way of a fine-tuning job up to its start: check, inspect, plan, write its row and its folder.

In: a request and settings. Out: a `PreparedJob` (which `tunesmith plan` shows), then a job that `supervisor.run_job`
runs. Nothing is written outside the caches before every check has passed. A job of the queue has its row first
(`submission.py`), and is prepared by the same functions when its turn has come.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal

from tunesmith.data.rows import check_file, require_rows, split_needs_two
from tunesmith.errors import InputRefused, MachineCannot
from tunesmith.jobs.home import Home
from tunesmith.jobs.inputs import dataset_file, dataset_id, location_of, model_folder, results_uri
from tunesmith.jobs.inspection import Inspection
from tunesmith.jobs.models import FoundModel
from tunesmith.jobs.parents import Parent, fetch_adapter, find_parent, require_same_base, with_form_of
from tunesmith.jobs.queue import HIDDEN_JOB
from tunesmith.jobs.records import JobFolder, create_job, new_job_id
from tunesmith.jobs.settings import option_name, refuse_not_built
from tunesmith.jobs.state import State
from tunesmith.plan.machine import Machine, this_machine
from tunesmith.plan.memory import artifact_bytes
from tunesmith.plan.resolve import refuse_precision, resolve
from tunesmith.plan.speed import machine_speed
from tunesmith.spec.catalog import DEFAULT_PROJECT, Lineage, LineageDataset
from tunesmith.spec.datasets import DatasetInput, DatasetReport, InspectRequest, Notice, Preparation, PreviewWish
from tunesmith.spec.jobs import FINAL_STATES, InitialAdapter, JobFile, JobRecord, JobState
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.plan import Plan
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.locations import BucketPlace, Place, find_place, local_path, uri_of
from tunesmith.storage.publish import check_results, check_target
from tunesmith.versions import numeric_versions

Progress = Callable[[str], None]
# Those on which the model's inspection and the datasets' preparation depend.
PREPARATION_SETTINGS = (
    "validation_fraction", "seed", "duplicates", "sequence_length", "too_long", "render", "target_modules", "lora_rank",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """All that is known before the start."""

    request: FinetuneRequest
    model: FoundModel
    facts: ModelFacts
    datasets: list[DatasetInput]
    reports: list[DatasetReport]
    preparation: Preparation
    plan: Plan
    machine: Machine
    version_set: str
    target: Place | None  # None: under the home, by version set and number
    initial_adapter: InitialAdapter | None = None
    project: str = DEFAULT_PROJECT

    @property
    def parent(self) -> str | None:
        """The model version that training goes on from."""
        return self.initial_adapter.model_version if self.initial_adapter is not None else None

    def notices(self) -> list[Notice]:
        """Everything that must be said before the start, each once."""
        told = [
            *(Notice(code="MODEL", message=message) for message in self.facts.notices),
            *self.preparation.notices,
            *self.plan.notices,
        ]
        return list({(notice.code, notice.message): notice for notice in told}.values())


def prepare_job(
    request: FinetuneRequest,
    settings: TrainingSettings,
    *,
    state: State,
    environment: Mapping[str, str],
    progress: Progress,
    with_previews: bool = False,
    job_id: str | None = None,
    project: str = DEFAULT_PROJECT,
    is_unwanted: Callable[[], bool] = lambda: False,
) -> PreparedJob:
    """Every check, the inspection and the plan. Raises the first refusal; leaves nothing but caches.

    job_id: of a job that was submitted before it was prepared. is_unwanted: asked now and then; once it says yes
    this ends with INTERRUPTED.
    """
    home = state.home
    refuse_not_built(request, settings)
    parent: Parent | None = None
    if request.from_version is not None:
        parent = find_parent(request.from_version, state=state, project=project)
        settings = with_form_of(parent, settings)
    model = model_folder(request.model, state=state, environment=environment, progress=progress)
    datasets = find_datasets(request, state=state, project=project, environment=environment)
    target = None
    if request.results is not None:
        target = find_place(results_uri(request.results, state=state, field="results"), field="--results")
    if isinstance(target, Path):
        _check_results(target, datasets=datasets, model=model, home=home)
    elif target is not None:
        progress(f"checking {target.uri}")
        check_results(location_of(target.uri, state=state), environment)
    if request.validation_dataset is not None:
        settings = _without_split(settings)
    question = InspectRequest(
        model_name=model.name,
        model_path=str(model.path),
        datasets=datasets,
        settings=_for_preparation(settings),
        cache_folder=str(home.cache),
        preview=PreviewWish() if with_previews else None,
    )
    # the worker looks at the model and counts tokens while the rows are checked here
    with Inspection(question, home=home, environment=environment, is_unwanted=is_unwanted) as inspection:
        progress("checking the rows")
        machine = this_machine(environment)
        refuse_precision(settings, machine)
        _require_log(request.log, state=state)  # the database is opened here, while the inspect worker runs
        if target is not None:
            _refuse_promised(target, state=state, job_id=job_id, project=project)
        reports = [check_rows(dataset) for dataset in datasets]
        is_split = request.validation_dataset is None and settings.validation_fraction > 0
        if is_split and reports[0].rows - reports[0].duplicates < 2:  # told now: counting tokens may take minutes
            raise split_needs_two(reports[0].rows, fraction=settings.validation_fraction)
        progress("inspecting the model and counting tokens")
        response = inspection.answer()
    assert response.facts is not None and response.preparation is not None
    initial_adapter = None
    if parent is not None:
        require_same_base(parent, response.facts)
        initial_adapter = fetch_adapter(parent, home=home, environment=environment)
    progress("planning")
    plan = resolve(
        settings,
        facts=response.facts,
        preparation=response.preparation,
        machine=machine,
        speed=machine_speed(machine, cache=home.cache),
    )
    _require_disk(home.jobs, plan.disk_bytes, field="TUNESMITH_HOME")
    if isinstance(target, Path):
        _require_disk(target, artifact_bytes(response.facts, plan.settings), field="results")
    return PreparedJob(
        request=request,
        model=model,
        facts=response.facts,
        datasets=datasets,
        reports=reports,
        preparation=response.preparation,
        plan=plan,
        machine=machine,
        version_set=request.version_set or default_version_set(model.name, datasets[0].name),
        target=target,
        initial_adapter=initial_adapter,
        project=project,
    )


def submit(prepared: PreparedJob, *, state: State, command: list[str]) -> JobFolder:
    """Give the job its id, its version number and its folder, for the foreground. From here on it can be resumed.

    The folder is whole before the row is there: killed in between, it is a folder that no job names.
    """
    from tunesmith.catalog import audit  # with SQLAlchemy, which by now is imported
    from tunesmith.jobs.store import NewJob

    new = NewJob(
        job_id=new_job_id(),
        request=prepared.request,
        settings=prepared.plan.settings,
        version_set=prepared.version_set,
        results_uri=uri_of(prepared.target) if prepared.target is not None else None,
        results_root=state.results(prepared.project),
        base_name=prepared.model.name,
        project=prepared.project,
        command=command,
        is_foreground=True,
        parent=prepared.parent,
        lineage=lineage_of(prepared),
    )
    folder = JobFolder(path=state.home.jobs / new.job_id)
    try:
        with state.database.write() as connection:
            above = state.highest_result(prepared.version_set, project=prepared.project)
            record = state.jobs.insert(connection, new, above=above)
            told = {"version": record.model_version}
            audit.record(connection, new.submitted_by, "job.submit", record.job_id, told, project=new.project)
            write_folder(prepared, record, state=state)
    except BaseException:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise
    return folder


def write_folder(prepared: PreparedJob, record: JobRecord, *, state: State) -> JobFolder:
    """The job's folder with everything that its worker gets."""
    job_file = JobFile(
        job_id=record.job_id,
        model_version=record.model_version,
        name=record.name,
        description=prepared.request.description,
        created_at=record.created_at,
        base=prepared.facts,
        datasets=prepared.datasets,
        initial_adapter=prepared.initial_adapter,
        cache_folder=str(state.home.cache),
        settings=prepared.plan.settings,
        plan_reasons=prepared.plan.reasons,
        threads=prepared.plan.threads,
        device=prepared.plan.device,
        versions=numeric_versions(),
    )
    return create_job(state.home, job_file=job_file, preparation=prepared.preparation, plan=prepared.plan)


def lineage_of(prepared: PreparedJob) -> Lineage:
    """What the job's model version is made from."""
    request = prepared.request
    asked = {"training": request.dataset, "validation": request.validation_dataset, "test": request.test_dataset}
    return Lineage(
        base_name=prepared.model.name,
        base_digest=prepared.facts.digest,
        datasets=[
            LineageDataset(
                role=data.role,
                name=data.name,
                dataset_id=dataset_id(asked[data.role]),
                content_hash=report.content_hash,
                rows=report.rows,
            )
            for data, report in zip(prepared.datasets, prepared.reports, strict=True)
        ],
        settings=prepared.plan.settings,
        parent=prepared.parent,
        library_versions=numeric_versions(),
    )


def find_datasets(
    request: FinetuneRequest, *, state: State, project: str, environment: Mapping[str, str]
) -> list[DatasetInput]:
    """The dataset files by role, each there and readable, fetched where need be. Raises InputRefused, Unknown."""
    roles: list[tuple[Literal["training", "validation", "test"], str | None, str]] = [
        ("training", request.dataset, "dataset"),
        ("validation", request.validation_dataset, "validation_dataset"),
        ("test", request.test_dataset, "test_dataset"),
    ]
    found: list[DatasetInput] = []
    for role, text, field in roles:
        if text is None:
            continue
        known = dataset_file(text, state=state, project=project, environment=environment, field=field)
        path = known.path if known is not None else dataset_path(text, field=field)
        name = known.name if known is not None else text
        columns = dict(request.columns or (known.columns if known is not None else {}))
        found.append(DatasetInput(role=role, path=str(path), name=name, columns=columns))
    return found


def dataset_path(text: str, *, field: str) -> Path:
    """The file behind a DATASET argument. Raises InputRefused where it is no readable file."""
    option = option_name(field)
    path = local_path(text, field=option)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputRefused(
            "DATASET_NAME", f"{option} {text!a}: the file's name is not UTF-8.", field=field,
            hint="Rename the file, or work in a UTF-8 locale.",
        ) from error  # fmt: skip
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
            if path.is_symlink() and not path.exists():
                what = "is a link that leads nowhere"
            raise InputRefused(
                "DATASET_NOT_FOUND",
                f"{option} {text!r} {what}.",
                field=field,
                hint="Name a JSONL, CSV or Parquet file.",
            )
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputRefused(
            "DATASET_NOT_READABLE", f"{option} {text[:200]!r} cannot be read: {error.strerror}.", field=field,
            hint="Check the path, and that you may read the file.",
        ) from error  # fmt: skip
    return path


def check_rows(dataset: DatasetInput) -> DatasetReport:
    report = check_file(Path(dataset.path), columns=dataset.columns, name=dataset.name)
    require_rows(report)
    return report


def default_version_set(model_name: str, dataset: str) -> str:
    """`demo-rows` for tunesmith/demo tuned on rows.jsonl: letters, digits, dots, dashes and underscores."""
    words = (model_name.rpartition("/")[2], Path(dataset).name.partition(".")[0])
    cleaned = [re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-._") for word in words]
    return "-".join(word for word in cleaned if word)[:64].rstrip("-._") or "model"


def _for_preparation(settings: TrainingSettings) -> TrainingSettings:
    """What the inspect worker reads, all else as by default: a plan for another learning rate asks nothing new."""
    return TrainingSettings.model_validate({name: getattr(settings, name) for name in PREPARATION_SETTINGS})


def _without_split(settings: TrainingSettings) -> TrainingSettings:
    """With an own validation file nothing is split off."""
    return settings.model_copy(update={"validation_fraction": 0.0})


def _check_results(target: Path, *, datasets: list[DatasetInput], model: FoundModel, home: Home) -> None:
    """Where results go is no place that holds something else: a dataset, the model, another job."""
    resolved = target.resolve()
    places = [(Path(dataset.path).resolve(), f"the dataset {dataset.name}") for dataset in datasets]
    places += [(path.parent, f"the folder of {what}") for path, what in places if path.parent == resolved]
    places += [(model.path.resolve(), f"the model {model.name}"), (home.jobs.resolve(), "the folder of all jobs")]
    _refuse_taken(target, places)
    check_target(target)


def _refuse_promised(target: Place, *, state: State, job_id: str | None, project: str) -> None:
    unfinished = [other for other in JobState if other not in FINAL_STATES]
    places = [
        (
            _steps(find_place(record.results_uri, field="results")),
            f"the results location of the unfinished job {record.job_id}"
            if record.project == project
            else f"the results location of {HIDDEN_JOB}",
        )
        for record in state.jobs.records(states=unfinished)
        if record.job_id != job_id
    ]
    _refuse_taken(target, places)


def _steps(place: Place) -> PurePath:
    """Of a folder with its links followed; of a bucket its URI: comparable, and told apart."""
    return PurePosixPath(place.uri) if isinstance(place, BucketPlace) else place.resolve()


def _refuse_taken(target: Place, places: Sequence[tuple[PurePath, str]]) -> None:
    resolved = _steps(target)
    for place, what in places:
        is_same = resolved == place
        if is_same or resolved.is_relative_to(place):
            raise InputRefused(
                "RESULTS_TAKEN",
                f"The results location {uri_of(target) if isinstance(target, BucketPlace) else target} "
                f"{'is' if is_same else 'lies inside'} {what}.",
                field="results",
                hint="Choose a folder of its own.",
            )


def _require_log(name: str | None, *, state: State) -> None:
    from tunesmith.catalog.logs import find_log  # with SQLAlchemy, as the database

    with state.database.read() as connection:
        if name is not None:
            find_log(connection, name)


def _require_disk(folder: Path, needed: int, *, field: str) -> None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise MachineCannot(
            "DISK_FULL",
            f"The run needs about {needed / 1e6:,.0f} MB on the disk of {folder}; {free / 1e6:,.0f} MB are free.",
            field=field,
            hint="Free some space or choose a folder on another disk.",
        )
