"""Augmentation: each kind does what was drawn for it, and nothing else; timing stays."""

import librosa
import numpy as np
import pytest
from scipy import signal, stats

from vconv.config import AugmentConfig
from vconv.train.augment import (
    OCTAVES_HZ,
    Augmentation,
    augment,
    coloured_noise,
    equalise,
    move_voice,
)
from vconv.train.noise import Stream, generator

RATE = 16_000
EACH = {
    "pitch": {"pitch_semitones": 4.0},
    "formant": {"formant": 0.2},
    "equaliser": {"equaliser_db": 9.0},
    "gain": {"gain_db": 6.0},
    "noise": {"noise_snr_db": 10.0},
}
ALL = AugmentConfig(**{key: value for kind in EACH.values() for key, value in kind.items()})
VOWELS = {
    "a": (700, 1200, 2500, 3500, 4600, 5600),
    "i": (280, 2250, 2900, 3600, 4600, 5600),
}
BANDWIDTHS = (70, 90, 130, 180, 250, 300)
MEL = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=32, fmin=150, fmax=4000)


def vowel(vowel: str, hz: tuple[float, float], pitch: float = 1, formant: float = 1) -> np.ndarray:
    """A voice gliding from one pitch to another, through resonances [T]; both times a factor."""
    samples = RATE
    glide = pitch * np.linspace(*hz, samples)
    phase = 2 * np.pi * np.cumsum(glide) / RATE
    # A harmonic leaves the band by fading over its last 200 Hz.
    wav = sum(
        np.cos(k * phase) * np.clip((7900 - k * glide) / 200, 0, 1)
        for k in range(1, int(7900 / glide.min()) + 1)
    )
    wav += 0.02 * wav.std() * np.random.default_rng(0).standard_normal(samples)
    wav = signal.lfilter([1], [1, -0.9], wav)
    for centre, bandwidth in zip(VOWELS[vowel], BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * formant * bandwidth / RATE)
        pole = [1, -2 * radius * np.cos(2 * np.pi * formant * centre / RATE), radius**2]
        wav = signal.lfilter([sum(pole)], pole, wav)
    return (0.05 * wav / wav.std()).astype(np.float32)


def syllables(seed: int, samples: int = 16_000) -> np.ndarray:
    """Voiced and noisy bursts of random lengths between silences [T]."""
    random = np.random.default_rng(seed)
    wav = np.zeros(samples)
    voice, noise = vowel("a", (110, 140)), 0.02 * random.standard_normal(RATE)
    at = 400
    while at < samples - 4_000:
        length = int(random.integers(800, 3_000))
        wav[at : at + length] = random.choice([voice, noise])[:length] * np.hanning(length) ** 0.3
        at += length + int(random.integers(400, 2_000))
    return wav.astype(np.float32)


def long_term_db(wav: np.ndarray) -> np.ndarray:
    """Mel-smoothed spectrum up to 4 kHz, level taken out."""
    spectrum = 10 * np.log10(MEL @ signal.welch(wav, RATE, nperseg=1024)[1])
    return spectrum - np.median(spectrum)


def pitch_track(wav: np.ndarray) -> np.ndarray:
    return librosa.yin(wav, fmin=50, fmax=600, sr=RATE, frame_length=1024)[4:-4]


def cents(moved: np.ndarray, original: np.ndarray) -> float:
    return 1200 * float(np.median(np.log2(pitch_track(moved) / pitch_track(original))))


def rms(wav: np.ndarray) -> float:
    return float(np.sqrt(np.mean(wav.astype(np.float64) ** 2)))


def given(seed: int, g: int, config: AugmentConfig) -> Augmentation:
    return Augmentation.draw(generator(seed, g, Stream.AUGMENT), config)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.stack([syllables(seed) for seed in range(6)])


# What a row is given


def test_a_row_does_not_depend_on_the_batch(rows: np.ndarray) -> None:
    whole = augment(rows, 3, range(40, 46), ALL)
    assert whole.dtype == np.float32
    assert whole.shape == rows.shape
    order = [4, 0, 3]
    assert np.array_equal(augment(rows[order], 3, [40 + i for i in order], ALL), whole[order])
    assert np.array_equal(augment(rows[5:], 3, np.array([45]), ALL), whole[5:])


def test_seed_and_sample_number_each_change_what_is_given(rows: np.ndarray) -> None:
    same = np.repeat(rows[:1], 4, axis=0)
    results = np.concatenate([augment(same, seed, range(4), ALL) for seed in (1, 2)])
    assert len(np.unique(results, axis=0)) == 8


def test_with_everything_off_the_input_itself_comes_back(rows: np.ndarray) -> None:
    assert augment(rows, 0, range(len(rows)), AugmentConfig()) is rows


def test_the_input_is_not_written_to(rows: np.ndarray) -> None:
    before = rows.copy()
    augment(rows, 0, range(len(rows)), ALL)
    assert np.array_equal(rows, before)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("pitch", ["pitch"]),
        ("formant", ["formant"]),
        ("equaliser", ["equaliser_db"]),
        ("gain", ["gain_db"]),
        ("noise", ["snr_db", "colour"]),
    ],
)
def test_what_one_kind_draws_does_not_depend_on_the_others(kind: str, fields: list[str]) -> None:
    for g in range(20):
        alone, together = given(5, g, AugmentConfig(**EACH[kind])), given(5, g, ALL)
        for field in fields:
            assert np.array_equal(getattr(alone, field), getattr(together, field))


def test_the_noise_itself_does_not_depend_on_the_other_kinds(rows: np.ndarray) -> None:
    noisy = AugmentConfig(noise_snr_db=0)
    alone = augment(rows, 1, range(6), noisy) - rows
    gain = {"gain_db": 6.0}
    louder = augment(rows, 1, range(6), AugmentConfig(noise_snr_db=0, **gain))
    louder -= augment(rows, 1, range(6), AugmentConfig(**gain))
    for a, b in zip(alone, louder, strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.9999


def test_draws_fill_their_ranges_uniformly_and_independently() -> None:
    config = AugmentConfig(
        gain_db=6, equaliser_db=9, noise_snr_db=10, pitch_semitones=4, formant=0.25
    )
    drawn = [given(11, g, config) for g in range(3_000)]
    ranges = {  # of what should be uniform
        "semitones": ([12 * np.log2(d.pitch) for d in drawn], -4, 4),
        "log formant": ([np.log(d.formant) for d in drawn], -np.log(1.25), np.log(1.25)),
        "gain": ([d.gain_db for d in drawn], -6, 6),
        "snr": ([d.snr_db for d in drawn], 10, 40),
        "colour": ([d.colour for d in drawn], 0, 1),
    } | {
        f"equaliser at {hz:.0f} Hz": ([d.equaliser_db[i] for d in drawn], -9, 9)
        for i, hz in enumerate(OCTAVES_HZ)
    }
    for name, (values, low, high) in ranges.items():
        assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 0.001, name
        assert min(values) >= low, name
        assert max(values) <= high, name
    correlation = np.corrcoef([values for values, _, _ in ranges.values()])
    assert abs(correlation[np.triu_indices(len(ranges), 1)]).max() < 0.08


# What each kind does


def test_gain_changes_the_level_by_what_was_drawn_and_nothing_else(rows: np.ndarray) -> None:
    config = AugmentConfig(gain_db=6)
    for g, (before, after) in enumerate(zip(rows, augment(rows, 7, range(6), config), strict=True)):
        factor = 10 ** (given(7, g, config).gain_db / 20)
        np.testing.assert_allclose(after, factor * before, rtol=1e-6)


def test_the_equaliser_has_the_drawn_response_and_no_phase() -> None:
    response_db = np.array([6.0, -9, 9, -3, 0, 9, -9])
    impulse = np.zeros(8_193, dtype=np.float32)
    impulse[4_096] = 1
    filtered = equalise(impulse, response_db).astype(np.float64)
    np.testing.assert_allclose(filtered, filtered[::-1], atol=1e-6)
    hz = np.geomspace(30, 7_999, 500)
    response = signal.freqz(filtered, worN=np.append(OCTAVES_HZ, hz), fs=RATE)[1]
    measured = 20 * np.log10(np.abs(response))
    np.testing.assert_allclose(measured[:7], response_db, atol=0.1)
    between = measured[7:]
    assert between.max() < 9.05
    assert between.min() > -9.05
    # A monotone cubic is at most three times as steep as the line between its knots.
    slope = np.abs(np.diff(between) / np.diff(np.log2(hz)))  # dB an octave
    assert slope.max() < 3 * np.abs(np.diff(response_db)).max()


def test_the_equaliser_does_not_wrap_around() -> None:
    impulse = np.zeros(9_000, dtype=np.float32)
    impulse[0] = 1
    filtered = equalise(impulse, np.array([9.0, -9, 9, -9, 9, -9, 9]))
    assert np.abs(filtered[-4_000:]).max() < 1e-4


def test_equalised_rows_have_the_drawn_response() -> None:
    config = AugmentConfig(equaliser_db=6)
    white = np.random.default_rng(0).standard_normal((4, 40_000)).astype(np.float32)
    for g, row in enumerate(augment(white, 2, range(4), config)):
        hz, before = signal.welch(white[g], RATE, nperseg=2048)
        ratio_db = 10 * np.log10(signal.welch(row, RATE, nperseg=2048)[1] / before)
        at_octaves = np.interp(OCTAVES_HZ[1:-1], hz, ratio_db)
        np.testing.assert_allclose(at_octaves, given(2, g, config).equaliser_db[1:-1], atol=0.7)


def test_noise_has_the_drawn_ratio_to_the_row(rows: np.ndarray) -> None:
    config = AugmentConfig(noise_snr_db=5, gain_db=6)
    clean = augment(rows, 4, range(6), AugmentConfig(gain_db=6))
    noise = augment(rows, 4, range(6), config) - clean
    for g in range(6):
        snr_db = 20 * np.log10(rms(clean[g]) / rms(noise[g]))
        assert snr_db == pytest.approx(given(4, g, config).snr_db, abs=0.02)


@pytest.mark.parametrize("colour", [0.0, 0.5, 1.0])
def test_noise_falls_with_frequency_as_its_colour_says(colour: float) -> None:
    noise = coloured_noise(np.random.default_rng(1), 200_000, colour, 0.1)
    assert len(noise) == 200_000
    hz, power = signal.welch(noise, RATE, nperseg=2048)
    speech = (hz > 100) & (hz < 7_500)
    slope = np.polyfit(np.log(hz[speech]), np.log(power[speech]), 1)[0]
    assert slope == pytest.approx(-colour, abs=0.05)


@pytest.mark.parametrize("kind", VOWELS)
@pytest.mark.parametrize("hz", [(95, 130), (170, 240)])
@pytest.mark.parametrize(
    ("pitch", "formant"),
    [(1.26, 1), (1 / 1.26, 1), (1, 1.2), (1, 1 / 1.2), (1.12, 1.2), (1 / 1.2, 1.1)],
)
def test_a_moved_vowel_is_the_vowel_spoken_there(
    kind: str, hz: tuple[float, float], pitch: float, formant: float
) -> None:
    original = vowel(kind, hz)
    moved = move_voice(original, pitch, formant)
    assert cents(moved, original) == pytest.approx(1200 * np.log2(pitch), abs=20)
    assert rms(moved) == pytest.approx(rms(original), rel=1e-4)
    # A wrong factor of the resonances costs: left where they were, or taken along by the pitch.
    truth = long_term_db(vowel(kind, hz, pitch, formant))
    wrong = pitch if formant == 1 else 1
    error = rms(long_term_db(moved) - truth)
    assert error < 3.5
    assert error < 0.55 * rms(long_term_db(vowel(kind, hz, pitch, wrong)) - truth)


def test_rows_move_by_the_drawn_pitch_and_by_the_drawn_formants() -> None:
    same = np.stack([vowel("a", (100, 130))] * 4)
    config = AugmentConfig(pitch_semitones=4)
    for g, row in enumerate(augment(same, 6, range(4), config)):
        expected = 1200 * np.log2(given(6, g, config).pitch)
        assert cents(row, same[g]) == pytest.approx(expected, abs=20)
    config = AugmentConfig(formant=0.25)
    for g, row in enumerate(augment(same, 6, range(4), config)):
        assert cents(row, same[g]) == pytest.approx(0, abs=10)
        moved = move_voice(same[g], 1, given(6, g, config).formant)
        assert np.array_equal(row, moved)


def test_lowering_the_pitch_leaves_no_hole_at_the_top_of_the_band() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    hz, before = signal.welch(noise, RATE, nperseg=512)
    for pitch in (0.75, 1.3):
        after = signal.welch(move_voice(noise, pitch, 1), RATE, nperseg=512)[1]
        bands = [(hz >= low) & (hz < low + 500) for low in range(500, 8_000, 500)]
        ratio_db = [10 * np.log10(after[b].sum() / before[b].sum()) for b in bands]
        assert np.abs(ratio_db).max() < 3


# Timing, and rows with little in them


@pytest.mark.parametrize(
    "config",
    [AugmentConfig(**values) for values in EACH.values()]
    + [ALL, AugmentConfig(pitch_semitones=8, formant=0.3)],
    ids=[*EACH, "all", "far"],
)
def test_sounds_stay_where_they_were(rows: np.ndarray, config: AugmentConfig) -> None:
    def envelope(wav: np.ndarray) -> np.ndarray:
        level = np.sqrt(np.convolve(wav.astype(np.float64) ** 2, np.hanning(320), "same"))
        return level - level.mean()

    for before, after in zip(rows, augment(rows, 9, range(6), config), strict=True):
        a, b = envelope(before), envelope(after)
        correlation = signal.correlate(b, a, method="fft") / np.sqrt((a @ a) * (b @ b))
        lag = int(correlation.argmax()) - (len(a) - 1)
        assert abs(lag) <= 0.002 * RATE
        assert correlation.max() > 0.95


def test_silence_stays_silence() -> None:
    silence = np.zeros((3, 9_000), dtype=np.float32)
    assert not augment(silence, 0, range(3), ALL).any()


def odd_rows() -> dict[str, np.ndarray]:
    time = np.arange(9_000)
    least = np.float32(1 / 32_768)
    random = np.random.default_rng(0)
    rows = {
        "one click": (time == 4_000) * 0.5,
        "a click at the edge": (time == 0) * least,
        "the least bit": least * random.integers(-1, 2, len(time)),
        "a step": (time > 4_000) * 0.3,
        "speech after silence": np.where(time > 6_000, 0.1 * random.standard_normal(len(time)), 0),
        "one tone": 0.9 * np.sin(0.1 * time),
        "a square wave": np.sign(np.sin(0.05 * time)),
        "a constant": np.full(len(time), 0.5),
    }
    return {name: row.astype(np.float32) for name, row in rows.items()}


@pytest.mark.parametrize("name", odd_rows())
def test_odd_rows_stay_finite_and_about_as_loud(name: str) -> None:
    row = odd_rows()[name]
    for pitch, formant in ((1.4, 1.0), (0.7, 1.0), (1.0, 1.3), (0.25, 1.49), (4.0, 0.67)):
        moved = move_voice(row, pitch, formant)
        assert np.isfinite(moved).all()
        assert rms(moved) == pytest.approx(rms(row), rel=1e-3)
    result = augment(np.stack([row] * 4), 0, range(4), ALL)
    assert np.isfinite(result).all()
    assert result.dtype == np.float32
