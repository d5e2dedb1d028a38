"""Builds `router.dataplane._native` from csrc/ (cffi, API mode); setuptools runs it from setup.py.

The declarations are lifted from the headers, so that they exist once; the compiler checks every
one of them against its header.
"""

import os
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "/* cffi: begin */", "/* cffi: end */"

HEADERS = ("dataplane.h", "engine.h")

FRAMES = ("err", "pn", "replay", "sectag", "secy*", "verdict", "vlan")
CIPHER = ("aes_*", "cpu", "gcm*")
ENGINE = ("engine", "gro", "gso", "port*")
sources = sorted(path for name in FRAMES + CIPHER + ENGINE for path in (ROOT / "csrc").glob(f"{name}.c"))

ffibuilder = FFI()
for name in HEADERS:
    header = (ROOT / "csrc" / name).read_text()
    ffibuilder.cdef(header[header.index(BEGIN) + len(BEGIN) : header.index(END)])
ffibuilder.set_source(
    "router.dataplane._native",
    "\n".join(f'#include "{name}"' for name in HEADERS),
    sources=[os.path.relpath(path, ROOT) for path in sources],  # setuptools wants them relative
    depends=[os.path.relpath(path, ROOT) for path in sorted((ROOT / "csrc").glob("*.h"))],
    include_dirs=[str(ROOT / "csrc")],
    libraries=["crypto", "dl", "pthread"],
    extra_compile_args=["-std=gnu11", "-O3", "-fvisibility=hidden"],
)
