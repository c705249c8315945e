"""The figures of an evaluation against brute force, hand-made values and signals of known kind."""

from __future__ import annotations

import math

import numpy as np
import pytest

from speech import speechlike
from vconv.train.conversion_figure import Acoustics, acoustics
from vconv.train.evaluation import acoustics as compare
from vconv.train.evaluation.content import loop_arpa, words
from vconv.train.evaluation.limits import checks
from vconv.train.evaluation.probe import accuracy, histograms, means
from vconv.train.evaluation.statistics import interval, stat
from vconv.train.evaluation.units import use
from vconv.train.evaluation.voices import equal_error_rate, identified

RANDOM = np.random.default_rng(0)


def sound(mel: np.ndarray, f0: np.ndarray | None = None) -> Acoustics:
    return Acoustics(mel, np.zeros(mel.shape[1]) if f0 is None else f0, -20.0, 1.0)


def levenshtein(a: list, b: list) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            steps = (table[i, j] + (x != y), table[i, j + 1] + 1, table[i + 1, j] + 1)
            table[i + 1, j + 1] = min(steps)
    return int(table[-1, -1])


def test_distortion_is_0_of_the_same_sound_and_of_a_louder_one():
    heard = acoustics(speechlike(16000))
    louder = Acoustics(heard.mel + 1.5, heard.f0_hz, heard.level_db, heard.seconds)
    assert compare.distortion_db(heard, heard) == 0
    assert compare.distortion_db(louder, heard) == pytest.approx(0, abs=1e-6)


def test_distortion_of_a_cosine_on_the_bands_is_the_value_worked_out_by_hand():
    """ln P differs by 2 a cos(3 pi (k + 1/2) / M), so c_3 by a, and the formula gives
    10 / ln 10 sqrt(2) a; a power spectrum's RMS difference in dB says the same."""
    bands, a = 80, 0.4
    wave = 2 * a * np.cos(3 * np.pi * (np.arange(bands) + 0.5) / bands)
    plain = np.zeros((bands, 7))
    expected = 10 / math.log(10) * math.sqrt(2) * a
    assert compare.distortion_db(sound(plain + wave[:, None]), sound(plain)) == pytest.approx(
        expected
    )
    assert 10 / math.log(10) * np.sqrt(np.mean(wave**2)) == pytest.approx(expected)


def test_distortion_does_not_mind_another_tempo():
    heard = acoustics(speechlike(16000))
    slow = Acoustics(np.repeat(heard.mel, 2, 1), heard.f0_hz, heard.level_db, 2.0)
    assert compare.distortion_db(slow, heard) == pytest.approx(0, abs=1e-6)


def test_an_octave_is_12_semitones_and_keeps_the_correlation():
    f0 = 100 * 2 ** np.sin(np.arange(50) / 5)
    f0[::7] = np.nan
    mel = np.zeros((80, 50))
    assert compare.semitones(sound(mel, 2 * f0), sound(mel, f0)) == pytest.approx(12)
    assert compare.f0_correlation(sound(mel, 2 * f0), sound(mel, f0)) == pytest.approx(1)
    assert compare.f0_correlation(sound(mel, 1e4 / f0), sound(mel, f0)) == pytest.approx(-1)
    silent = sound(mel, np.full(50, np.nan))
    assert compare.semitones(silent, sound(mel, f0)) is None
    assert compare.f0_correlation(silent, sound(mel, f0)) is None
    assert compare.voiced(silent, sound(mel, f0)) == (0, 42)


def test_frames_that_are_gone_are_counted_among_the_loud_ones():
    source = 0.3 * np.ones(3200)
    source[1600:] = 1e-4  # -80 dBFS: five frames of silence
    made = source.copy()
    made[:640] *= 10 ** (-31 / 20)
    made[1600:] = 0.01
    assert compare.dropped(source, made) == (2, 5)
    assert compare.floor_db(source, made) == pytest.approx(-40)
    assert compare.floor_db(np.ones(640), made) is None


def test_equal_error_rate_is_where_brute_force_finds_both_errors_equal():
    genuine, impostor = RANDOM.normal(1, 1, 400), RANDOM.normal(0, 1, 700)
    gaps = [
        (abs((impostor >= t).mean() - (genuine < t).mean()), (impostor >= t).mean())
        for t in np.concatenate([genuine, impostor])
    ]
    assert equal_error_rate(genuine, impostor) == pytest.approx(min(gaps)[1], abs=0.005)
    assert equal_error_rate(np.array([0.9, 0.8]), np.array([0.1, 0.2])) == 0
    assert equal_error_rate(np.array([0.1]), np.array([0.9])) == 1


def test_identification_leaves_the_recording_out_of_its_own_centroid():
    """Two recordings of a voice that point apart: with itself each would be nearest to itself."""
    e = np.eye(4)
    assert identified({"a": [e[0], e[0]], "b": [e[1], e[1]]}) == (4, 4)
    right, count = identified({"a": [e[0], e[1]], "b": [(e[0] + e[1]) / 2**0.5, e[2]]})
    assert (right, count) == (0, 4)


def test_the_interval_is_over_sentences_however_many_items_each_has():
    """Items of a sentence all alike: ten of each tell no more than one."""
    values = RANDOM.normal(0, 1, 30)
    one = stat([(str(i), v, 1.0) for i, v in enumerate(values)])
    ten = stat([(str(i), v, 1.0) for i, v in enumerate(values) for _ in range(10)])
    assert one is not None
    assert ten is not None
    assert (ten["low"], ten["high"]) == pytest.approx((one["low"], one["high"]))
    assert (ten["items"], ten["sentences"]) == (300, 30)
    # The normal theory's interval of a mean.
    width = 2 * 1.96 * values.std() / math.sqrt(30)
    assert one["high"] - one["low"] == pytest.approx(width, rel=0.15)


def test_a_rate_is_the_sum_of_errors_by_the_sum_of_words():
    made = stat([("a", 1.0, 2.0), ("a", 0.0, 8.0), ("b", 4.0, 10.0)])
    assert made is not None
    assert made["mean"] == 5 / 20
    assert made["median"] == 0.4
    assert stat([]) is None
    assert interval(np.ones(1), np.ones(1)) == (None, None)


def test_word_errors_are_the_distance_that_brute_force_finds():
    pytest.importorskip("rapidfuzz")
    from vconv.train.evaluation.content import edits
    from vconv.train.evaluation.units import unit_errors

    for _ in range(50):
        a, b = (RANDOM.integers(0, 4, RANDOM.integers(1, 12)) for _ in range(2))
        assert edits([*map(str, a)], [*map(str, b)]) == levenshtein([*a], [*b])
        assert unit_errors(a, b)["unit_error"] == [levenshtein([*a], [*b]), len(a)]
    assert unit_errors(np.array([1, 2, 3]), np.array([1, 3, 3]))["unit_disagreement"] == [1, 3]


def test_words_are_letters_and_the_apostrophes_within():
    assert words("The jailer\N{RIGHT SINGLE QUOTATION MARK}s dog - 'twas, LATE!") == [
        *("the", "jailer's", "dog", "twas", "late")
    ]


def test_the_loops_words_and_its_end_are_equally_likely():
    lines = loop_arpa(["b", "a", "b"]).splitlines()
    likely = {line.split()[1]: 10 ** float(line.split()[0]) for line in lines[4:7] if line}
    assert lines[1] == "ngram 1=4"
    assert sum(10 ** float(x.split()[0]) for x in lines[5:8]) == pytest.approx(1, abs=1e-5)
    assert likely["<s>"] < 1e-90


def test_perplexity_of_codes_that_are_used_alike_is_their_number():
    made = use([np.array([0, 1, 2, 3] * 10), np.array([3, 2, 1, 0])], 8)
    assert made == pytest.approx({"perplexity": 4, "codes_used": 0.5})


def test_the_probe_names_speakers_whose_units_differ_and_no_others():
    def drawn(low: int, count: int) -> list[np.ndarray]:
        codes = RANDOM.integers(low, low + 8, 50 * count)
        return list(histograms(codes, 16, 50))

    apart = [(who, x) for who, low in (("a", 0), ("b", 8)) for x in drawn(low, 10)]
    alike = [(who, x) for who in "ab" for x in drawn(4, 40)]
    assert accuracy(apart, apart[::-1]) == 1
    assert accuracy(alike[::2], alike[1::2]) < 0.75
    assert len(list(means(np.ones((125, 3)), 50))) == 2


def test_a_limit_that_cannot_be_judged_is_not_met_nor_missed():
    figures = {
        name: dict.fromkeys(("source", "target", "copy", "conversion"))
        for name in (
            *("nearest", "cosine_target", "cosine_margin", "wer", "unit_error", "mcd_closed"),
            "semitones_off",
        )
    }
    figures["nearest"]["conversion"] = {"mean": 0.96}
    figures["cosine_target"] |= {"copy": {"mean": 0.9}, "conversion": {"mean": 0.84}}
    made = checks(figures, {"codebook_size": 16, "perplexity": 4.0})
    met = [check["met"] for check in made]
    assert met == [True, False, *[None] * 6, True, None, None, None]
