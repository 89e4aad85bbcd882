"""What the binary is made of, from cargo's metadata: `sbom.py sbom` prints it as CycloneDX (JSON), `sbom.py
licences` prints the texts of the libraries' licences. The same commit gives the same text."""

import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

TARGETS = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"]


def metadata():
    command = ["cargo", "metadata", "--locked", "--format-version=1"]
    command += [f"--filter-platform={target}" for target in TARGETS]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def linked(found):
    """The packages whose code is in the binary, and what each uses: neither build scripts nor tests."""
    nodes = {node["id"]: node for node in found["resolve"]["nodes"]}
    packages = {package["id"]: package for package in found["packages"]}
    is_macro = lambda package: any("proc-macro" in target["kind"] for target in package["targets"])  # noqa: E731
    uses, todo = {}, [found["resolve"]["root"]]
    while todo:
        node = todo.pop()
        if node in uses:
            continue
        used = [
            dependency["pkg"]
            for dependency in nodes[node]["deps"]
            if any(kind["kind"] is None for kind in dependency["dep_kinds"])
            and not is_macro(packages[dependency["pkg"]])
        ]
        uses[node] = used
        todo += used
    return packages, uses


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, checksums):
    entry = {
        "type": "library",
        "bom-ref": purl(package),
        "name": package["name"],
        "version": package["version"],
        "purl": purl(package),
        "licenses": [{"expression": (package["license"] or "NOASSERTION").replace("/", " OR ")}],
    }
    if checksum := checksums.get((package["name"], package["version"])):
        entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return entry


def checksums():
    """Those of Cargo.lock."""
    found, entry = {}, {}
    for line in [*Path("Cargo.lock").read_text().splitlines(), ""]:
        key, separator, value = line.partition(" = ")
        if separator:
            entry[key] = value.strip('"')
        elif not line:
            if "checksum" in entry:
                found[entry["name"], entry["version"]] = entry["checksum"]
            entry = {}
    return found


def sbom(found):
    packages, uses = linked(found)
    root = found["resolve"]["root"]
    known = checksums()
    components = [component(packages[package], known) for package in uses if package != root]
    program = component(packages[root], known) | {"type": "application"}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), timezone.utc).isoformat(),
            "component": program,
        },
        "components": sorted(components, key=lambda entry: entry["purl"]),
        "dependencies": sorted(
            (
                {"ref": purl(packages[package]), "dependsOn": sorted(purl(packages[other]) for other in used)}
                for package, used in uses.items()
            ),
            key=lambda entry: entry["ref"],
        ),
    }


def licences(found):
    packages, uses = linked(found)
    root = found["resolve"]["root"]
    for package in sorted((packages[package] for package in uses if package != root), key=purl):
        print(f"{package['name']} {package['version']}: {package['license']}\n")
        folder = Path(package["manifest_path"]).parent
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE")):
                print(f"--- {file.name}\n\n{file.read_text().strip()}\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["licences"]:
        licences(metadata())
    else:
        print(json.dumps(sbom(metadata()), indent=2))
