"""The models that the page can speak with: those installed, and the one it was started with."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from vconv.errors import UsageError

if TYPE_CHECKING:
    from vconv import Converter
    from vconv.bundle import Bundle

_LOADED = 2  # converters in memory


class Shelf:
    """Models by name, loaded when they are first asked for. Only these names lead anywhere: what
    a browser sends is never a path."""

    def __init__(self, model: str) -> None:
        """``model``: a name or a folder; raises ModelError if it is no model."""
        from vconv.bundle import Bundle, find_model

        folder = find_model(model)
        bundle = Bundle.open(folder)
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._converters: OrderedDict[str, Converter] = OrderedDict()
        installed = self._installed()
        known = [name for name, path in installed.items() if path == folder]
        self.default = known[0] if known else bundle.manifest.name
        self._extra = {} if known else {self.default: folder}
        self._bundles: dict[str, Bundle] = {self.default: bundle}

    @property
    def names(self) -> list[str]:
        """The models that can be chosen, the page's own first."""
        return list(dict.fromkeys([self.default, *self._installed()]))

    def bundle(self, name: str) -> Bundle:
        """Raises UsageError for a name that is not on the shelf, ModelError for a bad model."""
        from vconv.bundle import Bundle

        with self._lock:
            if name in self._bundles:
                return self._bundles[name]
        bundle = Bundle.open(self._folder(name))
        with self._lock:
            self._bundles[name] = bundle
        return bundle

    def converter(self, name: str) -> Converter:
        """The loaded model; raises as ``vconv.load``."""
        with self._loading:
            if name not in self._converters:
                import vconv

                self._converters[name] = vconv.load(self._folder(name))
            self._converters.move_to_end(name)
            while len(self._converters) > _LOADED:
                self._converters.popitem(last=False)
            return self._converters[name]

    def voices(self, name: str) -> list[str]:
        """The names of a model's speakers."""
        return list(self.bundle(name).speakers.names)

    def first_voice(self, name: str) -> str:
        """The one that is chosen at first: the middle of the table, as good as any."""
        voices = self.voices(name)
        return voices[len(voices) // 2]

    def sample(self, name: str, index: int) -> Path | None:
        """The clip of a voice, if the model has one: ``samples/012-slt.ogg``."""
        bundle = self.bundle(name)
        wanted = f"samples/{index:03d}-"
        for each in bundle.manifest.files:
            if each.startswith(wanted):
                return bundle.path / each
        return None

    def _folder(self, name: str) -> Path:
        folder = ({**self._installed(), **self._extra}).get(name)
        if folder is None:
            raise UsageError(
                f"There is no model {name!r} on this page; there are {', '.join(self.names)}."
            )
        return folder

    @staticmethod
    def _installed() -> dict[str, Path]:
        from vconv.bundle import known_models

        return known_models()
