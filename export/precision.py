"""What the native engine's reduced precisions cost a model, on speech that it was not trained on.

B windows, T samples of one with its lead, W of them judged, Q levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vconv.config import ModelConfig
from vconv.engines import Engine, create_engine
from vconv.manifest import REDUCED, Reduced
from vconv.nn.autoencoder import Autoencoder


class Windows(Protocol):
    """Windows of speech with the context that they need: wav [B, T'] for the encoder, clean the
    same, codes [B, RF + W] of the decoder's signal, the last W to be judged, speakers [B]."""

    @property
    def wav(self) -> Tensor: ...
    @property
    def clean(self) -> Tensor: ...
    @property
    def codes(self) -> Tensor: ...
    @property
    def speakers(self) -> Tensor: ...


@torch.no_grad()
def precision_costs(
    network: Autoencoder, model: ModelConfig, speech: Sequence[Windows], window: int
) -> dict[Reduced, float]:
    """Nats a sample that each reduced precision loses against fp32, by its name; the mean over all
    windows. Raises SetupError where the compiled sampler is missing."""
    decoder, geometry = model.decoder, network.geometry
    weights = {
        name: np.asarray(tensor.float())
        for name, tensor in network.decoder.wavenet.state_dict().items()
    }
    engines = {
        precision: create_engine(
            "native",
            weights,
            blocks=decoder.blocks,
            layers=decoder.layers,
            kernel_size=decoder.kernel_size,
            hop=geometry.conditioning_hop,
            precision=precision,
        )
        for precision in ("fp32", *REDUCED)
    }
    lost: dict[str, list[float]] = {precision: [] for precision in engines}
    for batch in speech:
        conditioning = _conditioning(network, batch, window)
        # What precedes the receptive field is heard by nobody.
        lead = geometry.lead_samples - (batch.codes.shape[1] - window)
        silence = network.decoder.wavenet.silence
        codes = np.full((len(batch.codes), geometry.lead_samples + window), silence)
        codes[:, lead:] = batch.codes.numpy()
        for precision, engine in engines.items():
            lost[precision] += _nll(engine, conditioning, codes.astype(np.uint8), window).tolist()
    means = {precision: float(np.mean(values)) for precision, values in lost.items()}
    return {name: round(means[name] - means["fp32"], 6) for name in REDUCED}


def _conditioning(network: Autoencoder, batch: Windows, window: int) -> NDArray[np.float32]:
    """As the exported conditioner would give it, for the lead and the window."""
    plan = network.geometry.plan(window, lead=network.geometry.lead_samples)
    units = torch.cat(
        [network.encode(batch.wav).z, network.prosody(batch.clean, batch.speakers)], dim=1
    )
    conditioning = network.condition(units, network.speaker_vectors(batch.speakers))
    conditioning = conditioning[:, plan.skip : plan.skip + plan.steps]
    if network.geometry.conditioning_hop > 1:  # else the sampler projects
        conditioning = network.decoder.wavenet.project(conditioning)
    found: NDArray[np.float32] = conditioning.numpy()
    return found


def _nll(
    engine: Engine, conditioning: NDArray[np.float32], codes: NDArray[np.uint8], window: int
) -> NDArray[np.float64]:
    """Mean nats a sample of each item's last W codes [B]."""
    logits, _ = engine.score(conditioning, codes, engine.initial_state(len(codes)))
    judged, targets = logits[:, -window:].astype(np.float64), codes[:, -window:].astype(np.int64)
    judged -= judged.max(2, keepdims=True)
    chosen = np.take_along_axis(judged, targets[:, :, None], 2)[:, :, 0]
    nll: NDArray[np.float64] = (np.log(np.exp(judged).sum(2)) - chosen).mean(1)
    return nll
