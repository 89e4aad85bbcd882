"""Builds the exporter as the image has it: one file that needs no other, not even a C library."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def host():
    """This machine's target, by Rust's name of it."""
    version = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    [host] = [line.split()[1] for line in version.splitlines() if line.startswith("host: ")]
    return host


def musl():
    """The target of the image's own builder, for this processor; None where Rust has no library for it."""
    target = f"{host().split('-')[0]}-unknown-linux-musl"
    asked = ["rustc", "--print", "target-libdir", "--target", target]
    folder = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    return target if folder.is_dir() else None


def build(tls=True, target=None):
    """The path of the release binary, with or without TLS; for this machine's own target if none is named."""
    target = target or host()
    folder = ROOT / "target" / "static"
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--target", target, "--target-dir", str(folder)]
    if not tls:
        command.append("--no-default-features")
    # With --target these flags spare build scripts and procedural macros, which cannot be static.
    environment = os.environ | {"RUSTFLAGS": "-C target-feature=+crt-static"}
    if target.endswith("-musl") and not shutil.which("musl-gcc"):
        # The C in the TLS library needs no C library, if it isn't made to call a hardened one's functions.
        name = target.replace("-", "_")
        environment |= {f"CC_{name}": "cc", f"CFLAGS_{name}": "-U_FORTIFY_SOURCE"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    binary = folder / target / "release" / "llamacpp-exporter"
    # Each kind under a name of its own: cargo has only one for both.
    kept = folder / target / ("with-tls" if tls else "without-tls") / binary.name
    kept.parent.mkdir(exist_ok=True)
    shutil.copy2(binary, kept)
    return kept
