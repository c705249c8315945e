"""Takes as a file: what a model said when it spoke training recordings itself.

One safetensors file, written once and never changed: ``codes`` of all takes one after another,
``ends`` of each, and ``facts``, a text of JSON that says whose they are.

K takes, N samples of all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from vconv.config import AudioConfig
from vconv.errors import InputError, ModelError, UsageError
from vconv.reading import printable
from vconv.weights import parse_tensors

from .corpus import Corpus

VERSION = 1
_TENSORS = {"codes": np.uint8, "ends": np.int64, "facts": np.uint8}


@dataclass(frozen=True)
class TakesFile:
    """A whole file: codes [N] of all takes, which end at ``ends`` [K]; take k speaks the utterance
    number ``utterances[k]`` of the corpus from where its speech begins (after the silence).

    ``facts`` as they were written; ``digest`` of all of it.
    """

    path: Path
    codes: NDArray[np.uint8]
    ends: NDArray[np.int64]
    utterances: NDArray[np.int64]
    facts: Mapping[str, Any]
    digest: str


def takes_bytes(takes: Sequence[NDArray[np.uint8]], facts: Mapping[str, Any]) -> bytes:
    """The file of these takes, each its codes [T]; ``facts`` are completed and must be JSON."""
    codes = np.concatenate([*takes, np.empty(0, np.uint8)])
    ends = np.cumsum([len(take) for take in takes], dtype=np.int64)
    complete: dict[str, Any] = {"version": VERSION, **facts}
    complete["digest"] = _digest(codes, ends, complete)
    text = json.dumps(complete, ensure_ascii=False, sort_keys=True).encode()
    return save({"codes": codes, "ends": ends, "facts": np.frombuffer(text, np.uint8)})


def read_takes(path: Path, corpus: Corpus, audio: AudioConfig) -> TakesFile:
    """The takes at ``path``, to train on this corpus with this decoder's signal.

    Raises InputError when the file is missing, damaged, of another version or of another corpus,
    or speaks a held-out utterance; UsageError when its signal is another.
    """
    name = printable(path)
    try:
        tensors = parse_tensors(path.read_bytes(), name)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"{name}: cannot be read ({reason}); data.takes is a file made by `vconv takes`."
        ) from None
    except ModelError as error:
        raise InputError(f"{str(error).rstrip('.')}; make it again with `vconv takes`.") from None
    if {key: tensor.dtype for key, tensor in tensors.items()} != _TENSORS or any(
        tensor.ndim != 1 for tensor in tensors.values()
    ):
        raise InputError(f"{name}: holds no takes; data.takes is a file made by `vconv takes`.")
    codes, ends = tensors["codes"], tensors["ends"]
    facts = _facts(tensors["facts"].tobytes(), name)
    if facts.get("digest") != _digest(codes, ends, facts):
        raise InputError(
            f"{name}: is damaged (its digest does not match); make it again with `vconv takes`."
        )
    try:
        return _checked(path, codes, ends, facts, corpus, audio)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # Its digest matches, so somebody else wrote it so.
        raise InputError(
            f"{name}: is damaged ({type(error).__name__}: {error}); make it again with "
            "`vconv takes`."
        ) from None


def _checked(
    path: Path,
    codes: NDArray[np.uint8],
    ends: NDArray[np.int64],
    facts: Mapping[str, Any],
    corpus: Corpus,
    audio: AudioConfig,
) -> TakesFile:
    name = printable(path)
    if facts["corpus"] != corpus.digest:
        raise InputError(
            f"{name}: was made of another corpus than {printable(corpus.path)} (its digest "
            "differs); make it anew with `vconv takes`."
        )
    for key, value in signal(audio).items():
        if facts["audio"][key] != value:
            raise UsageError(
                f"{name}: its signal has model.audio.{key} {facts['audio'][key]!r}, and the "
                f"configuration {value!r}; make it anew with `vconv takes`."
            )
    index = {identity: number for number, identity in enumerate(corpus.utterances.ids)}
    utterances = np.array([index[identity] for identity in facts["utterances"]], np.int64)
    lengths = np.diff(ends, prepend=0)
    if len(ends) != len(utterances) or lengths.sum() != len(codes) or (lengths < 0).any():
        raise ValueError("its lengths are not those of its takes")
    if (corpus.pad_samples + lengths > corpus.utterances.length[utterances]).any():
        raise ValueError("a take is longer than its recording")
    if len(codes) and codes.max() >= audio.levels:
        raise ValueError(f"its codes reach {codes.max()}")
    if corpus.utterances.heldout[utterances].any():
        raise InputError(
            f"{name}: speaks held-out utterances, which nothing is trained on; make it anew with "
            "`vconv takes`."
        )
    return TakesFile(path, codes, ends, utterances, facts, str(facts["digest"]))


def signal(audio: AudioConfig) -> dict[str, float]:
    """What codes mean: two models of the same can train on each other's takes."""
    return {"preemphasis": audio.preemphasis, "gain": audio.gain, "levels": audio.levels}


def _facts(text: bytes, name: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
        version = facts["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{name}: is damaged (its facts cannot be read); make it again with `vconv takes`."
        ) from None
    if version != VERSION:
        raise InputError(
            f"{name}: is a file of takes of version {version!r}; this vconv reads version "
            f"{VERSION}, make it again with `vconv takes`."
        )
    assert isinstance(facts, dict)
    return facts


def _digest(codes: NDArray[Any], ends: NDArray[Any], facts: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in facts.items() if key != "digest"}
    whole = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for array in (ends, codes):
        whole.update(array.tobytes())
    return whole.hexdigest()
