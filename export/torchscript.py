"""decoder.ts: the whole decoder as one TorchScript file, for programs that have no vconv.

B lanes, T samples, F conditioning steps, U units, D latent width (with pitch two more), E speaker
width, C conditioning channels, L layers, G gate channels, Q levels.
"""

# Without `from __future__ import annotations`: TorchScript reads these annotations as objects.

import io
import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vconv.errors import ModelError
from vconv.golden import UNREADABLE
from vconv.nn.autoencoder import Autoencoder
from vconv.nn.incremental import IncrementalWaveNet, scripted
from vconv.nn.wavenet import WaveNet

METADATA = "metadata.json"
_STORAGE = re.compile(r"[^/]+/(?:data|constants)/\d+")


class WholeDecoder(nn.Module):
    """Units and a speaker's vector -> mu-law codes.

    ``skip`` is what ``geometry.Plan`` drops of the conditioning steps that the units give.
    """

    def __init__(self, network: Autoencoder, skip: int) -> None:
        super().__init__()
        wavenet = network.decoder.wavenet
        self.conditioner = network.decoder.conditioner
        self.wavenet = IncrementalWaveNet(wavenet)
        self.skip = skip
        # With hop 1 the generating loop projects, block by block.
        self.project = nn.Identity() if wavenet.hop == 1 else _projection(wavenet)

    def condition(self, latents: Tensor, speaker: Tensor, samples: int) -> Tensor:
        """latents [B, U, D], speaker [B, E] -> conditioning as the WaveNet's loop takes it,
        [B, F, L * 2G] or with hop 1 [B, F, C]."""
        channels = self.conditioner(latents.transpose(1, 2), speaker)
        hop = self.wavenet.hop
        steps = samples // hop + (1 if hop > 1 else 0)
        projected: Tensor = self.project(channels[:, self.skip : self.skip + steps])
        return projected

    def forward(
        self,
        latents: Tensor,
        speaker: Tensor,
        uniforms: Tensor,
        temperature: float,
        state: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """latents [B, U, D], speaker [B, E], uniforms [B, T], temperature, state -> (codes [B, T]
        uint8, state)."""
        conditioning = self.condition(latents, speaker, uniforms.shape[1])
        codes, _, after = self.wavenet(conditioning, uniforms, temperature, None, state)
        return codes.to(torch.uint8), after

    @torch.jit.export
    def score(
        self,
        latents: Tensor,
        speaker: Tensor,
        codes: Tensor,
        state: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The codes [B, T] are followed, not drawn: (logits [B, T, Q], state). This is how the
        receptive field of silence before the first sample is fed."""
        conditioning = self.condition(latents, speaker, codes.shape[1])
        nothing = torch.zeros(codes.shape, dtype=torch.float32, device=codes.device)
        _, logits, after = self.wavenet(conditioning, nothing, 1.0, codes.to(torch.int64), state)
        return logits, after

    @torch.jit.export
    def initial_state(self, lanes: int) -> tuple[Tensor, Tensor, Tensor]:
        """The state before the first sample."""
        return self.wavenet.initial_state(lanes)


def _projection(wavenet: WaveNet) -> nn.Linear:
    """[..., C] -> every layer's projection [..., L * 2G], layer-major."""
    layers = [layer.condition for layer in wavenet.gated_layers]
    weight, bias = torch.cat([x.weight for x in layers]), torch.cat([x.bias for x in layers])
    # Numbers to be replaced need not be drawn.
    projection: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    projection.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    return projection


def whole_decoder(network: Autoencoder) -> torch.jit.ScriptModule:
    """The decoder of a network in evaluation mode, compiled."""
    geometry = network.geometry
    skip = geometry.plan(geometry.unit_hop).skip
    decoder = WholeDecoder(network, skip).eval().requires_grad_(False)
    return scripted(decoder)


def export_decoder(network: Autoencoder, path: Path, metadata: dict[str, Any]) -> None:
    """Write decoder.ts, with the metadata as its extra file ``metadata.json``."""
    extra = {METADATA: json.dumps(metadata)}
    path.write_bytes(_without_sources(whole_decoder(network).save_to_buffer(_extra_files=extra)))


def _without_sources(data: bytes) -> bytes:
    """The archive without the tables that lead from its code to source files of this machine."""
    kept = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as archive,
        zipfile.ZipFile(kept, "w") as target,
    ):
        for entry in archive.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                # Stored, and dated as torch dates it: the same decoder gives the same bytes.
                target.writestr(zipfile.ZipInfo(entry.filename), archive.read(entry))
    return kept.getvalue()


def stored_numbers(data: bytes, where: str) -> list[bytes]:
    """The bytes of every tensor in a TorchScript archive, read without running or unpickling
    anything. ModelError for what is no such archive or claims to be larger than it is."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [e for e in archive.infolist() if _STORAGE.fullmatch(e.filename)]
            if sum(entry.file_size for entry in entries) > len(data):  # storages are not packed
                raise ValueError("its tensors are larger than the file")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("its tensors are packed")
            return [archive.read(entry) for entry in entries]
    except UNREADABLE as error:
        raise ModelError(f"{where}: not a whole TorchScript file ({error}).") from None


def load_decoder(path: Path) -> torch.jit.ScriptModule:
    """Load, and thereby run code of, a decoder.ts. Only for files whose author is trusted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # see nn.incremental.scripted
        decoder: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu")
    return decoder
