"""What the documents tell a reader to type exists: commands, options, targets, extras, files.

Fenced blocks and inline code of every document are searched for `vconv VERB ...`, `make TARGET`,
`python -m MODULE` and `pip install '.[EXTRA]'`; links are followed; Python examples are parsed.
"""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def text(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


def code_lines(document: str) -> list[str]:
    """The lines of all code in a document, comments cut off."""
    source = text(document)
    lines = [line for _, block in FENCE.findall(source) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", source))
    return [line.partition(" #")[0].strip() for line in lines]


def found(pattern: str) -> list[tuple[str, str]]:
    """(document, first group) of every line of code that matches from its start."""
    matches = {
        (document, match[1])
        for document in DOCUMENTS
        for line in code_lines(document)
        if (match := re.match(pattern, line))
    }
    return sorted(matches)


@cache
def help_of(verb: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vconv", *([verb] if verb else []), "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert done.returncode == 0, f"vconv {verb} --help: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize(("document", "words"), found(r"vconv ([a-z].*)"))
def test_the_commands_exist_with_their_options(document: str, words: str) -> None:
    verb, _, rest = words.partition(" ")
    assert re.search(rf"^\W*{verb}\b", help_of(""), re.MULTILINE), f"{document}: vconv {words}"
    options = set(re.findall(r"(?<![\w-])(--?[a-z][\w-]*)", rest))
    known = set(re.findall(r"(?<![\w-])(--?[a-z][\w-]*)", help_of(verb)))
    assert options <= known, f"{document}: vconv {words}"


def test_every_command_is_documented() -> None:
    shown = {words.split()[0] for document, words in found(r"vconv ([a-z].*)")}
    verbs = "convert encode decode speakers info verify bench doctor prepare train plot export"
    for verb in verbs.split():
        assert verb in shown


@pytest.mark.parametrize(("document", "target"), found(r"make (?:\w+=\S+ )*([a-z]+)\b"))
def test_the_make_targets_exist(document: str, target: str) -> None:
    assert re.search(rf"^{target}:", text("Makefile"), re.MULTILINE), document


@pytest.mark.parametrize(("document", "module"), found(r"(?:\S*/)?python3? -m ([\w.]+\w)"))
def test_the_modules_exist(document: str, module: str) -> None:
    assert importlib.util.find_spec(module) is not None, document


@pytest.mark.parametrize(("document", "extras"), found(r".*pip install .*\.\[([\w,]+)\]"))
def test_the_extras_exist(document: str, extras: str) -> None:
    declared = set(metadata("vconv").get_all("Provides-Extra") or [])
    assert set(extras.split(",")) <= declared, document


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_links_lead_somewhere(document: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text(document))):
        if not re.match(r"https?:|#", link):
            target = (ROOT / document).parent / link.partition("#")[0]
            assert target.exists(), f"{document}: {link}"


@pytest.mark.parametrize(
    ("document", "path"), found(r"(?:.*\s)?((?:configs|examples)/[\w./-]*\.\w+)")
)
def test_the_files_exist(document: str, path: str) -> None:
    assert (ROOT / path).exists(), document


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_python_examples_use_names_that_exist(document: str) -> None:
    import vconv

    for language, block in FENCE.findall(text(document)):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = {"vconv": vconv, "vc": vconv.Converter}.get(node.value.id)
                if owner is not None:
                    assert hasattr(owner, node.attr), f"{document}: {ast.unparse(node)}"


def test_the_first_screen_says_how_to_begin() -> None:
    screen = "\n".join(text("README.md").splitlines()[:20])
    assert "make demo" in screen
    assert "make test" in screen
