"""benchmarks/gpu_generate.py: it runs to its end anywhere, and times nothing that is wrong."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vconv.engines.torchscript import IncrementalEngine

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_a_run_on_the_cpu_ends_with_its_tables(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    script = [sys.executable, str(BENCHMARKS / "gpu_generate.py"), "--device", "cpu", "--smoke"]
    done = subprocess.run(
        [*script, "--json", str(figures)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("device cpu, date 20")
    rows = [line for line in lines if line.startswith("| tiny")]
    assert len({line.count("|") for line in rows}) == 1
    found = json.loads(figures.read_text("utf-8"))
    assert {"torch", "vconv", "python", "date"} <= found["machine"].keys()
    cells = found["cells"]
    assert len(cells) == len(rows)
    for engine in ("cudagraphs", "torchscript", "torchscript-eager"):
        mine = [cell for cell in cells if cell["engine"] == engine]
        assert [cell["lanes"] for cell in mine] == [1, 3, 1, 3]
        for cell in mine:
            assert cell["remark"] == ""
            assert 0 < cell["difference"] < 1e-4
            assert cell["samples_per_second"] == cell["lanes"] * cell["samples_per_second_a_lane"]
            assert cell["real_time"] == cell["samples_per_second"] / 16_000
            assert cell["calls"] >= 3
    # On the CPU there is none, or none yet; its rows say so.
    others = [cell for cell in cells if cell["engine"] == "triton"]
    assert [cell["remark"].startswith("not there: ") for cell in others] == [True] * 4
    assert all(row["real_time"] > 0 for row in found["conversions"])
    assert [row["engine"] for row in found["conversions"]] == ["torchscript", "cudagraphs"]
    assert lines[-1].startswith("| cudagraphs | cpu | 2 | 1 | ")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_generate")


@pytest.mark.parametrize(("precision", "error"), [("fp32", 3e-4), ("bf16", 0.2), ("fp32", np.nan)])
def test_an_engine_with_other_logits_is_not_timed(
    script: Any, monkeypatch: pytest.MonkeyPatch, precision: str, error: float
) -> None:
    network = script.Network(
        "tiny", script.decoder_of(script.SMOKE, script.random_weights(script.SMOKE))
    )
    run = script.Run("cpu", script.TINY, script.Deadline(100))
    run.reference(network)
    score = IncrementalEngine.score

    def wrong(self: Any, *arguments: Any) -> Any:
        logits, state = score(self, *arguments)
        return logits + np.float32(error), state

    monkeypatch.setattr(IncrementalEngine, "score", wrong)
    (row,) = run.rows(network, "torchscript-eager", precision)
    assert row.remark.startswith("wrong, not timed: ")
    assert row.lanes is None
    assert row.samples_per_second is None


def test_what_does_not_fit_in_the_time_is_said_to_be_not_measured(script: Any) -> None:
    network = script.Network(
        "tiny", script.decoder_of(script.SMOKE, script.random_weights(script.SMOKE))
    )
    run = script.Run("cpu", script.TINY, script.Deadline(0))
    (row,) = run.rows(network, "cudagraphs", "fp32")
    assert row.remark == "not measured: no time was left"
    assert script.conversion("torchscript", run).remark == "not measured: no time was left"


def test_the_presets_are_the_configurations_own(script: Any) -> None:
    for preset, adds in (("base", 618_496), ("paper", 13_225_984)):
        shape = script.load_config(script.ROOT / f"configs/{preset}.yaml").model.decoder
        decoder = script.decoder_of(shape, script.random_weights(shape))
        assert decoder.multiply_adds == adds
