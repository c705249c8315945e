"""What a run may be called."""

from __future__ import annotations

from pathlib import Path

from vconv.config import Config
from vconv.errors import UsageError

MAX_NAME_BYTES = 200  # file systems allow 255, and "-smoke" may be added


def run_name(given: str | None, config: Config, config_path: Path) -> str:
    """The run's name: ``--run``, or the configuration's.

    Raises UsageError for one that is no name of a folder in runs/: runs stay there.
    """
    name, where = (config.name, f"{config_path}: name") if given is None else (given, "--run")
    reason = ""
    if not name:
        reason = "is empty"
    elif set(name) & set("/\\"):
        reason = "has a slash"
    elif name.startswith("."):
        reason = "begins with a dot"
    elif not name.isprintable():
        reason = "has characters that cannot be printed"
    elif name != name.strip():
        reason = "begins or ends with a space"
    elif len(name.encode()) > MAX_NAME_BYTES:
        reason = f"has more than {MAX_NAME_BYTES} bytes"
    if reason:
        shown = ascii(name) if len(name) <= MAX_NAME_BYTES else f"{name[:40]!a}..."
        raise UsageError(
            f"{where}: {shown} {reason}; a run's name is the name of its folder in runs/, such as "
            "demo-2."
        )
    return name
