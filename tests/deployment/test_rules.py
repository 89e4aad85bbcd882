"""deploy/prometheus/rules.yml: promtool's tests, and that they test every alert; prometheus.yml."""

import re
import shutil
import subprocess

import pytest
import yaml

from support import PROMTOOL, ROOT, dashboard
from support.catalogue import series_names

RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
TESTS = RULES.with_name("rules_test.yml")
CONFIG = ROOT / "prometheus.yml"
ALL_RULES = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL_RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in ALL_RULES if "record" in rule}
TESTED = {test["name"]: test for test in yaml.safe_load(TESTS.read_text())["tests"]}


@pytest.fixture(scope="session", autouse=True)
def installed():
    subprocess.run([ROOT / "scripts" / "setup", "gguf", "prometheus"], check=True)


def promtool(*arguments):
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_valid_and_pass_their_tests():
    promtool("check", "rules", RULES)
    promtool("test", "rules", TESTS)


def test_the_rules_read_metrics_that_exist():
    known = series_names() | RECORDED | {"up"}
    for rule in ALL_RULES:
        assert dashboard.metrics(rule["expr"]) <= known, rule


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_to_do(name):
    alert = ALERTS[name]
    assert name.startswith("LlamaCpp")
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"].keys() == {"summary", "description"}
    assert f"### {name}\n" in (ROOT / "docs" / "monitoring.md").read_text()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_tested_to_fire_to_be_just_short_of_it_and_without_series(name):
    test = TESTED[name]
    instances = {re.search('instance="([a-z]+)', one["series"])[1] for one in test["input_series"]}
    assert instances == {"fires", "close", "absent"}
    early, late = test["alert_rule_test"]
    assert (early["alertname"], late["alertname"]) == (name, name)
    assert not early.get("exp_alerts")
    expected = [alert["exp_labels"]["instance"] for alert in late["exp_alerts"]]
    assert expected and all(instance.startswith("fires") for instance in expected)


@pytest.fixture
def deployed(tmp_path):
    """The rules and prometheus.yml as compose.yaml mounts them."""
    shutil.copy(RULES, tmp_path)
    shutil.copy(CONFIG, tmp_path)
    return tmp_path / CONFIG.name


def test_the_configuration_is_valid(deployed):
    promtool("check", "config", deployed)


def test_the_alternatives_in_the_comments_are_valid(deployed):
    text = deployed.read_text()
    # A line of YAML has no space, or more than one, after its "#".
    every = re.sub(r"^( *)#(?! \S)", r"\1", text, flags=re.MULTILINE)
    config = yaml.safe_load(every)
    assert "remote_write" in config
    kinds = {key.removesuffix("_sd_configs") for job in config["scrape_configs"] for key in job if "_sd_" in key}
    assert kinds == {"file", "dns", "kubernetes", "docker"}
    for job in list(config["scrape_configs"]):
        # Debian's Prometheus is built without it.
        if "kubernetes_sd_configs" in job:
            config["scrape_configs"].remove(job)
    deployed.write_text(yaml.safe_dump(config))
    promtool("check", "config", deployed)
