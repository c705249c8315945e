"""What ``vconv convert`` prints: a line or a JSON object for each file, a bar, the sum at the end.

All of it from one thread, so that lines never mix.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .attempt import Options
from .batch import Job
from .messages import emit, say
from .progress_line import Line, TimeToGo, drawn, told
from .reading import printable
from .results import WrittenFile

log = logging.getLogger("vconv")

Shares = Mapping[int, "tuple[float, float | None]"]


class Report:
    """Of the conversions of a plan, as they come about."""

    def __init__(
        self,
        jobs: Sequence[Job],
        options: Options,
        report_error: Callable[[Exception], int],
        *,
        all_jobs: int | None = None,
    ) -> None:
        """``all_jobs``: how many there are with those of other shards."""
        self._jobs = jobs
        self._options = options
        self._report_error = report_error
        self._several = (all_jobs or len(jobs)) > 1
        self._line = Line(quiet=options.quiet)
        self._time_to_go = TimeToGo()
        # In bytes: to open 100,000 files for their declared seconds would take minutes.
        self._total = float(sum(job.size for job in jobs))
        self._done = 0.0
        self._counts = {"converted": 0, "failed": 0, "skipped": 0, "done before": 0}
        self._code = 0

    def converted(self, job: Job, made: WrittenFile) -> None:
        """A file is at its place."""
        self._count("converted", job)
        self._done += job.size
        target = "<stdout>" if job.target_path is None else printable(job.target_path)
        self._emit(
            job,
            output=target,
            speaker=made.speaker,
            seed=self._options.seed,
            sample_rate=made.sample_rate,
            samples=made.samples,
            seconds=round(made.seconds, 6),
            lanes=made.lanes,
            elapsed_seconds=round(made.elapsed_seconds, 3),
            real_time_factor=round(made.real_time_factor, 3),
        )
        if not self._options.quiet:
            say(
                f"{job.name} -> {target} ({printable(made.speaker)}), {made.seconds:.2f} s in "
                f"{made.elapsed_seconds:.2f} s, {made.real_time_factor:.1f} times real time"
            )

    def failed(self, job: Job, error: Exception) -> int:
        """A file could not be converted; returns the error's exit code."""
        self._count("failed", job)
        self._total -= job.size
        code = self._report_error(error)
        self._code = code
        self._emit(job, error=str(error), exit_code=code)
        return code

    def passed(self, job: Job, why: str) -> None:
        """A file needed nothing: it was ``skipped``, or ``done before``."""
        self._count(why, job)
        self._total -= job.size
        self._emit(job, output=printable(job.target_path or ""), outcome=why)

    def warn(self, warnings: Sequence[tuple[int, str]]) -> None:
        """What the library warned of meanwhile."""
        if warnings:
            self._line.clear()
        for level, text in warnings:
            log.log(level, "%s", text)

    def advance(self, shares: Shares) -> None:
        """Draw the bar: ``shares`` are of the files on their way (``Pool.shares``)."""
        if not self._line.there:
            return
        done = self._done
        for number, (seconds, total) in shares.items():
            done += self._jobs[number].size * (min(1.0, seconds / total) if total else 0.0)
        rest = self._time_to_go(done, self._total)
        if self._several:
            over = sum(self._counts.values())
            head = f"{over:,} of {len(self._jobs):,} files"
        else:
            head = self._jobs[0].name if len(self._jobs[0].name) < 40 else "converting"
        if self._total > 0 and (done or self._several):
            text = f"{head} {drawn(done / self._total)}"
        else:  # of unknown length
            text = f"{head}, {sum(seconds for seconds, _ in shares.values()):.1f} s"
        self._line.show(text + (f", {told(rest)} to go" if rest is not None else ""))

    def clear(self) -> None:
        """Take the bar away."""
        self._line.clear()

    def sum_up(self) -> int:
        """Print the sum, if there are several; returns the command's exit code."""
        self._line.clear()
        counts = self._counts
        if self._several and (counts["failed"] or not self._options.quiet):
            parts = [
                f"{count:,} {what}"
                for what, count in counts.items()
                if count or what in ("converted", "failed")
            ]
            left = len(self._jobs) - sum(counts.values())
            say(", ".join([*parts, *([f"{left:,} left"] if left else [])]))
        if not self._several:
            return self._code
        return 1 if counts["failed"] else 0

    def _count(self, what: str, job: Job) -> None:
        self._line.clear()
        self._counts[what] += 1

    def _emit(self, job: Job, **values: Any) -> None:
        if self._options.as_json:
            emit(json.dumps({"input": job.name, **values}))
