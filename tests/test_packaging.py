"""What a user installs is what lies in the repository.

Setuptools leaves a subpackage that pyproject.toml forgets out of the wheel without a word, and the
mapped folders (train, export, demo) could end up as top-level packages. So the distributions are
built from a copy of the tree, the wheel from the source distribution, and compared with the tree.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"vconv": "vconv", "train": "vconv/train", "export": "vconv/export", "demo": "vconv/demo"}
NOT_SOURCES = {".so", ".pyd", ".dylib", ".pyc"}
LEFT_BEHIND = (".*", "__pycache__", "build", "dist", "out", "runs", "corpora", "*.egg-info", "*.so")


def run(*command: str | Path, cwd: Path, **options: object) -> str:
    """The command's output; a failure shows it."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        **options,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def source_files() -> set[str]:
    """Every file of the packages, under the path that its dotted name asks for."""
    return {
        f"{installed}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, installed in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in NOT_SOURCES and "__pycache__" not in path.parts
    }


def environment(installed: Path) -> dict[str, str]:
    """The wheel before everything else, and this interpreter's own libraries for the rest."""
    return {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    shutil.copytree(ROOT / ".ci", tree / ".ci")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, tree, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (wheel,) = distributions.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel alone, installed away from the repository and from the environment."""
    target = tmp_path_factory.mktemp("installed")
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
        *("--target", target, wheel),
        cwd=target,
    )
    return target


def test_no_source_file_is_missing_from_the_wheel_and_none_is_added(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packaged = {
            name
            for name in archive.namelist()
            if ".dist-info/" not in name and Path(name).suffix not in NOT_SOURCES
        }
    assert packaged == source_files()


def test_the_wheel_carries_the_compiled_sampler_and_the_type_marker(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "vconv/py.typed" in names
    assert [name for name in names if name.startswith("vconv/native/") and ".so" in name], names


def test_nothing_but_vconv_lands_in_site_packages(installed: Path) -> None:
    names = {path.name for path in installed.iterdir()} - {"bin", "__pycache__"}
    assert {name for name in names if not name.endswith(".dist-info")} == {"vconv"}


@pytest.fixture(scope="module")
def requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist", [])


def test_the_base_install_asks_for_no_torch(requirements: list[str]) -> None:
    base = [line for line in requirements if "extra ==" not in line]
    assert any(line.startswith("numpy") for line in base)
    for heavy in ("torch", "librosa", "gradio", "matplotlib", "tensorboard", "onnxscript"):
        assert not [line for line in base if line.startswith(heavy)]


# What each folder may import: the base dependencies and these extras.
EXTRAS = {
    "vconv": set(),
    "vconv/engines": {"export"},
    "vconv/nn": {"train"},
    "train": {"train"},
    "train/evaluation": {"eval", "train"},
    "export": {"export"},
    "demo": {"demo"},
}
# torch's builds for CUDA need this one release of it, others none; who lacks it is told so.
COMES_WITH = {"triton": "torch"}


@pytest.mark.parametrize("folder", EXTRAS)
def test_every_imported_package_is_declared(folder: str, requirements: list[str]) -> None:
    """A dependency that happens to come with another is missing for whoever lacks that one."""
    declared = {
        canonical(re.match(r"[\w.-]+", line)[0])
        for line in requirements
        if not (extra := re.search(r"extra == .(\w+)", line)) or extra[1] in EXTRAS[folder]
    }
    providers = packages_distributions()
    for path in (ROOT / folder).rglob("*.py"):
        if folder != (nearest := str(path.parent.relative_to(ROOT))) and nearest in EXTRAS:
            continue
        for name in imported(path) - set(sys.stdlib_module_names) - {"vconv"}:
            name = COMES_WITH.get(name, name)
            distributions = {canonical(found) for found in providers.get(name, [name])}
            assert distributions & declared, f"{path.relative_to(ROOT)} imports {name}"


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def imported(path: Path) -> set[str]:
    """The top-level names of a file's absolute imports, wherever in the file they stand."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_the_source_distribution_has_what_its_checks_need(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("constraints.txt", "Makefile", ".ci/run", "tests/conftest.py", "LICENSE"):
        assert name in names


def test_every_module_of_the_installed_wheel_can_be_imported(installed: Path) -> None:
    for package in ("torch", "torchaudio", "onnx"):
        if find_spec(package) is None:
            pytest.skip(f"{package}, which parts of vconv import, is not installed")
    # The sampler is a plain shared library among the modules; what is no .py is not imported.
    program = """
import importlib, importlib.util, pathlib, pkgutil, sys
import vconv
target = pathlib.Path(sys.argv[1]).resolve()
for found in pkgutil.walk_packages(vconv.__path__, "vconv."):
    origin = pathlib.Path(importlib.util.find_spec(found.name).origin).resolve()
    if origin.suffix == ".py":
        assert target in origin.parents, origin
        if origin.name != "__main__.py":
            try:
                importlib.import_module(found.name)
            except ModuleNotFoundError as error:
                if error.name != "gradio":  # of the demo extra, which the tests do without
                    raise
        print(found.name)
"""
    output = run(
        *(sys.executable, "-c", program, installed),
        cwd=installed,
        env=environment(installed),
    )
    expected = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in source_files()
        if name.endswith(".py") and name != "vconv/__init__.py"
    }
    assert set(output.split()) == expected


@pytest.mark.parametrize("program", [("-m", "vconv"), ("bin/vconv",)], ids=["module", "script"])
def test_the_installed_command_answers_help(installed: Path, program: tuple[str, ...]) -> None:
    output = run(sys.executable, *program, "--help", cwd=installed, env=environment(installed))
    assert "convert" in output
