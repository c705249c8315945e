"""The page's pictures are those of the sound: held against librosa, tones and a PNG reader."""

import base64
import io

import numpy as np
import pytest
from matplotlib.image import imread

from speech import speechlike
from vconv.demo import charts, pictures, stage

librosa = pytest.importorskip("librosa")


def pixels(uri: str) -> np.ndarray:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    return imread(io.BytesIO(base64.b64decode(data)))


def test_mel_bands_are_librosas() -> None:
    wav = speechlike(32_000)
    mine = pictures.log_mel(wav)
    theirs = librosa.feature.melspectrogram(
        y=wav, sr=16_000, n_fft=512, hop_length=160, n_mels=80, htk=True, norm=None, center=True
    )
    assert mine.shape == theirs.shape
    assert np.abs(mine - 10 * np.log10(theirs + 1e-10)).max() < 0.1


@pytest.mark.parametrize("hz", [75.0, 131.0, 220.0, 410.0])
def test_f0_of_a_tone_is_its_frequency(hz: float) -> None:
    time = np.arange(16_000) / 16_000
    wav = sum(np.sin(2 * np.pi * hz * k * time) / k for k in range(1, 6)).astype(np.float32)
    seconds, found = pictures.f0(0.2 * wav)
    assert len(seconds) == len(found) == 101
    assert np.isfinite(found[5:-5]).all()
    assert np.nanmedian(found) == pytest.approx(hz, rel=0.005)


def test_f0_follows_a_glide_where_librosa_hears_a_voice_and_noise_has_none() -> None:
    wav = speechlike(32_000)
    seconds, mine = pictures.f0(wav)
    # The derivative of speechlike's phase.
    true = 120 + 15 * 2 * np.pi * 0.7 * np.cos(2 * np.pi * 0.7 * seconds)
    assert np.nanmedian(np.abs(np.log2(mine / true))) < 0.03  # octaves
    _, voiced, _ = librosa.pyin(wav, fmin=60, fmax=500, sr=16_000, hop_length=160)
    assert (np.isfinite(mine) == voiced).mean() > 0.8
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    assert np.isfinite(pictures.f0(noise)[1]).mean() < 0.1
    assert not np.isfinite(pictures.f0(np.zeros(8000, np.float32))[1]).any()


@pytest.mark.parametrize("samples", [1, 100, 16_000, 4_800_000])
def test_a_picture_of_any_length_is_no_wider_than_it_can_be_seen(samples: int) -> None:
    wav = np.tile(speechlike(16_000), samples // 16_000 + 1)[:samples]
    image = pixels(pictures.mel_image(pictures.log_mel(wav)))
    assert image.shape[0] == 80
    assert 1 <= image.shape[1] <= 1200
    assert len(pictures.f0(wav)[0]) <= 3201


def test_low_bands_are_at_the_bottom_and_loud_ones_bright() -> None:
    tone = 0.3 * np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000).astype(np.float32)
    brightness = pixels(pictures.mel_image(pictures.log_mel(tone)))[:, 50, :3].sum(1)
    assert brightness.argmax() > 65
    assert brightness[:40].max() < brightness.max() / 2


def test_a_unit_has_a_colour_of_its_own_wherever_it_occurs() -> None:
    codes = np.array([3, 4, 3, 255, 3], np.int64)
    row = pixels(pictures.units_image(codes))[0, :, :3]
    assert (row[0] == row[2]).all()
    assert (row[0] == row[4]).all()
    assert np.abs(row[0] - row[1]).max() > 0.1


def test_what_people_write_stays_text() -> None:
    nasty = '"><script>alert(1)</script>'
    track = stage.Track(nasty, nasty, 1.0, download=nasty)
    shown = stage.stage([track], seconds=1.0) + stage.message(nasty) + stage.progress(nasty, 0.5)
    assert "<script>" not in shown
    assert shown.count("&lt;script&gt;") >= 6


def test_curves_show_what_the_figures_are() -> None:
    steps = {step: {"step": step, "nll": 5 - step / 1000} for step in range(0, 2001, 10)}
    drawn = charts.charts(steps)
    assert drawn.count("<h4>") == 1  # no plot without figures
    assert "<b>3</b>" in drawn
    assert "nan" not in drawn
