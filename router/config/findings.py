"""What is found in a configuration file, and where each effective value came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from router.errors import ConfigError


class Severity(Enum):
    """Whether a finding refuses the file."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark about the file, printed as `FILE:LINE: path.to.field: what (value) - fix`."""

    file: str
    line: int
    """From 1; 0 where the remark is about the file as a whole and no line can be named."""
    column: int
    """From 1, in characters; 0 as above."""
    path: str
    """Dotted, list elements by their name where they have one; empty for the whole file."""
    message: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        what = f"{self.path}: {self.message}" if self.path else self.message
        return f"{where}: {'warning: ' if self.severity is Severity.WARNING else ''}{what}"


class ConfigErrors(ConfigError):  # noqa: N818 - one exception, many errors
    """The file is refused. `findings` has every error, and the warnings, in the file's order."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one effective value came from."""

    kind: Literal["file", "profile", "default", "derived"]
    source: str = ""
    """File or profile name; empty for our defaults and for what follows from other values."""
    line: int = 0
    """Line in the file, from 1; 0 for every other kind."""

    def __str__(self) -> str:
        match self.kind:
            case "file":
                return f"{self.source}:{self.line}"
            case "profile":
                return f"profile {self.source}"
            case _:
                return self.kind
