"""Builds the exporter as the image has it: one file that needs no other, not even a C library."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build(tls=True):
    """The path of the release binary, with or without TLS."""
    version = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    [host] = [line.split()[1] for line in version.splitlines() if line.startswith("host: ")]
    folder = ROOT / "target" / "static"
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--target", host, "--target-dir", str(folder)]
    if not tls:
        command.append("--no-default-features")
    # With --target these flags spare build scripts and procedural macros, which cannot be static.
    environment = os.environ | {"RUSTFLAGS": "-C target-feature=+crt-static"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    binary = folder / host / "release" / "llamacpp-exporter"
    # Each kind under a name of its own: cargo has only one for both.
    kept = folder / ("with-tls" if tls else "without-tls") / binary.name
    kept.parent.mkdir(exist_ok=True)
    shutil.copy2(binary, kept)
    return kept
