"""The benchmark of training runs to its end where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_verifies_times_and_says_what_it_left_out(tmp_path):
    script = ROOT / "benchmarks" / "gpu_train.py"
    options = ["--device", "cpu", "--smoke", "--rows", "0,1", "--reserve", "1"]
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, str(script), *options, "--json", str(report)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    rows = json.loads(report.read_text("utf-8"))["rows"]
    assert [row["status"] for row in rows] == ["measured"] * 2 + ["not measured"] * 2
    assert rows[0]["largest_difference"] == 0
    assert 0 < rows[1]["largest_difference"] < 0.05
    assert all(row["samples_per_second"] > 0 for row in rows[:2])
    assert done.stdout.count("| tiny |") == 4
