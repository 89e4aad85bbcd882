"""The structure of dashboard.json, as Grafana imports it."""

import itertools
import re

from support import dashboard

DASHBOARD = dashboard.load()
PANELS = list(dashboard.panels(DASHBOARD))
DATASOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}


def test_the_ids_are_unique():
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids))
    # Grafana assigns one on import.
    assert DASHBOARD["id"] is None


def test_the_queries_of_a_panel_have_unique_ref_ids():
    for panel in PANELS:
        ref_ids = [target["refId"] for target in panel.get("targets", [])]
        assert len(ref_ids) == len(set(ref_ids)), panel["title"]


def test_every_panel_uses_the_selected_datasource():
    [variable] = [v for v in DASHBOARD["templating"]["list"] if v["type"] == "datasource"]
    assert (variable["name"], variable["query"]) == ("DS_PROMETHEUS", "prometheus")
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["datasource"] == DATASOURCE, panel["title"]
            assert all(target["datasource"] == DATASOURCE for target in panel["targets"]), panel["title"]
    assert all(v["datasource"] == DATASOURCE for v in dashboard.variables(DASHBOARD).values())


def test_every_variable_in_a_query_exists():
    names = set(dashboard.variables(DASHBOARD)) | {"__rate_interval"}
    for query in dashboard.queries(DASHBOARD):
        assert set(re.findall(r"\$\{?(\w+)", query.expr)) <= names, query


def test_a_variable_without_values_matches_every_series():
    # With one base URL no series has the label `server`: only a matcher of the empty string finds them.
    for variable in dashboard.variables(DASHBOARD).values():
        assert variable["includeAll"] and variable["allValue"] == ".*"
        assert variable["current"]["value"] == ["$__all"]


def test_no_panels_overlap():
    for one, other in itertools.combinations((panel["gridPos"] for panel in PANELS), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)


def test_every_panel_has_a_title_and_a_description():
    for panel in PANELS:
        assert panel["title"] and panel["type"] == "row" or panel["description"], panel["id"]
