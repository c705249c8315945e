"""Reading a YAML file of settings: its text, ``key.sub=value`` overrides, and one sentence for
whatever is wrong with it.

The text is a stranger's: its size and its nesting are bounded, and nothing in it is executed.
"""

from __future__ import annotations

import difflib
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from .errors import UsageError

MAX_BYTES = 1 << 16  # every key with a comment is a tenth of it; reading it takes half a second

_S = TypeVar("_S", bound=BaseModel)
_FLOAT, _MERGE, _DATE = (f"tag:yaml.org,2002:{name}" for name in ("float", "merge", "timestamp"))
# YAML 1.1 takes 1e-3 for a text, because it has no dot; everybody else takes it for a number.
_EXPONENT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
_MUST_BE = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "a text (in quotes, if it looks like anything else)",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "truth": "no true or false",
}


class _Loader(yaml.SafeLoader):
    """Plain values only. 1e-3 is a number, a date is a text, and a key occurs once."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's, as it is in its own classes
        first: [pair for pair in pairs if pair[0] != _DATE]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            known = (key.tag, key.value)
            if known in lines:
                problem = f"the key {key.value} occurs twice, first in line {lines[known]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[known] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts into quotes what ``_Loader`` would take for a number."""


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, or of a JSON file where it is called so.

    Raises UsageError: no regular file, unreadable, too large, neither YAML nor JSON, no mapping.
    """
    text = _text(path)
    if path.suffix.lower() == ".json":
        try:
            values = json.loads(text)  # YAML has no tabs, which may indent JSON
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}: is not valid JSON ({error}).") from None
    else:
        values = _yaml(text, str(path))
    if not isinstance(values, dict):
        what = "it is empty" if values is None else f"found {_shown(values)}"
        raise UsageError(
            f"{path}: must be a mapping of keys to values, such as name: demo; {what}."
        )
    return values


def override(values: dict[str, Any], text: str, section: type[BaseModel]) -> None:
    """Put ``key.sub=value`` into the values of a section."""
    key, equals, value = text.partition("=")
    *parents, last = key.split(".")
    if not equals or not last or not all(parents):
        raise UsageError(f"--set {text}: expected key=value, such as train.steps=1000.")
    inside = _section(section, key)
    if inside is not None:
        first = f"{key}.{next(iter(inside.model_fields))}"
        raise UsageError(
            f"--set {text}: {key} is a section; set its keys one by one, such as {first}=..."
        )
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise UsageError(f"--set {text}: {parent} is a value, not a section.")
    values[last] = _yaml(value, f"--set {text}")


def parse(
    section: type[_S], values: Mapping[str, Any], where: str, overrides: Sequence[str] = ()
) -> _S:
    """Validate values as a section; UsageError names the first wrong key, and the override that it
    came from, if it did."""
    try:
        found = section.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        sentence = _sentence(section, first["type"], key, first["msg"], first["input"])
        unknown = first["type"] == "extra_forbidden"
        raise UsageError(f"{_place(where, overrides, key, unknown)}: {sentence}") from None
    truth = _truth_taken_for_a_number(values, found)
    if truth is not None:
        key, value = truth
        sentence = _sentence(section, "truth", key, "", value)
        raise UsageError(f"{_place(where, overrides, key, False)}: {sentence}")
    return found


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML that reads as these values."""
    text: str = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)
    return text


def _text(path: Path) -> str:
    try:
        # Looked at before opening: a FIFO would wait for ever, and /dev/zero never ends.
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "no regular file"
            raise UsageError(f"{path}: is {what}; expected a file of settings.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UsageError(
                f"{path}: has more than {MAX_BYTES:,} bytes, which no file of settings needs."
            )
        return data.decode("utf-8-sig")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{path}: cannot be read ({reason}).") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: is not a text file in UTF-8 (byte {error.start:,}); save it as UTF-8."
        ) from None


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "damaged"
        tag = re.search(r"constructor for the tag '([^']*)'", problem)
        if tag:
            problem = f"the tag {tag[1].replace('tag:yaml.org,2002:', '!!')} is not allowed"
        raise UsageError(f"{where}: is not valid YAML{line}: {problem}.") from None
    except ValueError as error:  # a number of thousands of digits
        raise UsageError(f"{where}: holds a value that cannot be read ({error}).") from None
    except RecursionError:
        raise UsageError(f"{where}: is nested too deeply.") from None


def _place(where: str, overrides: Sequence[str], key: str, unknown: bool) -> str:
    for text in reversed(overrides):
        given = text.partition("=")[0]
        if f"{key}.".startswith(f"{given}.") or (unknown and given.startswith(f"{key}.")):
            return f"--set {text}"
    return where


def _sentence(section: type[BaseModel], kind: str, key: str, message: str, value: Any) -> str:
    if kind == "extra_forbidden":
        return _unknown(section, key)
    if kind == "missing":
        return f"the key {key} is missing."
    if kind == "value_error":
        return f"{message.removeprefix('Value error, ')}."
    if kind == "invalid_key":
        return f"{_shown(value)} is no key; a key is a name, such as {next(iter(_keys(section)))}."
    inside = _section(section, key)
    if inside is not None:
        names = ", ".join(inside.model_fields)
        return f"{key}: must be a section with keys ({names}), found {_shown(value)}."
    must = f"must be {_MUST_BE[kind]}" if kind in _MUST_BE else message[0].lower() + message[1:]
    return f"{key}: {must.replace('input should', 'must', 1)}, found {_shown(value)}."


def _unknown(section: type[BaseModel], key: str) -> str:
    above, dot, name = key.rpartition(".")
    inside = _section(section, above) or section
    # One beside it, else one in another section.
    near = [f"{above}{dot}{each}" for each in difflib.get_close_matches(name, inside.model_fields)]
    near += difflib.get_close_matches(key, _keys(section), n=1)
    if near:
        return f"unknown key {key}; did you mean {near[0]}?"
    return f"unknown key {key}; allowed are {', '.join(inside.model_fields)}."


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys.extend(_keys(field.annotation, f"{prefix}{name}."))
    return keys


def _section(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The section that a key names; None if it names a value, or nothing."""
    for name in key.split("."):
        field = section.model_fields.get(name)
        if field is None or not isinstance(field.annotation, type):
            return None
        if not issubclass(field.annotation, BaseModel):
            return None
        section = field.annotation
    return section


def _truth_taken_for_a_number(raw: Any, found: Any, key: str = "") -> tuple[str, Any] | None:
    """(key, value) of the first true or false that has become 1 or 0."""
    if isinstance(raw, bool):
        return None if isinstance(found, bool) else (key, raw)
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(raw, Mapping) and isinstance(found, BaseModel):
        pairs = [(name, raw[name], getattr(found, name)) for name in raw]
    elif isinstance(raw, list | tuple) and isinstance(found, tuple):
        pairs = [(str(i), *pair) for i, pair in enumerate(zip(raw, found, strict=True))]
    for name, value, own in pairs:
        truth = _truth_taken_for_a_number(value, own, f"{key}.{name}" if key else name)
        if truth is not None:
            return truth
    return None


def _shown(value: Any) -> str:
    """A value as the file has it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return reprlib.repr(value)
