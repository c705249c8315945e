"""Voice conversion with a VQ/VAE WaveNet autoencoder: say something in any voice, hear it in a
chosen speaker's.

    import vconv
    vconv.load("demo").convert("in.wav", speaker="12").save("out.wav")

Names are imported when they are first used, so that ``import vconv`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .converter import Converter, load
    from .errors import InputError, ModelError, SetupError, UsageError, VconvError
    from .results import Cancelled, Conversion, Units, WrittenFile
    from .speakers import SpeakerMap

    __version__: str

__all__ = [
    "Cancelled",
    "Conversion",
    "Converter",
    "InputError",
    "ModelError",
    "SetupError",
    "SpeakerMap",
    "Units",
    "UsageError",
    "VconvError",
    "WrittenFile",
    "__version__",
    "load",
]

_MODULES = {
    "Cancelled": "results",
    "Conversion": "results",
    "Converter": "converter",
    "InputError": "errors",
    "ModelError": "errors",
    "SetupError": "errors",
    "SpeakerMap": "speakers",
    "Units": "results",
    "UsageError": "errors",
    "VconvError": "errors",
    "WrittenFile": "results",
    "load": "converter",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vconv")
    if name not in _MODULES:
        raise AttributeError(f"module 'vconv' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
