"""The import contracts and the type checker see every package, the mapped folders included.

A contract over packages that the linter cannot find passes for want of anything to look at. Each
test therefore plants what must not be in a copy of the tree and expects the failure by name.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = "Arrows point downwards"
TORCH_FREE = "Converting needs no torch"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the Python sources and of pyproject.toml, free to be spoilt."""
    for folder in ("vconv", "train", "export", "demo"):
        for source in (ROOT / folder).rglob("*.py"):
            copy = tmp_path / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    return tmp_path


def lint(tree: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "lint_imports.py"), str(tree)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


def test_the_tree_as_it_is_keeps_its_contracts(tree: Path) -> None:
    code, output = lint(tree)
    assert code == 0, output
    assert "2 kept, 0 broken" in output


@pytest.mark.parametrize(
    ("file", "planted", "contract"),
    [
        pytest.param("train/__init__.py", "import vconv.export", LAYERS, id="train-export"),
        pytest.param("train/__init__.py", "from vconv.demo import corpus", LAYERS, id="train-demo"),
        pytest.param("export/__init__.py", "import vconv.train", LAYERS, id="export-train"),
        pytest.param("demo/__init__.py", "from vconv import train", LAYERS, id="demo-train"),
        pytest.param("vconv/bundle.py", "import vconv.export", LAYERS, id="back-to-export"),
        pytest.param("vconv/nn/__init__.py", "import vconv.train", LAYERS, id="nn-back-to-train"),
        pytest.param("train/__init__.py", "import vconv.cli", LAYERS, id="back-to-cli"),
        pytest.param("vconv/speakers.py", "import vconv.config", LAYERS, id="speakers-config"),
        pytest.param("vconv/geometry.py", "import vconv.audio", LAYERS, id="geometry-audio"),
        pytest.param("vconv/config.py", "import vconv.geometry", LAYERS, id="config-geometry"),
        pytest.param("vconv/errors.py", "import vconv.speakers", LAYERS, id="errors-ours"),
        pytest.param("vconv/stray.py", "", LAYERS, id="a-module-without-a-place"),
        pytest.param("vconv/__init__.py", "import torch", TORCH_FREE, id="root-torch"),
        pytest.param("vconv/__init__.py", "import vconv.train", TORCH_FREE, id="root-train"),
        pytest.param("vconv/audio.py", "import librosa", TORCH_FREE, id="audio-librosa"),
        pytest.param("vconv/errors.py", "import torchaudio", TORCH_FREE, id="torch-behind-errors"),
        pytest.param(
            "vconv/converter.py", "def f():\n    import vconv.nn", TORCH_FREE, id="nn-in-a-function"
        ),
        pytest.param(
            "vconv/engines/native.py", "import torch.nn", TORCH_FREE, id="native-engine-torch"
        ),
    ],
)
def test_a_forbidden_import_breaks_its_contract(
    tree: Path, file: str, planted: str, contract: str
) -> None:
    with open(tree / file, "a", encoding="utf-8") as source:
        source.write(f"\n{planted}\n")
    code, output = lint(tree)
    assert code == 1, output
    assert f"{contract} BROKEN" in output


def test_a_mapped_package_that_vanishes_is_noticed(tree: Path) -> None:
    shutil.rmtree(tree / "train")
    code, output = lint(tree)
    assert code == 1
    assert "vconv.train does not exist" in output


def test_mypy_checks_the_mapped_packages(tmp_path: Path) -> None:
    """Through typings/ and under the configuration of pyproject.toml, one error in each package."""
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    shutil.copytree(ROOT / "typings", tmp_path / "typings", symlinks=True)
    folders = ("vconv", "train", "export", "demo")
    for folder in folders:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
        # The runtime's own type reaches the mapped package: an error, not a silent Any.
        planted = f"def {folder}(size: int) -> str:\n    return size\n"
        if folder != "vconv":
            planted += "from vconv.planted import vconv\nvconv('wide')\n"
        (tmp_path / folder / "planted.py").write_text(planted)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    for folder in folders:
        where = folder if folder == "vconv" else f"typings/vconv/{folder}"
        assert f"{where}/planted.py:2: error: Incompatible return value" in done.stdout
        if folder != "vconv":
            assert f"{where}/planted.py:4: error: Argument 1" in done.stdout
