"""Held-out speech of the corpus that a checkpoint was trained on, for whoever judges the model."""

from __future__ import annotations

from pathlib import Path

from vconv.errors import VconvError
from vconv.geometry import Geometry

from .batches import Batch, Excerpts, held_out
from .checkpoint import Checkpoint
from .corpus import HEADER, Corpus

WINDOWS = 64
_BATCH = 8


def heldout_speech(checkpoint: Path) -> tuple[list[Batch], int] | str:
    """(batches of held-out windows, samples of a window), or why there are none, in words.

    The windows are cut as validation cuts them; the corpus is the one that the checkpoint names,
    or the one that its run prepared for itself.
    """
    found = Checkpoint.open(checkpoint)
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
