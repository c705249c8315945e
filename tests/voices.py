"""A small corpus of three voices that differ in pitch."""

from pathlib import Path

import numpy as np
import soundfile

from vconv.train.prepare import prepare

PITCHES = {"ada": 120, "bea": 180, "cyd": 260}


def prepared(folder: Path) -> Path:
    """Three speakers, each with its own pitch, four utterances of a second, half held out."""
    random = np.random.default_rng(0)
    time = np.arange(16000) / 16000
    for speaker, pitch in PITCHES.items():
        (folder / "raw" / speaker).mkdir(parents=True)
        for utterance in range(4):
            sweep = pitch * (1 + 0.2 * np.sin(2 * np.pi * (1 + utterance) * time))
            wav = 0.3 * np.sign(np.sin(2 * np.pi * np.cumsum(sweep) / 16000))
            wav *= np.sin(2 * np.pi * 2 * time) ** 2
            wav += 0.01 * random.standard_normal(len(wav))
            soundfile.write(folder / "raw" / speaker / f"{utterance}.wav", wav, 16000)
    out = folder / "corpus"
    prepare(folder / "raw", out, heldout=0.5, jobs=1, pad_samples=4000, progress=False)
    return out
