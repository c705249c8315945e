"""An exported model: a folder that is checked whole before anything in it is used.

Specified in docs/bundle-format.md. Nothing in a bundle is unpickled, and ``decoder.ts`` (which is
executable code) is never loaded here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import cached_property
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .config import ModelConfig
from .errors import ModelError, UsageError
from .geometry import Geometry
from .graphs import Conditioner, Encoder
from .manifest import MANIFEST, MAX_BYTES, Manifest, parse_manifest
from .onnxfile import graph_bytes
from .speakers import SpeakerMap
from .units_file import UnitsModel
from .weights import Tensors, check_tensors, expected_shapes, parse_tensors

ENCODER = "encoder.onnx"
CONDITIONER = "conditioner.onnx"
DECODER = "decoder.ts"
WEIGHTS = "weights.safetensors"
SPEAKERS = "speakers.safetensors"
GOLDEN = "golden.npz"
SAMPLES = "samples"
REQUIRED = (ENCODER, CONDITIONER, DECODER, WEIGHTS, SPEAKERS, GOLDEN)


class Bundle:
    """A bundle whose files have been found as its manifest lists them.

    What a file says is read, and checked, when it is first asked for. Every error is a ModelError
    that names the file.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        try:
            self.speakers = SpeakerMap(manifest.speakers)
        except UsageError as error:
            raise ModelError(f"{path / MANIFEST}: {error}") from None

    @classmethod
    def find(cls, name_or_path: str | os.PathLike[str]) -> Bundle:
        """Open a bundle by its folder or its name; see ``find_model``."""
        return cls.open(find_model(name_or_path))

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """Open a bundle's folder and check it against its manifest.

        Raises ModelError: no folder, no manifest or one that is damaged or of a format that this
        version does not read, a file that is missing, of the wrong size or hash, not listed, or
        outside. ``verify=False`` leaves the hashes to the reading of each file.
        """
        folder = Path(path)
        if not os.path.isdir(folder):
            found = "is no folder" if os.path.lexists(folder) else "there is nothing"
            raise ModelError(f"{folder}: {found}; a model is a folder with a {MANIFEST}.")
        where = folder / MANIFEST
        bundle = cls(folder, parse_manifest(_read(where, limit=MAX_BYTES), str(where)))
        bundle._check_files(hashes=verify)
        return bundle

    @property
    def config(self) -> ModelConfig:
        return self.manifest.model

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry.of(**self.config.geometry)

    def read(self, name: str) -> bytes:
        """The content of one of its files, as listed in the manifest."""
        path, entry = self.path / name, self.manifest.files[name]
        self._check_size(name)
        data = _read(path)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ModelError(_damaged(path))
        return data

    @cached_property
    def tensors(self) -> Tensors:
        """The whole network's tensors under their eager names, finite and of the right shapes."""
        where = str(self.path / WEIGHTS)
        tensors = parse_tensors(self.read(WEIGHTS), where)
        check_tensors(tensors, expected_shapes(self.config, len(self.speakers)), where)
        return tensors

    def weights(self, prefix: str = "") -> Tensors:
        """The tensors whose names begin with the prefix, without it: ``decoder.wavenet.`` gives
        what an engine takes."""
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    @cached_property
    def speaker_vectors(self) -> npt.NDArray[np.float32]:
        """The speaker table [N, E], in the order of ``speakers``."""
        where = str(self.path / SPEAKERS)
        tensors = parse_tensors(self.read(SPEAKERS), where)
        shape = (len(self.speakers), self.config.decoder.speaker_dim)
        check_tensors(tensors, {"vectors": shape}, where)
        vectors: npt.NDArray[np.float32] = tensors["vectors"]
        return vectors

    @cached_property
    def codebook(self) -> npt.NDArray[np.float32] | None:
        """The latents [K, D] of the codes; None where the units are continuous."""
        return self.tensors.get("bottleneck.codebook")

    @cached_property
    def pitch_prior(self) -> float | None:
        """Mean log2 F0 (in Hz) of the speakers; None for a model without pitch."""
        means = self.tensors.get("pitch.speaker_means")
        return None if means is None else float(means.mean(dtype=np.float64))

    @cached_property
    def units_model(self) -> UnitsModel:
        """What makes its units what they are.

        That is the encoder's graph with its weights, codebook included. The file's own hash would
        say too much: it covers the model's name, its voices and the versions it was made with, on
        which no unit depends.
        """
        graph = graph_bytes(self.read(ENCODER), str(self.path / ENCODER))
        return UnitsModel(
            name=self.manifest.name,
            digest=hashlib.sha256(graph).hexdigest()[:32],
            codebook_size=self.manifest.bottleneck.codebook_size,
            unit_samples=self.manifest.geometry.unit_hop,
        )

    def encoder(self, device: str = "cpu") -> Encoder:
        """encoder.onnx on a device, "cpu" or "cuda[:N]"; SetupError if it cannot run there."""
        return Encoder(
            self.read(ENCODER),
            str(self.path / ENCODER),
            device=device,
            latents=self.config.latents,
            pitch=self.config.decoder.pitch,
        )

    def conditioner(self, device: str = "cpu") -> Conditioner:
        """conditioner.onnx on a device; see ``encoder``."""
        decoder = self.config.decoder
        # At the sample rate the engine projects: the projections would be far more numbers.
        projected = self.geometry.conditioning_hop > 1
        projections = decoder.blocks * decoder.layers * 2 * decoder.gate_channels
        return Conditioner(
            self.read(CONDITIONER),
            str(self.path / CONDITIONER),
            device=device,
            latents=self.config.conditions,
            speaker=decoder.speaker_dim,
            width=projections if projected else decoder.conditioning_channels,
        )

    def engine_options(self) -> dict[str, Any]:
        """What ``engines.create_engine`` wants to know besides the weights."""
        decoder = self.config.decoder
        return {
            "blocks": decoder.blocks,
            "layers": decoder.layers,
            "kernel_size": decoder.kernel_size,
            "hop": self.geometry.conditioning_hop,
        }

    def _check_files(self, *, hashes: bool) -> None:
        listed = self.manifest.files
        for name in REQUIRED:
            if name not in listed:
                raise ModelError(f"{self.path / MANIFEST}: lists no {name}.")
        inside = self.path.resolve()
        present = set(_walk(self.path))
        for name in listed:
            if name not in present:
                raise ModelError(f"{self.path / name}: missing.")
            if not (self.path / name).resolve().is_relative_to(inside):
                raise ModelError(f"{self.path / name}: a link to a file outside of the model.")
        for name in sorted(present - set(listed) - {MANIFEST}):
            raise ModelError(f"{self.path / name}: not in the manifest; remove it.")
        for name in listed:
            self._check_size(name)
            if hashes and _sha256(self.path / name) != self.manifest.files[name].sha256:
                raise ModelError(_damaged(self.path / name))

    def _check_size(self, name: str) -> None:
        size, listed = (self.path / name).stat().st_size, self.manifest.files[name].size
        if size != listed:
            raise ModelError(
                f"{self.path / name}: damaged; it has {size:,} bytes, the manifest says {listed:,}."
            )


def models_home() -> Path:
    """Where models are looked up by name: ``$VCONV_HOME/models``, by default ~/.vconv/models."""
    home = os.environ.get("VCONV_HOME")
    return (Path(home) if home else Path.home() / ".vconv") / "models"


def known_models() -> dict[str, Path]:
    """Models that have a name: the bundled ones, and those in ``models_home`` before them."""
    known: dict[str, Path] = {}
    for parent in (Path(str(package_files("vconv"))) / "models", models_home()):
        if parent.is_dir():
            for folder in sorted(parent.iterdir()):
                if (folder / MANIFEST).is_file():
                    known[folder.name] = folder
    return known


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a model: a path to it, else its name (``known_models``).

    A bare word is a path only if a model lies there: a folder of the same name in the working
    directory does not hide a model. Raises ModelError listing the known names.
    """
    text = os.fspath(name_or_path)
    path = Path(text)
    if os.path.exists(path / MANIFEST):
        return path
    known = known_models()
    if text in known:
        return known[text]
    if path.name != text or os.path.isfile(
        path
    ):  # written as a path: opening it says what is wrong
        return path
    names = ", ".join(known) or "none"
    raise ModelError(
        f"There is no model {text!r}; known by name: {names}. A model can also be given as the "
        "path of its folder."
    )


def _damaged(path: Path) -> str:
    return f"{path}: damaged; its sha256 is not the manifest's."


def _sha256(path: Path) -> str:
    """Of a regular file, which need not fit into memory."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from None
    return digest.hexdigest()


def _read(path: Path, *, limit: int | None = None) -> bytes:
    if not os.path.exists(path):
        raise ModelError(f"{path}: missing.")
    if not os.path.isfile(path):  # reading a pipe or a device would never end
        raise ModelError(f"{path}: not a regular file.")
    try:
        size = path.stat().st_size
        if limit is not None and size > limit:
            raise ModelError(f"{path}: has {size:,} bytes; at most {limit:,} are read.")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from None


def _walk(folder: Path) -> Iterator[str]:
    """Every file below a folder, as a relative name with forward slashes."""
    for parent, _, names in os.walk(folder):
        for name in names:
            yield (Path(parent) / name).relative_to(folder).as_posix()
