"""File -> EffectiveConfig, or every reason why not. The one way into the program.

1. text -> tree          `source`   not YAML, or YAML that a reader could misread
2. tree -> Document      `schema`   unknown and missing fields, values of the wrong form
3. Document -> Draft     `resolve`  names, profiles, defaults, origins
4. Draft -> findings     `checks`   what does not fit together

All four report what they find with lines; a file with any error is refused as a whole.
"""

from __future__ import annotations

import contextlib
import difflib
import os.path
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from router.config import source as yaml_source
from router.config.checks import RULES_ON_PARTS, check
from router.config.effective import EffectiveConfig
from router.config.findings import ConfigErrors, Finding, Origin, Severity
from router.config.resolve import resolve
from router.config.schema import PATTERN_HINTS, Document, json_schema, shown
from router.config.source import Path, Source

__all__ = ["Loaded", "json_schema", "load", "load_text"]


PRUNINGS_MAX: Final = 8
"""Rounds of taking malformed values out: a leaf, its element, the list, what holds the list ..."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be run."""

    effective: EffectiveConfig
    origins: Mapping[str, Origin]
    """By dotted effective path, such as `connections.prod.bgp.timers.hold_s`; one for each leaf."""
    warnings: tuple[Finding, ...]


def load(path: str | os.PathLike[str]) -> Loaded:
    """Read and check a file. Raises ConfigErrors with all findings."""
    file = os.fspath(path)
    try:
        with FilePath(path).open("rb") as stream:
            octets = stream.read(yaml_source.FILE_SIZE_MAX + 1)
    except OSError as error:
        reason = f"cannot be read: {(error.strerror or str(error)).lower()}"
        raise ConfigErrors([Finding(file, 0, 0, "", reason)]) from error
    return _load(octets, file)


def load_text(text: str, name: str, base_dir: str | os.PathLike[str] | None = None) -> Loaded:
    """Check a configuration that is at hand as text; `name` stands for the file's.

    Secret files are relative to `base_dir`, or else to the directory of `name`.
    """
    return _load(text.encode("utf-8", "surrogatepass"), name, base_dir)


def _load(octets: bytes, name: str, base_dir: str | os.PathLike[str] | None = None) -> Loaded:
    text, findings = yaml_source.decode(octets, name)
    if findings:
        raise ConfigErrors(findings)
    source, findings = yaml_source.parse(text, name)
    if source is None:
        raise ConfigErrors(_sorted(findings))
    directory = os.path.abspath(os.path.dirname(name) if base_dir is None else base_dir)  # noqa: PTH100, PTH120 - text only
    document, structural = _validate(source)
    if document is None:
        raise ConfigErrors(_sorted([*findings, *structural, *_check_sound_parts(source, directory)]))
    draft = resolve(document, source, directory)
    everything = _sorted([*findings, *check(draft)])
    if any(finding.severity is Severity.ERROR for finding in everything):
        raise ConfigErrors(everything)
    return Loaded(draft.effective, MappingProxyType(draft.origins), everything)


def _validate(source: Source) -> tuple[Document | None, list[Finding]]:
    """Return the document, or what is wrong with its structure."""
    try:
        return Document.model_validate(source.root.plain()), []
    except ValidationError as error:
        return None, [_explain(source, details) for details in _errors(error)]


def _errors(error: ValidationError) -> Iterator[ErrorDetails]:
    for details in error.errors(include_url=False, include_context=True):
        # A list is also called too short when it is long enough, but not all of it is valid.
        if details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]:
            continue
        yield details


def _check_sound_parts(source: Source, directory: str) -> tuple[Finding, ...]:
    """Check what is left when the malformed values are taken out, so that one run reports all.

    Only with rules that relate values which are there: what is missing may have been taken out.
    """
    pruned = deepcopy(source)
    for _ in range(PRUNINGS_MAX):
        try:
            document = Document.model_validate(pruned.root.plain())
        except ValidationError as error:
            if not pruned.prune([_place(details) for details in _errors(error)]):
                return ()
            continue
        return check(resolve(document, pruned, directory), RULES_ON_PARTS)
    return ()


def _place(details: ErrorDetails) -> Path:
    """Return where in the file an error is (a union's alternatives are steps for pydantic only)."""
    return tuple(step for step in details["loc"] if step not in {"<name>", "<port>"})


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Order findings as they stand in the file, each once."""
    return tuple(sorted(set(findings), key=lambda f: (f.line, f.column, f.path, f.message)))


_SECRET_FIELDS = frozenset({"password", "sak"})
"""Fields that hold references; whoever writes the secret itself there must not see it repeated."""


def _explain(source: Source, details: ErrorDetails) -> Finding:
    """Turn one of pydantic's errors into a sentence with the fix."""
    path = _place(details)
    context: Mapping[str, Any] = details.get("ctx", {})
    value = "" if _SECRET_FIELDS.intersection(path) else shown(details["input"])
    expected = _EXPECTED.get(details["type"])
    if details["type"] == "missing":
        message = f"is missing - add it{_described(path)}"
    elif details["type"] == "extra_forbidden":
        message = f"unknown field - {_alternatives(path)}"
    elif details["type"] == "value_error":
        message = str(context["error"])
    elif details["type"] == "string_pattern_mismatch":
        message = f"not a name that can be used{value} - {PATTERN_HINTS[context['pattern']]}"
    elif details["type"] == "literal_error":
        message = f"unknown value{value} - {context['expected']}"
    elif details["type"] in {"greater_than_equal", "less_than_equal"}:
        limit = f"at least {context['ge']}" if "ge" in context else f"at most {context['le']}"
        message = f"out of range{value} - {limit}"
    elif details["type"] == "too_short":
        message = f"too few ({context['actual_length']}) - at least {context['min_length']}"
    elif details["type"] == "too_long":
        message = f"too many ({context['actual_length']}) - at most {context['max_length']}"
    elif details["type"].startswith("model_") and path[-1:] and path[-1] in _SECRET_FIELDS:
        message = "the secret itself does not stand here - {file: PATH} or {credential: NAME}"
    elif expected is not None:
        message = f"{expected[0]}{value} - {expected[1]}{_decimal(details)}"
    else:
        message = f"{details['msg'].lower()}{value} - see `lastmile schema`"
    return source.finding(path, message)


_EXPECTED = {
    "int_type": ("not a whole number", "write it in decimal, without quotes"),
    "string_type": ("not text", "write text here, in quotes if it looks like a number"),
    "bool_type": ("neither true nor false", "write true or false"),
    "tuple_type": ("not a list", "write a list: [a, b] or one `- ` a line"),
    "model_type": ("not a mapping", "write `field: value` lines below it"),
    "model_attributes_type": ("not a mapping", "write `field: value` lines below it"),
    "string_too_short": ("empty", "write something"),
}


def _decimal(details: ErrorDetails) -> str:
    """Say the number that was meant, where it is written in another way than decimal."""
    value = details["input"]
    if details["type"] != "int_type" or not isinstance(value, str) or len(value) > 20:
        return ""
    with contextlib.suppress(ValueError):
        return f": {int(value, 0)}"
    with contextlib.suppress(ValueError, OverflowError):
        return f": {int(float(value))}"
    return ""


def _alternatives(path: Path) -> str:
    model = _model(path[:-1])
    if model is None:
        return "remove it"
    known = list(model.model_fields)
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    return f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}"


def _described(path: Path) -> str:
    model = _model(path[:-1])
    field = model.model_fields.get(str(path[-1])) if model is not None else None
    return f": {field.description}" if field is not None and field.description else ""


def _model(path: Path) -> type[BaseModel] | None:
    """Return the model of the mapping at `path`."""
    model: type[BaseModel] | None = Document
    for step in path:
        if isinstance(step, int):
            continue
        field = model.model_fields.get(step) if model is not None else None
        model = next(_models(field.annotation), None) if field is not None else None
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """List the models in a field's type, however they are wrapped."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
