"""Levels, filters, resampling and writing, each against an independent truth."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vconv.audio import (
    DCFilter,
    MuLaw,
    Resampler,
    decoder_codes,
    decoder_samples,
    deemphasise,
    first_order,
    preemphasise,
    read,
    resampled_length,
    write_atomic,
)
from vconv.errors import UsageError

NOISE = np.random.default_rng(0).standard_normal(30_000) * 0.2


def pieces(x: np.ndarray, seed: int, longest: int = 3_000) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    cuts = np.cumsum(rng.integers(0, longest, 4 * len(x) // longest))
    return np.split(x, cuts[cuts < len(x)])


def companded(x: float, levels: int) -> float:
    """G.711's continuous law, in plain Python."""
    mu = levels - 1
    return math.copysign(math.log1p(mu * abs(x)) / math.log1p(mu), x)


@pytest.mark.parametrize("levels", [2, 17, 256, 1024])
def test_codes_are_equal_bins_of_the_companded_domain(levels: int) -> None:
    mulaw = MuLaw(levels)
    for x in np.linspace(-1, 1, 4_001, dtype=np.float32):
        position = (companded(float(x), levels) + 1) / 2 * levels
        code = int(mulaw.encode(x))
        # A sample within rounding of an edge may fall on either side.
        assert abs(code + 0.5 - position) <= 0.5 + 1e-4 or code == levels - 1
    expected = [(code + 0.5) / levels * 2 - 1 for code in range(levels)]
    decoded = [companded(float(x), levels) for x in mulaw.decode(np.arange(levels))]
    assert decoded == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("levels", [2, 3, 16, 255, 256, 1024, 1 << 15])
def test_codes_are_what_a_search_among_the_thresholds_finds(levels: int) -> None:
    mulaw = MuLaw(levels)
    edges = mulaw.edges
    random = np.random.default_rng(levels)
    around = [np.nextafter(edges, np.float32(end)) for end in (-9, 9)]
    drawn = [random.uniform(-high, high, 50_000) for high in (1.2, 1e-3, 1e-7)]
    special = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, np.inf, -np.inf, np.nan]
    samples = np.concatenate([edges, *around, *drawn, special]).astype(np.float32)
    expected = np.searchsorted(edges, samples, side="right")
    np.testing.assert_array_equal(mulaw.encode(samples), expected)


@pytest.mark.parametrize("levels", [16, 256, 1024])
def test_numpy_and_torch_agree_to_the_last_code(levels: int) -> None:
    mulaw = MuLaw(levels)
    below = np.nextafter(mulaw.edges, np.float32(-2))
    above = np.nextafter(mulaw.edges, np.float32(2))
    grid = np.linspace(-1.1, 1.1, 400_001, dtype=np.float32)
    special = np.array([-0.0, 0.0, 1e-45, -1e-45, np.inf, -np.inf, 1, -1], np.float32)
    x = np.concatenate([grid, below, mulaw.edges, above, special])
    theirs = torch.bucketize(torch.from_numpy(x), torch.from_numpy(mulaw.edges), right=True)
    assert np.array_equal(mulaw.encode(x), theirs.numpy())
    assert np.array_equal(mulaw.encode(mulaw.edges), np.arange(1, levels))
    assert np.array_equal(mulaw.encode(below), np.arange(levels - 1))


def test_encoding_undoes_decoding_and_clips() -> None:
    for levels in (2, 256, 1 << 15):
        mulaw = MuLaw(levels)
        codes = np.arange(levels)
        assert np.array_equal(mulaw.encode(mulaw.decode(codes)), codes)
        assert mulaw.encode([-9.0, 9.0]).tolist() == [0, levels - 1]
    assert MuLaw(256).encode(0.0).dtype == np.uint8
    assert MuLaw(257).encode(0.0).dtype == np.int16
    assert int(MuLaw(256).encode(0.0)) == 128  # where the decoder's silence starts


def test_the_quantisation_error_is_at_most_half_the_widest_bin() -> None:
    mulaw = MuLaw(256)
    x = np.linspace(-1, 1, 100_001, dtype=np.float32)
    error = np.abs(mulaw.decode(mulaw.encode(x)) - x)
    # The law's slope: dx/dy = ln(1 + mu) (1 + mu |x|) / mu, and a bin is 2/256 of y wide.
    bound = np.log(256) * (1 + 255 * np.abs(x)) / 255 / 256
    assert (error <= bound * 1.03).all()
    assert error.max() < 0.0222


def test_symmetric_codes_decode_to_opposite_samples() -> None:
    centres = MuLaw(256).centres
    assert np.array_equal(centres, -centres[::-1])
    assert (np.diff(centres) > 0).all()


@pytest.mark.parametrize("levels", [-1, 0, 1, 40_000])
def test_a_number_of_levels_no_code_can_hold_is_refused(levels: int) -> None:
    with pytest.raises(UsageError):
        MuLaw(levels)


@pytest.mark.parametrize("coefficient", [0.0, 0.85, 0.97, -0.5, 0.9999, 1.0])
def test_the_recursion_is_scipys_in_one_piece_or_many(coefficient: float) -> None:
    expected = scipy.signal.lfilter([1], [1, -coefficient], NOISE)
    whole, _ = first_order(NOISE, coefficient)
    assert np.abs(whole - expected).max() < 1e-7
    carry, blocks = 0.0, []
    for block in pieces(NOISE, 1):
        y, carry = first_order(block, coefficient, carry)
        blocks.append(y)
    assert np.abs(np.concatenate(blocks) - expected).max() < 1e-7


def test_one_sample_at_a_time_is_the_same_recursion() -> None:
    carry, samples = 0.0, []
    for x in NOISE[:500]:
        y, carry = first_order([x], 0.85, carry)
        samples.append(y[0])
    assert np.abs(samples - first_order(NOISE[:500], 0.85)[0]).max() < 1e-12


@settings(max_examples=30, deadline=None)
@given(st.floats(0.0, 0.99), st.integers(0, 10_000))
def test_deemphasis_undoes_preemphasis_across_any_blocks(coefficient: float, seed: int) -> None:
    x = NOISE[:8_000].astype(np.float32)
    previous = carry = 0.0
    back = []
    for block in pieces(x, seed):
        emphasised, previous = preemphasise(block, coefficient, previous)
        restored, carry = deemphasise(emphasised, coefficient, carry)
        back.append(restored)
    # Each emphasised sample is rounded to float32; the recursion sums 1/(1 - a) such errors.
    assert np.abs(np.concatenate(back) - x).max() < 2e-7 / (1 - coefficient)


def test_decoder_codes_invert_but_for_quantisation() -> None:
    t = np.arange(16_000) / 16_000
    wav = (0.3 * np.sin(2 * np.pi * 200 * t)).astype(np.float32)
    mulaw = MuLaw(256)
    codes = decoder_codes(wav, mulaw=mulaw, preemphasis=0.85, gain=2.0)
    carry, blocks = 0.0, []
    for block in pieces(codes, 3):
        y, carry = decoder_samples(block, mulaw=mulaw, preemphasis=0.85, gain=2.0, carry=carry)
        blocks.append(y)
    back = np.concatenate(blocks)
    noise_db = 10 * np.log10(np.square(back - wav).sum() / np.square(wav).sum())
    assert noise_db < -25
    assert set(decoder_codes([9.0, -9.0], mulaw=mulaw, preemphasis=0, gain=1)) == {0, 255}


def test_a_constant_offset_is_removed_and_speech_is_kept() -> None:
    t = np.arange(32_000) / 16_000
    wav = 0.3 * np.sin(2 * np.pi * 200 * t)
    out = DCFilter()(wav + 0.5)
    assert abs(out[16_000:].mean()) < 1e-4
    gain = np.abs(out[16_000:]).max() / 0.3
    assert 0.99 < gain < 1.0
    at_cutoff = DCFilter()(np.sin(2 * np.pi * 20 * t))[16_000:]
    assert 20 * np.log10(np.abs(at_cutoff).max()) == pytest.approx(-3, abs=0.1)


def test_the_dc_filter_does_not_see_block_borders_or_the_future() -> None:
    whole = DCFilter()(NOISE)
    filtering = DCFilter()
    assert np.abs(np.concatenate([filtering(b) for b in pieces(NOISE, 2)]) - whole).max() < 1e-6
    changed = NOISE.copy()
    changed[1_000:] = 0
    assert np.array_equal(DCFilter()(changed)[:1_000], whole[:1_000])


@pytest.mark.parametrize(
    ("in_hz", "out_hz"),
    [(44_100, 16_000), (8_000, 16_000), (48_000, 16_000), (16_000, 22_050), (4_000, 192_000)],
)
def test_resampling_in_blocks_is_resampling_at_once(in_hz: int, out_hz: int) -> None:
    x = NOISE[:12_345].astype(np.float32)
    resampler = Resampler(in_hz, out_hz)
    blocks = [resampler.push(block) for block in pieces(x, 4)]
    blocks.append(resampler.push([], last=True))
    y = np.concatenate(blocks)
    expected = soxr.resample(x, in_hz, out_hz, quality="HQ")
    assert len(y) == resampled_length(len(x), in_hz, out_hz)
    assert abs(len(expected) - len(y)) <= 1
    shared = min(len(y), len(expected))
    assert np.abs(y[:shared] - expected[:shared]).max() < 1e-6


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 3_000),
    st.sampled_from([8_000, 11_025, 22_050, 44_100, 47_999, 96_000]),
    st.integers(1, 800),
)
def test_the_resampled_length_is_exact_at_any_length(length: int, rate: int, block: int) -> None:
    resampler = Resampler(rate, 16_000)
    x = NOISE[:length]
    total = sum(len(resampler.push(x[i : i + block])) for i in range(0, length, block))
    total += len(resampler.push([], last=True))
    assert total == math.floor(length * 16_000 / rate + 0.5)


def test_an_equal_rate_passes_through() -> None:
    assert np.array_equal(Resampler(16_000, 16_000).push(NOISE), NOISE.astype(np.float32))


@pytest.mark.parametrize(
    ("suffix", "noise_db"), [("wav", -80), ("FLAC", -80), ("ogg", -15), ("mp3", -25)]
)
def test_each_format_reads_back(tmp_path: Path, suffix: str, noise_db: float) -> None:
    t = np.arange(16_000) / 16_000
    wav = 0.4 * np.sin(2 * np.pi * 440 * t) * np.hanning(16_000)
    path = tmp_path / f"out.{suffix}"
    with write_atomic(path) as writer:
        for block in pieces(wav, 5):
            writer.write(block)
    assert writer.frames == len(wav)
    assert soundfile.info(path).samplerate == 16_000
    back = read(path)
    assert len(back) == len(wav)
    assert 10 * np.log10(np.square(back - wav).sum() / np.square(wav).sum()) < noise_db
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_writing_clips_instead_of_wrapping(tmp_path: Path) -> None:
    with write_atomic(tmp_path / "loud.wav") as writer:
        writer.write([2.0, -2.0, 0.0])
    assert read(tmp_path / "loud.wav") == pytest.approx([1, -1, 0], abs=1e-4)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), write_atomic(path) as writer:
        writer.write(NOISE / [0 // 0])
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.wav"]
    with write_atomic(path) as writer:
        writer.write(NOISE)
    assert len(read(path)) == len(NOISE)


@pytest.mark.parametrize("name", ["out.txt", "out", "missing/out.wav"])
def test_an_impossible_output_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"out.*cannot be written"), write_atomic(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_rate_the_format_cannot_have_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="cannot be written"),
        write_atomic(tmp_path / "out.mp3", 192_000),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_undecodable_names_can_be_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "a\udcff\n.wav"
    with write_atomic(path) as writer:
        writer.write(NOISE)
    assert len(read(path)) == len(NOISE)
