"""What is understood: pocketsphinx with a free loop of words, and with the sentences themselves.

The loop knows the words of the texts and nothing of their order, so it must hear each of them;
the closed set only has to tell the sentences apart.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def words(text: str) -> list[str]:
    """Lower case, letters and the apostrophes within."""
    return _WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


def edits(reference: Sequence[object], answer: Sequence[object]) -> int:
    """Levenshtein's distance of two sequences."""
    from rapidfuzz.distance import Levenshtein

    return int(Levenshtein.distance(reference, answer))


def loop_arpa(vocabulary: Iterable[str]) -> str:
    """A language model in ARPA's format: after every word, every word or the end, all alike."""
    known = sorted(set(vocabulary))
    each = -math.log10(len(known) + 1)
    lines = ["\\data\\", f"ngram 1={len(known) + 2}", "", "\\1-grams:", "-99 <s>"]
    return "\n".join([*lines, *(f"{each:.6f} {w}" for w in ("</s>", *known)), "", "\\end\\", ""])


def sentences_jsgf(sentences: Iterable[str]) -> str:
    """A grammar of whole sentences."""
    found = sorted({" ".join(words(text)) for text in sentences})
    return f"#JSGF V1.0;\ngrammar closed;\npublic <sentence> = {' | '.join(found)} ;\n"


def dictionary() -> frozenset[str]:
    """The words that pocketsphinx's dictionary pronounces."""
    from pocketsphinx import get_model_path

    with open(get_model_path("en-us/cmudict-en-us.dict"), encoding="utf-8") as file:
        return frozenset(line.split(None, 1)[0] for line in file if line.strip())


class Recogniser:
    """One decoder with both searches.

    Args:
        vocabulary: texts whose words the loop may answer with.
        sentences: the closed set; those with a word that is not in the dictionary are left out,
            and are not scored.
    """

    def __init__(self, vocabulary: Iterable[str], sentences: Iterable[str]) -> None:
        from pocketsphinx import Decoder

        spoken = dictionary()
        known = {word for text in vocabulary for word in words(text)} & spoken
        self._scored = {s for s in sentences if words(s) and spoken.issuperset(words(s))}
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "loop.arpa"
            model.write_text(loop_arpa(known), "utf-8")
            self._decoder: Any = Decoder(lm=str(model), loglevel="FATAL")
        self._loop = self._decoder.current_search()
        if self._scored:
            self._decoder.add_jsgf_string("closed", sentences_jsgf(self._scored))

    def score(self, wav: NDArray[np.floating], text: str) -> dict[str, Any]:
        """[T] at 16 kHz and what was said -> word and character errors with what they are shares
        of, and what was heard; nothing of a text that cannot be scored."""
        if text not in self._scored:
            return {}
        said, heard = words(text), words(self._hear(wav, self._loop))
        closed = words(self._hear(wav, "closed"))
        return {
            "heard": " ".join(heard),
            "wer": [edits(said, heard), len(said)],
            "cer": [edits(" ".join(said), " ".join(heard)), len(" ".join(said))],
            "closed_wer": [edits(said, closed), len(said)],
        }

    def _hear(self, wav: NDArray[np.floating], search: str) -> str:
        decoder = self._decoder
        decoder.activate_search(search)
        decoder.reinit_feat()  # what was heard before shall not matter
        decoder.start_utt()
        pcm = (np.clip(wav, -1, 1) * 32767).astype("<i2").tobytes()
        decoder.process_raw(pcm, full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return "" if found is None else str(found.hypstr)
