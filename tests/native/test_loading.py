"""A sampler that is missing, broken or of another version is one sentence, not a traceback."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from vconv import native
from vconv.engines import create_engine
from vconv.errors import SetupError


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> object:
    """Replaces what is found under the name of a module; None: nothing is."""
    found: dict[str, ModuleSpec | None] = {}
    find_spec = importlib.util.find_spec

    def pretended(name: str, package: str | None = None) -> ModuleSpec | None:
        return found[name] if name in found else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", pretended)
    return found


def test_a_sampler_that_was_not_built_is_named_with_the_cure(pretend: dict[str, None]) -> None:
    pretend["vconv.native._sampler"] = None
    with pytest.raises(
        SetupError, match=r"missing; install a C\+\+ compiler and run .*torchscript"
    ):
        native.load()


def test_a_damaged_sampler_is_a_setup_error(pretend: dict[str, ModuleSpec], tmp_path: Path) -> None:
    path = tmp_path / "_sampler.so"
    path.write_bytes(b"\x7fELF" + bytes(60))
    name = "vconv.native._sampler"
    pretend[name] = ModuleSpec(name, None, origin=str(path))
    with pytest.raises(SetupError, match="cannot be loaded"):
        native.load()


def test_another_version_of_the_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    native.load()
    monkeypatch.setattr(native, "_VERSION", 999)
    with pytest.raises(SetupError, match="needs 999"):
        native.load()


def test_auto_without_sampler_and_torch_says_what_to_install(pretend: dict[str, None]) -> None:
    pretend["vconv.native._sampler"] = None
    pretend["torch"] = None
    for name in ("auto", "torchscript"):
        with pytest.raises(SetupError, match="pip install"):
            create_engine(name, {}, blocks=1, layers=1, kernel_size=2, hop=1)
    with pytest.raises(SetupError, match="compiled sampler"):
        create_engine("auto", {}, blocks=1, layers=1, kernel_size=2, hop=1)
