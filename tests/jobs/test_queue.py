from __future__ import annotations

import pytest

from tunesmith.jobs.queue import Load, QueuedJob, Slot, choose, in_order, places

NOTHING = Load(running={}, last_start={})


def job(sequence: int, project: str = "a", *, priority: int = 0, has_run: bool = False, needs: int | None = None):
    return QueuedJob(
        job_id=f"job-{sequence}",
        project=project,
        priority=priority,
        sequence=sequence,
        has_run=has_run,
        needed_bytes=needs,
    )


def cpu(*users: str, capacity: int = 1) -> Slot:
    return Slot(name="CPU", gpu_index=None, free_bytes=int(8e9), capacity=capacity, users=users)


def gpu(index: int, *users: str, free: float = 80e9) -> Slot:
    return Slot(name=f"GPU {index}", gpu_index=index, free_bytes=int(free), capacity=1, users=users)


def ids(jobs: list[QueuedJob]) -> list[int]:
    return [each.sequence for each in jobs]


def test_one_project_runs_in_the_order_of_submission() -> None:
    assert ids(in_order([job(3), job(1), job(2)], load=NOTHING)) == [1, 2, 3]


def test_a_higher_priority_starts_earlier_within_its_project_only() -> None:
    jobs = [job(1), job(2, priority=5), job(3, "b")]
    assert ids(in_order(jobs, load=NOTHING)) == [2, 3, 1]


def test_projects_take_turns_however_many_jobs_one_submits() -> None:
    jobs = [*(job(number) for number in range(1, 6)), job(6, "b"), job(7, "b")]
    assert ids(in_order(jobs, load=NOTHING)) == [1, 6, 2, 7, 3, 4, 5]


def test_the_project_with_fewer_running_jobs_goes_first() -> None:
    load = Load(running={"a": 2, "b": 1}, last_start={"a": 1, "b": 3})
    assert ids(in_order([job(1), job(2), job(3, "b"), job(4, "b"), job(5, "b")], load=load)) == [3, 1, 4, 2, 5]


def test_of_equals_the_one_whose_last_start_is_longest_ago_goes_first() -> None:
    load = Load(running={}, last_start={"a": 7, "b": 6})
    assert ids(in_order([job(1), job(2, "b")], load=load)) == [2, 1]


def test_an_interrupted_job_goes_on_before_a_new_one_and_counts_as_its_projects_own() -> None:
    jobs = [job(1, priority=100), job(2, "b"), job(9, has_run=True)]
    assert ids(in_order(jobs, load=NOTHING)) == [9, 2, 1]


def test_a_job_gets_the_free_slot_with_the_most_memory_that_holds_it() -> None:
    slots = [gpu(0, free=20e9), gpu(1, free=70e9), gpu(2, "job-8")]
    starts = choose([job(1, needs=int(12e9)), job(2, needs=int(30e9)), job(3)], slots)
    assert [(each.sequence, slot.name) for each, slot in starts] == [(1, "GPU 1"), (3, "GPU 0")]


def test_a_tenth_of_the_free_memory_is_kept() -> None:
    assert choose([job(1, needs=int(10e9))], [gpu(0, free=11e9)]) == []
    assert len(choose([job(1, needs=int(10e9))], [gpu(0, free=11.2e9)])) == 1


@pytest.mark.parametrize(("capacity", "expected"), [(1, [1]), (2, [1, 2])])
def test_the_cpu_holds_as_many_as_it_was_given(capacity: int, expected: list[int]) -> None:
    starts = choose([job(1), job(2), job(3)], [cpu(capacity=capacity)])
    assert [each.sequence for each, _ in starts] == expected


def test_a_queued_job_is_told_what_is_before_it_and_who_has_the_device() -> None:
    told = places([job(1), job(2), job(3), job(4, "other")], [cpu("job-0")], projects={"job-0": "a"})
    assert told["job-1"].position == 1 and told["job-1"].reason == "the CPU is used by job-0"
    assert told["job-2"].reason == "1 job before it; the CPU is used by job-0"
    assert told["job-3"].position == 3 and told["job-3"].reason == "2 jobs before it; the CPU is used by job-0"
    assert told["job-4"].reason.endswith("the CPU is used by a job of another project"), "ids of others are not told"


def test_a_job_that_no_device_holds_is_told_what_it_needs_and_what_is_free() -> None:
    told = places([job(1, needs=int(12.3e9)), job(2)], [gpu(0, free=8e9), gpu(1, "job-9")], projects={})
    assert told["job-1"].reason == "needs 12.3 GB, 8.0 GB are free on GPU 0 (90% of them count)"
    assert told["job-2"].reason == "1 job before it; it starts now on GPU 0"


def test_a_hundred_thousand_jobs_are_ordered_without_a_quadratic_walk() -> None:
    jobs = [job(number, f"project-{number % 300}") for number in range(100_000)]
    order = in_order(jobs, load=NOTHING)
    assert len({each.project for each in order[:300]}) == 300, "each project has one turn before any has two"
