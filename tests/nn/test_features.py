"""Log-mel frames against torchaudio and librosa."""

import numpy as np
import pytest
import torch

from networks import speech
from vconv.nn.features import LogMel


def test_frames_equal_torchaudio():
    import torchaudio

    wav = speech(2, 4000)
    reference = torchaudio.transforms.MelSpectrogram(
        16000, n_fft=512, win_length=400, hop_length=160, n_mels=80, center=False, mel_scale="htk"
    )
    # torchaudio centres the window in its 512-wide frame, 56 samples after the frame's start.
    padded = torch.nn.functional.pad(wav, (56, 56))
    expected = torch.log(reference(padded) + 1e-6)
    ours = LogMel().log_mel(wav)
    assert ours.shape == (2, 80, (4000 - 400) // 160 + 1)
    torch.testing.assert_close(ours, expected[:, :, : ours.shape[2]], rtol=0, atol=2e-4)


def test_mel_power_equals_librosa():
    import librosa

    wav = speech(1, 4000)
    filters = librosa.filters.mel(sr=16000, n_fft=512, n_mels=80, htk=True, norm=None)
    frames = librosa.util.frame(wav[0].numpy().astype(np.float64), frame_length=400, hop_length=160)
    window = librosa.filters.get_window("hann", 400, fftbins=True)
    power = np.abs(np.fft.rfft(frames * window[:, None], 512, axis=0)) ** 2
    expected = np.log(filters @ power + 1e-6)
    np.testing.assert_allclose(LogMel().log_mel(wav)[0].numpy(), expected, atol=2e-4)


def test_a_chunk_gives_the_features_of_the_whole():
    wav = speech(1, 8000)
    whole = LogMel()(wav)
    chunk = LogMel()(wav[:, 160 * 7 : 160 * 7 + 2000])
    torch.testing.assert_close(chunk, whole[:, :, 7 : 7 + chunk.shape[2]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("level", [0.0, 1e-6])
def test_silence_is_finite(level):
    assert torch.isfinite(LogMel()(torch.full((1, 800), level))).all()
