"""The Containerfile, built with buildah and run with podman, where no image can be pulled: its
builder image is made of this machine's own toolchain (builder-image), its crates are `cargo vendor`'s."""

import ctypes
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "target" / "deployment"
STORE = ["--root", str(FOLDER / "images"), "--runroot", str(FOLDER / "run")]
IMAGE = "localhost/llamacpp-exporter:test"
REVISION = "0123456789ab"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("apt-cache"), reason="the builder image is made by root on Debian"
)


def output(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-6000:]}{done.stderr[-6000:]}"
    return done.stdout.strip()


def limits():
    """podman asks for more than some machines grant."""
    options = []
    for name, kind in ("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC):
        _, most = resource.getrlimit(kind)
        options += ["--ulimit", f"{name}={1024 if most == resource.RLIM_INFINITY else min(1024, most)}"]
    return options


@pytest.fixture(scope="module", autouse=True)
def own_mounts():
    """What the tools mount is seen by these tests alone, and gone with them: `rm -r target` still works."""
    new_namespace = 0x20000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(new_namespace) != 0:
        pytest.skip(f"no mount namespace of one's own: {os.strerror(ctypes.get_errno())}")
    output("mount", "--make-rprivate", "/")


@pytest.fixture(scope="module")
def buildah(debian):
    program = debian("buildah", package="buildah")
    return lambda *arguments: output(program, *STORE, *arguments, cwd=ROOT)


@pytest.fixture(scope="module")
def podman(debian):
    program = debian("podman", package="podman")
    debian("runc", package="runc")
    # Without systemd podman has no timer for health checks, and says so at every start.
    environment = os.environ | {"DISABLE_HC_SYSTEMD": "true"}
    options = [*STORE, "--runtime", "runc", "--cgroup-manager", "cgroupfs"]
    return lambda *arguments: output(program, *options, *arguments, env=environment)


@pytest.fixture(scope="module")
def builder(buildah):
    """An image that builds; made once for each toolchain."""
    script = Path(__file__).parent / "builder-image"
    made_of = script.read_text() + output("rustc", "-vV") + output("dpkg-query", "-W", "gcc", "libc6-dev")
    name = f"localhost/llamacpp-exporter-builder:{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    if name not in buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        output(script, name, *STORE)
    return name


@pytest.fixture(scope="module")
def image(buildah, podman, builder):
    vendored = FOLDER / "vendor"
    output("cargo", "vendor", "--quiet", "--locked", vendored, cwd=ROOT)
    buildah(
        *["build", "--isolation", "chroot", "--format", "docker", "--layers", "--tag", IMAGE],
        *["--build-arg", f"BUILDER={builder}", "--build-arg", f"REVISION={REVISION}"],
        *["--volume", f"{vendored}:/vendor:ro", "."],
    )
    # The layers of builds before this one are of no more use than their number is small.
    if len(buildah("images", "--all", "--quiet").splitlines()) > 60:
        buildah("rmi", "--prune")
    return json.loads(podman("image", "inspect", IMAGE))[0]


class Container:
    """It, running."""

    def __init__(self, podman, port, upstream):
        self.podman = podman
        self.url = f"http://127.0.0.1:{port}"
        self.id = podman(
            *["run", "--detach", "--network", "host", *limits()],
            *["--env", f"LLAMACPP_EXPORTER_ADDR=:{port}", "--env", f"LLAMACPP_BASE_URL={upstream}"],
            *["--env", "LLAMACPP_SCRAPE_INTERVAL=200ms", IMAGE],
        )

    def inspect(self, what):
        return self.podman("inspect", "--format", what, self.id)

    def get(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=2) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    def wait_for(self, path, pattern):
        deadline = time.monotonic() + 60
        while not re.search(pattern, answer := self.get(path), re.M):
            assert time.monotonic() < deadline, f"{answer}\n{self.podman('logs', self.id)}"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def container(image, podman, llama_server, free_port):
    started = Container(podman, free_port(), llama_server.url)
    yield started
    podman("rm", "--force", "--time", "0", started.id)


def test_the_image_is_the_binary_and_nothing_else(image, podman, tmp_path):
    print(f"image: {image['Size'] / 1e6:.2f} MB")
    podman("save", "--format", "docker-dir", "--output", tmp_path / "saved", IMAGE)
    files = []
    for layer in json.loads((tmp_path / "saved" / "manifest.json").read_text())["layers"]:
        blob = tmp_path / "saved" / layer["digest"].removeprefix("sha256:")
        files += output("tar", "-tf", blob).split()
    assert files == ["llamacpp-exporter"]


def test_what_the_image_says_of_itself(image):
    config = image["Config"]
    # Numbers, so that an orchestrator can see that it is not root.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"])
    assert config["Entrypoint"] == ["/llamacpp-exporter"]
    assert list(config["ExposedPorts"]) == ["9100/tcp"]
    assert image["Healthcheck"]["Test"] == ["CMD", "/llamacpp-exporter", "--healthcheck"]
    [package] = json.loads(output("cargo", "metadata", "--no-deps", "--format-version=1", cwd=ROOT))["packages"]
    said = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert said["title"] == package["name"]
    assert said["description"] == package["description"]
    assert said["licenses"] == package["license"]
    assert said["version"] == package["version"]
    assert said["revision"] == REVISION


def test_the_program_knows_what_it_was_built_from(image, podman):
    assert REVISION in podman("run", "--rm", "--network", "none", *limits(), IMAGE, "--version")


def test_it_serves_as_nobody(container):
    container.wait_for("/healthz", "^ok")
    status = Path(f"/proc/{container.inspect('{{.State.Pid}}')}/status").read_text()
    assert re.search(r"^Uid:(\s+65534){4}$", status, re.M)
    assert re.search(r"^NSpid:.*\s1$", status, re.M)


def test_it_watches_the_server(container):
    container.wait_for("/metrics", "^llamacpp_up 1$")


def test_its_health_check_passes(container, podman):
    # It finds the port that the environment says.
    podman("healthcheck", "run", container.id)


def test_it_stops_when_asked_to(container, podman):
    podman("stop", "--time", "60", container.id)
    # A program that ignores the signal is killed in the end, which is status 137.
    assert container.inspect("{{.State.ExitCode}}") == "0"
    assert container.get("/healthz") == ""
