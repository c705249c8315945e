"""Files of units: the format, damage, and the commands that write and speak them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import struct
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import vconv
from command_line import Run, one_error, tree, vconv_process, wav
from speech import speechlike
from tiny_model import exported, reseal
from vconv import units_file
from vconv.bundle import Bundle
from vconv.converter import Converter
from vconv.units_file import StoredUnits, UnitsModel, bits_per_unit, pack

ROOT = Path(__file__).parents[1]
HEADER = 50
TINY = UnitsModel("tiny", bytes(range(16)).hex(), 5, 320)
FOUR = vconv.Units(np.array([4, 0, 3, 1]), 1000, model=TINY)


@pytest.fixture(scope="module")
def converter() -> Converter:
    return vconv.load(exported(), engine="native")


def packed(units: vconv.Units) -> bytes:
    assert units.model is not None
    return pack(StoredUnits(units.codes, units.samples, units.latents, units.pitch, units.model))


def sealed(data: bytes) -> bytes:
    """With a checksum that is right, as a forger would."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def changed(data: bytes, at: int, kind: str, value: int) -> bytes:
    """With another number in the header."""
    return sealed(data[:at] + struct.pack(f"<{kind}", value) + data[at + struct.calcsize(kind) :])


# -- the format ------------------------------------------------------------------------------------


def test_the_documents_example_is_what_is_written_and_read() -> None:
    text = (ROOT / "docs" / "units-format.md").read_text("utf-8")
    block = text.split("## An example")[1].split("```")[1]
    data = bytes.fromhex(" ".join(line[:23] for line in block.strip().splitlines()))
    assert packed(FOUR) == data
    read = vconv.Units.load(data)
    assert read.codes is not None
    assert read.codes.tolist() == [4, 0, 3, 1]
    assert (read.samples, read.model, read.latents, read.pitch) == (1000, TINY, None, None)


def read_by_the_document(data: bytes) -> dict[str, Any]:
    """A second reader, without numpy, written from docs/units-format.md."""
    magic, version, kind, flags, size, width, hop, count, samples, whose, letters = struct.unpack(
        "<8sHBBIHHIQ16sH", data[:50]
    )
    assert (magic, version) == (bytes.fromhex("89564355 0d0a1a0a"), 1)
    body, end = 50 + letters, len(data) - 4
    assert struct.unpack("<I", data[end:])[0] == zlib.crc32(data[:end])
    codes = latents = pitch = None
    if kind == 1:
        bits = math.ceil(math.log2(size))
        length = math.ceil(count * bits / 8)
        stream = int.from_bytes(data[body : body + length], "little")
        codes = [stream >> bits * i & (1 << bits) - 1 for i in range(count)]
    else:
        length = 4 * count * width
        latents = struct.unpack(f"<{count * width}f", data[body : body + length])
    if flags:
        pitch = struct.unpack(f"<{2 * count}f", data[body + length : end])
    assert body + length + (8 * count if flags else 0) == end
    name = data[50:body].decode()
    return {"codes": codes, "latents": latents, "pitch": pitch, "samples": samples, "hop": hop,
            "width": width, "whose": whose.hex(), "name": name}  # fmt: skip


@pytest.mark.parametrize("member", ["vq", "fsq", "pitch", "vae", "ae", "inverter"])
def test_any_members_units_come_back_and_are_spoken_to_the_bit(member: str, tmp_path: Path) -> None:
    with vconv.load(exported(member), engine="native") as vc:
        units = vc.encode(speechlike(7777), sample_rate=16_000)
        units.save(tmp_path / "x.units")
        data = (tmp_path / "x.units").read_bytes()
        for source in (tmp_path / "x.units", data, io.BytesIO(data)):
            read = vconv.Units.load(source)
            assert read.model == units.model == vc.units_model
            assert read.samples == units.samples
            for name in ("codes", "latents", "pitch"):
                ours, theirs = getattr(units, name), getattr(read, name)
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    assert theirs.dtype == ours.dtype
                    np.testing.assert_array_equal(theirs, ours)
        spoken = vc.decode(read, speaker=1, seed=4).audio
        np.testing.assert_array_equal(spoken, vc.decode(units, speaker=1, seed=4).audio)
    by_hand = read_by_the_document(data)
    for name in ("codes", "latents", "pitch"):
        array = getattr(units, name)
        assert (by_hand[name] is None) == (array is None)
        if array is not None:
            assert list(by_hand[name]) == array.ravel().tolist()
    assert by_hand["samples"] == 7777
    assert by_hand["hop"] == 16_000 / vc.info.unit_rate
    assert by_hand["name"] == "tiny"
    count = len(units.codes if units.codes is not None else units.latents)  # type: ignore[arg-type]
    width = 0 if units.latents is None else units.latents.shape[1]
    bits = bits_per_unit(vc.info.bottleneck.codebook_size, width, units.pitch is not None)
    assert len(data) == HEADER + len("tiny") + math.ceil(count * bits / 8) + 4


@pytest.mark.parametrize("size", [2, 3, 4, 5, 256, 257, 1000, 1 << 24])
def test_codes_of_every_width_come_back(size: int) -> None:
    random = np.random.default_rng(size)
    for count in (1, 7, 8, 333):
        codes = random.integers(0, size, count)
        codes[0] = size - 1
        units = vconv.Units(codes, 320 * count, model=dataclasses.replace(TINY, codebook_size=size))
        data = packed(units)
        np.testing.assert_array_equal(vconv.Units.load(data).codes, codes)
        assert len(data) == HEADER + 4 + math.ceil(count * math.ceil(math.log2(size)) / 8) + 4


def test_a_long_name_is_cut_in_whole_characters() -> None:
    units = dataclasses.replace(FOUR, model=dataclasses.replace(TINY, name="x" + "\u00e9" * 900))
    read = vconv.Units.load(packed(units)).model
    assert read is not None
    assert read.name == "x" + "\u00e9" * 511
    assert read.digest == TINY.digest


# -- whose units they are --------------------------------------------------------------------------


def test_a_renamed_model_speaks_the_same_units_and_another_refuses_naming_both(
    converter: Converter, tmp_path: Path
) -> None:
    units = converter.encode(speechlike(8000), sample_rate=16_000)
    renamed = tmp_path / "renamed"
    shutil.copytree(exported(), renamed)
    encoder = renamed / "encoder.onnx"
    # An entry of metadata_props (field 14), as another export would have it.
    encoder.write_bytes(encoder.read_bytes() + b"\x72\x0a\x0a\x04note\x12\x02hi")
    reseal(renamed, name="renamed")
    with vconv.load(renamed) as vc:
        assert vc.units_model.digest == converter.units_model.digest
        vc.decode(units, speaker=0)
    with vconv.load(exported("vq_gradient")) as other:
        assert other.units_model.digest != converter.units_model.digest
        with pytest.raises(vconv.UsageError) as refused:
            other.decode(units, speaker=0)
        for model in (converter.units_model, other.units_model):
            assert f"{model.name!r} (units {model.digest[:12]})" in str(refused.value)
        by_hand = dataclasses.replace(units, model=None)
        other.decode(by_hand, speaker=0)  # who builds them by hand answers for them


def test_every_weight_of_the_encoder_counts_for_its_units(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(exported(), damaged)
    encoder = damaged / "encoder.onnx"
    data = bytearray(encoder.read_bytes())
    data[len(data) // 2] ^= 1
    encoder.write_bytes(data)
    reseal(damaged)
    before, after = Bundle.open(exported()).units_model, Bundle.open(damaged).units_model
    assert before.digest != after.digest


def test_units_that_a_file_cannot_hold_are_usage_errors(tmp_path: Path) -> None:
    latent = dataclasses.replace(TINY, codebook_size=None)
    numbers = np.zeros((4, 3), np.float32)
    for units, says in (
        (dataclasses.replace(FOUR, model=None), "units_model"),
        (dataclasses.replace(FOUR, codes=np.array([4, 0, 5, 1])), "0 to 4, found 0 to 5"),
        (dataclasses.replace(FOUR, codes=np.array([-1, 0, 3, 1])), "0 to 4, found -1 to 3"),
        (dataclasses.replace(FOUR, codes=np.zeros((4, 1), int)), r"codes \[U\]"),
        (dataclasses.replace(FOUR, codes=np.zeros(4)), r"codes \[U\]"),
        (dataclasses.replace(FOUR, codes=np.zeros(0, int)), "0 units of 320 samples"),
        (dataclasses.replace(FOUR, samples=0), "of 0 samples"),
        (dataclasses.replace(FOUR, samples=1281), "of 1,281 samples"),
        (dataclasses.replace(FOUR, latents=numbers), "codes only"),
        (dataclasses.replace(FOUR, model=latent), "latents only"),
        (dataclasses.replace(FOUR, pitch=numbers), r"pitch \[U, 2\]"),
        (dataclasses.replace(FOUR, pitch=numbers[:, :2] * np.nan), "NaN"),
        (vconv.Units(None, 1000, numbers[:, :0], model=latent), "1 to 65535 numbers"),
        (vconv.Units(None, 1000, numbers + np.inf, model=latent), "infinity"),
    ):
        with pytest.raises(vconv.UsageError, match=says):
            units.save(tmp_path / "x.units")
    (tmp_path / "x.units").mkdir()
    for place, why in (("x.units", "is no file"), ("nowhere/x.units", "cannot be written")):
        with pytest.raises(vconv.UsageError, match=why):
            FOUR.save(tmp_path / place)
    assert tree(tmp_path) == []


# -- damage and malice -----------------------------------------------------------------------------


def test_every_changed_or_missing_byte_is_refused() -> None:
    data = packed(FOUR)
    for at in range(len(data)):
        for bit in (1, 128):
            spoilt = bytearray(data)
            spoilt[at] ^= bit
            with pytest.raises(vconv.InputError, match=r"^<bytes>: "):
                vconv.Units.load(bytes(spoilt))
        with pytest.raises(vconv.InputError, match=r"<bytes>: (is empty|was cut short)"):
            vconv.Units.load(data[:at])
    with pytest.raises(vconv.InputError, match=r"60 bytes announced, 61 are there"):
        vconv.Units.load(data + b"\0")


LATENT = packed(
    vconv.Units(
        None,
        1000,
        np.ones((4, 2), np.float32),
        np.ones((4, 2), np.float32),
        dataclasses.replace(TINY, codebook_size=None),
    )
)
FORGED = {
    "text": (b"not units at all" * 9, "is not a file of units"),
    "a recording": (b"RIFF" + bytes(80), "is not a file of units"),
    "sent as text": (packed(FOUR).replace(b"\r\n", b"\n"), "is not a file of units"),
    "version 0": (changed(packed(FOUR), 8, "H", 0), "format version 0; this vconv reads 1."),
    "version 2": (changed(packed(FOUR), 8, "H", 2), "version 2; .* update vconv"),
    "kind 0": (changed(packed(FOUR), 10, "B", 0), "kind 0"),
    "kind 3": (changed(packed(FOUR), 10, "B", 3), "kind 3"),
    "unknown flag": (changed(packed(FOUR), 11, "B", 2), "flags 2"),
    "one code": (changed(packed(FOUR), 12, "I", 1), "1 codes"),
    "too many codes": (changed(packed(FOUR), 12, "I", 2**24 + 1), "16,777,217 codes"),
    "codes with a width": (changed(packed(FOUR), 16, "H", 3), "width 3"),
    "latents with codes": (changed(LATENT, 12, "I", 5), "5 codes"),
    "latents of no width": (changed(LATENT, 16, "H", 0), "width 0"),
    "units of no length": (changed(packed(FOUR), 18, "H", 0), "cannot be of"),
    "no units": (changed(packed(FOUR), 20, "I", 0), "cannot be of"),
    "4 billion units": (changed(packed(FOUR), 20, "I", 2**32 - 1), "1,610,612,794 bytes announced"),
    "no samples": (changed(packed(FOUR), 24, "Q", 0), "cannot be of"),
    "endless samples": (changed(packed(FOUR), 24, "Q", 2**64 - 1), "cannot be of"),
    "a name without end": (changed(packed(FOUR), 48, "H", 2**16 - 1), "no 65,535 bytes"),
    "a name beyond the end": (changed(packed(FOUR), 48, "H", 1024), "1,080 bytes announced"),
    "a name of no text": (changed(packed(FOUR), 50, "B", 0xFF), "not UTF-8"),
    "a code too high": (changed(packed(FOUR), 54, "B", 0xFF), "codes are not 0 to 4"),
    "bits of no code": (changed(packed(FOUR), 55, "B", 0x82), "codes are not 0 to 4"),
    "latents of NaN": (changed(LATENT, 54, "I", 0x7FC00000), "NaN"),
    "infinite pitch": (changed(LATENT, len(LATENT) - 8, "I", 0x7F800000), "infinity"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_header_is_refused_before_anything_is_allocated(case: str, tmp_path: Path) -> None:
    data, says = FORGED[case]
    path = tmp_path / "bad.units"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(vconv.InputError, match=rf"^{re.escape(str(path))}: .*{says}"):
            vconv.Units.load(path)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_large_file_is_read_in_a_small_multiple_of_its_size() -> None:
    count = 200_000
    model = dataclasses.replace(TINY, codebook_size=256)
    codes = np.arange(count) % 256
    data = packed(vconv.Units(codes, 320 * count, model=model))
    tracemalloc.start()
    try:
        units = vconv.Units.load(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(units.codes, codes)
    assert peak < 40 * len(data)  # 8 bytes a code, and what passes


def test_paths_that_are_no_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, says in (
        ("fifo", "is not a regular file"),
        ("", "is a folder, not a file of units"),
        ("none", "does not exist"),
    ):
        with pytest.raises(vconv.InputError, match=says):
            vconv.Units.load(tmp_path / name)


def test_units_of_another_number_than_the_recording_has_are_refused(
    converter: Converter, run: Run, tmp_path: Path
) -> None:
    units = converter.encode(speechlike(8000), sample_rate=16_000)
    assert units.codes is not None
    forged = dataclasses.replace(units, codes=np.tile(units.codes, 3))
    forged.save(tmp_path / "x.units")
    done = run("decode", tmp_path / "x.units", "-s", "bea", "-m", exported())
    assert done.code == 3
    assert one_error(done).startswith(f"{tmp_path}/x.units: A recording of 8,000 samples is codes")
    assert tree(tmp_path) == ["x.units"]


def test_progress_is_told_and_cancels(converter: Converter, tmp_path: Path) -> None:
    x = speechlike(16_000)
    told: list[tuple[float, float | None]] = []
    units = converter.encode(x, sample_rate=16_000, progress=lambda *at: told.append(at))
    assert told[-1] == (1.0, 1.0)
    told.clear()
    target = tmp_path / "x.wav"
    made = converter.decode_to_file(units, target, speaker=0, progress=lambda *at: told.append(at))
    assert (made.samples, made.path) == (16_000, target)
    assert told == sorted(told)
    assert told[-1] == (1.0, 1.0)
    target.unlink()
    with pytest.raises(vconv.Cancelled, match="encoding was cancelled"):
        converter.encode(x, sample_rate=16_000, progress=lambda *at: False)
    with pytest.raises(vconv.Cancelled, match="decoding was cancelled"):
        converter.decode_to_file(units, target, speaker=0, progress=lambda *at: False)
    assert tree(tmp_path) == []


# -- the commands ----------------------------------------------------------------------------------


@pytest.fixture
def encode(run: Run) -> Run:
    return lambda *arguments: run("encode", *arguments, "-m", exported())


@pytest.fixture
def decode(run: Run) -> Run:
    return lambda *arguments: run("decode", *arguments, "-s", "bea", "-m", exported())


@pytest.mark.parametrize("member", ["vq", "pitch", "vae"])
def test_encoding_and_decoding_give_the_bytes_of_converting_in_one_lane(
    run: Run, tmp_path: Path, member: str
) -> None:
    source = wav(tmp_path / "in.wav", 30_001, 48_000)
    model = ("-m", exported(member))
    assert run("encode", source, *model).code == 0
    for name, options in (
        ("plain", ["--seed", 3]),
        ("peak", ["--level", "peak", "-f", "flac", "--temperature", 0.7]),
        ("pitch", ["--pitch", 2] if member == "pitch" else ["--seed", 4]),
    ):
        made = tmp_path / name
        suffix = "flac" if name == "peak" else "wav"
        done = run("decode", tmp_path / "in.units", "-s", 1, *model, "-o", f"{made}/", *options)
        assert done.code == 0, done.err
        whole = tmp_path / f"{name}.{suffix}"
        done = run("convert", source, "-s", 1, *model, "--lanes", 1, "-o", whole, *options)
        assert done.code == 0, done.err
        assert (made / f"in.{suffix}").read_bytes() == whole.read_bytes()


def test_encode_writes_beside_the_input_and_says_the_bit_rate(encode: Run, tmp_path: Path) -> None:
    done = encode(wav(tmp_path / "in.wav", 24_000, 48_000))
    size = (tmp_path / "in.units").stat().st_size
    assert (done.code, done.out) == (0, "")
    assert done.err == (
        f"{tmp_path}/in.wav -> {tmp_path}/in.units, 0.50 s in 33 units, 200 bit/s ({size} bytes)\n"
    )
    done = encode(tmp_path / "in.wav", "--json", "-q", "--overwrite")
    assert done.err == ""
    assert json.loads(done.out) == {
        "input": f"{tmp_path}/in.wav",
        "output": f"{tmp_path}/in.units",
        "units": 33,
        "seconds": 0.5,
        "bits_per_second": 200.0,
        "bytes": size,
    }


def test_decode_writes_beside_the_input_and_says_what_it_did(
    encode: Run, decode: Run, tmp_path: Path
) -> None:
    assert encode(wav(tmp_path / "in.wav")).code == 0
    done = decode(tmp_path / "in.units", "--json", "--seed", 7)
    row = json.loads(done.out)
    assert row["output"] == str(tmp_path / "in.bea.wav")
    assert (row["speaker"], row["seed"], row["samples"]) == ("bea", 7, 8000)
    assert re.search(r"in.units -> \S+/in.bea.wav \(bea\), 0.50 s in .* real time\n$", done.err)
    assert decode(tmp_path / "in.units", "--sample-rate", 8000, "--overwrite").code == 0
    assert soundfile.info(tmp_path / "in.bea.wav").samplerate == 8000


def test_folders_are_mirrored_and_existing_outputs_kept(
    encode: Run, decode: Run, tmp_path: Path
) -> None:
    for name in ("a.wav", "sub/b.flac"):
        wav(tmp_path / "in" / name)
    (tmp_path / "in/notes.txt").write_text("no recording")
    done = encode(tmp_path / "in", "-r", "-o", tmp_path / "units")
    assert (done.code, done.err.splitlines()[-1]) == (0, "2 encoded, 0 failed")
    assert tree(tmp_path / "units") == ["a.units", "sub/b.units"]
    (tmp_path / "units/a.wav").write_bytes(b"no units")
    (tmp_path / "units/bad.units").write_bytes(b"")
    done = decode(tmp_path / "units", "-r", "-o", tmp_path / "out")
    assert done.code == 1
    assert done.err.splitlines()[-1] == "2 decoded, 1 failed"
    assert f"vconv: error: {tmp_path}/units/bad.units: is empty.\n" in done.err
    assert tree(tmp_path / "out") == ["a.wav", "sub/b.wav"]
    done = encode(tmp_path / "in", "-o", tmp_path / "units")
    assert done.code == 2
    assert "--overwrite" in one_error(done)
    done = encode(tmp_path / "in", "-o", tmp_path / "units", "--skip-existing", "--json")
    assert (done.code, json.loads(done.out)["outcome"]) == (0, "skipped")
    assert "contains no .units files" in one_error(decode(tmp_path / "in"))


def test_a_pipe_gives_the_files_bytes(encode: Run, decode: Run, tmp_path: Path) -> None:
    source = wav(tmp_path / "in.wav")
    assert encode(source).code == 0
    assert decode(tmp_path / "in.units", "-o", tmp_path / "out.wav").code == 0
    process = vconv_process("encode", "-", "-m", exported())
    units, err = process.communicate(source.read_bytes(), timeout=60)
    assert (process.returncode, units) == (0, (tmp_path / "in.units").read_bytes()), err
    process = vconv_process("decode", "-", "-s", "bea", "-m", exported())
    out, err = process.communicate(units, timeout=60)
    assert (process.returncode, out) == (0, (tmp_path / "out.wav").read_bytes()), err
    process = vconv_process("decode", "-", "-s", "bea", "-m", exported())
    out, err = process.communicate(units[:-5], timeout=60)
    assert (process.returncode, out) == (3, b"")
    assert err.startswith(b"vconv: error: <stdin>: was cut short")


def test_mistakes_are_one_sentence_and_leave_nothing(
    run: Run, encode: Run, decode: Run, tmp_path: Path
) -> None:
    source = wav(tmp_path / "in.wav")
    assert encode(source).code == 0
    units = tmp_path / "in.units"
    before = tree(tmp_path)
    other = ("-m", exported("fsq"), "-s", "bea")
    for done, code, says in (
        (encode(source, "-o", tmp_path / "out.wav"), 2, "is a recording's name"),
        (encode(source, "-o", source, "--overwrite"), 2, "is a recording's name"),
        (encode(units, "--overwrite"), 2, "is an input"),
        (encode(units, "-o", tmp_path / "x.units"), 3, "cannot be read as audio"),
        (encode(source, "-o", "-", "--json"), 2, "cannot both go to stdout"),
        (encode(source, "--overwrite", "--skip-existing"), 2, "contradict"),
        (encode(source, "-o", tmp_path / "x.units", "--max-duration", 0.1), 3, "longer than"),
        (encode(source, "-o", tmp_path / "x.units", "--channel", 1), 3, "no channel 1"),
        (encode(source, "-d", "tpu"), 2, "no device"),
        (encode("-", units), 2, "stands alone"),
        (decode(source, "-o", tmp_path / "x.wav"), 3, "is not a file of units"),
        (decode(units, "-o", units, "--overwrite"), 2, "is an input"),
        (decode(units, "--level", "match"), 2, "how loud"),
        (decode(units, "--level", "loud"), 2, "must be one of"),
        (decode(units, "--pitch", 2), 2, "without pitch"),
        (decode(units, "--engine", "steam"), 2, "no engine"),
        (decode(units, "--temperature", -1), 2, "temperature"),
        (decode(units, "-o", tmp_path / "x.xyz"), 2, "cannot be written"),
        (run("decode", units, *other), 3, "The units are of the model 'tiny' (units "),
        (run("decode", units, "-s", "bee", "-m", exported()), 2, "'bea'"),
    ):
        error = one_error(done)
        assert (done.code, says in error) == (code, True), error
    assert tree(tmp_path) == before


@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_an_interruption_leaves_nothing_half_written(
    encode: Run, tmp_path: Path, verb: str
) -> None:
    source = tmp_path / "long.wav"
    # What encoding makes is small and written at once; so it is stopped while it reads.
    soundfile.write(source, np.tile(speechlike(16_000), 300), 16_000)
    arguments: list[object] = ["encode", source]
    if verb == "decode":
        assert encode(source).code == 0
        arguments = ["decode", tmp_path / "long.units", "-s", "bea"]
    before = tree(tmp_path)
    with vconv_process(*arguments, "-m", exported()) as process:
        deadline = time.monotonic() + 30
        while tree(tmp_path) == before and (verb == "decode" or time.monotonic() < deadline - 29):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (143, b""), err
    assert b"Traceback" not in err
    assert tree(tmp_path) == before


def test_a_silent_recording_is_warned_of(encode: Run, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", np.zeros(8000), 16_000)
    done = encode(tmp_path / "in.wav", "-q")
    assert done.err == f"vconv: warning: {tmp_path}/in.wav: the recording is silent.\n"


def test_the_bundled_models_example_has_the_size_that_the_document_states(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "units-format.md").read_text("utf-8")
    with vconv.load("demo") as vc:
        vc.encode(ROOT / "examples" / "hello.wav").save(tmp_path / "x.units")
        rate = vc.units_model.unit_rate * bits_per_unit(vc.units_model.codebook_size, 0, False)
    size = (tmp_path / "x.units").stat().st_size
    name = len(vc.info.name.encode())
    assert f"becomes {size} bytes" in text
    assert f"is {rate:g} bit/s and {units_file._HEADER.size + name + 4} bytes besides" in text
    original = (ROOT / "examples" / "hello.wav").stat().st_size
    assert f"(4.5 s, {original:,} bytes)" in text
