"""What is installed, by the metadata of packages: nothing is imported, for it may be broken."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib import metadata

# All of these install a package called onnxruntime; the last one that was installed wins.
RUNTIMES = [
    f"onnxruntime{kind}"
    for kind in ("", "-gpu", "-directml", "-openvino", "-qnn", "-rocm", "-migraphx", "-training")
]
_CUDA_PLATFORMS = (("linux", "x86_64"), ("win32", "AMD64"))


def version_of(distribution: str) -> str | None:
    """The version that is installed, and nothing imported."""
    try:
        return metadata.version(distribution)
    except Exception:  # none, or metadata that cannot be read
        return None


def runtime() -> str:
    """The onnxruntime of this platform."""
    machine = (sys.platform, platform.machine())
    return f"onnxruntime{'-gpu' if machine in _CUDA_PLATFORMS else ''}"


def unmet_of(distribution: str, extra: str = "") -> Sequence[str]:
    """The requirements of a distribution, or of one of its extras, that are not met here."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(text) for text in metadata.requires(distribution) or []]
    except Exception:
        return []
    unmet: list[str] = []
    for requirement in requirements:
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if marker is not None and not (always or marker.evaluate({"extra": extra})):
            continue
        if always and extra:  # it is not the extra that asks for this one
            continue
        version = version_of(requirement.name)
        if version is None:
            unmet.append(requirement.name)
        elif not requirement.specifier.contains(version, prereleases=True):
            unmet.append(f"{requirement.name} {version}, where {requirement.specifier} is needed")
        for each in sorted(requirement.extras):
            unmet += unmet_of(requirement.name, each)
    return list(dict.fromkeys(unmet))


def extras(distribution: str) -> list[str]:
    """The names of its extras; none if it is not installed."""
    try:
        return metadata.metadata(distribution).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []
