"""An export is complete and equal to what was trained, or it is not there."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from tiny_model import (
    CONFIG,
    MEMBERS,
    SPEAKERS,
    config_of,
    exported,
    random_tensors,
    write_checkpoint,
    write_clips,
)
from vconv.audio import read
from vconv.bundle import Bundle
from vconv.errors import ModelError, UsageError
from vconv.export import bundle as exporting
from vconv.export.bundle import export_run
from vconv.export.checkpoint import find_checkpoint, load_checkpoint
from vconv.export.comparison import Comparison
from vconv.geometry import Span
from vconv.nn.autoencoder import Autoencoder, build_autoencoder


@pytest.fixture(scope="session")
def whole() -> Path:
    return exported()


@pytest.fixture(scope="module")
def eager() -> Autoencoder:
    return eager_of("vq")


def eager_of(member: str) -> Autoencoder:
    network = build_autoencoder(config_of(member).model, len(SPEAKERS))
    network.load_state_dict({k: torch.from_numpy(v) for k, v in random_tensors(member).items()})
    return network.eval()


# What is exported


def test_the_weights_are_the_checkpoint_s_to_the_bit(whole: Path) -> None:
    stored = load((whole / "weights.safetensors").read_bytes())
    wanted = random_tensors()
    assert stored.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert stored[name].dtype == tensor.dtype
        np.testing.assert_array_equal(stored[name], tensor)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("samples", [2800, 2801, 3119, 3120, 7283])
def test_the_exported_encoder_is_the_eager_one(
    whole: Path, eager: Autoencoder, batch: int, samples: int
) -> None:
    random = np.random.default_rng(samples)
    scale = np.exp(random.uniform(-6, 0, (batch, 1)))
    wav = (scale * random.standard_normal((batch, samples))).astype(np.float32)
    codes, latents, _ = Bundle.open(whole).encoder()(wav)
    with torch.inference_mode():
        wanted = eager.encode(torch.from_numpy(wav))
    assert codes.shape == (batch, len(eager.geometry.encoder.outputs(Span(0, samples))))
    np.testing.assert_array_equal(codes, wanted.codes.numpy())
    np.testing.assert_allclose(latents, wanted.z.transpose(1, 2).numpy(), atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("units", [5, 6, 7, 40])
def test_the_exported_conditioner_is_the_eager_one(
    whole: Path, eager: Autoencoder, batch: int, units: int
) -> None:
    random = np.random.default_rng(units)
    latents = random.standard_normal((batch, units, 6)).astype(np.float32)
    speaker = random.standard_normal((batch, 5)).astype(np.float32)
    found = Bundle.open(whole).conditioner()(latents, speaker)
    with torch.inference_mode():
        channels = eager.condition(
            torch.from_numpy(latents).transpose(1, 2), torch.from_numpy(speaker)
        )
        wanted = eager.decoder.wavenet.project(channels).numpy()
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("member", [member for member in MEMBERS if member != "vq"])
def test_the_exported_graphs_of_any_member_are_the_eager_ones(member: str) -> None:
    bundle, eager = Bundle.open(exported(member)), eager_of(member)
    random = np.random.default_rng(1)
    wav = (0.1 * random.standard_normal((2, 11283))).astype(np.float32)
    codes, latents, pitch = bundle.encoder()(wav)
    speaker = random.standard_normal((2, 5)).astype(np.float32)
    units = random.standard_normal((2, 19, bundle.config.conditions)).astype(np.float32)
    conditioning = bundle.conditioner()(units, speaker)
    with torch.inference_mode():
        wanted = eager.encode(torch.from_numpy(wav))
        channels = eager.condition(
            torch.from_numpy(units).transpose(1, 2), torch.from_numpy(speaker)
        )
        projected = eager.decoder.wavenet.project(channels)
        pitches = None if eager.pitch is None else eager.pitch(torch.from_numpy(wav))
    np.testing.assert_array_equal(codes, wanted.codes.numpy())
    np.testing.assert_allclose(latents, wanted.z.transpose(1, 2).numpy(), atol=1e-4)
    made = channels if bundle.geometry.conditioning_hop == 1 else projected
    np.testing.assert_allclose(conditioning, made.numpy(), atol=1e-4)
    if pitches is not None:
        np.testing.assert_allclose(pitch, pitches.transpose(1, 2).numpy(), atol=1e-3)
    else:
        assert pitch.shape == (*codes.shape, 0)


def test_samples_are_short_clips_of_each_voice(whole: Path) -> None:
    for index, speaker in enumerate(SPEAKERS):
        clip = read(whole / "samples" / f"{index:03d}-{speaker}.ogg")
        assert len(clip) == 2.5 * 16000
        assert 0.05 < np.abs(clip).max() < 0.15


def test_nothing_in_a_bundle_tells_where_it_was_made(whole: Path) -> None:
    for path in whole.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert str(Path(__file__).parents[2]).encode() not in data, path
            assert b"site-packages" not in data, path


def test_the_onnx_files_carry_what_their_reader_needs(whole: Path) -> None:
    import onnx

    for file in ("encoder.onnx", "conditioner.onnx"):
        model = onnx.load_from_string((whole / file).read_bytes())
        said = {p.key: json.loads(p.value) for p in model.metadata_props}
        assert said["speakers"] == list(SPEAKERS)
        assert said["config"]["decoder"]["layers"] == 4
        assert "torch" in said["tools"]


def test_settings_name_no_path_of_the_machine_that_trained(whole: Path) -> None:
    settings = Bundle.open(whole).manifest.training.settings
    assert settings["train"]["learning_rate"] == CONFIG.train.learning_rate
    assert "corpus" not in settings["data"]
    assert not {"device", "threads"} & settings["train"].keys()


# What is refused, and what is left then


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the finished export's files in place of making them again."""

    def write(folder: Path, *_: object) -> None:
        for path in exported().iterdir():
            if path.is_file() and path.name != "manifest.json":
                shutil.copy(path, folder)

    monkeypatch.setattr(exporting, "_write", write)
    monkeypatch.setattr(exporting, "verify", lambda *_, **__: [Comparison("all", 0, 0)])


def refused(run: Path, out: Path, **options: object) -> str:
    before = sorted(out.parent.rglob("*"))
    with pytest.raises((ModelError, UsageError)) as caught:
        export_run(run, out, **options)  # type: ignore[arg-type]
    assert sorted(out.parent.rglob("*")) == before, "something was left"
    return str(caught.value)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "run" / "checkpoints" / "step-000000020")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "model"


@pytest.mark.usefixtures("quick")
def test_an_export_that_is_not_equal_leaves_nothing(
    checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [Comparison("fine", 0, 0), Comparison("logits", 0.3, 1e-4)]
    monkeypatch.setattr(exporting, "verify", lambda *_, **__: failing)
    assert "FAIL  logits: 0.3" in refused(checkpoint, out)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left")])
def test_an_interrupted_export_leaves_nothing(
    checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(exporting, "verify", fail)
    expected = UsageError if isinstance(error, OSError) else error
    with pytest.raises(expected):  # type: ignore[arg-type]
        export_run(checkpoint, out)
    assert list(out.parent.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_an_existing_bundle_is_replaced_only_when_asked_to(checkpoint: Path, out: Path) -> None:
    export_run(checkpoint, out, name="first")
    assert "exists already" in refused(checkpoint, out)
    export_run(checkpoint, out, name="second", quality={"wer": 0.1}, overwrite=True)
    manifest = Bundle.open(out).manifest
    assert manifest.name == "second"
    assert manifest.quality == {
        "heldout_nll": 2.5, "probe_latents": 0.4, "probe_speaker": 0.3, "wer": 0.1
    }  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_a_folder_that_is_no_bundle_is_never_replaced(checkpoint: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert "not a bundle" in refused(checkpoint, out, overwrite=True)
    assert (out / "thesis.txt").exists()


def test_a_missing_clip_is_named_before_anything_is_exported(
    checkpoint: Path, out: Path, tmp_path: Path
) -> None:
    clips = write_clips(tmp_path / "clips")
    (clips / "bea.wav").unlink()
    assert "bea.wav" in refused(checkpoint, out, samples=clips)


def change(checkpoint: Path, **tensors: np.ndarray) -> Path:
    shutil.rmtree(checkpoint)
    names = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return write_checkpoint(checkpoint, {**random_tensors(), **names})


def test_weights_that_cannot_be_used_are_refused_by_name(checkpoint: Path, out: Path) -> None:
    nans = np.full(10, np.nan, np.float32)
    change(checkpoint, decoder__wavenet__skip__bias=nans)
    text = refused(checkpoint, out)
    assert "average.safetensors: the tensor decoder.wavenet.skip.bias has 10 of 10" in text
    change(checkpoint, decoder__wavenet__skip__bias=nans[:3])
    assert "has shape [3], where the model's configuration needs [10]" in refused(checkpoint, out)
    change(checkpoint, odd=nans)
    assert "odd [10] is not one of" in refused(checkpoint, out)


def test_a_model_without_a_codebook_is_refused(checkpoint: Path, out: Path) -> None:
    change(checkpoint, bottleneck__started=np.array(False))
    assert "no codebook yet (it starts after 4 steps)" in refused(checkpoint, out)


@pytest.mark.parametrize(
    "name", ["average.safetensors", "config.yaml", "speakers.json", "checkpoint.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_refused_by_the_file(
    checkpoint: Path, out: Path, name: str, damage: str
) -> None:
    path = checkpoint / name
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage != "remove":
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-1])
    assert name in refused(checkpoint, out) or damage == "cut"


def test_the_newest_whole_checkpoint_is_exported(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = checkpoint.parents[1]
    newer = write_checkpoint(run / "checkpoints" / "step-000000100")
    shutil.copytree(newer, run / "checkpoints" / ".step-000000200.partial")
    assert find_checkpoint(run) == newer
    assert find_checkpoint(newer) == newer
    assert find_checkpoint(run, "step-000000020") == checkpoint
    assert find_checkpoint(run, checkpoint) == checkpoint
    (newer / "average.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "vconv"):
        assert find_checkpoint(run) == checkpoint
    assert "average.safetensors: damaged" in caplog.text
    (checkpoint / "average.safetensors").unlink()
    with pytest.raises(ModelError, match="every checkpoint is damaged"):
        find_checkpoint(run)
    with pytest.raises(ModelError, match="there is no checkpoint"):
        find_checkpoint(run.parent)


def test_a_checkpoint_of_another_format_is_refused(checkpoint: Path) -> None:
    header = json.loads((checkpoint / "checkpoint.json").read_text())
    (checkpoint / "checkpoint.json").write_text(json.dumps(header | {"format_version": 9}))
    with pytest.raises(ModelError, match="checkpoint format 9 cannot be read; this vconv reads 1"):
        load_checkpoint(checkpoint)
