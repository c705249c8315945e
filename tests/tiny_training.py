"""The smallest training run that has everything a large one has: batch norm, k-means and restarts
of an EMA codebook, weight average, validation, checkpoints that are kept and removed."""

from __future__ import annotations

from pathlib import Path

import torch

from networks import CONFIG as MODEL
from tiny_model import MEMBERS, varied
from vconv.config import Config
from vconv.train.batches import Excerpts, Noise, TrainingBatches
from vconv.train.corpus import Corpus
from vconv.train.state import TrainState, build_state


def tiny_config(corpus: Path | str, member: str = "vq", **train: object) -> Config:
    """Eight steps with a log line at each, a checkpoint at every second and two validations; other
    values for keys of ``train`` as given."""
    defaults = {
        "steps": 8,
        "batch": 4,
        "learning_rate": 3e-3,
        "warmup": 2,
        "log_every": 1,
        "validate_every": 4,
        "validate_windows": 6,
        "checkpoint_every": 2,
        "keep_last": 2,
        "threads": 1,
        "device": "cpu",
    }
    return Config.model_validate(
        {
            "name": "test",
            "model": varied(MODEL, MEMBERS[member]).model_dump(),
            "data": {"corpus": str(corpus), "window": 640},
            "train": defaults | train,
        }
    )


def parts(config: Config) -> tuple[TrainState, TrainingBatches]:
    """A fresh state and the batches of a configuration."""
    corpus = Corpus.open(Path(config.data.corpus))
    state = build_state(config, corpus, torch.device("cpu"))
    excerpts = Excerpts(corpus, config.model.audio, state.model.geometry, config.data.window)
    batches = TrainingBatches(
        excerpts,
        batch=config.train.batch,
        seed=config.train.seed,
        noise=Noise.of(config),
        buffer_mb=None,
        buffer_fraction=1.0,
    )
    return state, batches
