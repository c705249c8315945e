"""The command line: what it prints where, its exit codes, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from command_line import Run, one_error, tree, vconv_process, wav
from speech import speechlike
from tiny_model import exported as tiny_bundle

# -- one file --------------------------------------------------------------------------------------


def test_convert_writes_beside_the_input_and_says_what_it_did(convert: Run, tmp_path: Path) -> None:
    done = convert(wav(tmp_path / "in.wav", 24_000, 48_000))
    assert (done.code, done.out) == (0, "")
    said = re.fullmatch(
        rf"{re.escape(str(tmp_path))}/in.wav -> {re.escape(str(tmp_path))}/in.bea.wav \(bea\), "
        r"0.50 s in \d+\.\d\d s, \d+\.\d times real time\n",
        done.err,
    )
    assert said, done.err
    info = soundfile.info(tmp_path / "in.bea.wav")
    assert (info.frames, info.samplerate, info.subtype) == (8000, 16_000, "PCM_16")
    assert tree(tmp_path) == ["in.bea.wav", "in.wav"]


def test_convert_to_a_named_file_a_folder_and_another_format(convert: Run, tmp_path: Path) -> None:
    source = wav(tmp_path / "in.wav")
    (tmp_path / "there").mkdir()
    assert convert(source, "-o", tmp_path / "a.flac").code == 0
    assert convert(source, "-o", tmp_path / "there").code == 0
    assert convert(source, "-o", f"{tmp_path}/new/", "-f", "ogg").code == 0
    assert convert(source, "-f", "mp3", "--sample-rate", 22_050).code == 0
    made = ["a.flac", "in.bea.mp3", "new/in.ogg", "there/in.wav"]
    assert tree(tmp_path) == sorted([*made, "in.wav"])
    kinds = [soundfile.info(tmp_path / name).format for name in made]
    assert kinds == ["FLAC", "MP3", "OGG", "WAV"]
    assert soundfile.info(tmp_path / "in.bea.mp3").samplerate == 22_050
    assert "contradicts" in one_error(convert(source, "-o", tmp_path / "b.wav", "-f", "flac"))


def test_json_goes_to_stdout_alone(convert: Run, tmp_path: Path) -> None:
    done = convert(wav(tmp_path / "in.wav"), "--json", "-q", "--seed", 7)
    row = json.loads(done.out)
    assert done.err == ""
    assert row["output"] == str(tmp_path / "in.bea.wav")
    assert (row["speaker"], row["seed"], row["samples"]) == ("bea", 7, 8000)
    assert row["real_time_factor"] > 0


def test_an_output_that_exists_is_kept_unless_told_otherwise(convert: Run, tmp_path: Path) -> None:
    source, old = wav(tmp_path / "in.wav"), tmp_path / "out.wav"
    old.write_bytes(b"old")
    done = convert(source, "-o", old)
    assert done.code == 2
    assert "--overwrite" in one_error(done)
    assert convert(source, "-o", old, "--skip-existing").code == 0
    assert old.read_bytes() == b"old"
    assert convert(source, "-o", old, "--overwrite", "--skip-existing").code == 2
    assert convert(source, "-o", old, "--overwrite").code == 0
    assert soundfile.info(old).frames == 8000


@pytest.mark.parametrize("kind", ["itself", "link", "hard link"])
def test_the_input_is_never_written_over(convert: Run, tmp_path: Path, kind: str) -> None:
    source = wav(tmp_path / "in.wav")
    before = source.read_bytes()
    target = tmp_path / "other.wav"
    if kind == "itself":
        target = source
    elif kind == "link":
        target.symlink_to(source)
    else:
        target.hardlink_to(source)
    done = convert(source, "-o", target, "--overwrite")
    assert done.code == 2
    assert "is an input" in one_error(done)
    assert source.read_bytes() == before


def test_options_reach_the_conversion(convert: Run, tmp_path: Path) -> None:
    source = wav(tmp_path / "in.wav")
    made = {}
    for name, options in {
        "plain": [],
        "seed": ["--seed", 1],
        "cold": ["--temperature", 0],
        "match": ["--level", "match"],
    }.items():
        assert convert(source, "-o", tmp_path / f"{name}.wav", *options).code == 0
        made[name] = (tmp_path / f"{name}.wav").read_bytes()
    assert len(set(made.values())) == len(made)
    assert convert(source, "--max-duration", 0.1).code == 3
    assert convert(source, "--channel", 1).code == 3
    assert convert(source, "--device", "tpu").code == 2
    assert convert(source, "--engine", "steam").code == 2
    assert convert(source, "--level", "loud").code == 2


# -- bad inputs ------------------------------------------------------------------------------------


def _truncated() -> bytes:
    rate, samples = 16_000, 8000
    data = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + 2 * samples, b"WAVE", b"fmt ", 16, 1,
                       1, rate, 2 * rate, 2, 16, b"data", 2 * samples)  # fmt: skip
    return data + bytes(samples)


def _wav_header(rate: int = 16_000, channels: int = 1) -> bytes:
    data = bytes(2 * 4000 * channels)
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1,
                       channels, rate, 2 * rate * channels, 2 * channels, 16, b"data",
                       len(data)) + data  # fmt: skip


BAD_BYTES = {
    "nothing": (b"", "is empty"),
    "one byte": (b"R", ""),
    "text": (b"this is not a recording\n" * 50, ""),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(500), ""),
    "pickle": (b"\x80\x04\x95" + bytes(300), ""),
    "nuls": (bytes(5000), ""),
    "header only": (_wav_header()[:44], ""),
    "cut short": (_truncated(), "was cut short: "),
    "1 Hz": (_wav_header(rate=1), "rate of 1 Hz"),
    "16 channels": (_wav_header(channels=16), "16 channels"),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_a_bad_file_is_one_line_exit_3_and_nothing_left(
    convert: Run, tmp_path: Path, case: str
) -> None:
    data, says = BAD_BYTES[case]
    source = tmp_path / "bad.wav"
    source.write_bytes(data)
    (tmp_path / "old.wav").write_bytes(b"old")
    for more in ([], ["-o", tmp_path / "old.wav", "--overwrite"]):
        done = convert(source, *more)
        assert done.code == 3
        error = one_error(done)
        assert error.startswith(f"{source}: ")
        assert says in error
    assert tree(tmp_path) == ["bad.wav", "old.wav"]
    assert (tmp_path / "old.wav").read_bytes() == b"old"


def test_bad_content_is_refused_while_converting(convert: Run, tmp_path: Path) -> None:
    x = speechlike(40_000)
    for name, value, says in (("nan", np.nan, "NaN"), ("huge", 1e30, "1e+30")):
        x[35_000] = value
        soundfile.write(tmp_path / f"{name}.wav", x, 16_000, subtype="FLOAT")
        done = convert(tmp_path / f"{name}.wav")
        assert done.code == 3
        assert f"{says} at frame 35,000" in one_error(done)
    soundfile.write(tmp_path / "short.wav", x[:399], 16_000, subtype="FLOAT")
    assert "at least 0.025 s" in one_error(convert(tmp_path / "short.wav"))
    assert tree(tmp_path) == ["huge.wav", "nan.wav", "short.wav"]


def test_paths_that_are_no_recordings_are_refused_at_once(convert: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    for source in (
        *(tmp_path / name for name in ("fifo.wav", "dangling.wav", "loop.wav", "none.wav")),
        tmp_path / "empty",
        "/dev/zero",
    ):
        done = convert(source, "-o", tmp_path / "out.wav")
        assert done.code == 3
        assert one_error(done).startswith(f"{source}: ")
    assert tree(tmp_path) == before


def test_outputs_that_cannot_be_are_refused(convert: Run, tmp_path: Path) -> None:
    source = wav(tmp_path / "in.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for output in ("out.xyz", "file/out.wav", "file/"):
        done = convert(source, "-o", f"{tmp_path}/{output}")
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
    assert tree(tmp_path) == ["file", "in.wav"]


@pytest.mark.parametrize(
    "name", ["line\nbreak.wav", "\u202egnp.wav", "-dash.wav", os.fsdecode(b"raw\xff.wav")]
)
def test_file_names_are_printed_escaped(convert: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    error = one_error(convert(tmp_path / name))
    assert "is empty" in error
    assert error.isprintable()
    (tmp_path / name).unlink()
    done = convert(wav(tmp_path / name))
    assert done.code == 0
    assert done.err.rstrip("\n").isprintable()
    assert len(list(tmp_path.glob("*.bea.wav"))) == 1


def test_a_dash_at_the_front_is_a_name_after_two_dashes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wav(tmp_path / "-x.wav")
    assert run("convert", "-s", "0", "-m", tiny_bundle(), "--", "-x.wav").code == 0
    assert tree(tmp_path) == ["-x.ada.wav", "-x.wav"]


# -- many files ------------------------------------------------------------------------------------


def test_a_batch_goes_on_past_a_bad_file(convert: Run, tmp_path: Path) -> None:
    sources = [wav(tmp_path / "a.wav"), tmp_path / "bad.wav", wav(tmp_path / "c.wav")]
    sources[1].write_bytes(b"nothing of the kind")
    done = convert(*sources, "-o", tmp_path / "out", "--json")
    assert done.code == 1
    assert tree(tmp_path / "out") == ["a.wav", "c.wav"]
    assert done.err.splitlines()[-1] == "2 converted, 1 failed"
    assert done.err.count("vconv: error: ") == 1
    rows = [json.loads(line) for line in done.out.splitlines()]
    codes = {Path(row["input"]).name: row.get("exit_code") for row in rows}
    assert codes == {"a.wav": None, "bad.wav": 3, "c.wav": None}


def test_a_folders_tree_is_mirrored(convert: Run, tmp_path: Path) -> None:
    for name in ("a.wav", "sub/b.flac", "sub/deep/c.WAV"):
        wav(tmp_path / "in" / name)
    (tmp_path / "in/notes.txt").write_text("not a recording")
    (tmp_path / "in/.hidden.wav").write_bytes(b"")
    assert convert(tmp_path / "in", "-o", tmp_path / "flat").code == 0
    assert tree(tmp_path / "flat") == ["a.wav"]
    assert convert(tmp_path / "in", "-o", tmp_path / "deep", "-r").code == 0
    assert tree(tmp_path / "deep") == ["a.wav", "sub/b.wav", "sub/deep/c.wav"]


def test_a_folder_converted_twice_does_not_convert_its_own_outputs(
    convert: Run, tmp_path: Path
) -> None:
    wav(tmp_path / "a.wav")
    wav(tmp_path / "b.wav")
    assert convert(tmp_path).code == 0
    done = convert(tmp_path, "--skip-existing")
    assert (done.code, done.err) == (0, "0 converted, 0 failed, 2 skipped\n")
    assert tree(tmp_path) == ["a.bea.wav", "a.wav", "b.bea.wav", "b.wav"]


def test_two_inputs_never_share_an_output_nor_eat_each_other(convert: Run, tmp_path: Path) -> None:
    first, second = wav(tmp_path / "in/a.wav"), wav(tmp_path / "in/a.flac")
    done = convert(first, second, "-o", tmp_path / "out")
    assert done.code == 1
    assert f"is that of {first} too" in done.err
    before = first.read_bytes()
    done = convert(second, first, "-o", tmp_path / "in", "--overwrite")
    assert done.code == 1
    assert done.err.count("vconv: error: ") == 2
    assert first.read_bytes() == before


def test_combinations_without_sense_are_usage_errors(convert: Run, tmp_path: Path) -> None:
    a, b = wav(tmp_path / "a.wav"), wav(tmp_path / "b.wav")
    for arguments in (
        (a, b, "-o", "-"),
        (a, "-"),
        (a, b, "-o", a),
        (a, "-o", "-", "--json"),
        (a, "-q", "-v"),
        (a, "-f", "aiff"),
        ("--nonsense", a),
        (),
    ):
        done = convert(*arguments)
        assert done.code == 2, arguments
        one_error(done)
    assert tree(tmp_path) == ["a.wav", "b.wav"]


# -- pipes and signals -----------------------------------------------------------------------------


def test_stdin_to_stdout_gives_the_files_bytes(convert: Run, tmp_path: Path) -> None:
    source = wav(tmp_path / "in.wav", 20_000, 44_100)
    assert convert(source, "-o", tmp_path / "out.wav").code == 0
    process = vconv_process("convert", "-", "-s", "bea", "-m", tiny_bundle())
    out, err = process.communicate(source.read_bytes(), timeout=60)
    assert process.returncode == 0, err
    assert out == (tmp_path / "out.wav").read_bytes()
    assert err.startswith(b"<stdin> -> <stdout> (bea), ")


def test_a_bad_pipe_is_refused_and_nothing_comes_out() -> None:
    process = vconv_process("convert", "-", "-s", "bea", "-m", tiny_bundle())
    out, err = process.communicate(b"GIF89a", timeout=60)
    assert (process.returncode, out) == (3, b"")
    assert err.startswith(b"vconv: error: <stdin>: ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_nothing_half_written(
    tmp_path: Path, number: int, code: int
) -> None:
    source = tmp_path / "long.wav"
    soundfile.write(source, np.tile(speechlike(16_000), 300), 16_000)
    with vconv_process("convert", source, "-s", "bea", "-m", tiny_bundle()) as process:
        deadline = time.monotonic() + 30
        while len(tree(tmp_path)) == 1:  # until the temporary file is there
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, b""), err
    assert b"Traceback" not in err
    assert tree(tmp_path) == ["long.wav"]


# -- models ----------------------------------------------------------------------------------------


def test_speakers_lists_index_and_name(run: Run) -> None:
    assert run("speakers", "-m", tiny_bundle()).out == "0\tada\n1\tbea\n2\tcarl\n"
    rows = json.loads(run("speakers", "-m", tiny_bundle(), "--json").out)
    assert rows[2] == {"index": 2, "name": "carl"}


def test_pitch_is_shifted_where_the_model_is_told_it(run: Run, tmp_path: Path) -> None:
    source = wav(tmp_path / "in.wav")
    model = tiny_bundle("pitch")
    made = []
    for name, options in (("plain", []), ("low", ["--pitch", -5]), ("high", ["--pitch", "2.5"])):
        target = tmp_path / f"{name}.wav"
        done = run("convert", source, "-s", "bea", "-m", model, "-o", target, *options)
        assert done.code == 0, done.err
        made.append(target.read_bytes())
    assert len(set(made)) == 3
    for pitch in (25, "nan"):
        done = run("convert", source, "-s", "bea", "-m", model, "--pitch", pitch)
        assert done.code == 2
        assert "-24 to 24 semitones" in one_error(done)


def test_pitch_is_refused_before_anything_is_converted(convert: Run, tmp_path: Path) -> None:
    a, b = wav(tmp_path / "a.wav"), wav(tmp_path / "b.wav")
    for sources in ([a], [a, b]):
        done = convert(*sources, "--pitch", 2)
        assert done.code == 2
        assert "was trained without pitch; it cannot shift it" in one_error(done)
    assert convert(a, "--pitch", 0).code == 0
    assert tree(tmp_path) == ["a.bea.wav", "a.wav", "b.wav"]


@pytest.mark.parametrize(
    ("member", "units", "pitch"),
    [
        ("vae", "50 a second, vae of 6 numbers\n", False),
        ("fsq", "50 a second, fsq of 60 codes, 295.345 bit/s\n", False),
        ("pitch", "50 a second, vq of 16 codes, 200 bit/s\n", True),
        ("transposed_inverter", "100 a second, mfcc39 features of 39 numbers\n", False),
    ],
)
def test_info_says_what_the_units_are_and_whether_pitch_can_be_shifted(
    run: Run, member: str, units: str, pitch: bool
) -> None:
    text = run("info", "-m", tiny_bundle(member)).out
    assert f"units     {units}" in text
    assert ("\npitch " in text) == pitch
    assert "None" not in text


def test_info_says_what_the_model_is(run: Run) -> None:
    text = run("info", "-m", tiny_bundle()).out
    for fact in ("speakers  3\n", "50 a second", "200 bit/s", "0.152 s of look-ahead", "0.343 s"):
        assert fact in text, text
    facts = json.loads(run("info", "-m", tiny_bundle(), "--json").out)
    assert facts["unit_rate"] == 50
    assert facts["chunk_latency_seconds"] == pytest.approx(5481 / 16_000, abs=1e-6)


def test_a_wrong_speaker_or_model_stops_before_anything_is_converted(
    run: Run, tmp_path: Path
) -> None:
    source = wav(tmp_path / "in.wav")
    done = run("convert", source, "-s", "bee", "-m", tiny_bundle())
    assert done.code == 2
    assert "'bea'" in one_error(done)
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_bundle(), damaged)
    weights = damaged / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    for model in ("nowhere", tmp_path / "nowhere", damaged):
        done = run("convert", source, "-s", "bea", "-m", model)
        assert done.code == 4
        one_error(done)
    assert "weights.safetensors" in done.err
    assert list(tmp_path.glob("*.wav")) == [source]


def test_a_device_that_is_not_there_is_exit_5(convert: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = convert(wav(tmp_path / "in.wav"), "--device", "cuda")
    assert done.code == 5
    assert "cuda" in one_error(done)
    assert tree(tmp_path) == ["in.wav"]


def test_verify_prints_every_comparison_and_fails_on_a_changed_byte(
    run: Run, tmp_path: Path
) -> None:
    done = run("verify", tiny_bundle())
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) > 3
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_bundle(), damaged)
    encoder = damaged / "encoder.onnx"
    data = bytearray(encoder.read_bytes())
    data[len(data) // 2] ^= 1
    encoder.write_bytes(data)
    done = run("verify", damaged)
    assert done.code == 4
    assert "encoder.onnx" in done.err


# -- the frame -------------------------------------------------------------------------------------


def test_help_works_everywhere(run: Run) -> None:
    verbs = "convert encode decode speakers info verify bench doctor prepare train export".split()
    text = run("-h").out
    for verb in verbs:
        assert verb in text
        assert run(verb, "-h").code == 0
    bare = run()
    assert (bare.code, bare.out) == (2, "")
    assert "Usage:" in bare.err
    assert "convert" in one_error(run("convrt"))


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path) -> None:
    for arguments in (["--debug", "speakers", "-m", "none"], ["speakers", "-m", "none", "--debug"]):
        process = vconv_process(*arguments)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 4
        assert b"Traceback" in err
        assert err.splitlines()[-1].startswith(b"vconv: error: ")


def test_a_reader_that_leaves_is_no_error() -> None:
    with vconv_process("speakers", "-m", tiny_bundle()) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


def test_prepare_reports_what_it_made(run: Run, tmp_path: Path) -> None:
    for speaker in ("ada", "bea"):
        for number in range(3):
            wav(tmp_path / "raw" / speaker / f"{number}.wav", 16_000)
    (tmp_path / "raw/ada/bad.wav").write_bytes(b"")
    done = run("prepare", tmp_path / "raw", "-o", tmp_path / "corpus", "-j", 1, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["utterances"] == 6
    assert len(report["rejected"]) == 1
    done = run("prepare", tmp_path / "raw", "-o", tmp_path / "corpus", "-j", 1)
    assert done.code == 2  # it is there already
    one_error(done)


def test_a_training_mistake_is_one_sentence(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: {corpus: nowhere}\ntrain: {stepz: 3}\n")
    done = run("train", config)
    assert done.code == 2
    assert "train.steps" in one_error(done)
