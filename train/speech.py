"""Held-out speech of the corpus that a checkpoint was trained on, for whoever judges the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vconv.errors import VconvError
from vconv.geometry import Geometry
from vconv.input_level import speech_level

from .batches import Batch, Excerpts, held_out
from .checkpoint import Checkpoint
from .corpus import HEADER, Corpus

WINDOWS = 64
_BATCH = 8
_UTTERANCES = 256  # of which the level is measured, at most


def heldout_speech(checkpoint: Path) -> tuple[list[Batch], int] | str:
    """(batches of held-out windows, samples of a window), or why there are none, in words.

    The windows are cut as validation cuts them; the corpus is the one that the checkpoint names,
    or the one that its run prepared for itself.
    """
    found = Checkpoint.open(checkpoint)
    config = found.config
    corpus = corpus_of(checkpoint, found)
    if isinstance(corpus, str):
        return corpus
    excerpts = Excerpts(
        corpus,
        config.model.audio,
        Geometry.of(**config.model.geometry),
        config.data.window,
        seed=config.train.seed,
        dither_db=config.data.dither_db,
    )
    heldout = held_out(excerpts, WINDOWS, _BATCH)
    if heldout is None:
        return "its corpus holds nothing out"
    return heldout.batches, config.data.window


def heldout_level(checkpoint: Path) -> float | None:
    """How loud the held-out speech is, in dBFS (see ``input_level``); None for a model without an
    encoder, and where ``heldout_speech`` finds none."""
    found = Checkpoint.open(checkpoint)
    corpus = corpus_of(checkpoint, found)
    if found.config.model.inverter or isinstance(corpus, str):
        return None
    lengths = corpus.utterances.length
    (heldout,) = np.nonzero(corpus.utterances.heldout)
    count = min(len(heldout), _UTTERANCES)
    chosen = heldout[np.linspace(0, len(heldout) - 1, count).round().astype(int)]
    level = speech_level(corpus.excerpt(int(u), 0, int(lengths[u])) for u in chosen)
    return None if level is None else round(level, 2)


def corpus_of(checkpoint: Path, found: Checkpoint) -> Corpus | str:
    """The very corpus that the checkpoint was trained on, or why it cannot be had."""
    config = found.config
    own = checkpoint.resolve().parents[1] / "corpus"
    places = [place for place in (Path(config.data.corpus), own) if (place / HEADER).exists()]
    if not places:
        return f"its corpus, {config.data.corpus}, is not there"
    try:
        corpus = Corpus.open(places[0])
    except VconvError as error:
        return f"its corpus cannot be used: {error}"
    if corpus.digest != found.header["corpus"]["digest"]:
        return f"{places[0]} is another corpus than it was trained on"
    return corpus
