"""The Containerfile, built with buildah and run with podman, without pulling an image: the builder image
is made from this machine's toolchain (builder-image), and the crates come from `cargo vendor`."""

import ctypes
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from support import ROOT
from support.http_client import free_port, request
from support.process import NOBODY, proc_status
from support.wait import wait_for

FOLDER = ROOT / "target" / "deployment"
STORE = ["--root", str(FOLDER / "images"), "--runroot", str(FOLDER / "run")]
IMAGE = "localhost/llamacpp-exporter:test"
REVISION = "0123456789ab"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("apt-cache"), reason="making the builder image needs root and Debian"
)


def output(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-6000:]}{done.stderr[-6000:]}"
    return done.stdout.strip()


def limits():
    """podman's own limits are higher than some machines permit."""
    options = []
    for name, kind in ("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC):
        _, hard = resource.getrlimit(kind)
        options += ["--ulimit", f"{name}={1024 if hard == resource.RLIM_INFINITY else min(1024, hard)}"]
    return options


@pytest.fixture(scope="module", autouse=True)
def own_mounts():
    """A private mount namespace, so that no mount outlives the tests and `rm -r target` works."""
    new_namespace = 0x20000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(new_namespace) != 0:
        pytest.skip(f"cannot create a mount namespace: {os.strerror(ctypes.get_errno())}")
    output("mount", "--make-rprivate", "/")


@pytest.fixture(scope="module")
def buildah(debian):
    program = debian("buildah", package="buildah")
    return lambda *arguments: output(program, *STORE, *arguments, cwd=ROOT)


@pytest.fixture(scope="module")
def podman(debian):
    program = debian("podman", package="podman")
    debian("runc", package="runc")
    # Without systemd podman has no timer for health checks, and warns at every start.
    environment = os.environ | {"DISABLE_HC_SYSTEMD": "true"}
    options = [*STORE, "--runtime", "runc", "--cgroup-manager", "cgroupfs"]
    return lambda *arguments: output(program, *options, *arguments, env=environment)


@pytest.fixture(scope="module")
def builder(buildah):
    """The name of the builder image, which is made once for each toolchain."""
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
    # Old layers are useful as a cache while there are few of them.
    if len(buildah("images", "--all", "--quiet").splitlines()) > 60:
        buildah("rmi", "--prune")
    return json.loads(podman("image", "inspect", IMAGE))[0]


class Container:
    def __init__(self, podman, upstream):
        self.podman = podman
        self.port = port = free_port()
        self.id = podman(
            *["run", "--detach", "--network", "host", *limits()],
            *["--env", f"LLAMACPP_EXPORTER_ADDR=:{port}", "--env", f"LLAMACPP_BASE_URL={upstream}"],
            *["--env", "LLAMACPP_SCRAPE_INTERVAL=200ms", IMAGE],
        )

    def inspect(self, template):
        return self.podman("inspect", "--format", template, self.id)

    def get(self, path):
        try:
            return request(self.port, path, timeout=2)[1]
        except OSError:
            return ""

    def wait_for(self, path, pattern):
        found = lambda: re.search(pattern, self.get(path), re.MULTILINE)  # noqa: E731
        wait_for(found, lambda: f"{pattern} in {path}:\n{self.get(path)}\n{self.podman('logs', self.id)}")


@pytest.fixture(scope="module")
def container(image, podman, llama_server):
    container = Container(podman, llama_server.url)
    yield container
    podman("rm", "--force", "--time", "0", container.id)


def test_the_image_is_small(image):
    # Of the C library of this test, glibc, it holds 0.8 MB; of musl less than 0.1 MB.
    assert image["Size"] < 4.4e6


def test_the_image_contains_only_the_binary(image, podman, tmp_path):
    podman("save", "--format", "docker-dir", "--output", tmp_path / "saved", IMAGE)
    files = []
    for layer in json.loads((tmp_path / "saved" / "manifest.json").read_text())["layers"]:
        blob = tmp_path / "saved" / layer["digest"].removeprefix("sha256:")
        files += output("tar", "-tf", blob).split()
    assert files == ["llamacpp-exporter"]


def test_the_image_metadata(image):
    config = image["Config"]
    # Numeric, so that an orchestrator can verify that it is not root.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"])
    assert config["Entrypoint"] == ["/llamacpp-exporter"]
    assert list(config["ExposedPorts"]) == ["9100/tcp"]
    assert image["Healthcheck"]["Test"] == ["CMD", "/llamacpp-exporter", "--healthcheck"]
    [package] = json.loads(output("cargo", "metadata", "--no-deps", "--format-version=1", cwd=ROOT))["packages"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["title"] == package["name"]
    assert labels["description"] == package["description"]
    assert labels["licenses"] == package["license"]
    assert labels["version"] == package["version"]
    assert labels["revision"] == REVISION


def test_the_version_contains_the_revision(image, podman):
    assert REVISION in podman("run", "--rm", "--network", "none", *limits(), IMAGE, "--version")


def test_it_runs_as_nobody(container):
    container.wait_for("/healthz", "^ok")
    status = proc_status(container.inspect("{{.State.Pid}}"))
    assert status["Uid"].split() == [str(NOBODY)] * 4
    assert status["NSpid"].split()[-1] == "1"


def test_it_polls_the_server(container):
    container.wait_for("/metrics", r"^llamacpp_up\{.*\} 1$")


def test_its_health_check_passes(container, podman):
    # With the port from the environment.
    podman("healthcheck", "run", container.id)


def test_sigterm_ends_it(container, podman):
    podman("stop", "--time", "60", container.id)
    # podman kills a program that ignores the signal, with status 137.
    assert container.inspect("{{.State.ExitCode}}") == "0"
    assert container.get("/healthz") == ""
