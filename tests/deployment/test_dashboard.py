"""dashboard.json, as Grafana imports it: its structure, Grafana's published types, and what it shows."""

import itertools
import json
import os
import re
import subprocess
import sys

import pytest

from support import GRAFANA_TYPES, ROOT, catalogue, dashboard

DASHBOARD = dashboard.load()
PANELS = list(dashboard.panels(DASHBOARD))
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Families that no panel shows, with the reason.
NOT_SHOWN = {}
# What Grafana's oldest published types leave out: the variable's query as the editor shows it, and what belongs to
# Prometheus in an annotation. The newest have them.
NOT_IN_OLDEST_TYPES = {"definition", "step", "titleFormat", "textFormat", "useValueForTime"}


def test_it_is_what_the_script_writes():
    printed = subprocess.run(
        [sys.executable, ROOT / "scripts" / "dashboard", "--print"], capture_output=True, text=True
    )
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout) == DASHBOARD, "run scripts/dashboard"


@pytest.fixture(scope="session")
def types():
    if sys.version_info < (3, 11):
        pytest.skip("Grafana's types need Python 3.11")
    subprocess.run([ROOT / "scripts" / "setup", "grafana"], check=True)


@pytest.mark.parametrize("version", ["11.0.0", "newest"])
def test_the_published_types_know_every_field(types, version):
    # What the types of a panel, its options and its queries do not know is lost on the way through them.
    code = """if True:
        import json, sys
        from grafana_foundation_sdk.cog import encoder, plugins
        from grafana_foundation_sdk.models import dashboard, units
        plugins.register_default_plugins()
        read = dashboard.Dashboard.from_json(json.load(sys.stdin))
        known = [value for value in vars(units).values() if isinstance(value, str)]
        print(json.dumps([json.loads(encoder.JSONEncoder().encode(read)), known]))
    """
    environment = os.environ | {"PYTHONPATH": str(GRAFANA_TYPES / version)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=json.dumps(DASHBOARD), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    typed, units = json.loads(done.stdout)
    lost = list(differences(DASHBOARD, typed))
    allowed = NOT_IN_OLDEST_TYPES if version == "11.0.0" else set()
    assert [path for path in lost if path[-1] not in allowed] == [("id",)]
    if version == "newest":
        for panel in data_panels():
            unit = panel["fieldConfig"]["defaults"]["unit"]
            assert unit in units or unit.startswith("suffix: "), panel["title"]


def differences(one, other, path=()):
    """The paths of what is missing or different in the other."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key, value in one.items():
            if key in other:
                yield from differences(value, other[key], (*path, key))
            else:
                yield (*path, key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other)):
            yield from differences(*pair, (*path, index))
    elif one != other:
        yield path


def data_panels():
    return [panel for panel in PANELS if panel["type"] != "row"]


def test_the_ids_are_unique():
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids))
    # Grafana assigns one on import.
    assert DASHBOARD["id"] is None


def test_the_queries_of_a_panel_have_unique_ref_ids():
    for panel in data_panels():
        ref_ids = [target["refId"] for target in panel["targets"]]
        assert ref_ids and len(ref_ids) == len(set(ref_ids)), panel["title"]


def test_everything_uses_the_selected_datasource():
    [variable] = [v for v in DASHBOARD["templating"]["list"] if v["type"] == "datasource"]
    assert (variable["name"], variable["query"]) == ("datasource", "prometheus")
    users = [*data_panels(), *(target for panel in data_panels() for target in panel["targets"])]
    users += [*dashboard.variables(DASHBOARD).values(), *DASHBOARD["annotations"]["list"]]
    assert all(user["datasource"] == DATASOURCE for user in users)


def test_every_variable_in_a_query_exists():
    names = set(dashboard.variables(DASHBOARD)) | set(dashboard.VALUES)
    for query in dashboard.queries(DASHBOARD):
        assert set(re.findall(r"\$\{?(\w+)", query.expr)) <= names, query


def test_a_variable_without_values_matches_every_series():
    assert list(dashboard.variables(DASHBOARD)) == ["job", "instance", "server", "model"]
    for variable in dashboard.variables(DASHBOARD).values():
        assert variable["includeAll"] and variable["allValue"] == ".*"
        assert variable["current"]["value"] == ["$__all"]


def test_no_panels_overlap():
    for one, other in itertools.combinations((panel["gridPos"] for panel in PANELS), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)


def test_every_panel_has_a_title_a_description_and_legends():
    for panel in data_panels():
        assert panel["title"] and panel["description"].endswith("."), panel["id"]
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert panel["type"] == "table" or len(set(legends)) == len(legends), panel["title"]


def test_rates_are_over_the_interval_that_grafana_computes():
    for query in dashboard.queries(DASHBOARD):
        assert "avg_over_time" not in query.expr, query
        ranges = set(re.findall(r"\[(.*?)\]", query.expr))
        assert query.instant or ranges <= {"$__rate_interval"}, query


def test_every_family_of_the_catalogue_is_shown():
    shown = set().union(*(dashboard.metrics(query.expr) for query in dashboard.queries(DASHBOARD)))
    assert shown <= catalogue.series_names() | {"ALERTS"}
    families = catalogue.families()
    names = {name: {name, f"{name}_bucket"} if kind == "histogram" else {name} for name, kind in families.items()}
    not_shown = {name for name, read in names.items() if not read & shown}
    assert not_shown == set(NOT_SHOWN)
