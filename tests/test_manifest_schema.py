"""docs/manifest.schema.json is made from the model that reads manifests, and says what it says."""

from __future__ import annotations

import copy
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from vconv.manifest import Manifest

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "docs" / "manifest.schema.json"
BUNDLED = ROOT / "vconv" / "models" / "demo" / "manifest.json"
FIRST = ROOT / "tests" / "export" / "format-1" / "manifest.json"

# Where in the bundled manifest, and what stands there instead; None: nothing does.
BROKEN: dict[str, tuple[tuple[str, ...], object]] = {
    "no name": (("name",), None),
    "no files": (("files",), None),
    "another format": (("format_version",), 3),
    "an unknown field": (("surprise",), 1),
    "an unknown field inside": (("geometry", "surprise"), 1),
    "a length in words": (("geometry", "unit_hop"), "long"),
    "half a sample": (("geometry", "receptive_field"), 0.5),
    "no speakers": (("speakers",), []),
    "a speaker without a name": (("speakers",), ["a", ""]),
    "a negative size": (("files", "golden.npz", "size"), -1),
    "a file beyond 2 GB": (("files", "golden.npz", "size"), 2**31),
    "a short hash": (("files", "golden.npz", "sha256"), "ab"),
    "a name that leads out": (("files", "../x"), {"size": 0, "sha256": "0" * 64}),
    "an absolute name": (("files", "/x"), {"size": 0, "sha256": "0" * 64}),
    "a hidden file": (("files", ".x"), {"size": 0, "sha256": "0" * 64}),
    "a long name": (("files", "x" * 201), {"size": 0, "sha256": "0" * 64}),
    "a billion blocks": (("model", "decoder", "blocks"), 10**9),
    "a bottleneck of another kind": (("model", "bottleneck", "kind"), "sieve"),
    "a digest in capitals": (("digest",), "A" * 64),
    "a figure in words": (("quality",), {"heldout_nll": "good"}),
}


def broken(case: str) -> dict[str, Any]:
    (*inside, last), value = BROKEN[case]
    values: dict[str, Any] = json.loads(BUNDLED.read_bytes())
    section = values
    for name in inside:
        section = section[name]
    if value is None:
        del section[last]
    else:
        section[last] = copy.deepcopy(value)
    return values


def test_the_schema_is_what_its_script_writes() -> None:
    script = runpy.run_path(str(ROOT / ".ci" / "manifest_schema.py"))
    assert SCHEMA.read_text("utf-8") == script["text"](), "run .ci/manifest_schema.py"


def test_the_schema_names_every_field_and_no_other() -> None:
    schema = json.loads(SCHEMA.read_bytes())
    assert schema["properties"].keys() == Manifest.model_fields.keys()
    optional = {"quality", "precisions", "limits", "tools", "input_level_db"}
    assert set(schema["required"]) == Manifest.model_fields.keys() - optional
    sections = [schema, *schema["$defs"].values()]
    assert not any(each.get("additionalProperties", True) for each in sections)
    text = json.dumps(schema)
    for part in text.split('"$ref": "#/$defs/')[1:]:
        assert part.partition('"')[0] in schema["$defs"]


@pytest.mark.parametrize("path", [BUNDLED, FIRST, "format-2"], ids=["bundled", "first", "second"])
def test_manifests_that_are_read_pass(path: Path | str, tmp_path: Path) -> None:
    if isinstance(path, str):
        shutil.unpack_archive(FIRST.parents[1] / f"{path}.tar.xz", tmp_path, filter="data")
        path = tmp_path / path / "manifest.json"
    schema = json.loads(SCHEMA.read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(path.read_bytes()))


@pytest.mark.parametrize("case", BROKEN)
def test_broken_manifests_fail_the_schema(case: str) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_bytes()))
    assert not validator.is_valid(broken(case))


@pytest.mark.parametrize("case", [case for case in BROKEN if "another" not in case])
def test_what_fails_the_schema_fails_the_reader(case: str) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate(broken(case))
