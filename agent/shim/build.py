"""Builds the shim: `python agent/shim/build.py [--arch amd64|arm64] [OUTPUT]`, by default build/shim/vnetpods-<arch>.

The result is one static file. zig (the PyPI package `ziglang`, clang with musl for every architecture) is the compiler
of choice: about 32 KB, byte-identical from run to run. Without it gcc builds for this machine only, about 800 KB with
glibc. Checked before the file gets its name: the ELF header says static and the right machine, and zig's is < 64 KB.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SOURCE = HERE / "shim.c"
SIZE_CAP = 64 * 1024

WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wpedantic",
    "-Wshadow",
    "-Wconversion",
    "-Wsign-conversion",
    "-Wformat=2",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
    "-Wundef",
    "-Wcast-qual",
    "-Wvla",
    "-Wwrite-strings",
    "-Wpointer-arith",
    "-Wnull-dereference",
    "-Wdouble-promotion",
]
SANITIZERS = ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
STATIC = ["-Os", "-static", "-s"]

MACHINES = {"amd64": ("x86_64", 62), "arm64": ("aarch64", 183)}  # name for the compiler, e_machine of elf(5)
NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def compiler(arch: str, *, sanitize: bool) -> list[str]:
    """The command that compiles for `arch`. Sanitizers come with gcc only, and run on this machine."""
    if not sanitize and importlib.util.find_spec("ziglang"):
        # zig instruments undefined behaviour by default, which would need its runtime library.
        target = f"{MACHINES[arch][0]}-linux-musl"
        return [sys.executable, "-m", "ziglang", "cc", "-target", target, "-mcpu=baseline", "-fno-sanitize=all"]
    if arch != NATIVE:
        sys.exit(f"only zig can build for {arch} on {NATIVE}: pip install ziglang")
    return ["gcc"]


def check_elf(path: Path, arch: str) -> None:
    """Exits when the file needs a loader or is for another machine: it must run on any node, whatever its libc."""
    elf = path.read_bytes()
    machine = struct.unpack_from("<H", elf, 18)[0]
    if elf[:5] != b"\x7fELF\x02" or machine != MACHINES[arch][1]:
        sys.exit(f"{path} is not a 64-bit ELF file for {arch} (e_machine {machine})")
    offset, size, count = *struct.unpack_from("<Q", elf, 32), *struct.unpack_from("<HH", elf, 54)
    if any(struct.unpack_from("<I", elf, offset + number * size)[0] == 3 for number in range(count)):  # PT_INTERP
        sys.exit(f"{path} is linked dynamically")


def build(output: Path, *, arch: str = NATIVE, sanitize: bool = False, defines: tuple[str, ...] = ()) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    output.parent.mkdir(parents=True, exist_ok=True)
    new = output.with_name(f".{output.name}.{os.getpid()}")
    command = compiler(arch, sanitize=sanitize)
    define = [f"-D{entry}" for entry in (f'SHIM_VERSION="{version}"', *defines)]
    mode = SANITIZERS if sanitize else STATIC
    subprocess.run([*command, "-std=c11", *mode, *WARNINGS, *define, str(SOURCE), "-o", str(new)], check=True)
    if not sanitize:
        check_elf(new, arch)
        if "ziglang" in command and new.stat().st_size > SIZE_CAP:
            sys.exit(f"the shim has {new.stat().st_size} bytes, more than {SIZE_CAP}")
    new.replace(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", choices=MACHINES, default=NATIVE)
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UBSan, for tests")
    parser.add_argument(
        "--define", action="append", default=[], metavar="NAME=VALUE", help="override a constant of shim.c"
    )
    parser.add_argument("output", type=Path, nargs="?")
    options = parser.parse_args()
    output = options.output or ROOT / "build" / "shim" / f"vnetpods-{options.arch}"
    build(output, arch=options.arch, sanitize=options.sanitize, defines=tuple(options.define))
    sys.stdout.write(f"{output} {output.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
