"""Build stub CANN libraries, so that a torch_npu wheel can be imported on a machine without CANN.

    python ci/npu_stub_libraries.py SITE OUT    SITE contains torch_npu/, the libraries are written to OUT

The libraries of the wheel bind all symbols when they are loaded. Symbols that are not defined by torch, Python, libc
or the wheel belong to CANN; each becomes a C function that returns 0. Three functions return values that the import
needs: the name of the chip, a device count of 0, and an empty error message. The stubs cannot compute anything. They
only allow the Python front end and the operator schemas of torch_npu to be loaded.
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

# The libraries that the wheel requires (DT_NEEDED). The first one contains all symbols, the others are empty.
LIBRARIES = (
    "libascendcl.so",
    "libhccl.so",
    "libacl_op_compiler.so",
    "libge_runner.so",
    "libgraph.so",
    "libacl_tdt_channel.so",
)
DEFINITIONS = {
    "aclrtGetSocName": 'const char *aclrtGetSocName(void) { return "Ascend910B1"; }',
    "aclrtGetDeviceCount": "int aclrtGetDeviceCount(unsigned *count) { *count = 0; return 0; }",
    "aclGetRecentErrMsg": 'const char *aclGetRecentErrMsg(void) { return ""; }',
}


def symbols(library: Path, which: str) -> set[str]:
    """Return the dynamic symbols of a library.

    Args:
        library: path of the shared library.
        which: '--defined-only', or '--undefined-only' for undefined symbols that are not weak.
    """
    listed = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=True).stdout
    rows = [line.split()[-2:] for line in listed.splitlines() if line.strip()]
    return {name.split("@")[0] for kind, name in rows if which == "--defined-only" or kind == "U"}


def missing_symbols(site: Path) -> list[str]:
    """Return the symbols that the libraries of the wheel need and that are not defined on this machine."""
    package = site / "torch_npu"
    wheel = [*package.glob("_C*.so"), *(package / "lib").glob("*.so")]
    wheel = [path for path in wheel if "atb" not in path.name]  # loaded on demand and needs another library
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.submodule_search_locations
    torch_libraries = Path(spec.submodule_search_locations[0], "lib").glob("*.so*")
    defined = set().union(*(symbols(path, "--defined-only") for path in (*wheel, *torch_libraries)))
    needed = set().union(*(symbols(path, "--undefined-only") for path in wheel)) - defined
    system = [ctypes.CDLL(None), ctypes.CDLL("libm.so.6"), ctypes.CDLL("libstdc++.so.6"), ctypes.CDLL("libgcc_s.so.1")]
    return sorted(name for name in needed if not any(hasattr(library, name) for library in system))


def build(site: Path, out: Path) -> list[str]:
    """Compile the libraries in `out` and return the names of the stub functions."""
    out.mkdir(parents=True, exist_ok=True)
    names = missing_symbols(site)
    # C++ names (_Z…) would be symbols of another library: CANN has a C interface.
    unexpected = [name for name in names if not name.isidentifier() or name.startswith("_Z")]
    assert not unexpected, f"not C functions: {unexpected}"
    source = out / "stubs.c"
    source.write_text("\n".join(DEFINITIONS.get(name, f"int {name}(void) {{ return 0; }}") for name in names) + "\n")
    empty = out / "empty.c"
    empty.write_text("static int nothing;\n")
    for library in LIBRARIES:
        code = source if library == LIBRARIES[0] else empty
        command = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library}", "-o", str(out / library), str(code)]
        subprocess.run(command, check=True)
    return names


if __name__ == "__main__":
    print(f"stubbed {len(build(Path(sys.argv[1]), Path(sys.argv[2])))} functions of CANN")
