"""What is kept of an evaluation when the disk is full."""

from pathlib import Path

import pytest

from vconv.errors import SetupError
from vconv.train.evaluation.record import Record, disk_told

PLAN = {"list": "one"}
FULL = Path("/dev/full")


def score(folder: Path) -> None:
    """One row that is kept and one that finds the disk full."""
    with disk_told(folder), Record(folder, PLAN, overwrite=False) as record, FULL.open("a") as full:
        record.append({"id": "a"})
        record._file.close()
        record._file = full
        try:
            record.append({"id": "b"})
        finally:
            full.detach()  # closing it would fail once more


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_full_disk_is_one_sentence_and_the_rows_before_stand(tmp_path):
    with pytest.raises(SetupError, match=r"cannot be written \(No space left on device\)"):
        score(tmp_path)
    with Record(tmp_path, PLAN, overwrite=False) as record:
        assert list(record.rows) == ["a"]
