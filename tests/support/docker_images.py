"""Images under the names in compose.yaml, made of programs of this machine: none can be pulled."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from support import BINARY, LLAMA_SERVER, MODEL, PROMETHEUS, PROMTOOL

# Where the image of llama-server has a model.
MODEL_PATH = "/test/model.gguf"


def libraries(programs, folder=""):
    """The libraries that dynamically linked programs need, apart from those in `folder`."""
    found = set()
    for program in programs:
        environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
        text = subprocess.run(["ldd", program], capture_output=True, text=True, env=environment).stdout
        found |= {path for path in re.findall(r"(/\S+)", text) if not folder or not path.startswith(str(folder))}
    return {path: path for path in found}


def make(docker, name, files, settings, folders=()):
    """Makes an image of files, each with its path in the image."""
    with tempfile.TemporaryDirectory() as root:
        for source, target in files.items():
            path = Path(root, target.lstrip("/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, path)
        for path, user in folders:
            folder = Path(root, path.lstrip("/"))
            folder.mkdir(parents=True, exist_ok=True)
            os.chown(folder, user, user)
        options = [option for setting in settings for option in ("--change", setting)]
        archive = subprocess.run(["tar", "-C", root, "-c", "."], check=True, capture_output=True).stdout
        docker("import", *options, "-", name, input=archive)


def exporter(docker, name):
    files = {BINARY: "/llamacpp-exporter"} | libraries([BINARY])
    make(docker, name, files, ['ENTRYPOINT ["/llamacpp-exporter"]', "USER 65534:65534", "EXPOSE 9100"])


def prometheus(docker, name):
    programs = {PROMETHEUS: "/bin/prometheus", PROMTOOL: "/bin/promtool"}
    make(
        docker,
        name,
        programs | libraries(programs),
        ['ENTRYPOINT ["/bin/prometheus"]', "USER 65534", "ENV PATH=/bin", "VOLUME /prometheus"],
        [("/prometheus", 65534)],
    )


def llama_server(docker, name):
    folder = LLAMA_SERVER.parent.resolve()
    files = {path: f"/app/{path.name}" for path in folder.iterdir() if path.is_file()}
    files |= libraries(list(files), folder) | {MODEL: MODEL_PATH}
    settings = ['ENTRYPOINT ["/app/llama-server"]', "ENV LD_LIBRARY_PATH=/app"]
    make(docker, name, files, settings, [("/models", 0), ("/tmp", 0)])
