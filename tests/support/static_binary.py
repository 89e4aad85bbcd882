"""Builds the exporter as a static binary, with the flags of the image."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from support import ROOT


def host():
    """This machine's target triple."""
    version = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    [host] = [line.split()[1] for line in version.splitlines() if line.startswith("host: ")]
    return host


def musl():
    """The target triple of the image's builder; None where Rust's standard library for it is missing."""
    target = f"{host().split('-')[0]}-unknown-linux-musl"
    command = ["rustc", "--print", "target-libdir", "--target", target]
    folder = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    return target if folder.is_dir() else None


def flags():
    """RUSTFLAGS of the Containerfile, with the path that the linker's script has here."""
    [found] = re.findall(r'^ENV RUSTFLAGS="((?:[^"]|\n)*)"', (ROOT / "Containerfile").read_text(), re.MULTILINE)
    return found.replace("\\\n", " ").replace("/build/", f"{ROOT}/deploy/")


def build(tls=True, target=None):
    """The path of the release binary, with or without TLS, by default for this machine's target."""
    target = target or host()
    folder = ROOT / "target" / "static"
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--target", target, "--target-dir", str(folder)]
    if not tls:
        command.append("--no-default-features")
    # With --target these flags do not apply to build scripts and procedural macros, which cannot be static.
    environment = os.environ | {"RUSTFLAGS": flags()}
    if target.endswith("-musl") and not shutil.which("musl-gcc"):
        # The C code of the TLS library needs no C library, unless fortified functions are used.
        name = target.replace("-", "_")
        environment |= {f"CC_{name}": "cc", f"CFLAGS_{name}": "-U_FORTIFY_SOURCE"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    binary = folder / target / "release" / "llamacpp-exporter"
    # cargo gives both kinds the same path.
    kept = folder / target / ("with-tls" if tls else "without-tls") / binary.name
    kept.parent.mkdir(exist_ok=True)
    shutil.copy2(binary, kept)
    return kept
