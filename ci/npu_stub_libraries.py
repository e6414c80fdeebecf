"""Empty CANN libraries, so that a torch_npu wheel can be imported on a machine without CANN: SITE OUT.

    python ci/npu_stub_libraries.py SITE OUT    SITE holds torch_npu/, OUT gets the libraries

A wheel's libraries bind all symbols when they are loaded. Those that neither torch, Python, libc nor the wheel itself
defines are CANN's; each becomes a C function that returns 0. Three answer, so that the import goes on: the name of
the chip, no device, no error message. Nothing can be computed with them: they let torch_npu's Python front end and
operator schemas be loaded, no more.
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

# The names that the wheel's libraries ask for (DT_NEEDED). All symbols are in the first; the others are empty.
LIBRARIES = (
    "libascendcl.so",
    "libhccl.so",
    "libacl_op_compiler.so",
    "libge_runner.so",
    "libgraph.so",
    "libacl_tdt_channel.so",
)
ANSWERS = {
    "aclrtGetSocName": 'const char *aclrtGetSocName(void) { return "Ascend910B1"; }',
    "aclrtGetDeviceCount": "int aclrtGetDeviceCount(unsigned *count) { *count = 0; return 0; }",
    "aclGetRecentErrMsg": 'const char *aclGetRecentErrMsg(void) { return ""; }',
}


def symbols(library: Path, which: str) -> set[str]:
    """A library's dynamic symbols; `which` is '--defined-only', or '--undefined-only' without the weak ones."""
    listed = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=True).stdout
    rows = [line.split()[-2:] for line in listed.splitlines() if line.strip()]
    return {name.split("@")[0] for kind, name in rows if which == "--defined-only" or kind == "U"}


def missing_symbols(site: Path) -> list[str]:
    """What the wheel's libraries need and nobody here defines."""
    package = site / "torch_npu"
    wheel = [*package.glob("_C*.so"), *(package / "lib").glob("*.so")]
    wheel = [path for path in wheel if "atb" not in path.name]  # loaded on demand, with a library of its own
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.submodule_search_locations
    torch_libraries = Path(spec.submodule_search_locations[0], "lib").glob("*.so*")
    defined = set().union(*(symbols(path, "--defined-only") for path in (*wheel, *torch_libraries)))
    needed = set().union(*(symbols(path, "--undefined-only") for path in wheel)) - defined
    system = [ctypes.CDLL(None), ctypes.CDLL("libm.so.6"), ctypes.CDLL("libstdc++.so.6"), ctypes.CDLL("libgcc_s.so.1")]
    return sorted(name for name in needed if not any(hasattr(library, name) for library in system))


def build(site: Path, out: Path) -> list[str]:
    """Compile the libraries into `out`; returns the names that were stubbed."""
    out.mkdir(parents=True, exist_ok=True)
    names = missing_symbols(site)
    odd = [name for name in names if not name.isidentifier() or name.startswith("_Z")]
    assert not odd, f"not C functions: {odd}"
    source = out / "stubs.c"
    source.write_text("\n".join(ANSWERS.get(name, f"int {name}(void) {{ return 0; }}") for name in names) + "\n")
    empty = out / "empty.c"
    empty.write_text("static int nothing;\n")
    for library in LIBRARIES:
        code = source if library == LIBRARIES[0] else empty
        command = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library}", "-o", str(out / library), str(code)]
        subprocess.run(command, check=True)
    return names


if __name__ == "__main__":
    print(f"stubbed {len(build(Path(sys.argv[1]), Path(sys.argv[2])))} functions of CANN")
