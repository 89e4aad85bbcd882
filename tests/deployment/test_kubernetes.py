"""deploy/kubernetes: valid by the schemas of Kubernetes, the rules those of Prometheus, and the PodMonitor
selects what the pods have."""

import os
import subprocess
import sys

import pytest

from support import ROOT, TARGET

FOLDER = ROOT / "deploy" / "kubernetes"
SCHEMAS = ROOT / "target" / "kubernetes"
MANIFESTS = ["sidecar/llama-server.yaml", "sidecar/hpa.yaml", "daemonset/daemonset.yaml"]
PODS = {"sidecar/llama-server.yaml": "Deployment", "daemonset/daemonset.yaml": "DaemonSet"}


@pytest.fixture(scope="session", autouse=True)
def schemas():
    subprocess.run([ROOT / "scripts" / "setup", "kubernetes"], check=True)
    sys.path.append(str(SCHEMAS))
    yield
    sys.path.remove(str(SCHEMAS))


def documents(path):
    import yaml

    return list(yaml.safe_load_all((FOLDER / path).read_text()))


def pod(path):
    """The template of the pods."""
    [workload] = [document for document in documents(path) if document["kind"] == PODS[path]]
    return workload["spec"]["template"]


def exporter(path):
    [container] = [c for c in pod(path)["spec"]["containers"] if c["name"] == "llamacpp-exporter"]
    return container


@pytest.mark.parametrize("path", MANIFESTS)
def test_a_manifest_is_valid(path):
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", FOLDER / path]
    checked = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(SCHEMAS)})
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_file_belongs_to_a_kustomization():
    listed = set()
    for kustomization in FOLDER.glob("*/kustomization.yaml"):
        resources = documents(kustomization.relative_to(FOLDER))[0]["resources"]
        assert all((kustomization.parent / name).exists() for name in resources), kustomization
        listed |= {(kustomization.parent / name).resolve() for name in resources}
    files = {path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert files <= listed


def test_the_prometheus_rule_is_that_of_prometheus():
    made = subprocess.run([ROOT / "scripts" / "prometheus-rule"], check=True, capture_output=True, text=True).stdout
    path = FOLDER / "monitoring" / "prometheusrule.yaml"
    assert path.read_text() == made, f"run scripts/prometheus-rule >{path.relative_to(ROOT)}"
    import yaml

    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())
    assert yaml.safe_load(made)["spec"] == rules


@pytest.mark.parametrize("path", PODS)
def test_the_pod_monitor_selects_the_pods(path):
    [monitor] = documents("monitoring/podmonitor.yaml")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pod(path)["metadata"]["labels"].items()
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    [port] = exporter(path)["ports"]
    assert port["name"] == endpoint["port"] and len(port["name"]) <= 15


@pytest.mark.parametrize("path", PODS)
def test_the_exporter_knows_its_variables(path):
    known = subprocess.run([TARGET / "release" / "llamacpp-exporter", "--help"], capture_output=True, text=True).stdout
    names = {variable["name"] for variable in exporter(path)["env"]}
    assert names and not {name for name in names if name not in known}
