"""Pitch and voicing against sounds of known pitch and librosa; a chunk gives those of the whole."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speech import speechlike
from vconv.nn.pitch import WINDOW, Pitch, relative, voiced_sums

RATE = 16_000
HELLO = Path(__file__).parents[2] / "examples" / "hello.wav"


def estimate(wav: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F0 in Hz [U] and voicing [U] of a waveform [T]."""
    octave, voicing = Pitch(0, 0, 1)(torch.from_numpy(wav).float()[None])[0].double().numpy()
    return 2**octave, voicing


def at_units(track: np.ndarray) -> np.ndarray:
    """What a track by the sample says at the units' centres."""
    units = (len(track) - WINDOW) // 320 + 1
    return track[WINDOW // 2 + 320 * np.arange(units)]


def harmonics(f0: np.ndarray, *, slope: float, highest: float = 7000.0) -> np.ndarray:
    """A sound of pitch f0 [T] in Hz, its harmonics falling by a power of their number."""
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    wav = np.zeros(len(f0))
    for k in range(1, int(highest / f0.min()) + 1):
        wav += (k * f0 < highest) * np.cos(k * phase) / k**slope
    return wav


def tone(f0: np.ndarray) -> np.ndarray:
    return harmonics(f0, slope=0.0, highest=1.5 * f0.min())


def pulses(f0: np.ndarray) -> np.ndarray:
    return harmonics(f0, slope=0.0)


def vowel(f0: np.ndarray) -> np.ndarray:
    """A glottal source through three formants."""
    from scipy.signal import lfilter

    wav = harmonics(f0, slope=1.0)
    for hz, bandwidth in ((700, 80), (1200, 90), (2600, 120)):
        radius = np.exp(-np.pi * bandwidth / RATE)
        wav = lfilter([1], [1, -2 * radius * np.cos(2 * np.pi * hz / RATE), radius**2], wav)
    return wav


def levelled(wav: np.ndarray, db: float) -> np.ndarray:
    """With its highest sample at db below full scale."""
    return wav / np.abs(wav).max() * 10 ** (db / 20)


@pytest.mark.parametrize("sound", [tone, pulses, vowel])
@pytest.mark.parametrize("hz", [65, 70, 98, 131, 187, 262, 370, 450, 480])
def test_a_steady_pitch_is_told_within_half_a_percent(sound, hz):
    found, voicing = estimate(levelled(sound(np.full(RATE, float(hz))), -12))
    assert np.abs(found / hz - 1).max() < 0.005
    assert voicing.min() > 0.99


@pytest.mark.parametrize("seconds_per_octave", [4, 1, 0.5])
def test_a_gliding_vowel_is_followed_within_a_percent(seconds_per_octave):
    octaves = np.log2(450 / 70)
    time = np.arange(6 * RATE) / RATE
    up_and_down = np.abs((time / seconds_per_octave + octaves) % (2 * octaves) - octaves)
    f0 = 70 * 2**up_and_down
    found, voicing = estimate(levelled(vowel(f0), -12))
    error = np.abs(found / at_units(f0) - 1)
    assert np.mean(error > 0.01) < 0.02
    assert error.max() < 0.05
    assert voicing.min() > 0.9


def test_silence_and_what_is_nearly_silent_are_unvoiced():
    random = np.random.default_rng(0)
    hum = 10 ** (-90 / 20) * np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE)
    for wav in (
        np.zeros(RATE),
        np.full(RATE, 0.5),
        random.integers(-1, 2, RATE) / 32768,
        hum,
    ):
        found, voicing = estimate(wav)
        assert np.isfinite(found).all()
        assert voicing.max() == 0


def test_white_noise_is_unvoiced():
    noise = np.random.default_rng(0).standard_normal(30 * RATE)
    for db in (-50, -10):
        _, voicing = estimate(levelled(noise, db))
        assert np.mean(voicing > 0.5) < 0.005
        assert voicing.mean() < 0.005


def test_white_noise_around_a_vowel_leaves_its_pitch():
    f0 = 140 * 2 ** (0.5 * np.sin(2 * np.pi * 0.7 * np.arange(4 * RATE) / RATE))
    clean = levelled(vowel(f0), -12)
    noise = np.random.default_rng(0).standard_normal(len(f0)) * clean.std() / 10 ** (10 / 20)
    found, voicing = estimate(clean + noise)
    error = np.abs(found / at_units(f0) - 1)
    assert np.mean(error > 0.02) < 0.02
    assert voicing.mean() > 0.95


def test_speech_is_told_as_probabilistic_yin_tells_it():
    import librosa

    wav, _ = soundfile.read(HELLO, dtype="float32")
    found, voicing = estimate(wav)
    # Frames of librosa's whose centres are those of the units.
    expected, voiced, _ = librosa.pyin(
        wav[WINDOW // 2 - 512 :],
        fmin=60,
        fmax=500,
        sr=RATE,
        frame_length=1024,
        hop_length=320,
        center=False,
    )
    units = min(len(found), len(expected))
    both = (voicing[:units] > 0.5) & voiced[:units]
    error = np.abs(found[:units][both] / expected[:units][both] - 1)
    assert both.mean() > 0.6
    # Measured: 0.7 %, where librosa's own grid of tenths of a semitone is 0.6 %; no gross error.
    assert np.median(error) < 0.01
    assert np.mean(error > 0.2) < 0.02
    # Measured: 6 %, at the ends of voiced stretches.
    assert np.mean((voicing[:units] > 0.5) != voiced[:units]) < 0.1


@pytest.mark.parametrize("db", [-40, -30, -20, -10])
def test_the_level_of_speech_changes_nothing_but_its_softest_ends(db):
    wav, _ = soundfile.read(HELLO)
    loud, loud_voicing = estimate(levelled(wav, -3))
    found, voicing = estimate(levelled(wav, db))
    both = (voicing > 0.5) & (loud_voicing > 0.5)
    assert np.abs(np.log2(found / loud)[both]).max() < 1e-4
    assert np.mean((voicing > 0.5) != (loud_voicing > 0.5)) < 0.02
    assert np.abs(voicing - loud_voicing).mean() < 0.02


@pytest.mark.parametrize("hop", [160, 320])
def test_every_unit_is_told_from_its_window_alone(hop):
    left, right = 731, 250
    wav = torch.from_numpy(speechlike(9_001))[None]
    whole = relative(Pitch(left, right, 1, hop)(wav), torch.tensor([7.0]))
    units = (9_001 - left - right - WINDOW) // hop + 1
    assert whole.shape == (1, 2, units)
    one = Pitch(0, 0, 1, hop)
    for unit in range(units):
        start = left + unit * hop
        alone = relative(one(wav[:, start : start + WINDOW]), torch.tensor([7.0]))
        torch.testing.assert_close(alone[:, :, 0], whole[:, :, unit], rtol=0, atol=1e-4)


def test_a_window_is_read_to_its_ends_and_alike_from_both():
    pitch = Pitch(0, 0, 1)
    wav = torch.from_numpy(speechlike(WINDOW + 320 * 20))[None].double()
    pitch = pitch.double()
    torch.testing.assert_close(pitch(wav.flip(1)), pitch(wav).flip(2), rtol=0, atol=1e-6)
    for sample in (0, WINDOW - 1):
        one = wav[:, :WINDOW].clone()
        one[:, sample] += 1e6  # the outermost taps weigh next to nothing
        assert not torch.equal(pitch(one), pitch(wav[:, :WINDOW]))


def test_items_of_a_batch_do_not_mix():
    pitch = Pitch(0, 0, 1)
    wavs = torch.stack([torch.from_numpy(speechlike(8_000)) * k for k in (1.0, 0.0, -0.1)])
    together = pitch(wavs)
    for item, wav in enumerate(wavs):
        torch.testing.assert_close(together[item], pitch(wav[None])[0], rtol=0, atol=1e-4)


def test_autocast_leaves_the_pitch_as_it_is():
    pitch = Pitch(0, 0, 1)
    wav = torch.from_numpy(speechlike(8_000))[None]
    with torch.autocast("cpu", torch.bfloat16):
        under = pitch(wav)
    assert torch.equal(under, pitch(wav))


def test_a_checkpoint_holds_the_speakers_means_and_no_constants():
    assert Pitch(10, 20, 3).state_dict().keys() == {"speaker_means"}
    assert torch.equal(Pitch(10, 20, 3).speaker_means, torch.zeros(3))


def test_relative_pitch_is_octaves_above_the_speaker_s_mean_where_voiced():
    pitch = torch.tensor([[[7.0, 8.5, 6.0], [1.0, 0.5, 0.0]], [[9.0, 9.0, 9.0], [1.0, 1.0, 0.25]]])
    expected = [[[0.0, 0.75, 0.0], [1.0, 0.5, 0.0]], [[1.0, 1.0, 0.25], [1.0, 1.0, 0.25]]]
    torch.testing.assert_close(
        relative(pitch, torch.tensor([7.0, 8.0])), torch.tensor(expected), rtol=0, atol=0
    )


def test_the_mean_pitch_counts_voiced_units_only():
    time = np.arange(3 * RATE) / RATE
    sung = np.where(time < 1, 150.0, 300.0)
    wav = np.where(time < 2, levelled(vowel(sung), -12), 0)
    noise = levelled(np.random.default_rng(0).standard_normal(len(wav)), -20)
    wavs = torch.from_numpy(np.stack([wav, noise])).float()
    total, weight = voiced_sums(Pitch(0, 0, 1)(wavs))
    assert weight[1] < 2
    mean = float(total.sum() / weight.sum())
    assert mean == pytest.approx(np.log2(150 * 300) / 2, abs=0.03)


@pytest.mark.filterwarnings("ignore")  # the exporter's own, of torch's internals
def test_the_exported_pitch_is_the_eager_one():
    import onnxruntime

    left, right = 100, 60
    pitch = Pitch(left, right, 2).eval()
    program = torch.onnx.export(
        pitch,
        (torch.zeros(2, left + right + WINDOW + 1000),),
        input_names=["waveform"],
        dynamic_shapes={"wav": {0: "batch", 1: "samples"}},
        opset_version=20,
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    hello, _ = soundfile.read(HELLO, dtype="float32")
    shortest = left + right + WINDOW
    for batch, samples in ((1, shortest), (2, shortest + 319), (3, 9_001), (1, len(hello))):
        wavs = np.stack([hello[k * 1000 :][:samples] for k in range(batch)])
        (found,) = session.run(None, {"waveform": wavs})
        wanted = pitch(torch.from_numpy(wavs))
        assert found.shape == (batch, 2, (samples - shortest) // 320 + 1) == tuple(wanted.shape)
        mean = torch.full((batch,), 7.0)
        np.testing.assert_allclose(
            relative(torch.from_numpy(found), mean).numpy(),
            relative(wanted, mean).numpy(),
            rtol=0,
            atol=1e-4,
        )
