"""The kernel, over netlink. The only package that imports pyroute2, and lazily.

pyroute2's `__init__` imports all of it: a tenth of a second and 10 MB, of which the key daemon, of
which two run, needs a tenth. So the package is entered here without its `__init__`, which runs when
something that only it defines (`AsyncIPRoute`) is first asked for; submodules are found as always.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Lazy(ModuleType):
    """A package whose `__init__` has not run yet."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__ = spec
        self.__path__ = list(spec.submodule_search_locations or ())

    def __getattr__(self, name: str) -> Any:
        known = self.__dict__.get("__file__") is not None or name.startswith("__")
        # `from pyroute2 import netns` asks here first, and then looks for a submodule.
        if known or importlib.util.find_spec(f"{self.__name__}.{name}") is not None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__file__ = self.__spec__.origin
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


if "pyroute2" not in sys.modules and (_spec := importlib.util.find_spec("pyroute2")) is not None:
    sys.modules["pyroute2"] = _Lazy(_spec)
