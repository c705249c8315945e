"""The package as an application sees it: lazy, free of torch, typed names, several input kinds."""

from __future__ import annotations

import importlib.metadata
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import vconv
from speech import speechlike
from tiny_model import exported as tiny_bundle


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_vconv_imports_nothing_heavy() -> None:
    heavy = "numpy torch onnxruntime soundfile soxr pydantic typer rich"
    code = f"import sys, vconv; print([name for name in {heavy.split()} if name in sys.modules])"
    assert python(code).strip() == "[]"


def test_converting_imports_no_torch(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", speechlike(20_000), 48_000)
    code = """
import sys, vconv
bundle, source, target = sys.argv[1:]
with vconv.load(bundle) as vc:
    vc.convert_to_file(source, target, speaker="bea")
    vc.decode(vc.encode(source), speaker=0)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "torchaudio", "librosa"}))
"""
    out = python(code, str(tiny_bundle()), str(tmp_path / "in.wav"), str(tmp_path / "out.wav"))
    assert out.strip() == "[]"
    assert soundfile.info(tmp_path / "out.wav").frames == 6667


def test_the_command_line_converts_without_torch(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", speechlike(8_000), 16_000)
    code = """
import sys
from vconv.cli import main
try:
    main(["convert", sys.argv[2], "-s", "0", "-m", sys.argv[1], "-q"])
except SystemExit as left:
    print(left.code, "torch" in sys.modules)
"""
    out = python(code, str(tiny_bundle()), str(tmp_path / "in.wav"))
    assert out.strip() == "0 False"


def test_every_public_name_is_there_and_no_other() -> None:
    for name in vconv.__all__:
        assert getattr(vconv, name) is not None
        assert name in dir(vconv)
    with pytest.raises(AttributeError, match="convertor"):
        vconv.convertor  # noqa: B018
    assert vconv.__version__ == importlib.metadata.version("vconv")


def test_every_kind_of_input_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "in.wav"
    pcm = np.round(speechlike(8000) * 32767).astype(np.int16)
    soundfile.write(path, pcm, 16_000)
    floats = (pcm / 32768).astype(np.float32)
    with vconv.load(tiny_bundle()) as vc, path.open("rb") as file:
        wanted = vc.convert(path, speaker=0).audio
        files: list[Any] = [str(path), path.read_bytes(), file]
        samples: list[Any] = [
            pcm,
            floats,
            floats.astype(np.float64),
            floats[None],
            floats[:, None],
            torch.from_numpy(floats),
            torch.from_numpy(floats).requires_grad_(),
            pcm.astype(np.int32) << 16,
        ]
        for x in files:
            np.testing.assert_array_equal(vc.convert(x, speaker=0).audio, wanted)
        for x in samples:
            made = vc.convert(x, speaker=0, sample_rate=16_000).audio
            np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_results_save_in_every_format(tmp_path: Path, suffix: str) -> None:
    with vconv.load(tiny_bundle()) as vc:
        out = vc.convert(speechlike(8000), speaker=0, sample_rate=16_000)
    path = tmp_path / f"out.{suffix}"
    path.write_bytes(b"old")
    out.save(path)
    audio, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    if suffix in ("wav", "flac"):
        np.testing.assert_allclose(audio, np.clip(out.audio, -1, 1), atol=1 / 32768)
    with pytest.raises(vconv.UsageError, match="wav, flac, ogg, mp3"):
        out.save(tmp_path / "out.xyz")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_closed_converter_says_so() -> None:
    with vconv.load(tiny_bundle()) as vc:
        assert list(vc.speakers.names) == ["ada", "bea", "carl"]
        assert vc.info.speakers == ("ada", "bea", "carl")
        assert vc.sample_rate == 16_000
    with pytest.raises(vconv.UsageError, match="closed"):
        vc.convert(speechlike(8000), speaker=0, sample_rate=16_000)


def test_a_missing_model_names_those_there_are() -> None:
    with pytest.raises(vconv.ModelError, match="no model 'demmo'"):
        vconv.load("demmo")


def test_the_library_leaves_logging_to_the_application() -> None:
    vconv.load(tiny_bundle()).close()
    assert logging.getLogger("vconv").handlers == []
