"""Conversions to listen to while a model trains: the same held-out utterances every time.

``samples/step-000010000/`` holds, for each, source and result as WAV and a picture, and what was
measured of them in samples.json.

B clips, each a lane of the sampler; T samples, F conditioning steps, L layers, G gate channels.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from vconv.audio import SAMPLE_RATE, MuLaw, decoder_samples, write_atomic
from vconv.config import ModelConfig
from vconv.engines import Engine, create_engine
from vconv.errors import SetupError
from vconv.nn.autoencoder import Autoencoder

from .checkpoint import sync
from .corpus import Corpus

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

Floats = NDArray[np.float32]

CLIPS = 4
SECONDS = 3.0  # of each at most: all of them together are a matter of seconds
SEED = 0
TEMPERATURE = 1.0


@dataclass(frozen=True)
class Clip:
    """What is converted: an utterance's first samples of speech, and to whom."""

    utterance: int
    start: int
    samples: int
    source: int
    target: int


@dataclass(frozen=True)
class Sample:
    """A clip converted: source [T] and result [T], at 16 kHz."""

    name: str
    title: str
    utterance: str
    speakers: tuple[str, str]
    source: Floats
    result: Floats


def take_samples(
    network: Autoencoder,
    model: ModelConfig,
    corpus: Corpus,
    folder: Path,
    step: int,
    board: SummaryWriter,
    device: torch.device,
) -> Path | None:
    """Convert with a network in evaluation mode and write ``folder/step-XXXXXXXXX``, which is
    returned, and the TensorBoard log; None where the corpus holds nothing out.

    Raises SetupError or UsageError when the folder cannot be written, ModelError when the
    network's output is not finite.
    """
    clips = choose(corpus)
    if not clips:
        return None
    samples = convert(network, model, corpus, clips, device)
    return write(folder, step, samples, board)


def choose(corpus: Corpus, count: int = CLIPS) -> list[Clip]:
    """Held-out utterances of as many speakers, spread over the table: the last is told to speak
    as itself (copy synthesis) and comes first, the others each as the next of them."""
    held = corpus.utterances.heldout
    there = sorted(set(corpus.utterances.speaker[held].tolist()))
    spread = [there[i * len(there) // count] for i in range(count)] if there else []
    speakers = list(dict.fromkeys(spread))
    if not speakers:
        return []
    circle = speakers[:-1] if len(speakers) == count else speakers
    pairs = [(speakers[-1], speakers[-1])]
    if len(circle) > 1:
        pairs += zip(circle, [*circle[1:], circle[0]], strict=True)
    elif len(corpus.speakers) > 1:
        pairs.append((circle[0], (circle[0] + 1) % len(corpus.speakers)))
    return [_clip(corpus, source, target) for source, target in pairs]


def _clip(corpus: Corpus, source: int, target: int) -> Clip:
    """The speaker's utterance whose speech lasts nearest to what is wanted; a longer one is cut."""
    utterances, wanted = corpus.utterances, int(SECONDS * corpus.sample_rate)
    own = np.flatnonzero(utterances.heldout & (utterances.speaker == source))
    speech = utterances.length[own] - 2 * corpus.pad_samples
    nearest = int(np.abs(speech - wanted).argmin())
    samples = min(wanted, int(speech[nearest]))
    return Clip(int(own[nearest]), corpus.pad_samples, samples, source, target)


@torch.no_grad()
def convert(
    network: Autoencoder,
    model: ModelConfig,
    corpus: Corpus,
    clips: Sequence[Clip],
    device: torch.device,
) -> list[Sample]:
    """All clips at once, by the fastest sampler there is; the same weights, the same bytes."""
    geometry = network.geometry
    hop = geometry.unit_hop
    length = -(-max(clip.samples for clip in clips) // hop) * hop
    plan = geometry.plan(length, lead=geometry.lead_samples)
    # Beyond an utterance's own end, which the shorter clips reach, an excerpt is zero.
    wav = np.stack(
        [corpus.excerpt(c.utterance, c.start - plan.left, plan.wav_length) for c in clips]
    )
    told = torch.from_numpy(wav).to(device)
    sources, targets = (
        torch.tensor([getattr(clip, who) for clip in clips], device=device)
        for who in ("source", "target")
    )
    z = network.encode(told).z
    units = torch.cat([z, network.prosody(told, sources)], dim=1)
    conditioning = network.condition(units, network.speaker_vectors(targets))
    conditioning = conditioning[:, plan.skip : plan.skip + plan.steps].float()
    wavenet = network.decoder.wavenet
    if geometry.conditioning_hop > 1:  # else the sampler projects
        conditioning = wavenet.project(conditioning)
    engine = create_engine(
        "auto",
        {name: np.asarray(t.float().cpu()) for name, t in wavenet.state_dict().items()},
        blocks=model.decoder.blocks,
        layers=model.decoder.layers,
        kernel_size=model.decoder.kernel_size,
        hop=geometry.conditioning_hop,
    )
    codes = _speak(engine, conditioning.cpu().numpy(), geometry.lead_samples, length)
    names = corpus.speakers.names
    samples = []
    for number, (clip, heard, said) in enumerate(zip(clips, wav, codes, strict=True), 1):
        audio = model.audio
        result, _ = decoder_samples(
            said, mulaw=MuLaw(audio.levels), preemphasis=audio.preemphasis, gain=audio.gain
        )
        speakers = names[clip.source], names[clip.target]
        samples.append(
            Sample(
                name=f"{number}-{_plain(speakers[0])}-to-{_plain(speakers[1])}",
                title=f"{speakers[0]} to {speakers[1]}"
                + (" (copy synthesis)" if clip.source == clip.target else ""),
                utterance=corpus.utterances.ids[clip.utterance],
                speakers=speakers,
                source=heard[plan.left :][: clip.samples],
                result=result[: clip.samples],
            )
        )
    return samples


def _speak(engine: Engine, conditioning: Floats, lead: int, length: int) -> NDArray[Any]:
    """conditioning [B, F, L * 2G or C] of ``lead`` samples, which are silence, and the ``length``
    after them -> codes [B, length]."""
    from vconv.stream import uniforms

    lanes, steps = len(conditioning), lead // engine.hop
    shared = 1 if engine.hop > 1 else 0  # the frame between them ends the one, begins the other
    silence = np.full((lanes, lead), engine.levels // 2, np.uint8)
    before = np.ascontiguousarray(conditioning[:, : steps + shared])
    _, state = engine.score(before, silence, engine.initial_state(lanes))
    drawn = np.stack([uniforms(SEED, lane=lane, chunk=0, count=length) for lane in range(lanes)])
    rest = np.ascontiguousarray(conditioning[:, steps:])
    codes, _ = engine.generate(rest, drawn, TEMPERATURE, state)
    return codes


def write(folder: Path, step: int, samples: Sequence[Sample], board: SummaryWriter) -> Path:
    """``folder/step-XXXXXXXXX``, beside its place first; one that is there is replaced. The same
    goes to TensorBoard."""
    target = folder / f"step-{step:09d}"
    partial, old = (folder / f".{target.name}.{state}" for state in ("partial", "old"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left_behind in folder.glob(".step-*"):  # by a process that was killed
            shutil.rmtree(left_behind)
        partial.mkdir()
        rows = [_write(partial, sample, step, board) for sample in samples]
        facts = {"step": step, "seed": SEED, "temperature": TEMPERATURE, "conversions": rows}
        text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
        (partial / "samples.json").write_text(text, "utf-8")
        sync(partial)
        if target.exists():
            target.rename(old)
        partial.rename(target)
        sync(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise SetupError(f"{target}: cannot be written ({error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write(folder: Path, sample: Sample, step: int, board: SummaryWriter) -> dict[str, Any]:
    """A sample's three files; its row of samples.json."""
    from matplotlib.image import imread

    from .conversion_figure import acoustics, conversion_png

    files = {"source": f"{sample.name}.source.wav", "result": f"{sample.name}.wav"}
    heard = {}
    row: dict[str, Any] = {"utterance": sample.utterance, "files": files}
    for which, wav, speaker in zip(
        files, (sample.source, sample.result), sample.speakers, strict=True
    ):
        wav = wav.clip(-1, 1)  # as it is heard
        with write_atomic(folder / files[which]) as writer:
            writer.write(wav)
        board.add_audio(f"{which}/{sample.name}", wav[None], step, SAMPLE_RATE)
        heard[which] = found = acoustics(wav)
        row[which] = {
            "speaker": speaker,
            "seconds": round(found.seconds, 3),
            "level_db": round(found.level_db, 2),
            "median_f0_hz": found.median_f0_hz and round(found.median_f0_hz, 1),
        }
    title = f"{sample.title}, step {step:,}"
    picture = folder / f"{sample.name}.png"
    picture.write_bytes(conversion_png(title, heard["source"], heard["result"]))
    board.add_image(f"picture/{sample.name}", imread(picture)[:, :, :3], step, dataformats="HWC")
    return row


def _plain(name: str) -> str:
    """A speaker's name as part of a file's."""
    return re.sub(r"[^\w.-]+", "_", name)[:40]
