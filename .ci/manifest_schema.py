"""Write docs/manifest.schema.json, the JSON schema of a bundle's manifest.json, from its model.

    python .ci/manifest_schema.py

tests/test_manifest_schema.py fails when the file is not what this writes.
"""

import json
from pathlib import Path
from typing import Any

from vconv.manifest import Manifest

SCHEMA = Path(__file__).parents[1] / "docs" / "manifest.schema.json"


def text() -> str:
    """The file's content."""
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema |= Manifest.model_json_schema()
    # What has a default for writing has to be there for reading.
    schema["required"] += ["format_version", "digest"]
    schema["properties"]["files"]["additionalProperties"] = False
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(text(), "utf-8")
    print(SCHEMA)
