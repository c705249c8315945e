"""`vconv bench`: what it reports, of which models, and what it refuses. Nothing here looks at how
long anything took."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny_model import MEMBERS
from tiny_model import exported as tiny_bundle
from vconv import bench, bench_conversion, cli, timing
from vconv.bench import Decoder, checked_lanes
from vconv.errors import UsageError

Run = Callable[..., tuple[int, str, str]]

NATIVE = find_spec("vconv.native._sampler") is not None
NATIVE_ONLY = ("--engine", "native") if NATIVE else ()
KEYS = (
    "vconv model processor processors code_path threads multiply_adds peak reading engines "
    "conversion import_seconds load_seconds waiting notes"
)
QUICK = ("--seconds", "0.005", "--lanes", "1,2")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process; the interpreters that it starts, once each."""
    monkeypatch.setattr(bench_conversion, "_STARTS", 1)

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli._run(["bench", *map(str, arguments)], debug=False)
        return (code, *capfd.readouterr())

    return call


def spreads_of(report: dict[str, Any]) -> list[dict[str, float]]:
    spreads = [report["import_seconds"], report["load_seconds"], report["conversion"]["real_time"]]
    spreads += [row["samples_per_second"] for row in report["engines"]]
    return [*spreads, *report["reading"].values(), *([report["peak"]] if report["peak"] else [])]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that nothing needs to be exported for: 32 levels, fsq, pitch."""
    folder = tmp_path_factory.mktemp("bench")
    with tarfile.open(Path(__file__).with_name("export") / "format-2.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "format-2"


def test_json_is_one_object_with_every_figure(run: Run, packed: Path) -> None:
    pytest.importorskip("torch")
    code, out, err = run("-m", packed, "--json", *QUICK)
    assert code == 0, err
    report = json.loads(out)
    assert set(report) == set(KEYS.split())
    for spread in spreads_of(report):
        assert set(spread) == {"median", "low", "high"}
        assert 0 < spread["low"] <= spread["median"] <= spread["high"] < math.inf
    kinds = [("native", precision) for precision in ("fp32", "bf16", "int8")] if NATIVE else []
    kinds.append(("torchscript", "fp32"))
    rows = [(row["engine"], row["precision"], row["lanes"]) for row in report["engines"]]
    assert rows == [(*kind, lanes) for kind in kinds for lanes in (1, 2)]
    # This model was never judged, so none but fp32 is offered; they are measured all the same.
    assert {row["precision"] for row in report["engines"] if row["offered"]} == {"fp32"}
    assert set(report["reading"]) == {precision for _, precision in kinds}


@pytest.mark.parametrize("member", ["fsq and pitch", "transposed_inverter"])  # the latter: hop 1
def test_shares_of_a_conversion_are_all_of_it(run: Run, packed: Path, member: str) -> None:
    model = tiny_bundle(member) if member in MEMBERS else packed
    code, out, err = run("-m", model, "--json", *NATIVE_ONLY, *QUICK)
    assert code == 0, err
    shares = json.loads(out)["conversion"]["shares"]
    assert list(shares) == ["encoder", "conditioner", "sampler", "audio"]
    assert all(0 < share < 1 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1)


def test_the_table_is_data_and_notes_are_not(run: Run, packed: Path) -> None:
    code, out, err = run("-m", packed, *NATIVE_ONLY, *QUICK)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("model      format-2, ")
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(
        bench_conversion.PARTS
    )
    head = next(line for line in lines if line.startswith("engine"))
    rows = [line for line in lines if line.startswith(("native", "torchscript"))]
    assert len(rows) >= 2
    for row in rows:
        assert row.endswith(("  yes", "  no"))
        assert len(row) <= len(head)
    assert all(line.startswith("vconv: note: ") for line in err.splitlines())


@pytest.mark.skipif(not NATIVE, reason="the sampler is not compiled")
def test_what_the_manifest_judged_cheap_is_offered(
    run: Run, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = bench.Bundle.find

    def judged(name: str) -> Any:
        bundle = found(name)
        costs = {"bf16": 0.0001, "int8": 0.02}
        bundle.manifest = bundle.manifest.model_copy(update={"precisions": costs})
        return bundle

    monkeypatch.setattr(bench.Bundle, "find", judged)
    _, out, _ = run("-m", packed, "--json", "--engine", "native", *QUICK)
    offered = {row["precision"]: row["offered"] for row in json.loads(out)["engines"]}
    assert offered == {"fp32": True, "bf16": True, "int8": False}


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (("--lanes", "0"), 2, "from 1 to 1024"),
        (("--lanes", "1,,2"), 2, "separated by commas"),
        (("--lanes", "two"), 2, "found 'two'"),
        (("--seconds", "0"), 2, "more than 0 and at most 60, found 0"),
        (("--seconds", "nan"), 2, "found nan"),
        (("--threads", "0"), 2, "found 0"),
        (("--threads", "100000"), 2, "found 100000"),
        (("--engine", "gpu"), 2, "auto, native or torchscript, found 'gpu'"),
        (("-m", "nowhere"), 4, "no model 'nowhere'"),
    ],
)
def test_wrong_options_are_one_sentence(
    run: Run, arguments: tuple[str, ...], exit_code: int, says: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (exit_code, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("vconv: error: ")
    assert says in err


def test_numbers_of_lanes_are_each_taken_once_in_their_order() -> None:
    assert checked_lanes("16, 1,4,1") == (16, 1, 4)
    with pytest.raises(UsageError):
        checked_lanes("1\u00b2")


@pytest.mark.skipif(not NATIVE, reason="the sampler is not compiled")
def test_torch_is_needed_for_its_own_rows_only(packed: Path) -> None:
    program = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *p: None if name == 'torch' else find(name, *p)\n"
        "sys.modules['torch'] = None\n"  # importing it now fails
        "from vconv import cli; cli.main(sys.argv[1:])"
    )

    def without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, "bench", "-m", str(packed), *QUICK, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    done = without_torch("--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {row["engine"] for row in report["engines"]} == {"native"}
    assert any(note.startswith("torchscript is left out: ") for note in report["notes"])
    done = without_torch("--engine", "torchscript")
    assert (done.returncode, done.stdout) == (5, "")
    assert "needs torch" in done.stderr


def test_converting_does_not_import_it() -> None:
    program = "import sys, vconv.convert_command; print('vconv.bench' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.skipif(not NATIVE, reason="the sampler is not compiled")
def test_multiply_adds_are_those_the_sampler_counts(packed: Path) -> None:
    for folder in (packed, tiny_bundle("transposed_inverter")):
        found = bench.Bundle.find(folder)
        decoder = Decoder(found.weights("decoder.wavenet."), **found.engine_options())
        engine: Any = decoder.engine("native")
        assert decoder.multiply_adds == engine.multiply_adds


def test_a_rate_is_the_work_of_all_threads_over_the_time_of_one() -> None:
    trial = timing.Trial(amount=10, steps=[lambda: None] * 3, repeats=2)
    trial.processor = [6.0] * 3  # of three threads together: two seconds each
    assert trial.rate == timing.Spread(30.0, 30.0, 30.0)


def test_trials_take_turns_and_slow_ones_have_three(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    order = []

    def working(name: str, seconds: float) -> timing.Trial:
        def step() -> None:
            nonlocal clock
            clock += seconds
            order.append(name)

        return timing.Trial(1, [step])

    monkeypatch.setattr(timing, "processor_clock", lambda: clock)
    quick, slow = working("quick", 0.01), working("slow", 5.0)
    timing.take_turns([quick, slow], seconds=0.9, turns=9)
    assert (len(quick.processor), quick.repeats) == (9, 10)
    assert (len(slow.processor), slow.repeats) == (3, 1)
    assert "".join(name[0] for name in order).endswith("s" + "q" * 10 + "s" + "q" * 60)
    assert quick.rate.median == pytest.approx(100)


def test_the_probes_do_the_work_that_they_say() -> None:
    assert timing.multiplying().amount == 384**3
    for count in (1000, 4_000_000):
        probe = timing.reading(count)
        assert probe.amount >= 1_000_000 - count
        assert probe.amount % count == 0
    spread = timing.Spread.of(np.arange(5.0))
    assert (spread.low, spread.median, spread.high, spread.width) == (1, 2, 3, 1)
