"""Builds `router.dataplane._native` from csrc/ (cffi, API mode); setuptools runs it from setup.py.

The declarations are lifted from csrc/dataplane.h, so that they exist once; the compiler checks
every one of them against the header.
"""

import os
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "/* cffi: begin */", "/* cffi: end */"

header = (ROOT / "csrc/dataplane.h").read_text()
FRAMES = ("err", "pn", "replay", "sectag", "secy*", "verdict", "vlan")
CIPHER = ("aes_*", "cpu", "gcm*")
sources = sorted(path for name in FRAMES + CIPHER for path in (ROOT / "csrc").glob(f"{name}.c"))

ffibuilder = FFI()
ffibuilder.cdef(header[header.index(BEGIN) + len(BEGIN) : header.index(END)])
ffibuilder.set_source(
    "router.dataplane._native",
    '#include "dataplane.h"',
    sources=[os.path.relpath(path, ROOT) for path in sources],  # setuptools wants them relative
    depends=[os.path.relpath(path, ROOT) for path in sorted((ROOT / "csrc").glob("*.h"))],
    include_dirs=[str(ROOT / "csrc")],
    libraries=["crypto", "dl"],
    extra_compile_args=["-std=gnu11", "-O3", "-fvisibility=hidden"],
)
