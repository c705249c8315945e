"""What a corpus cannot give a run that asks for it: said when the run begins, not found out after.

None of it ends the run. A speaker that no window is long enough for keeps the vector that it was
drawn with, and a voice from nowhere is worth a warning before the days of training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .batches import Excerpts

_NAMED = 5


def warnings(excerpts: Excerpts) -> list[str]:
    """A sentence for each thing that training or validation will have to do without."""
    corpus = excerpts.corpus
    utterances, names = corpus.utterances, corpus.speakers.names
    needed = excerpts.left + excerpts.window + excerpts.right
    longest = np.zeros(len(names), np.int64)
    np.maximum.at(longest, utterances.speaker, np.where(utterances.heldout, 0, utterances.length))
    held = np.bincount(utterances.speaker[utterances.heldout], minlength=len(names))
    found = []
    poor = np.flatnonzero(longest < needed)
    if len(poor):
        lengths = [f"{names[i]} ({longest[i]:,})" for i in poor[:_NAMED]]
        found.append(
            f"{_listed(lengths, len(poor))} cannot be trained: a window of data.window "
            f"{excerpts.window:,} with its context needs {needed:,} samples, and no training "
            "utterance of theirs has as many (the longest in brackets, with its silence); record "
            "more, make data.window smaller, or prepare the corpus without them."
        )
    if not held.any():
        found.append(
            "the corpus holds no utterance out: there will be no validation and no best checkpoint."
        )
        return found
    if len(names) == 1:
        found.append(
            "the corpus has one speaker: there is no other to compare with, hence no probe_speaker."
        )
    single = np.flatnonzero(held == 1)
    if len(single) == np.count_nonzero(held):
        found.append(
            "no speaker has two held-out utterances: there is no other to borrow latents from, "
            "hence no probe_latents."
        )
    return found


def _listed(names: Sequence[str], count: int) -> str:
    more = f" and {count - len(names):,} more" if count > len(names) else ""
    return f"{'speakers' if count > 1 else 'speaker'} {', '.join(names)}{more}"
