"""compose.yaml and its overlays: started by a real Docker and Compose, with images made of programs of this
machine, apart from Grafana, which cannot be had: its service and its provisioning are read."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

from support import BINARY, LLAMA_SERVER, MODEL, MODEL_NAME, ROOT, TARGET, TIMEOUT, dashboard
from support import docker_images as images
from support.http_client import free_port, request, responds
from support.process import ChildProcess, clean_environment
from support.wait import wait_for

FILE = ROOT / "compose.yaml"
# In a container the address and files of the settings are others than outside.
NOT_PASSED = {"LLAMACPP_EXPORTER_ADDR", "LLAMACPP_DISCOVER"}


@pytest.fixture(scope="module")
def document():
    subprocess.run([ROOT / "scripts" / "setup", "gguf"], check=True)
    import yaml

    return yaml.safe_load(FILE.read_text())


def test_every_setting_is_passed_to_the_exporter(document):
    text = subprocess.run([BINARY, "--help"], capture_output=True, text=True, check=True).stdout
    settings = set(re.findall(r"\b(?:LLAMACPP|LLM)_[A-Z_]+\b", text)) - NOT_PASSED
    assert set(document["services"]["llamacpp-exporter"]["environment"]) == settings


def test_every_service_is_limited(document):
    for name, service in document["services"].items():
        assert service["read_only"] and service["mem_limit"] and service["healthcheck"], name
        assert service["cap_drop"] == ["ALL"] and service["restart"] == "unless-stopped", name
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), f"{service['image']} is not pinned"


def test_grafana_is_provisioned(document):
    import yaml

    grafana = document["services"]["grafana"]
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    assert f"./{folder.relative_to(ROOT)}:/etc/grafana/provisioning:ro" in grafana["volumes"]
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus" and source["isDefault"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in document["services"]
    [provider] = yaml.safe_load((folder / "dashboards" / "llamacpp.yaml").read_text())["providers"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert f"./dashboard.json:{home}:ro" in grafana["volumes"]
    assert provider["options"]["path"] == os.path.dirname(home)
    # Its variable takes the default data source of this type.
    [variable] = [v for v in dashboard.load()["templating"]["list"] if v["type"] == "datasource"]
    assert variable["query"] == source["type"]


class Engine(ChildProcess):
    """A Docker daemon with a PID namespace and data of its own."""

    def __init__(self, dockerd, docker, compose, folder):
        super().__init__(folder / "log")
        self.docker_program, self.compose_program = docker, compose
        self.host = f"unix://{folder}/docker.sock"
        self.spawn(
            ["unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child", dockerd, f"--host={self.host}"]
            + [f"--data-root={folder}/data", f"--exec-root={folder}/run", f"--pidfile={folder}/pid"]
        )

    def environment(self, **variables):
        return clean_environment(DOCKER_HOST=self.host, **variables)

    def docker(self, *arguments, **options):
        command = [self.docker_program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, env=self.environment(), timeout=TIMEOUT, **options)
        assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
        return done.stdout.decode()

    def is_ready(self):
        try:
            return self.docker("version")
        except AssertionError:
            return False

    def is_over(self):
        return self.process.poll() is not None

    def inner_pid(self):
        """The PID of the daemon: `unshare` waits for it, and ignores SIGTERM."""
        [pid] = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(pid)

    def kill(self):
        os.kill(self.inner_pid(), signal.SIGTERM)
        self.process.wait(TIMEOUT)


@pytest.fixture(scope="module")
def engine(debian, document, tmp_path_factory):
    if os.geteuid() != 0 or not shutil.which("apt-get") or platform.machine() != "x86_64":
        pytest.skip("Docker's daemon needs root, its package Debian, and the llama-server of scripts/setup x86-64")
    if subprocess.run([ROOT / "scripts" / "setup", "compose"]).returncode != 0:
        pytest.skip("Compose is neither in Debian's packages here nor can Go build it")
    compose = TARGET / "compose" / "docker-compose"
    dockerd = debian("dockerd", package="docker.io")
    subprocess.run([ROOT / "scripts" / "setup", "prometheus", "router", "10068"], check=True)
    # The path of a Unix socket is limited to 107 bytes.
    engine = Engine(dockerd, shutil.which("docker"), compose, tmp_path_factory.mktemp("engine"))
    wait_for(lambda: engine.is_over() or engine.is_ready(), "Docker's daemon", interval=0.5)
    if engine.is_over():
        pytest.skip(f"Docker's daemon does not start here: {engine.log[-2000:]}")
    services = document["services"]
    images.exporter(engine.docker, services["llamacpp-exporter"]["image"])
    images.prometheus(engine.docker, services["prometheus"]["image"])
    yield engine
    engine.kill()


class Project:
    """compose.yaml with an overlay, under free ports."""

    def __init__(self, engine, overlay, **variables):
        self.engine = engine
        self.ports = {name: free_port() for name in ("EXPORTER", "PROMETHEUS", "LLAMA_SERVER")}
        ports = {f"{name}_PORT": str(port) for name, port in self.ports.items()}
        self.environment = engine.environment(**ports, **variables)
        self.command = [engine.compose_program, "-p", "test", "-f", FILE, "-f", ROOT / "deploy" / overlay]

    def compose(self, *arguments):
        command = [*self.command, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=2 * TIMEOUT)
        return done.returncode, done.stdout + done.stderr

    def up(self, *services):
        code, text = self.compose("up", "--detach", "--no-build", "--pull=never", "--wait", *services)
        assert code == 0, f"{text}\n{self.compose('logs')[1]}"

    def down(self):
        code, text = self.compose("down", "--volumes", "--timeout=10")
        assert code == 0, text

    def check(self):
        """The report of the exporter's --check in its container."""
        code, text = self.compose("exec", "-T", "llamacpp-exporter", "/llamacpp-exporter", "--check", "--json")
        assert code in (0, 1), text
        return json.loads(text[text.index("{") :])

    def query(self, expr):
        """The value of the only series in Prometheus."""
        status, text = request(self.ports["PROMETHEUS"], f"/api/v1/query?query={quote(expr)}")
        result = json.loads(text)["data"]["result"] if status == 200 else []
        return float(result[0]["value"][1]) if result else None

    def wait_for(self, expr, value):
        wait_for(
            lambda: self.query(expr) == value,
            lambda: f"{expr} to be {value}: {self.query(expr)}\n{self.compose('logs', 'llamacpp-exporter')[1]}",
            interval=0.5,
        )


def is_scraped(report):
    """Whether a report says that the exporter runs, and that its Prometheus scrapes it."""
    [prometheus] = report["prometheus"]
    assert report["exporter"]["state"] == prometheus["state"] == "running", report
    return [target["health"] for target in prometheus["targets"]] == ["up"]


def test_compose_accepts_every_overlay(engine):
    for overlay in (ROOT / "deploy").glob("compose.*.yaml"):
        code, text = Project(engine, overlay.name).compose("config", "--format=json")
        assert code == 0, text
        exporter = json.loads(text)["services"]["llamacpp-exporter"]
        assert ("models" in exporter) == (overlay.name == "compose.nvidia.yaml"), overlay


def test_with_a_llama_server(engine, document, request):
    project = Project(
        engine,
        "compose.llama-server.yaml",
        LLAMA_ARG_HF_REPO="",
        LLAMA_ARG_MODEL=images.MODEL_PATH,
        LLAMA_ARG_ALIAS=MODEL_NAME,
    )
    config = json.loads(project.compose("config", "--format=json")[1])
    images.llama_server(engine.docker, config["services"]["llama-server"]["image"])
    request.addfinalizer(project.down)
    project.up("llamacpp-exporter", "prometheus", "llama-server")
    port = project.ports["LLAMA_SERVER"]
    wait_for(lambda: responds(port, "/health"), lambda: project.compose("logs", "llama-server")[1], interval=0.5)
    body = json.dumps({"prompt": "Count", "n_predict": 20, "ignore_eos": True}).encode()
    answer = json.load(urlopen(Request(f"http://127.0.0.1:{port}/completion", body), timeout=TIMEOUT))
    project.wait_for('sum(up{job="llamacpp"})', 1)
    project.wait_for("sum(llamacpp_generated_tokens_total)", answer["tokens_predicted"])
    # From the log, which the two share.
    project.wait_for('sum(llamacpp_requests_total{source="log",outcome="ok"})', 1)
    assert is_scraped(project.check())
    project.down()
    assert not engine.docker("ps", "--all", "--quiet") and not engine.docker("volume", "ls", "--quiet")


def test_with_the_servers_of_the_machine(engine, request):
    if responds(9100, "/"):
        pytest.skip("port 9100 is in use")
    project = Project(engine, "compose.local.yaml")
    port = free_port()
    # In the PID namespace that is the host's for this engine, of a user whom the exporter is not.
    server = subprocess.Popen(
        ["nsenter", f"--target={engine.inner_pid()}", "--pid", "setpriv", "--reuid=65533", "--regid=65533", "--clear-groups"]
        + [LLAMA_SERVER, "--model", MODEL, "--alias", MODEL_NAME, "--port", str(port), "--metrics", "-t", "1"]
        + ["--api-key", "sk-of-its-own"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    request.addfinalizer(server.kill)
    request.addfinalizer(project.down)
    project.up("llamacpp-exporter", "prometheus")
    project.wait_for("llamacpp_discovered_servers", 1)
    # It found the key, and the size of the KV cache.
    project.wait_for("count(llamacpp_slots)", 1)
    project.wait_for("count(llamacpp_kv_cache_limit_bytes)", 1)
    project.wait_for("count(llamacpp_memory_usage_bytes)", 1)
    assert is_scraped(project.check())
