"""Many files through one call of the engine, as on a GPU: here with TorchScript on the CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

import vconv
from batches import recordings
from command_line import Run, plain_options, tree
from speech import speechlike
from tiny_model import exported
from vconv import convert_command, engine_choice
from vconv import lanes as lanes_module
from vconv.attempt import Task
from vconv.bundle import Bundle
from vconv.converter import Converter, load
from vconv.engines import Joining
from vconv.engines.shared import SharedEngine
from vconv.pool import Threads

MARGIN = 1e-4  # of probability, from a step of the distribution


class Overheard:
    """An engine, and what it was told to draw."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.drawn: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def join(self, states: Sequence[Any]) -> Any:
        return self.inner.join(states)

    def split(self, state: Any, counts: Sequence[int]) -> Any:
        return self.inner.split(state, counts)

    def generate(self, conditioning: Any, uniforms: Any, temperature: float, state: Any) -> Any:
        codes, after = self.inner.generate(conditioning, uniforms, temperature, state)
        self.drawn.append((conditioning, uniforms, temperature, state, codes))
        return codes, after


def together(**options: Any) -> tuple[Converter, Overheard]:
    """A converter whose engine is shared."""
    converter = load(exported(), engine="torchscript", **options)
    heard = Overheard(converter._model.engine)
    assert isinstance(heard, Joining)
    converter._model.engine = SharedEngine(heard)
    return converter, heard


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Overheard:
    """What ``vconv convert`` loads in this test."""
    converter, heard = together()
    bundle, model = converter._bundle, converter._model
    monkeypatch.setattr(convert_command, "load", lambda *_, **__: Converter(bundle, model))
    return heard


def samples(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    return {name: soundfile.read(folder / name, dtype="float32")[0] for name in tree(folder)}


def assert_draws_are_each_lane_s_own(drawn: Sequence[tuple[Any, ...]], engine: Any) -> None:
    """In whatever company, a lane draws what it would draw alone under the same history: the
    smallest code whose cumulative probability, by its logits alone, exceeds the uniform; but where
    the uniform lies within the margin of a step of the distribution."""
    draws = clear = 0
    for conditioning, uniforms, temperature, state, codes in drawn:
        for lane, alone in enumerate(engine.split(state, [1] * len(codes))):
            one = slice(lane, lane + 1)
            logits = engine.score(conditioning[one], codes[one], alone)[0][0].astype(np.float64)
            odds = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
            steps = (odds / odds.sum(1, keepdims=True)).cumsum(1)
            wanted = np.minimum((steps <= uniforms[lane][:, None]).sum(1), 255)
            sure = np.abs(steps - uniforms[lane][:, None]).min(1) > MARGIN
            np.testing.assert_array_equal(codes[lane][sure], wanted[sure])
            draws, clear = draws + len(sure), clear + int(sure.sum())
    assert clear > 0.9 * draws > 0


def test_a_folder_says_what_its_files_say_one_by_one(
    shared: Overheard, convert: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for roundings: so a draw can differ that lies on a step, and with it what follows."""
    monkeypatch.setattr(lanes_module, "_SHORTEST", 4)
    source = recordings(tmp_path / "in", 6)
    soundfile.write(source / "lanes.wav", speechlike(45_000), 16_000)
    more = ("-r", "--lanes", 2)
    assert convert(source, "-o", tmp_path / "one", "-j", 1, *more).code == 0
    alone = [len(codes) for *_, codes in shared.drawn]
    assert set(alone) == {1, 2}
    shared.drawn.clear()
    assert convert(source, "-o", tmp_path / "all", "-j", 7, *more).code == 0
    drawn = [len(codes) for *_, codes in shared.drawn]
    assert sum(drawn) == sum(alone)
    assert max(drawn) > 2
    assert len(drawn) < len(alone)
    assert_draws_are_each_lane_s_own(shared.drawn, shared.inner)
    one, found = samples(tmp_path / "one"), samples(tmp_path / "all")
    assert {name: len(x) for name, x in found.items()} == {name: len(x) for name, x in one.items()}
    assert sum(np.array_equal(found[name], one[name]) for name in one) >= 5


def test_a_bad_file_fails_alone(shared: Overheard, convert: Run, tmp_path: Path) -> None:
    source = recordings(tmp_path / "in", 4)
    (source / "0/bad.wav").write_bytes(b"no recording")
    soundfile.write(source / "0/short.wav", np.zeros(100), 16_000)
    done = convert(source, "-r", "-o", tmp_path / "out", "-j", 6)
    assert done.code == 1
    assert done.err.splitlines()[-1] == "4 converted, 2 failed"
    assert all(len(x) >= 1600 for x in samples(tmp_path / "out").values())


def test_whoever_is_cancelled_holds_nobody_up() -> None:
    converter, heard = together()
    x = speechlike(9000)
    found: dict[int, Any] = {}

    def say(number: int) -> None:
        def progress(done: float, total: float | None) -> bool:
            return number > 0 or not heard.drawn

        try:
            blocks = [x[begin : begin + 3000] for begin in range(0, 9000, 3000)]
            if number == 1:  # and one who takes no more
                stream = converter.stream(blocks, speaker=1, seed=1, sample_rate=16_000)
                found[number] = next(stream)
            else:
                found[number] = converter.convert(
                    x, speaker=1, seed=number, sample_rate=16_000, lanes=1, progress=progress
                ).audio
        except vconv.Cancelled as error:
            found[number] = error

    threads = [threading.Thread(target=say, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert isinstance(found[0], vconv.Cancelled)
    assert [len(found[number]) for number in (2, 3)] == [9000, 9000]
    assert_draws_are_each_lane_s_own(heard.drawn, heard.inner)


def test_a_pool_is_stopped_in_the_middle_of_a_call_of_all(tmp_path: Path) -> None:
    converter, heard = together()
    source = recordings(tmp_path / "in", 4)
    begun, stopped = threading.Event(), threading.Event()
    generate = heard.generate

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert stopped.wait(30)
        return generate(*arguments)

    heard.generate = slow  # type: ignore[method-assign]
    with Threads(converter, plain_options(speaker="bea", lanes="1"), 4) as pool:
        for number, name in enumerate(tree(source)):
            pool.submit(Task(number, str(source / name), str(tmp_path / f"out/{number}.wav")))
        assert begun.wait(30)
        threading.Timer(0.2, stopped.set).start()
        before = time.monotonic()
    assert time.monotonic() - before < 10
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_gpu_s_engine_is_shared_and_a_processor_s_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for part in ("encoder", "conditioner"):
        made = getattr(Bundle, part)
        monkeypatch.setattr(Bundle, part, lambda self, device, made=made: made(self, "cpu"))
    create = engine_choice.create_engine

    def here(*arguments: Any, device: str, **options: Any) -> Any:
        return create(*arguments, device="cpu", **options)

    monkeypatch.setattr(engine_choice, "create_engine", here)
    with load(exported(), device="cuda:0", engine="torchscript") as converter:
        engine = converter._model.engine
        assert isinstance(engine, SharedEngine)
        assert (converter.engine, converter.precision) == ("torchscript", "fp32")
        assert (engine.levels, engine.hop) == (engine.inner.levels, engine.inner.hop)
        # Sixteen files at a time, unless told otherwise.
        for asked, files, jobs in ((None, 100, 16), (None, 3, 3), (2, 100, 2)):
            options = plain_options(device="cuda:0")
            pool = convert_command._pool(converter, options, asked, files)
            assert isinstance(pool, Threads)
            assert pool._count == jobs
    for name in ("native", "torchscript"):
        with load(exported(), engine=name) as converter:
            assert not isinstance(converter._model.engine, SharedEngine)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["torchscript", "cudagraphs"])
def test_a_folder_on_a_gpu(
    convert: Run, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = recordings(tmp_path / "in", 6)
    heard: list[Overheard] = []

    def overheard(*arguments: Any, **options: Any) -> Converter:
        converter = load(*arguments, **options)
        found = converter._model.engine
        assert isinstance(found, SharedEngine)
        heard.append(Overheard(found.inner))
        found.inner = heard[-1]
        return converter

    monkeypatch.setattr(convert_command, "load", overheard)
    more = ("-r", "--device", "cuda", "--engine", engine)
    for jobs in (1, "auto"):
        done = convert(source, "-o", tmp_path / f"{jobs}", "-j", jobs, *more)
        # Any other refusal is a fault: nodes on the CPU, say, end with 5 as well.
        if "could not load its CUDA" in done.err or "is for CPUs only" in done.err:
            pytest.skip(done.err)
        assert done.code == 0
    assert max(len(codes) for *_, codes in heard[1].drawn) > 1
    assert_draws_are_each_lane_s_own(heard[1].drawn, heard[1].inner)
    one, found = samples(tmp_path / "1"), samples(tmp_path / "auto")
    assert {name: len(x) for name, x in found.items()} == {name: len(x) for name, x in one.items()}
