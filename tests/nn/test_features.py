"""Log-mel frames and MFCCs against torchaudio and librosa, and what both promise."""

import numpy as np
import pytest
import torch

import contracts
from networks import speech
from vconv.geometry import FEATURES, FRAMING
from vconv.nn.features import MFCC, Features, LogMel, build_features

KINDS = pytest.mark.parametrize("kind", sorted(FEATURES))


def features(kind: str) -> Features:
    """Features whose statistics are no identity."""
    module = build_features(kind)
    generator = torch.Generator().manual_seed(0)
    module.mean.normal_(generator=generator)
    module.std.uniform_(0.5, 2, generator=generator)
    return module


def torchaudio_frames(wav: torch.Tensor) -> torch.Tensor:
    """torchaudio centres the window in its 512-wide frame, 56 samples after the frame's start."""
    return torch.nn.functional.pad(wav, (56, 56))


MEL = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 80, "center": False}


def test_frames_equal_torchaudio():
    import torchaudio

    wav = speech(2, 4000)
    reference = torchaudio.transforms.MelSpectrogram(16000, mel_scale="htk", **MEL)
    expected = torch.log(reference(torchaudio_frames(wav)) + 1e-6)
    ours = LogMel().raw(wav)
    assert ours.shape == (2, 80, (4000 - 400) // 160 + 1)
    torch.testing.assert_close(ours, expected[:, :, : ours.shape[2]], rtol=0, atol=2e-4)


def test_cepstra_and_their_deltas_equal_torchaudio():
    import torchaudio

    wav = speech(2, 6000)
    reference = torchaudio.transforms.MFCC(
        16000, n_mfcc=13, log_mels=True, melkwargs={"mel_scale": "htk", **MEL}
    )
    statics = reference(torchaudio_frames(wav))[:, :, : (6000 - 400) // 160 + 1]
    deltas = torchaudio.functional.compute_deltas(statics, win_length=5)
    accelerations = torchaudio.functional.compute_deltas(deltas, win_length=5)
    # Away from the edges, which torchaudio fills by repeating the end frames.
    expected = torch.cat([statics, deltas, accelerations], dim=1)[:, :, 4:-4]
    ours = MFCC().raw(wav)
    assert ours.shape == (2, 39, statics.shape[2] - 8)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)


def test_mel_power_equals_librosa():
    import librosa

    wav = speech(1, 4000)
    filters = librosa.filters.mel(sr=16000, n_fft=512, n_mels=80, htk=True, norm=None)
    frames = librosa.util.frame(wav[0].numpy().astype(np.float64), frame_length=400, hop_length=160)
    window = librosa.filters.get_window("hann", 400, fftbins=True)
    power = np.abs(np.fft.rfft(frames * window[:, None], 512, axis=0)) ** 2
    expected = np.log(filters @ power + 1e-6)
    np.testing.assert_allclose(LogMel().raw(wav)[0].numpy(), expected, atol=2e-4)


@KINDS
def test_every_frame_reads_the_samples_that_the_geometry_declares(kind):
    chain = FRAMING + FEATURES[kind]
    module = features(kind)

    def f(x: torch.Tensor) -> torch.Tensor:
        # The window's first sample weighs nothing, so measured support would miss it.
        return module(x[:, 0])

    module.basis.add_(1e-3)
    contracts.assert_reads_what_it_declares(f, 1, chain)


@KINDS
def test_chunks_give_the_features_of_the_whole(kind):
    module = features(kind)
    chain = FRAMING + FEATURES[kind]
    wav = speech(2, 8000)[:, None]
    contracts.assert_chunked_is_whole(lambda x: module(x[:, 0]), wav, chain, 7, tolerance=5e-5)


@KINDS
def test_features_are_normalised_by_their_statistics(kind):
    module = build_features(kind)
    wav = speech(1, 16000)
    raw = module.raw(wav)
    module.mean.copy_(raw[0].mean(1))
    module.std.copy_(raw[0].std(1, correction=0))
    normal = module(wav)[0]
    assert normal.shape[0] == module.channels
    torch.testing.assert_close(normal.mean(1), torch.zeros(module.channels), rtol=0, atol=1e-4)
    torch.testing.assert_close(normal.square().mean(1), torch.ones(module.channels))


@KINDS
def test_autocast_leaves_the_features_as_they_are(kind):
    module = features(kind)
    wav = speech(1, 4000)
    with torch.autocast("cpu", torch.bfloat16):
        under = module(wav)
    assert torch.equal(under, module(wav))


@KINDS
def test_a_checkpoint_holds_the_statistics_and_no_constants(kind):
    module = features(kind)
    assert module.state_dict().keys() == {"mean", "std"}
    constants = {"basis", "filters"} | ({"dct", "delta"} if kind == "mfcc39" else set())
    assert dict(module.named_buffers()).keys() == {"mean", "std"} | constants


@KINDS
@pytest.mark.parametrize("level", [0.0, 1e-6])
def test_silence_is_finite(kind, level):
    assert torch.isfinite(build_features(kind)(torch.full((1, 2400), level))).all()


@pytest.mark.filterwarnings("ignore")  # the exporter's own, of torch's internals
def test_exported_cepstra_are_the_eager_ones():
    import onnxruntime

    module = features("mfcc39")
    program = torch.onnx.export(
        module,
        (torch.zeros(2, 4000),),
        input_names=["waveform"],
        dynamic_shapes={"wav": {0: "batch", 1: "samples"}},
        opset_version=20,
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for batch, samples in ((1, 1680), (2, 1839), (3, 6001)):
        wav = speech(batch, samples)
        (found,) = session.run(None, {"waveform": wav.numpy()})
        np.testing.assert_allclose(found, module(wav).numpy(), rtol=0, atol=1e-4)
