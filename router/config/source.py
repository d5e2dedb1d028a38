"""YAML text -> a tree that knows its lines. Strict: what a reader could misread is an error.

The tree is built from parser events, not with a YAML constructor, because constructors are
where the surprises live: `no` is not a boolean here, `0x10` and `1e3` are not numbers, a second
key does not silently replace the first, and there are no anchors to build a bomb from. Plain
scalars are: decimal integers, `true`, `false`, `null` (or nothing); everything else is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from router.config.findings import Finding

FILE_SIZE_MAX: Final = 256 * 1024
"""Octets of a configuration file. Sixteen channels and a thousand prefixes need 60 thousand."""

DEPTH_MAX: Final = 20
"""Nesting of lists and mappings; the dialect needs 9."""

SHOWN_MAX: Final = 64
"""Characters of a key, a name or a sign that a message repeats."""

Path = tuple[str | int, ...]
"""Keys and list positions from the top of the file to a value."""

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_TAB_INDENT = re.compile(r" *\t[ \t]*(?P<rest>[^\s#])")
_CONSTANTS: Final = {"true": True, "false": False, "null": None, "~": None, "": None}


@dataclass(slots=True)
class Node:
    """A value of the file, with the position at which an editor should be opened for it."""

    line: int
    column: int
    value: str | int | bool | dict[str, Node] | list[Node] | None

    def plain(self) -> Any:
        """Return the value without positions: dicts, tuples and scalars."""
        match self.value:
            case dict(entries):
                return {key: node.plain() for key, node in entries.items()}
            case list(nodes):
                return tuple(node.plain() for node in nodes)
            case scalar:
                return scalar


@dataclass(frozen=True, slots=True)
class Source:
    """A file's tree, and the naming of places in it."""

    file: str
    root: Node

    def find(self, path: Sequence[str | int]) -> Node:
        """Return the value at `path`, or the innermost one around it that the file has."""
        node = self.root
        for step in path:
            child = _child(node, step)
            if child is None:
                break
            node = child
        return node

    def get(self, path: Sequence[str | int]) -> Node | None:
        """Return the value at `path`; None where the file does not say it."""
        node: Node | None = self.root
        for step in path:
            node = _child(node, step) if node is not None else None
        return node

    def show(self, path: Sequence[str | int]) -> str:
        """Print a path with names in place of list positions: `connections.prod.features.a1.vlan`."""
        node: Node | None = self.root
        steps = []
        for step in path:
            node = _child(node, step) if node is not None else None
            name = _name(node) if isinstance(step, int) else None
            steps.append(_printable(name if name is not None else str(step)))
        return ".".join(steps)

    def finding(self, path: Sequence[str | int], message: str) -> Finding:
        """Make an error about the value at `path`."""
        node = self.find(path)
        return Finding(self.file, node.line, node.column, self.show(path), message)

    def prune(self, paths: Iterable[Sequence[str | int]]) -> bool:
        """Take out the values at `paths`; of what is not there, the list element that lacks it.

        Tells whether there was something to take out for each of them.
        """
        # All are found before one is removed, because that moves the positions behind it.
        doomed = [self._removable(path) for path in paths]
        for place in doomed:
            if place is None:
                return False
            parent, child = place
            if isinstance(parent.value, dict):
                parent.value = {key: node for key, node in parent.value.items() if node is not child}
            elif isinstance(parent.value, list):
                parent.value = [node for node in parent.value if node is not child]
        return True

    def _removable(self, path: Sequence[str | int]) -> tuple[Node, Node] | None:
        """Return the parent and the node that `prune` takes out for `path`."""
        node, steps = self.root, [(self.root, self.root)]
        for step in path:
            child = _child(node, step)
            if child is None:
                elements = [pair for pair in steps if isinstance(pair[0].value, list)]
                return elements[-1] if elements else None
            steps.append((node, child))
            node = child
        return steps[-1] if len(steps) > 1 else None


def _child(node: Node, step: str | int) -> Node | None:
    match node.value, step:
        case dict(entries), str(key):
            return entries.get(key)
        case list(nodes), int(index) if index < len(nodes):
            return nodes[index]
        case _:
            return None


def _name(node: Node | None) -> str | None:
    """Return what a list element is called: its name, or the channel or port that it is about."""
    if node is None or not isinstance(node.value, dict):
        return None
    for key in ("name", "channel", "port"):
        named = node.value.get(key)
        if named is not None and isinstance(named.value, str):
            return named.value
    return None


def _printable(text: str) -> str:
    """Return a key or name as it may stand in a line of output."""
    escaped = text if text.isprintable() else repr(text)[1:-1]
    return escaped if len(escaped) <= SHOWN_MAX else f"{escaped[:SHOWN_MAX]}..."


class _Refused(Exception):  # noqa: N818 - leaves the parser, never the module
    """The text has no tree at all."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.line, self.column, self.message = line, column, message


def decode(octets: bytes, file: str) -> tuple[str, tuple[Finding, ...]]:
    """Return the text of a file, or the reason why it has none."""
    if len(octets) > FILE_SIZE_MAX:
        message = f"larger than {FILE_SIZE_MAX} octets - this is no configuration of ours"
        return "", (Finding(file, 0, 0, "", message),)
    try:
        return octets.decode("utf-8-sig"), ()
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        column = error.start - octets.rfind(b"\n", 0, error.start)
        message = f"not UTF-8 (octet 0x{octets[error.start]:02x}) - save the file as UTF-8"
        return "", (Finding(file, line, column, "", message),)


def parse(text: str, file: str) -> tuple[Source | None, tuple[Finding, ...]]:
    """Build the tree. Findings beside a tree are errors that did not keep us from reading on."""
    tabs = tuple(_tabs(text, file))
    if tabs:
        return None, tabs
    builder = _Builder()
    try:
        root = builder.build(text)
    except _Refused as refused:
        # Without a tree there are no names for the places of what was noticed before.
        known = tuple(
            Finding(file, *remark.at, _join(remark.path), remark.message) for remark in builder.remarks
        )
        return None, (*known, Finding(file, refused.line, refused.column, "", refused.message))
    if root is None or root.value is None:
        return None, (Finding(file, 1, 1, "", "the file is empty - see `lastmile schema`"),)
    source = Source(file, root)
    findings = tuple(
        Finding(file, *remark.at, source.show(remark.path), remark.message) for remark in builder.remarks
    )
    if not isinstance(root.value, dict):
        kind = "a list" if isinstance(root.value, list) else "a single value"
        message = f"{kind} at the top - start with `router:`, `interconnects:`, `connections:`"
        return None, (*findings, Finding(file, root.line, root.column, "", message))
    return source, findings


def _join(path: Path) -> str:
    return ".".join(_printable(str(step)) for step in path)


def _tabs(text: str, file: str) -> Iterator[Finding]:
    for number, line in enumerate(text.split("\n"), 1):
        if _TAB_INDENT.match(line):
            yield Finding(
                file, number, line.index("\t") + 1, "", "a tab in the indentation - YAML indents with spaces"
            )


@dataclass(frozen=True, slots=True)
class _Remark:
    """An error that does not end the reading."""

    at: tuple[int, int]
    path: Path
    message: str


class _Builder:
    """Turns parser events into nodes."""

    def __init__(self) -> None:
        self.remarks: list[_Remark] = []
        self._events: Iterator[Event] = iter(())
        self._line = 1
        """Where the last event ended: what the parser does not locate is near."""

    def build(self, text: str) -> Node | None:
        """Return the only document's root, None if there is no document."""
        root = None
        try:
            self._events = self._read(text)
            for event in self._events:
                if isinstance(event, DocumentStartEvent):
                    if root is not None:
                        raise _Refused(*_at(event), "a second document (`---`) - one file, one configuration")
                    root = self._node(next(self._events), (), None)
        except MarkedYAMLError as error:
            raise _refusal(error) from error
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise _Refused(line, 1, f"a character that YAML does not allow ({error.character!r})") from error
        except (YAMLError, ValueError, OverflowError, RecursionError) as error:
            # The scanner lets some slip through, such as \UFFFFFFFF in double quotes.
            raise _Refused(self._line, 1, "not YAML - look for odd escapes in double quotes") from error
        return root

    def _read(self, text: str) -> Iterator[Event]:
        for event in YAML(typ="safe", pure=True).parse(text):
            self._line = event.end_mark.line + 1
            yield event

    def _node(self, event: Event, path: Path, key: Event | None) -> Node:
        line, column = _at(event)
        if key is not None and _at(key)[0] != line:
            line, column = _at(key)
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if anchor is not None:
            sign = "*" if isinstance(event, AliasEvent) else "&"
            self._report(
                event,
                path,
                f"anchors and aliases ({sign}{_printable(str(anchor))}) are not read - write it out",
            )
        elif tag is not None:
            self._report(event, path, f"tags ({_printable(str(tag))}) are not read - remove it")
        if len(path) > DEPTH_MAX:
            raise _Refused(line, column, f"nested more than {DEPTH_MAX} deep")
        if isinstance(event, MappingStartEvent):
            return Node(line, column, self._mapping(path))
        if isinstance(event, SequenceStartEvent):
            return Node(line, column, self._sequence(path))
        if isinstance(event, ScalarEvent):
            return Node(line, column, _scalar(event))
        return Node(line, column, None)

    def _mapping(self, path: Path) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        lines: dict[str, int] = {}
        while not isinstance(key := next(self._events), MappingEndEvent):
            if not isinstance(key, ScalarEvent):
                self._report(key, path, "a key that is not a word - write `name: value`")
                self._node(key, (*path, "?"), None)
                self._node(next(self._events), (*path, "?"), None)
                continue
            name = str(key.value)
            node = self._node(next(self._events), (*path, name), key)
            if name in entries:
                self._report(key, (*path, name), f"given twice (first in line {lines[name]}) - remove one")
            else:
                entries[name], lines[name] = node, _at(key)[0]
        return entries

    def _sequence(self, path: Path) -> list[Node]:
        nodes: list[Node] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            nodes.append(self._node(event, (*path, len(nodes)), None))
        return nodes

    def _report(self, event: Event, path: Path, message: str) -> None:
        self.remarks.append(_Remark(_at(event), path, message))


def _at(event: Event) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _scalar(event: ScalarEvent) -> str | int | bool | None:
    text = str(event.value)
    if event.style is not None:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    return int(text) if _INTEGER.fullmatch(text) else text


def _refusal(error: MarkedYAMLError) -> _Refused:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    problem = _printable(" ".join(str(error.problem or error.context or "not YAML").split()))
    if "'\\t'" in problem:
        problem = "a tab - YAML is indented and spaced with spaces"
    return _Refused(line, column, problem)
