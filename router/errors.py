"""What can go wrong, by whose fault it is; each class is caught in one place.

    LastmileError
    +-- ConfigError      the operator's: refuse the whole input, keep the running state
    |   +-- SecretError  a referenced secret is missing, readable by others or malformed
    +-- ProtocolError    the peer's: drop, count, log once per window
    +-- KernelError      the environment's: that object is in error, retried with backoff
    |   +-- Unsupported  this kernel cannot do it at all; the message names the way out
    |   +-- DataplaneError  our own data plane refused it
    +-- ControlError     a command could not be carried out by the running daemon
    +-- LabError         the lab could not be built; never a scenario's verdict
    `-- BenchError       nothing can be measured here: a program or a right is missing

Our own mistakes are assertions and crash the process, which its supervisor restarts.
"""


class LastmileError(Exception):
    """Base of every error that is reported as a sentence instead of a traceback."""


class ConfigError(LastmileError):
    """The operator's input is wrong. Says what, where (file:line, path) and the fix."""


class SecretError(ConfigError):
    """A secret that the configuration refers to cannot be used. Never contains the secret."""


class ProtocolError(LastmileError):
    """A peer sent what the protocol does not allow."""


class KernelError(LastmileError):
    """The kernel refused an operation. `errno` is its number, 0 where there is none."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class Unsupported(KernelError):  # noqa: N818 - reads as a state, like the errno it wraps
    """The running kernel has no such feature (module, link kind, family, hook)."""


class DataplaneError(KernelError):
    """Our data plane refused an operation on its SecY: full table, AN in use, PN out of range."""


class ControlError(LastmileError):
    """The daemon is not reachable or refused the command."""


class LabError(LastmileError):
    """The lab cannot be built or reached on this machine."""


class BenchError(LastmileError):
    """Nothing can be measured on this machine; says what is missing."""
