"""The definitions in numpy against the networks, which are held to other libraries elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tiny_model import CONFIG, varied
from vconv.config import ModelConfig
from vconv.export.comparison import pitch_gap
from vconv.export.definitions import fixed_numbers, pitch_of, scalar_levels
from vconv.export.golden import SIGNAL_SECONDS, golden_signal, joined
from vconv.geometry import Geometry, Span
from vconv.golden import golden_plan
from vconv.nn.autoencoder import Autoencoder, build_autoencoder
from vconv.nn.fsq import FSQ
from vconv.nn.pitch import relative

PITCH = {"decoder": {"pitch": True}}


def eager(model: ModelConfig) -> Autoencoder:
    return build_autoencoder(model, 3).eval().requires_grad_(False)


@pytest.mark.parametrize("features", ["logmel80", "mfcc39"])
def test_every_number_that_is_not_stored_has_its_definition(features: str) -> None:
    model = varied(CONFIG.model, {"features": {"kind": features}}, PITCH)
    network = eager(model)
    stored = set(network.state_dict())
    fixed = {n: b for n, b in network.named_buffers() if n not in stored}
    defined = fixed_numbers(model)
    assert defined.keys() == fixed.keys()
    for name, numbers in fixed.items():
        np.testing.assert_allclose(defined[name], numbers.numpy(), rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("levels", [(2,), (4, 3, 5), (8, 5, 5, 5)])
def test_the_numbers_of_fsq_follow_from_its_levels(levels: tuple[int, ...]) -> None:
    buffers = dict(FSQ(6, levels).named_buffers())
    for name, numbers in scalar_levels(levels).items():
        own = buffers[name.removeprefix("bottleneck.")].numpy()
        np.testing.assert_allclose(own, numbers, rtol=1e-6, atol=0, err_msg=name)


@pytest.mark.parametrize("instance_norm", [None, 5, 7])
@pytest.mark.parametrize("features", ["logmel80", "mfcc39"])
def test_the_pitch_of_any_sound_is_the_network_s(features: str, instance_norm: int | None) -> None:
    """Voices with noise at all levels, pure noise, a tone and silence."""
    changes = {"features": {"kind": features}, "encoder": {"instance_norm": instance_norm}}
    network = eager(varied(CONFIG.model, changes, PITCH))
    random = np.random.default_rng(0)
    signal = golden_signal(network.geometry)
    noise = random.standard_normal(signal.shape)
    tone = np.sin(2 * np.pi * 211 / 16000 * np.arange(len(signal)))
    mixed = [signal + level * noise for level in (0, 0.01, 0.03, 0.1, 0.3)]
    wav = np.stack([*mixed, noise, 0.1 * tone, 0 * tone]).astype(np.float32)
    found = network.pitch(torch.from_numpy(wav)).transpose(1, 2).numpy()
    pitch, clear = pitch_of(wav, network.geometry)
    assert found.shape == pitch.shape
    assert pitch_gap(found, pitch, clear) < 1e-4
    assert clear.mean() > 0.98
    np.testing.assert_allclose(2 ** pitch[6, :, 0], 211, rtol=2e-3)
    assert (pitch[7, :, 1] == 0).all()


def test_units_are_joined_as_in_training() -> None:
    random = np.random.default_rng(0)
    latents = random.standard_normal((7, 4)).astype(np.float32)
    pitch = random.uniform(0, 1, (7, 2)).astype(np.float32)
    units = joined(latents, pitch, 7.25)
    np.testing.assert_array_equal(units[:, :4], latents)
    wanted = relative(torch.from_numpy(pitch).T[None], torch.tensor([7.25]))[0].T
    np.testing.assert_allclose(units[:, 4:], wanted.numpy(), atol=1e-6)
    np.testing.assert_array_equal(joined(latents, pitch[:, :0], None), latents)


@pytest.mark.parametrize("instance_norm", [None, 101, 1001])
def test_the_signal_is_as_long_as_the_encoder_looks(instance_norm: int | None) -> None:
    geometry = Geometry.of(
        features="mfcc39",
        upsampling="transposed",
        kernel_size=2,
        blocks=2,
        layers=10,
        instance_norm=instance_norm,
    )
    signal = golden_signal(geometry)
    assert len(signal) >= SIGNAL_SECONDS * 16000
    units = len(geometry.encoder.outputs(Span(0, len(signal))))
    assert units >= golden_plan(geometry)[0].units + 20
    begin = golden_signal(Geometry.of(**CONFIG.model.geometry))
    assert len(begin) == 24000
    # The same utterance, up to its normalisation.
    ratio = begin / signal[:24000]
    np.testing.assert_allclose(ratio[begin != 0], ratio[np.abs(begin).argmax()], rtol=1e-3)
