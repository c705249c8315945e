"""A model speaks training recordings itself, as near to them as it can: what is trained on next.

A model that has only ever been shown recordings as its history goes astray on its own: errors
add up that it never saw (exposure bias), and a WaveNet ends up whispering. So it speaks copies
of training recordings (their units, their own speaker), 40 ms at a time: several continuations of
the same state, of which the one nearest to the recording is kept and gone on from. Training on
what was kept is best-of-N fine-tuning (RAFT, Dong et al. 2023).

N candidates, each a lane of the sampler; T samples of an utterance, F conditioning steps, L layers,
G gate channels.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vconv.audio import MuLaw, decoder_samples, replacing, writing
from vconv.config import AudioConfig, ModelConfig
from vconv.engines import Engine, create_engine
from vconv.errors import InputError, ModelError, UsageError
from vconv.nn.autoencoder import Autoencoder, build_autoencoder
from vconv.reading import printable

from .bar import drawn_bar
from .checkpoint import Checkpoint, is_name, load_network, newest
from .corpus import Corpus
from .speech import corpus_of
from .take_choice import BEFORE, STEP, Judge
from .take_file import signal, takes_bytes

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

UTTERANCES = 24  # of each speaker
CANDIDATES, MOST_CANDIDATES = 6, 64
SECONDS, MOST_SECONDS = 3.0, 60.0
TEMPERATURE = 1.0  # the model's own distribution: what it will meet when it speaks


@dataclass(frozen=True)
class Report:
    """What was made: mean scores of all candidates and of those that were kept (nats of log-mel
    power over all steps; voice, 0 to 1, over those with speech)."""

    takes: int
    speakers: int
    seconds: float
    candidates: int
    mel: tuple[float, float]
    voice: tuple[float, float]
    checkpoint: str
    engine: str
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Take:
    """codes [T] of an utterance from where its speech begins, and sums over its steps: of the
    log-mel scores of all candidates (mean) and of the kept ones, of the voice's the same over the
    steps with speech, and the numbers of both kinds of steps."""

    codes: Codes
    sums: NDArray[np.float64]  # mel of all, mel kept, voice of all, voice kept, steps, with speech


@dataclass(frozen=True)
class _Job:
    """recording [T], and the conditioning [F, L * 2G or C] of the silence before it and of it."""

    utterance: int
    recording: Floats
    conditioning: Floats


def make_takes(
    run: Path,
    output: Path,
    *,
    utterances: int = UTTERANCES,
    candidates: int = CANDIDATES,
    seconds: float = SECONDS,
    seed: int = 0,
    corpus: Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    progress: bool = True,
) -> Report:
    """Write the takes of a run's newest whole checkpoint, or of a checkpoint, as ``output``.

    The weight average speaks at most ``seconds`` of ``utterances`` training utterances of each
    speaker, spread over the corpus; held-out ones never. ``corpus``: where it is now, if it has
    been moved. The same seed gives the same bytes, whatever the number of threads.

    Raises UsageError for a number out of range, an output that exists (unless ``overwrite``) or
    cannot be written; ModelError for a checkpoint that is missing, damaged or has no codebook yet;
    InputError for a corpus that is not the checkpoint's or holds nothing to speak.
    """
    _check(utterances, candidates, seconds, seed)
    if os.path.lexists(output) and not overwrite:
        raise UsageError(f"{printable(output)}: exists; --overwrite replaces it.")
    checkpoint, skipped = _checkpoint(run)
    spoken_corpus = _corpus(checkpoint, corpus)
    model = checkpoint.config.model
    chosen = choose(spoken_corpus, utterances)
    if not chosen:
        raise InputError(
            f"{printable(spoken_corpus.path)}: no training utterance has {STEP} samples of speech."
        )
    network = _network(checkpoint, spoken_corpus)
    engine = _engine(network, model)
    # Opened before the long work: a place that cannot be written to is said at once, and whatever
    # ends it removes the file beside.
    with replacing(output) as beside:
        takes = speak(
            network,
            engine,
            model.audio,
            spoken_corpus,
            chosen,
            candidates=candidates,
            samples=int(seconds * spoken_corpus.sample_rate),
            seed=seed,
            threads=threads or os.cpu_count() or 1,
            progress=progress,
        )
        sums = np.sum([take.sums for take in takes], axis=0)
        means = [round(float(mean), 6) for mean in sums[:4] / np.maximum(sums[[4, 4, 5, 5]], 1)]
        names = spoken_corpus.utterances.ids
        facts = {
            "corpus": spoken_corpus.digest,
            "checkpoint": {"digest": checkpoint.header["digest"], "step": checkpoint.step},
            "audio": signal(model.audio),
            "utterances": [names[utterance] for utterance in chosen],
            "candidates": candidates,
            "step_samples": STEP,
            "seed": seed,
            "precision": engine.precision,
            "figures": {
                "mel": {"candidates": means[0], "chosen": means[1]},
                "voice": {"candidates": means[2], "chosen": means[3]},
            },
        }
        with writing(printable(output)):
            beside.write_bytes(takes_bytes([take.codes for take in takes], facts))
    spoken = sum(len(take.codes) for take in takes)
    return Report(
        takes=len(takes),
        speakers=len(set(spoken_corpus.utterances.speaker[chosen].tolist())),
        seconds=spoken / spoken_corpus.sample_rate,
        candidates=candidates,
        mel=(means[0], means[1]),
        voice=(means[2], means[3]),
        checkpoint=str(checkpoint.path),
        engine=f"{engine.name}, {engine.precision}",
        skipped=tuple(skipped),
    )


def choose(corpus: Corpus, count: int) -> list[int]:
    """``count`` training utterances of each speaker with a step of speech at least, spread evenly
    over those there are; all of them where there are fewer."""
    utterances = corpus.utterances
    long_enough = utterances.length - 2 * corpus.pad_samples >= STEP
    chosen: list[int] = []
    for speaker in range(len(corpus.speakers)):
        own = np.flatnonzero(~utterances.heldout & (utterances.speaker == speaker) & long_enough)
        places = np.linspace(0, len(own) - 1, min(len(own), count)).round().astype(int)
        chosen.extend(own[places].tolist())
    return chosen


def speak(
    network: Autoencoder,
    engine: Engine,
    audio: AudioConfig,
    corpus: Corpus,
    utterances: Sequence[int],
    *,
    candidates: int,
    samples: int,
    seed: int,
    threads: int,
    progress: bool,
) -> list[Take]:
    """The takes of these utterances, in their order, of at most so many samples each."""
    judge, stop = Judge(), threading.Event()
    takes: list[Take] = []
    waiting: deque[Future[Take]] = deque()

    def job(utterance: int) -> Future[Take]:
        made = _prepare(network, corpus, utterance, samples)
        lead = network.geometry.lead_samples
        return pool.submit(_take, engine, judge, audio, made, lead, candidates, seed, stop)

    # One thread for an operator: the same bits on any machine with any number of them.
    with _single_threaded(), drawn_bar(progress) as advance, ThreadPoolExecutor(threads) as pool:
        try:
            for utterance in utterances:
                # No more at a time than the threads need: conditioning is a megabyte a second.
                if len(waiting) == 2 * threads:
                    takes.append(waiting.popleft().result())
                    advance("speaking", len(utterances), len(takes))
                waiting.append(job(utterance))
            while waiting:
                takes.append(waiting.popleft().result())
                advance("speaking", len(utterances), len(takes))
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return takes


@torch.no_grad()
def _prepare(network: Autoencoder, corpus: Corpus, utterance: int, samples: int) -> _Job:
    """Where its speech begins, whole steps of it."""
    geometry = network.geometry
    speech = int(corpus.utterances.length[utterance]) - 2 * corpus.pad_samples
    length = min(speech, samples) // STEP * STEP
    plan = geometry.plan(length, lead=geometry.lead_samples)
    wav = corpus.excerpt(utterance, corpus.pad_samples - plan.left, plan.wav_length)
    told = torch.from_numpy(wav)[None]
    speaker = torch.tensor([int(corpus.utterances.speaker[utterance])])
    units = torch.cat([network.encode(told).z, network.prosody(told, speaker)], dim=1)
    conditioning = network.condition(units, network.speaker_vectors(speaker))
    conditioning = conditioning[:, plan.skip : plan.skip + plan.steps].float()
    if geometry.conditioning_hop > 1:  # else the sampler projects
        conditioning = network.decoder.wavenet.project(conditioning)
    recording = wav[plan.left : plan.left + length]
    return _Job(utterance, recording, conditioning[0].numpy())


def _take(
    engine: Engine,
    judge: Judge,
    audio: AudioConfig,
    job: _Job,
    lead: int,
    candidates: int,
    seed: int,
    stop: threading.Event,
) -> Take:
    """Step by step: N continuations of one state, the nearest kept, all lanes taken to it."""
    from vconv.stream import uniforms

    mulaw = MuLaw(audio.levels)
    shared = 1 if engine.hop > 1 else 0  # the frame between two steps ends the one, begins the next

    def conditioning(first: int, count: int) -> Floats:
        steps = slice(first // engine.hop, (first + count) // engine.hop + shared)
        return np.repeat(job.conditioning[None, steps], candidates, axis=0)

    silence = np.full((candidates, lead), engine.levels // 2, np.uint8)
    _, state = engine.score(conditioning(0, lead), silence, engine.initial_state(candidates))
    length = len(job.recording)
    codes = np.empty(length, np.uint8)
    recording = np.pad(job.recording, (BEFORE, 0))
    said, carry = np.zeros(BEFORE, np.float32), 0.0
    sums = np.zeros(6)
    for chunk, first in enumerate(range(0, length, STEP)):
        if stop.is_set():
            raise InterruptedError
        drawn = np.stack(
            [
                uniforms(seed, lane=job.utterance * MOST_CANDIDATES + n, chunk=chunk, count=STEP)
                for n in range(candidates)
            ]
        )
        told = conditioning(lead + first, STEP)
        made, _ = engine.generate(told, drawn, TEMPERATURE, state)
        heard = [
            decoder_samples(
                row, mulaw=mulaw, preemphasis=audio.preemphasis, gain=audio.gain, carry=carry
            )
            for row in made
        ]
        sounds = np.stack([np.concatenate([said, wav]) for wav, _ in heard])
        scores = judge(sounds, recording[first : first + BEFORE + STEP])
        best = int(scores.total.argmin())
        codes[first : first + STEP] = made[best]
        said, carry = sounds[best, -BEFORE:], heard[best][1]
        mel, voice = (
            (score.mean(), score[best]) for score in (scores.mel, scores.voice * scores.speech)
        )
        sums += (*mel, *voice, 1, scores.speech)
        # Told the codes that were kept, from the state before, every lane comes to the same state:
        # whatever the engine, whose states only it can take apart.
        kept = np.repeat(codes[None, first : first + STEP], candidates, axis=0)
        _, state = engine.score(told, kept, state)
    return Take(codes, sums)


def _check(utterances: int, candidates: int, seconds: float, seed: int) -> None:
    for name, value, low, high in (
        ("--utterances", utterances, 1, 1_000_000),
        ("--candidates", candidates, 1, MOST_CANDIDATES),
        ("--seconds", seconds, STEP / 16_000, MOST_SECONDS),
        ("--seed", seed, 0, 2**63 - 1),
    ):
        if not low <= value <= high:
            raise UsageError(f"{name}: allowed are {low:,} to {high:,}, found {value:,}.")


def _checkpoint(run: Path) -> tuple[Checkpoint, list[str]]:
    """A checkpoint's folder, or the newest whole one of a run, and why newer ones were skipped."""
    if (run / "checkpoint.json").exists() or is_name(run.name):
        return Checkpoint.open(run), []
    found, damaged = newest(run / "checkpoints")
    if found is not None:
        return found, damaged
    if damaged:
        raise ModelError(f"{run}: every checkpoint is damaged; of the newest, {damaged[0]}")
    raise ModelError(
        f"{printable(run)}: there is no checkpoint; expected a run (with checkpoints/step-...) or "
        "a checkpoint's folder."
    )


def _corpus(checkpoint: Checkpoint, place: Path | None) -> Corpus:
    if place is None:
        found = corpus_of(checkpoint.path, checkpoint)
        if isinstance(found, str):
            raise InputError(
                f"{printable(checkpoint.path)}: {found.rstrip('.')}; name it with --corpus."
            )
        return found
    corpus = Corpus.open(place)
    if corpus.digest != checkpoint.header["corpus"]["digest"]:
        raise InputError(
            f"{printable(place)}: is not the corpus that {printable(checkpoint.path)} was trained "
            "on (its digest differs)."
        )
    return corpus


def _network(checkpoint: Checkpoint, corpus: Corpus) -> Autoencoder:
    model = checkpoint.config.model
    network = build_autoencoder(model, len(corpus.speakers))
    load_network(network, checkpoint.path / "average.safetensors")
    if not getattr(network.bottleneck, "started", True):
        raise ModelError(
            f"{printable(checkpoint.path)}: its bottleneck has no codebook yet (it starts after "
            f"{model.bottleneck.warmup_steps:,} steps); train on before it speaks."
        )
    return network.eval()


def _engine(network: Autoencoder, model: ModelConfig) -> Engine:
    wavenet = network.decoder.wavenet
    return create_engine(
        "auto",
        {name: np.asarray(tensor) for name, tensor in wavenet.state_dict().items()},
        blocks=model.decoder.blocks,
        layers=model.decoder.layers,
        kernel_size=model.decoder.kernel_size,
        hop=network.geometry.conditioning_hop,
        # Whatever int8 costs is taken: what is wanted are errors to learn from.
        precision="auto",
        costs={"int8": 0.0},
    )


@contextmanager
def _single_threaded() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
