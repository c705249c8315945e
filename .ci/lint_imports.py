"""Run import-linter over the packages as they are imported, not as the folders lie.

vconv.train, vconv.export and vconv.demo are folders beside vconv/ (package-dir in pyproject.toml).
import-linter walks the folder of the root package and would never see them. So the Python files are
copied into a temporary tree in which every package stands where its name says, and the contracts of
pyproject.toml are checked there. The layers contract names every module, so a tree that lacked one
of the mapped packages would fail rather than pass for want of anything to look at.

    python .ci/lint_imports.py [ROOT]
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # import-linter's own dependency there


def assemble(root: Path, tree: Path) -> None:
    """Copy the Python files of `root` to `tree`, each package where its dotted name says."""
    with open(root / "pyproject.toml", "rb") as file:
        mapped = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    for package, folder in {"vconv": "vconv", **mapped}.items():
        for source in (root / folder).rglob("*.py"):
            copy = tree / package.replace(".", "/") / source.relative_to(root / folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        assemble(root, Path(folder))
        command = ["--config", str(root / "pyproject.toml"), "--no-cache"]
        # -c rather than the lint-imports script: this interpreter's, wherever its scripts lie.
        program = "import sys; from importlinter.cli import lint_imports_command as run; run()"
        return subprocess.run([sys.executable, "-c", program, *command], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
