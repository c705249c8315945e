"""Units in a file: speech as a code of a few hundred bits a second.

docs/units-format.md specifies it. A file is not trusted: its header is held against limits and
against the file's length before anything that it announces is read, and its checksum before any of
it is believed.

U units, K codes, D latent width.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from .audio import SAMPLE_RATE, replacing, writing
from .errors import InputError, UsageError
from .reading import Samples, Source, open_source, printable, reason_of

SUFFIX: Final = ".units"
FORMAT_VERSION: Final = 1
MAX_CODES: Final = 1 << 24
MAX_WIDTH: Final = (1 << 16) - 1
MAX_NAME_BYTES: Final = 1024

_MAGIC: Final = b"\x89VCU\r\n\x1a\n"  # as PNG's, it shows what a transfer as text would spoil
# magic, version, kind, flags, K, D, samples per unit, U, samples, digest, bytes of the name
_HEADER: Final = struct.Struct("<8sHBBIHHIQ16sH")
_CHECKSUM: Final = struct.Struct("<I")
_CODES, _LATENTS = 1, 2  # kinds
_PITCH = 1  # flag
_MAX_UNITS: Final = (1 << 32) - 1
_MAX_SAMPLES: Final = (1 << 64) - 1

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UnitsModel:
    """The model whose units they are, as far as units depend on it.

    ``digest`` are 32 hexadecimal digits (``Bundle.units_model`` says of what): models of the same
    digest have the same units, whatever their decoders and voices. ``name`` is for people.
    ``codebook_size`` K is None for a model of latents, ``unit_samples`` the length of a unit at
    16 kHz.
    """

    name: str
    digest: str
    codebook_size: int | None
    unit_samples: int

    @property
    def unit_rate(self) -> float:
        """Units per second."""
        return SAMPLE_RATE / self.unit_samples

    def __str__(self) -> str:
        return f"{self.name!r} (units {self.digest[:12]})"


class StoredUnits(NamedTuple):
    """What a file holds: the fields of ``results.Units``."""

    codes: Codes | None
    samples: int
    latents: Samples | None
    pitch: Samples | None
    model: UnitsModel


def bits_per_unit(codebook_size: int | None, width: int, pitch: bool) -> int:
    """What a unit takes in a file: ceil(log2 K) bits, or D numbers of 32; pitch is two more."""
    code = 32 * width if codebook_size is None else (codebook_size - 1).bit_length()
    return code + (64 if pitch else 0)


def write_units(path: str | os.PathLike[str], units: StoredUnits) -> None:
    """Write a file beside its place and rename it there; raises UsageError as ``pack``, and for a
    place that cannot be written to."""
    data = pack(units)
    with replacing(path) as beside, writing(printable(path)):
        beside.write_bytes(data)


def read_units(source: Source) -> StoredUnits:
    """Read a path, the bytes of a file, or a seekable binary file.

    Raises InputError, "<file>: <reason>", for whatever is not a whole, undamaged file of units.
    """
    name, file, owned = open_source(source, "a file of units")
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(_HEADER.size)
        wanted = _announced(head, size, name)
        if size != wanted:
            raise _refusal(
                name,
                f"was cut short or is damaged: {wanted:,} bytes announced, {size:,} are there",
            )
        data = head + file.read(wanted - len(head))
    except (OSError, ValueError) as error:
        raise _refusal(name, f"cannot be read ({reason_of(error)})") from None
    finally:
        if owned:
            file.close()
    if len(data) != wanted or zlib.crc32(data[:-4]) != _CHECKSUM.unpack(data[-4:])[0]:
        raise _refusal(name, "is damaged: its checksum does not match its content")
    return _unpacked(data, name)


def pack(units: StoredUnits) -> bytes:
    """The bytes of a file. Raises UsageError for units that no model can have made."""
    codes, samples, latents, pitch, model = units
    size = model.codebook_size
    count = _checked(units)
    body = b""
    if codes is not None:
        body += _packed(codes, bits_per_unit(size, 0, False))
    if latents is not None:
        body += np.ascontiguousarray(latents, "<f4").tobytes()
    if pitch is not None:
        body += np.ascontiguousarray(pitch, "<f4").tobytes()
    name = _cut(model.name)
    header = _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        _LATENTS if latents is not None else _CODES,
        0 if pitch is None else _PITCH,
        size or 0,
        0 if latents is None else latents.shape[1],
        model.unit_samples,
        count,
        samples,
        bytes.fromhex(model.digest),
        len(name),
    )
    data = header + name + body
    return data + _CHECKSUM.pack(zlib.crc32(data))


def _announced(head: bytes, size: int, name: str) -> int:
    """How long the file is by its header, the header's numbers being possible."""
    if size == 0:
        raise _refusal(name, "is empty")
    if head[: len(_MAGIC)] != _MAGIC[: len(head)]:
        raise _refusal(name, "is not a file of units")
    if len(head) < _HEADER.size:
        raise _refusal(name, f"was cut short: {size:,} bytes are no whole header")
    fields: tuple[bytes, int, int, int, int, int, int, int, int, bytes, int] = _HEADER.unpack(head)
    _, version, kind, flags, codes, width, hop, count, samples, _, letters = fields
    if version != FORMAT_VERSION:
        advice = "; update vconv to read it" if version > FORMAT_VERSION else ""
        raise _refusal(
            name, f"has format version {version}; this vconv reads {FORMAT_VERSION}{advice}"
        )
    coded = kind == _CODES and 2 <= codes <= MAX_CODES and width == 0
    latent = kind == _LATENTS and codes == 0 and width >= 1
    if not (coded or latent) or flags & ~_PITCH:
        raise _refusal(
            name,
            f"is damaged: kind {kind} with flags {flags}, {codes:,} codes and width {width:,} is "
            "none of the format's",
        )
    if hop == 0 or samples == 0 or count * hop < samples:
        raise _refusal(
            name,
            f"is damaged: {count:,} units of {hop:,} samples cannot be of {samples:,} samples",
        )
    if letters > MAX_NAME_BYTES:
        raise _refusal(name, f"is damaged: a model's name has no {letters:,} bytes")
    bits = bits_per_unit(codes if coded else None, width, pitch=False)
    pitch = 8 * count if flags & _PITCH else 0
    return _HEADER.size + letters + (count * bits + 7) // 8 + pitch + _CHECKSUM.size


def _unpacked(data: bytes, where: str) -> StoredUnits:
    """The content of a file whose header and checksum are right."""
    _, _, kind, flags, size, width, hop, count, samples, digest, letters = _HEADER.unpack_from(data)
    at = _HEADER.size + letters
    try:
        label = data[_HEADER.size : at].decode("utf-8")
    except UnicodeDecodeError:
        raise _refusal(where, "is damaged: the model's name is not UTF-8") from None
    model = UnitsModel(label, digest.hex(), size or None, hop)
    codes = latents = pitch = None
    end = len(data) - _CHECKSUM.size
    if flags & _PITCH:
        end -= 8 * count
        pitch = np.frombuffer(data, "<f4", 2 * count, end).astype(np.float32).reshape(-1, 2)
    if kind == _CODES:
        codes = _codes_of(data[at:end], count, bits_per_unit(size, 0, False))
        if codes is None or codes.max() >= size:
            raise _refusal(where, f"is damaged: its codes are not 0 to {size - 1:,}")
    else:
        flat = np.frombuffer(data, "<f4", count * width, at)
        latents = flat.astype(np.float32).reshape(-1, width)
    for numbers in (latents, pitch):
        if numbers is not None and not np.isfinite(numbers).all():
            raise _refusal(where, "is damaged: it contains NaN or infinity")
    return StoredUnits(codes, samples, latents, pitch, model)


def _packed(codes: Codes, bits: int) -> bytes:
    """Codes [U] of so many bits, one after the other, each with its lowest bit first."""
    planes = np.empty((len(codes), bits), np.uint8)
    for bit in range(bits):  # not all at once: that would take eight bytes for every bit
        planes[:, bit] = (codes >> bit) & 1
    return np.packbits(planes, bitorder="little").tobytes()


def _codes_of(data: bytes, count: int, bits: int) -> Codes | None:
    """The codes [U] that were packed; None if bits are set that belong to none."""
    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if stream[count * bits :].any():
        return None
    planes = stream[: count * bits].reshape(count, bits)
    codes = np.zeros(count, np.int64)
    for bit in range(bits):
        codes |= planes[:, bit].astype(np.int64) << bit
    return codes


def _checked(units: StoredUnits) -> int:
    """How many units they are; UsageError for what a file cannot hold."""
    codes, samples, latents, pitch, model = units
    coded = model.codebook_size is not None
    if (codes is not None) != coded or (latents is None) != coded:
        raise UsageError(
            f"Units of the model {model.name!r} are {'codes' if coded else 'latents'} only."
        )
    numbers = codes if codes is not None else latents
    assert numbers is not None
    count = len(numbers)
    shaped = (
        numbers.ndim == 1 and numbers.dtype.kind in "iu" if codes is not None else numbers.ndim == 2
    )
    if not shaped or (pitch is not None and pitch.shape != (count, 2)):
        raise UsageError("Units are whole codes [U] or latents [U, D], and pitch [U, 2] if any.")
    if not 1 <= samples <= _MAX_SAMPLES or not samples <= count * model.unit_samples:
        raise UsageError(
            f"{count:,} units of {model.unit_samples:,} samples cannot be of {samples:,} samples."
        )
    if count > _MAX_UNITS or (latents is not None and not 1 <= latents.shape[1] <= MAX_WIDTH):
        raise UsageError(f"A file holds at most {_MAX_UNITS:,} units, of 1 to {MAX_WIDTH} numbers.")
    if codes is not None:
        size = model.codebook_size
        assert size is not None
        if not 2 <= size <= MAX_CODES:
            raise UsageError(f"A file holds codes of 2 to {MAX_CODES:,}, found {size:,}.")
        if codes.min() < 0 or codes.max() >= size:
            raise UsageError(
                f"The model's codes are 0 to {size - 1}, found {codes.min()} to {codes.max()}."
            )
    for array in (latents, pitch):
        if array is not None and not np.isfinite(array).all():
            raise UsageError("The units must be finite numbers, found NaN or infinity.")
    return count


def _cut(name: str) -> bytes:
    """A name as at most so many bytes of UTF-8, in whole characters."""
    data = name.encode("utf-8", "replace")[:MAX_NAME_BYTES]
    return data.decode("utf-8", "ignore").encode("utf-8")


def _refusal(name: str, reason: str) -> InputError:
    return InputError(f"{name}: {reason}.")
