"""Statistics of a corpus's features: every frame once, whatever the blocks and shards."""

from pathlib import Path

import numpy as np
import pytest
import torch

from speech import speechlike
from vconv.nn.features import build_features
from vconv.train.statistics import feature_statistics

# Longer than two blocks, by a frame more, one frame and no more, too short for deltas, empty.
LENGTHS = (16_000 * 24, 160_000 + 400, 160_000 + 240, 400, 1_679, 1_680, 399)


@pytest.mark.parametrize("kind", ["logmel80", "mfcc39"])
def test_every_frame_of_every_span_is_counted_once(tmp_path: Path, kind: str) -> None:
    wav = np.rint(speechlike(sum(LENGTHS) + 1_000) * 32767).astype("<i2")
    wav.tofile(tmp_path / "audio.i16")
    starts = np.cumsum((500, *LENGTHS[:-1]))
    spans = [(int(start), length) for start, length in zip(starts, LENGTHS, strict=True)]
    found = feature_statistics(tmp_path / "audio.i16", spans, map, lambda *_: None)[kind]
    features = build_features(kind)
    least = 1_680 if kind == "mfcc39" else 400
    frames = np.concatenate(
        [
            features.raw(torch.from_numpy(wav[start : start + length] / np.float32(32768))[None])
            .double()
            .numpy()[0]
            for start, length in spans
            if length >= least
        ],
        axis=1,
    )
    np.testing.assert_allclose(found["mean"], frames.mean(axis=1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["std"], frames.std(axis=1), rtol=1e-5)


def test_a_kind_without_a_single_frame_is_left_out(tmp_path: Path) -> None:
    np.zeros(1_000, "<i2").tofile(tmp_path / "audio.i16")
    found = feature_statistics(tmp_path / "audio.i16", [(0, 1_000)], map, lambda *_: None)
    assert found.keys() == {"logmel80"}
