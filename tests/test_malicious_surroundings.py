"""What a malicious bundle, or checkpoint, could do by the names in it, and by lying around.

The bundles themselves are in `test_malicious_bundles.py`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from command_line import Run, one_error
from malicious import Payload, honest_copy, manifest, marker, written
from tiny_model import reseal, write_checkpoint


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return honest_copy(tmp_path)


# Names


def test_a_name_cannot_command_the_terminal(bundle: Path, run: Run) -> None:
    evil = "a\x1b]0;b\x07\u202e"
    manifest(name=evil, speakers=[evil, "bea", "carl"], limits=evil)(bundle)
    for way in ("info", "speakers"):
        done = run(way, "-m", bundle)
        assert done.code == 0
        assert not re.search("[\x1b\x07\u202e]", done.out)
        assert r"a\x1b]0;b\x07\u202e" in done.out
    done = run("speakers", "--json", "-m", bundle)
    assert json.loads(done.out)[0]["name"] == evil


def test_a_speaker_s_name_leads_nowhere(bundle: Path, run: Run) -> None:
    manifest(speakers=["../../evil", "/tmp/evil", "carl"])(bundle)
    for index in ("0", "1"):
        assert run("convert", "in.wav", "-s", index, "-m", bundle).code == 0
    written_ = {path.name for path in bundle.parent.iterdir()}
    assert written_ == {"bundle", "in.wav", "in.evil.wav", "in.tmp-evil.wav"}


# Files that Python would take for its own, where the bundle is the working directory

TAKEN = ("onnxruntime.py", "sitecustomize.py", "json.py", "time.py", "torch.py", "conftest.py")


@pytest.fixture
def inviting(bundle: Path) -> Path:
    """A bundle that lists modules of names that vconv imports."""
    code = f"import os\nopen({str(marker(bundle))!r}, 'w').close()\nraise SystemExit(9)\n"
    for name in (*TAKEN, "numpy/__init__.py"):
        written(name, code.encode())(bundle)
    written("evil.pth", f"import os; os.mkdir({str(marker(bundle))!r})\n".encode())(bundle)
    return reseal(bundle)


def in_folder(bundle: Path, *command: object) -> int:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [*map(str, command)], cwd=bundle, env=environment, capture_output=True, timeout=120
    ).returncode


QUICK = ("--seconds", "0.01", "--lanes", "1", "--engine", "native")
SCRIPT = "import sys; sys.path.remove(''); from vconv.cli import main; main()"


@pytest.mark.parametrize("way", ["info", "bench", "doctor"])
def test_modules_in_a_bundle_are_not_imported(inviting: Path, way: str) -> None:
    """As the installed command starts: its own folder is on the path, the working one is not."""
    arguments = (way, *(QUICK if way == "bench" else ()))
    code = in_folder(inviting, sys.executable, "-c", SCRIPT, *arguments, "-m", ".")
    assert not marker(inviting).exists()
    assert code in (0, 4, 5) if way == "doctor" else code == 0


@pytest.mark.skipif(sys.version_info < (3, 11), reason="python -P is new in 3.11")
def test_python_m_takes_modules_of_the_working_directory_unless_told_not_to(
    inviting: Path,
) -> None:
    """Before any line of ours: why docs/bundle-format.md says how to start it there."""
    assert in_folder(inviting, sys.executable, "-P", "-m", "vconv", "speakers", "-m", ".") == 0
    assert not marker(inviting).exists()
    assert in_folder(inviting, sys.executable, "-m", "vconv", "speakers", "-m", ".") == 9
    assert marker(inviting).exists()


# Checkpoints


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("average.safetensors", None, 4, "average.safetensors: not a whole"),
        ("speakers.json", None, 4, "speakers.json: not a list"),
        ("speakers.json", b"[" * 100_000, 4, "speakers.json: not a list"),
        ("config.yaml", b"!!python/object/apply:os.mkdir [ran]\n", 4, "config.yaml: "),
        ("checkpoint.json", None, 4, "checkpoint.json is missing or damaged"),
        ("checkpoint.json", b'{"a":' * 100_000, 4, "checkpoint.json is missing or damaged"),
    ],
)
def test_nothing_of_a_malicious_checkpoint_runs(
    tmp_path: Path, run: Run, name: str, content: bytes | None, code: int, says: str
) -> None:
    at = write_checkpoint(tmp_path / "run" / "checkpoints" / "step-000000020")
    evil = pickle.dumps(Payload(str(tmp_path / "ran"))) if content is None else content
    (at / name).write_bytes(evil)
    if name != "checkpoint.json":
        header = json.loads((at / "checkpoint.json").read_text())
        del header["digest"]
        header["files"][name] = sha256(evil).hexdigest()
        text = json.dumps(header, sort_keys=True).encode()
        header["digest"] = sha256(text).hexdigest()
        text_ = json.dumps(header, indent=1, sort_keys=True) + "\n"
        (at / "checkpoint.json").write_text(text_)
    done = run("export", at, "-o", tmp_path / "out")
    assert done.code == code
    assert re.search(says, one_error(done))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_pickle_is_no_checkpoint_to_resume_from(tmp_path: Path, run: Run) -> None:
    for name in ("step.pt", "step-000000020"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(str(tmp_path / "ran"))))
        config = Path(__file__).parents[1] / "configs" / "tiny.yaml"
        done = run("train", config, "--resume", tmp_path / name)
        assert done.code != 0
        assert "fault of vconv" not in one_error(done)
        assert not (tmp_path / "ran").exists()
