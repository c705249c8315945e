"""What batches cost: workers against none, memory against its budget, the plan of much speech.

    python benchmarks/data.py [--corpus-mb 400] [--buffer-mb 32] [--batches 60] [--folder DIR]

The corpus is noise, written into DIR (a temporary folder unless given). Windows, batch and network
are those of configs/base.yaml. Batches are asked for as fast as they come: what a training step
leaves of it depends on its own length. Linux.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch

from vconv.config import AugmentConfig, Config, load_config
from vconv.geometry import Geometry
from vconv.train.batches import Excerpts, Noise, TrainingBatches
from vconv.train.corpus import AUDIO, HEADER, UTTERANCES, VERSION, Corpus
from vconv.train.feed import Feed
from vconv.train.windows import WindowPlan

BASE = Path(__file__).resolve().parents[1] / "configs" / "base.yaml"
AUGMENT = {
    "none": AugmentConfig(),
    "gain, equaliser, noise": AugmentConfig(gain_db=6.0, equaliser_db=6.0, noise_snr_db=20.0),
    "all": AugmentConfig(
        gain_db=6.0, equaliser_db=6.0, noise_snr_db=20.0, pitch_semitones=3.0, formant=0.15
    ),
}
SECONDS = 5.0  # of an utterance, on average


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus-mb", type=float, default=400)
    parser.add_argument("--buffer-mb", type=float, default=32)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        corpus = Corpus.open(synthetic(folder / "corpus", options.corpus_mb))
        config = load_config(BASE, ())
        speed(corpus, config, options.batches)
        memory(corpus, config, options.buffer_mb)
    plan(config.data.window)


def synthetic(folder: Path, megabytes: float) -> Path:
    """A corpus of noise, unless it is there."""
    if (folder / HEADER).exists():
        return folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    lengths = random.integers(
        int(8_000 * SECONDS), int(24_000 * SECONDS), int(megabytes * 1e6 / 32_000 / SECONDS)
    )
    starts = np.cumsum(lengths) - lengths
    with (folder / AUDIO).open("wb") as audio, (folder / UTTERANCES).open("w") as table:
        for index, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            random.integers(-9_000, 9_000, length, dtype=np.int16).tofile(audio)
            row = {"id": f"u{index}", "speaker": f"s{index % 100}", "split": "train"}
            table.write(json.dumps(row | {"start": int(start), "length": int(length)}) + "\n")
    header = {
        "version": VERSION,
        "sample_rate": 16_000,
        "pad_samples": 0,
        "speakers": [f"s{index}" for index in range(100)],
        "statistics": {},
        "samples": int(lengths.sum()),
        "digest": "noise",
    }
    (folder / HEADER).write_text(json.dumps(header))
    return folder


def batches_of(
    corpus: Corpus, config: Config, augment: AugmentConfig, buffer_mb: float | None
) -> TrainingBatches:
    model = config.model
    geometry = Geometry.of(**model.geometry)
    return TrainingBatches(
        Excerpts(corpus, model.audio, geometry, config.data.window),
        batch=config.train.batch,
        seed=0,
        noise=Noise(model.jitter, (model.draws, model.latents), augment),
        buffer_mb=buffer_mb,
        buffer_fraction=1.0,
    )


def speed(corpus: Corpus, config: Config, count: int) -> None:
    """Batches a second by workers and augmentation, after the workers have begun."""
    print(
        f"\nBatches of {config.train.batch} windows of {config.data.window:,} samples, "
        f"{os.cpu_count()} cores\n\n"
        "| augmentation | workers | ms to the first | batches/s | ratio |\n|---|---|---|---|---|"
    )
    for name, augment in AUGMENT.items():
        alone = 0.0
        steps = count if name == "none" else max(4, count // 6)
        for workers in (0, 1, 2):
            batches = batches_of(corpus, config, augment, None)
            ahead = 2 * workers + 1  # made while the first was waited for
            with Feed(
                batches, workers=workers, mine=range(1), parts=1, steps=ahead + steps
            ) as feed:
                began = time.perf_counter()
                feed.at(0)
                first = time.perf_counter() - began
                for step in range(1, ahead):
                    feed.at(step)
                began = time.perf_counter()
                for step in range(ahead, ahead + steps):
                    feed.at(step)
                rate = steps / (time.perf_counter() - began)
            alone = alone or rate
            print(
                f"| {name} | {workers} | {1e3 * first:,.0f} | {rate:.2f} | {rate / alone:.2f} |",
                flush=True,
            )


def memory(corpus: Corpus, config: Config, buffer_mb: float) -> None:
    """What stays with the processes while many groups pass."""
    audio = corpus.path / AUDIO
    size = audio.stat().st_size / 1e6
    print(
        f"\nA corpus of {size:,.0f} MB, data.buffer_mb {buffer_mb:g}; MB, the most met in an epoch"
        "\n\n| read by | mapped pages of audio | resident, more than at the first batch |"
        "\n|---|---|---|"
    )
    for workers in (0, 1):
        batches = batches_of(corpus, config, AUGMENT["none"], buffer_mb)
        steps = batches.windows.epoch_size(0) // config.train.batch
        mapped = resident = 0.0
        with Feed(batches, workers=workers, mine=range(1), parts=1, steps=steps) as feed:
            feed.at(0)
            pid = multiprocessing.active_children()[0].pid if workers else os.getpid()
            before = resident_mb(pid)
            for step in range(1, steps):
                feed.at(step)
                mapped = max(mapped, mapped_mb(pid, audio))
                resident = max(resident, resident_mb(pid) - before)
        who = "a worker" if workers else "the training process"
        print(f"| {who} | {mapped:.1f} | {resident:.1f} |", flush=True)
    whole = np.memmap(audio, "<i2", mode="r")
    before = resident_mb(os.getpid())
    whole[:: mmap.PAGESIZE // 2].max()
    here = os.getpid()
    print(
        f"| as it was: a memory map, read once | {mapped_mb(here, audio):.1f} | "
        f"{resident_mb(here) - before:.1f} |"
    )
    random = np.random.default_rng(0)
    length = 12_000
    starts = random.integers(0, len(whole) - length, 5_000).tolist()
    begins = time.perf_counter()
    for start in starts:
        np.multiply(whole[start : start + length], np.float32(2**-15))
    middle = time.perf_counter()
    for start in starts:
        np.multiply(corpus.audio.read(start, length), np.float32(2**-15))
    end = time.perf_counter()
    print(
        f"\n{length:,} samples at random, us: mapped {(middle - begins) / 5e-3:.1f}, read "
        f"{(end - middle) / 5e-3:.1f}, ratio {(end - middle) / (middle - begins):.2f}"
    )


def resident_mb(pid: int | None) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


def mapped_mb(pid: int | None, file: Path) -> float:
    """Resident pages of the mappings of a file."""
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(file.resolve()))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total * 1024 / 1e6


def plan(window: int, utterances: int = 100_000, hours: float = 500) -> None:
    """The plan of a large corpus."""
    random = np.random.default_rng(0)
    lengths = random.lognormal(0, 0.5, utterances)
    lengths = (lengths * hours * 3600 * 16_000 / lengths.sum()).astype(np.int64)
    speakers = random.integers(0, 100, utterances)
    print(
        f"\n{utterances:,} utterances, {hours:g} h, window {window:,}\n\n"
        "| data.buffer_mb | windows | MB held | ms to the first window | ms to change the epoch | "
        "ms for a batch of 64 | ms to begin 20 epochs in |\n|---|---|---|---|---|---|---|"
    )

    def made() -> WindowPlan:
        return WindowPlan(lengths, speakers, window, 3000, 3000, 0, buffer_mb=buffer_mb)

    for buffer_mb in (None, 32.0, 2000.0):
        tracemalloc.start()
        held = made()
        megabytes = tracemalloc.get_traced_memory()[0] / 1e6
        tracemalloc.stop()
        size = held.epoch_size(0)
        times = []
        for build, numbers, repeats in (
            (made, np.arange(1), 1),
            (lambda held=held: held, size + np.arange(1), 1),
            (lambda held=held: held, size + np.arange(64), 100),
            (made, 20 * size + np.arange(1), 1),
        ):
            began = time.perf_counter()
            for _ in range(repeats):
                build().locate_many(numbers)
            times.append(1e3 * (time.perf_counter() - began) / repeats)
        cells = " | ".join(f"{value:.1f}" for value in times)
        name = "null" if buffer_mb is None else f"{buffer_mb:g}"
        print(f"| {name} | {size:,} | {megabytes:.1f} | {cells} |")


if __name__ == "__main__":
    main()
