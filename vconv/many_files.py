"""Going through a plan: what is handed out, and what is made of what comes back.

Here, in the thread that handles signals, and nowhere else is anything recorded, renamed to its
place and printed. Only as many tasks are handed out as keep the pool busy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from .attempt import Options, Outcome, Task, exists_error
from .audio import writing
from .batch import Job
from .batch_output import Report
from .errors import UsageError
from .interruption import Interruption
from .pool import Pool
from .reading import printable
from .record import Record

_TICK_SECONDS = 0.2


def convert_jobs(
    jobs: Sequence[Job],
    pool: Pool,
    options: Options,
    report: Report,
    record: Record | None,
    interruption: Interruption,
) -> None:
    """Convert the jobs, going on past those that fail.

    Raises SystemExit on a signal, when what was running has ended and what was complete is told of,
    and UsageError if the record cannot be written.
    """
    books = _Books(jobs, options, report, record)
    waiting = enumerate(jobs)
    with interruption.deferred(), pool:
        try:
            running = 0
            more = True
            while more or running:
                interruption.leave_if_told()
                while more and pool.wanted > 0:
                    interruption.leave_if_told()
                    following = next(waiting, None)
                    if following is None:
                        more = False
                        break
                    task = books.open(*following)
                    if task is not None:
                        pool.submit(task)
                        running += 1
                report.advance(pool.shares)
                for outcome in pool.wait(_TICK_SECONDS if running else 0):
                    running -= 1
                    books.close(outcome)
        except SystemExit:
            report.clear()
            for outcome in pool.stop():
                books.close(outcome)
            report.sum_up()
            raise
        finally:
            report.clear()


class _Books:
    """What is noted of each job, before and after it is done."""

    def __init__(
        self, jobs: Sequence[Job], options: Options, report: Report, record: Record | None
    ) -> None:
        self._jobs = jobs
        self._options = options
        self._report = report
        self._record = record

    def open(self, number: int, job: Job) -> Task | None:
        """What a worker is to do; None of a job that needs none, which is closed at once."""
        assert job.source_path is not None
        assert job.target_path is not None
        known = None if self._record is None else self._record.known(job.target_path)
        if job.problem is not None:
            self._failed(job, UsageError(f"{job.name}: {job.problem}"))
        elif known is None and job.exists and self._options.skip_existing:
            self._passed(job, "skipped")
        elif known is None and job.exists and not self._options.overwrite:
            error = exists_error(job.source_path, job.target_path, "its output {} exists")
            self._failed(job, error)
        else:
            recorded = self._record is not None
            return Task(number, job.source_path, job.target_path, recorded, known)
        return None

    def close(self, outcome: Outcome) -> None:
        """Record, rename and tell of what a worker has done."""
        job = self._jobs[outcome.number]
        self._report.warn(outcome.warnings)
        if outcome.kind == "converted":
            self._put_in_place(job, outcome)
        elif outcome.error is not None:
            self._failed(job, outcome.error)
        else:
            self._passed(job, outcome.kind)

    def _put_in_place(self, job: Job, outcome: Outcome) -> None:
        made, target = outcome.made, job.target_path
        assert made is not None
        assert target is not None
        assert job.source_path is not None
        try:
            if os.path.lexists(target) and not outcome.replaces:
                what = "its output {} has come into being meanwhile"
                self._failed(job, exists_error(job.source_path, target, what))
                return
            self._note(
                job,
                outcome="converted",
                input_sha256=outcome.input_sha256,
                input_bytes=outcome.input_bytes,
                output_sha256=outcome.output_sha256,
                seconds=round(made.seconds, 6),
                lanes=made.lanes,
                elapsed_seconds=round(made.elapsed_seconds, 3),
                cpu=outcome.cpu,
            )
            try:
                with writing(printable(target)):
                    os.replace(made.path, target)
            except UsageError as error:
                self._failed(job, error)
                return
        finally:
            made.path.unlink(missing_ok=True)  # nothing, once it is renamed
        self._report.converted(job, made)

    def _failed(self, job: Job, error: Exception) -> None:
        code = self._report.failed(job, error)
        self._note(job, outcome="failed", error=str(error), exit_code=code)

    def _passed(self, job: Job, why: str) -> None:
        self._report.passed(job, why)
        if why == "skipped":  # what was done before has its line
            self._note(job, outcome=why)

    def _note(self, job: Job, **outcome: object) -> None:
        if self._record is not None:
            self._record.append(job, outcome)
