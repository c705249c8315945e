"""Batches made ahead by other processes: the same bits, and nothing left of them at the end."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from networks import CONFIG as MODEL
from tiny_model import MEMBERS, varied
from vconv.config import AugmentConfig, Config
from vconv.errors import InputError, SetupError
from vconv.geometry import Geometry
from vconv.train import checkpoint as checkpoints
from vconv.train.batches import Batch, Excerpts, Noise, TrainingBatches
from vconv.train.corpus import AUDIO, HEADER, UTTERANCES, VERSION, Corpus
from vconv.train.feed import Feed
from vconv.train.state import TrainState, build_state
from vconv.train.step import start_bottleneck, train_step
from voices import PITCHES, prepared

CPU = torch.device("cpu")
BATCH = 4
VARIABLES = (
    "OMP_NUM_VARIABLES",
    "OPENBLAS_NUM_VARIABLES",
    "MKL_NUM_VARIABLES",
    "MALLOC_MMAP_THRESHOLD_",
)
slow = pytest.mark.slow
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def corpus_path(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("voices"))


@pytest.fixture
def copied(corpus_path, tmp_path) -> Path:
    """A corpus to be damaged."""
    return Path(shutil.copytree(corpus_path, tmp_path / "corpus"))


@pytest.fixture(autouse=True)
def nothing_left(capfd) -> Iterator[None]:
    """No process, no handler, no variable, no mask and no word."""
    handlers = [signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGINT)]
    state = torch.get_rng_state()
    environment = [os.environ.get(name) for name in VARIABLES]
    yield
    assert not multiprocessing.active_children()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGINT)]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert environment == [os.environ.get(name) for name in VARIABLES]
    assert torch.equal(torch.get_rng_state(), state), "a draw from the global generator"
    assert capfd.readouterr() == ("", "")


def make(
    corpus: Path, *, augmented: bool = False, buffer_mb: float | None = None
) -> TrainingBatches:
    """Batches with everything random that a batch may hold."""
    model = varied(MODEL, MEMBERS["vae"])
    excerpts = Excerpts(
        Corpus.open(corpus),
        model.audio,
        Geometry.of(**model.geometry),
        640,
        seed=3,
        dither_db=-60.0,
    )
    augment = AugmentConfig(gain_db=6.0) if augmented else AugmentConfig()
    return TrainingBatches(
        excerpts,
        batch=BATCH,
        seed=3,
        noise=Noise(0.12, (model.draws, model.latents), augment),
        buffer_mb=buffer_mb,
        buffer_fraction=1.0,
    )


def feed_of(batches: TrainingBatches, workers: int, steps: int = 1000) -> Feed:
    return Feed(batches, workers=workers, mine=range(1), parts=1, steps=steps)


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for field in dataclasses.fields(Batch):
            ours, theirs = getattr(one, field.name), getattr(other, field.name)
            assert ours.dtype == theirs.dtype, field.name
            assert torch.equal(ours, theirs), field.name
        assert (one.clean is one.wav) == (other.clean is other.wav)


@pytest.mark.parametrize(
    ("workers", "augmented", "steps"),
    [
        (0, True, (2, 3, 4, 7, 8)),
        (1, True, (2, 3, 4, 5, 6, 7, 8)),
        pytest.param(1, False, (2, 3, 4, 7, 8, 0), marks=slow),  # jumps
        pytest.param(3, False, (2, 3, 4, 5, 6, 7, 8), marks=slow),
    ],
)
def test_any_number_of_workers_hands_out_the_same_bits(corpus_path, workers, augmented, steps):
    batches = make(corpus_path, augmented=augmented, buffer_mb=0.1)
    reference = make(corpus_path, augmented=augmented, buffer_mb=0.1)
    with Feed(batches, workers=workers, mine=range(1, 4, 2), parts=4, steps=9) as feed:
        kept = [(step, feed.at(step)) for step in steps]
    for step, found in kept:  # what was handed out outlives the workers
        assert_same(found, [reference.at(step, 1, 4), reference.at(step, 3, 4)])


def test_a_run_with_workers_gone_on_with_by_none_ends_in_the_same_bits(corpus_path, tmp_path):
    """Stopped and gone on with at steps 3 and 5; batch norm, EMA codebook, k-means at step 2."""
    config = Config.model_validate(
        {
            "name": "test",
            "model": MODEL.model_dump(),
            "data": {"corpus": str(corpus_path), "window": 640},
            "train": {"steps": 6, "batch": BATCH, "microbatches": 2, "warmup": 2, "threads": 1},
        }
    )

    def save(state: TrainState, folder: Path) -> Path:
        return checkpoints.save_checkpoint(folder, state, config, tuple(PITCHES), {})

    def train(name: str, *spans: tuple[int, int]) -> list[bytes]:
        """Each span is (workers, the step it ends at); new objects for every one."""
        newest = None
        for workers, end in spans:
            state = build_state(config, Corpus.open(corpus_path), CPU)
            if newest is not None:
                checkpoints.Checkpoint.open(newest).restore(state)
            batches = make(corpus_path)
            feed = Feed(batches, workers=workers, mine=range(2), parts=2, steps=config.train.steps)
            with feed:
                while state.step < end:
                    start_bottleneck(state, batches, config, CPU)
                    train_step(state, feed.at(state.step), config)
            newest = save(state, tmp_path / name)
        assert newest is not None
        return [path.read_bytes() for path in sorted(newest.glob("*.safetensors"))]

    before = torch.get_rng_state()  # building a network draws from it
    whole = train("whole", (0, 6))
    assert len(whole) == 3
    assert train("parts", (2, 3), (0, 5), (0, 6)) == whole
    torch.set_rng_state(before)


def test_what_a_worker_is_sent_does_not_grow_with_the_corpus(tmp_path):
    sizes = []
    for minutes in (1, 10):
        folder = synthetic(tmp_path / str(minutes), utterances=60 * minutes, seconds=1.0)
        feed = feed_of(make(folder, buffer_mb=1.0), workers=1)
        sizes.append(len(pickle.dumps(feed._steps)))
    # A pipe holds 64 KiB: no worker's start waits for the one before to read.
    assert max(sizes) < 20_000
    assert abs(sizes[1] - sizes[0]) < 10


def test_a_batch_on_its_way_is_one_short_message_however_many_parts_it_has(corpus_path):
    """Of at most 4096 bytes, a pipe's write is whole or not there, whenever a worker is killed."""
    feed = Feed(make(corpus_path), workers=1, mine=range(4), parts=4, steps=1)
    packed = feed._steps[0]
    message = multiprocessing.reduction.ForkingPickler.dumps((0, packed))
    assert len(message) < 2000
    assert [value for value in vars(packed).values() if torch.is_tensor(value)] == [packed.memory]


# Failures


def texts(attempt: Callable[[], object]) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        attempt()
    return type(caught.value), str(caught.value)


def test_a_mistake_found_by_a_worker_is_the_same_sentence(copied):
    """The corpus is cut short in the middle of training."""
    batches = make(copied)
    with feed_of(batches, workers=1) as feed:
        feed.at(0)
        os.truncate(copied / AUDIO, 1000)

        def go_on() -> None:
            for step in range(1, 100):
                feed.at(step)

        kind, text = texts(go_on)
    assert (kind, text) == texts(lambda: [batches.at(step) for step in range(1, 100)])
    assert kind is InputError
    assert AUDIO in text
    assert "cut short" in text
    assert "\n" not in text


@slow
def test_a_bug_met_by_a_worker_keeps_its_type_and_text_and_says_where_it_was(corpus_path):
    batches = make(corpus_path)
    batches.noise = None  # type: ignore[assignment]
    with feed_of(batches, workers=1) as feed, pytest.raises(AttributeError) as caught:
        feed.at(0)
    assert (AttributeError, str(caught.value)) == texts(lambda: batches.at(0))
    assert "batches.py" in str(caught.value.__cause__)


@slow
def test_a_corpus_that_a_worker_does_not_find_is_a_sentence_too(copied):
    batches = make(copied)
    shutil.rmtree(copied)
    with feed_of(batches, workers=1) as feed:
        assert texts(lambda: feed.at(0)) == texts(lambda: Corpus.open(copied))


@slow
def test_a_corpus_prepared_anew_in_between_is_refused(copied):
    batches = make(copied)
    header = json.loads((copied / HEADER).read_text())
    (copied / HEADER).write_text(json.dumps(header | {"digest": "another"}))
    with feed_of(batches, workers=1) as feed, pytest.raises(InputError, match="prepared anew"):
        feed.at(0)


# Processes


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


@linux
def test_a_worker_hears_no_signal_keeps_to_one_thread_and_is_missed_when_killed(corpus_path):
    batches = make(corpus_path)
    with feed_of(batches, workers=1) as feed:
        feed.at(0)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker.pid, number)
        for step in range(1, 8):  # more than were made ahead
            assert_same(feed.at(step), [batches.at(step)])
        # Its own, the queue's and the one that hands over file descriptors: no BLAS, no OpenMP.
        assert threads_of(worker.pid) <= 3
        assert AUDIO not in Path(f"/proc/{worker.pid}/maps").read_text()
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(5)
        with pytest.raises(SetupError, match=r"killed by SIGKILL.*data\.workers") as caught:
            feed.at(8)
        assert "\n" not in str(caught.value)


@slow
@linux
def test_a_worker_killed_while_it_is_waited_for_is_no_hang(corpus_path):
    with feed_of(make(corpus_path), workers=2) as feed:
        feed.at(0)
        worker = multiprocessing.active_children()[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        later = threading.Timer(1, os.kill, (worker.pid, signal.SIGKILL))
        later.start()
        began = time.monotonic()
        step = 1
        with pytest.raises(SetupError, match="killed by SIGKILL"):  # noqa: PT012
            while True:
                feed.at(step)
                step += 1
        assert time.monotonic() - began < 15
        later.join()


@slow
@linux
def test_a_worker_that_does_not_answer_does_not_hold_up_the_end(corpus_path):
    with feed_of(make(corpus_path), workers=1) as feed:
        feed.at(0)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < 10


TRAINER = """
import multiprocessing, os, pickle, signal, sys, time

if __name__ == "__main__":
    from vconv.train.feed import Feed

    batches = pickle.loads(bytes.fromhex(sys.stdin.readline()))
    with Feed(batches, workers=int(sys.argv[1]), mine=range(1), parts=1, steps=10**6) as feed:
        feed.at(0)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        step = 1
        while True:
            feed.at(step)
            step += 1
"""


@pytest.fixture
def trainer(corpus_path, tmp_path) -> Iterator[Callable[[int], tuple[subprocess.Popen, list[int]]]]:
    """Starts a process that does nothing but ask for batches; it and its workers."""
    started = []

    def start(workers: int) -> tuple[subprocess.Popen, list[int]]:
        (tmp_path / "trainer.py").write_text(TRAINER)
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "trainer.py"), str(workers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pickle.dumps(make(corpus_path)).hex() + "\n")
        process.stdin.flush()
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == workers
        return process, pids

    yield start
    for process in started:
        process.kill()
        process.communicate()


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@linux
@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=slow)])
def test_workers_die_with_the_trainer(trainer, workers):
    process, pids = trainer(workers)
    assert all(map(alive, pids))
    process.send_signal(signal.SIGKILL)
    process.wait()
    limit = time.monotonic() + 5
    while any(map(alive, pids)):
        assert time.monotonic() < limit
        time.sleep(0.02)


@slow
@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_ends_the_trainer_alone_and_then_all_of_them(trainer, number):
    """As Ctrl-C in a terminal, or a batch system, sends it; Python makes SIGINT an exception."""
    process, pids = trainer(2)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == -number
    limit = time.monotonic() + 5
    while any(map(alive, pids)):
        assert time.monotonic() < limit
        time.sleep(0.02)
    if number == signal.SIGINT:
        assert said.rstrip().splitlines()[-1] == "KeyboardInterrupt"
        assert said.count("Traceback") == 1, said
        assert "orker" not in said.replace("workers=", ""), said


@slow
@linux
@pytest.mark.parametrize(("wrong", "code"), [(0, 0), (1, 1)])
def test_a_worker_whose_trainer_has_died_already_ends(wrong, code):
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os; from vconv.train.feed import _begin_worker;"
            f"_begin_worker(os.getppid() + {wrong}, 0)",
        ],
        check=False,
    )
    assert said.returncode == code


# Memory


def synthetic(folder: Path, *, utterances: int, seconds: float) -> Path:
    """A corpus of noise in utterances of between half and one and a half times ``seconds``."""
    random = np.random.default_rng(utterances)
    folder.mkdir()
    lengths = random.integers(int(8_000 * seconds), int(24_000 * seconds), utterances)
    starts = np.cumsum(lengths) - lengths
    random.integers(-9_000, 9_000, lengths.sum(), dtype=np.int16).tofile(folder / AUDIO)
    with (folder / UTTERANCES).open("w") as file:
        for index, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            row = {"id": f"u{index}", "speaker": "ada", "split": "train"}
            file.write(json.dumps(row | {"start": int(start), "length": int(length)}) + "\n")
    header = {
        "version": VERSION,
        "sample_rate": 16_000,
        "pad_samples": 0,
        "speakers": ["ada"],
        "statistics": {},
        "samples": int(lengths.sum()),
        "digest": f"{utterances} {seconds}",
    }
    (folder / HEADER).write_text(json.dumps(header))
    return folder


def resident_mb(kind: str = "VmRSS") -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) / 1000


@linux
def test_audio_in_use_stays_within_the_budget_in_a_corpus_many_times_larger(tmp_path):
    budget_mb = 4.0
    folder = synthetic(tmp_path / "corpus", utterances=800, seconds=2.0)
    size_mb = (folder / AUDIO).stat().st_size / 1e6
    assert size_mb > 10 * budget_mb
    batches = make(folder, buffer_mb=budget_mb)
    batches.at(0)
    before = resident_mb("RssFile"), resident_mb()
    steps = batches.windows.epoch_size(0) // BATCH
    most = [0.0, 0.0]
    for step in range(0, steps, 3):
        batches.at(step)
        if step % 60 == 0:
            now = resident_mb("RssFile"), resident_mb()
            most = [max(pair) for pair in zip(most, now, strict=True)]
    assert most[0] - before[0] < budget_mb
    assert most[1] - before[1] < 2 * budget_mb  # all that the process holds, arrays of a batch too
    # The measure sees what it should: mapped, the corpus stays.
    mapped = np.memmap(folder / AUDIO, "<i2", mode="r")
    mapped[::1000].sum()
    assert resident_mb("RssFile") - before[0] > 0.9 * size_mb
