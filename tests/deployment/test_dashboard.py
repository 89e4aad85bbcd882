"""dashboard.json by itself: what Grafana expects of a file that is imported."""

import itertools
import re

import dashboard

DASHBOARD = dashboard.load()
PANELS = list(dashboard.panels(DASHBOARD))
SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}


def test_the_ids_are_unique():
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids))
    # Grafana gives it one when it is imported.
    assert DASHBOARD["id"] is None


def test_the_queries_of_a_panel_have_letters_of_their_own():
    for panel in PANELS:
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert len(letters) == len(set(letters)), panel["title"]


def test_every_panel_asks_the_source_that_was_chosen():
    [variable] = [v for v in DASHBOARD["templating"]["list"] if v["type"] == "datasource"]
    assert (variable["name"], variable["query"]) == ("DS_PROMETHEUS", "prometheus")
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["datasource"] == SOURCE, panel["title"]
            assert all(target["datasource"] == SOURCE for target in panel["targets"]), panel["title"]
    assert all(v["datasource"] == SOURCE for v in dashboard.variables(DASHBOARD).values())


def test_every_variable_in_a_query_exists():
    names = set(dashboard.variables(DASHBOARD)) | {"__rate_interval"}
    for query in dashboard.queries(DASHBOARD):
        assert set(re.findall(r"\$\{?(\w+)", query.expr)) <= names, query


def test_a_variable_without_values_still_finds_its_series():
    # With one base URL no series has `server`: only a matcher that takes the empty string finds them.
    for variable in dashboard.variables(DASHBOARD).values():
        assert variable["includeAll"] and variable["allValue"] == ".*"
        assert variable["current"]["value"] == ["$__all"]


def test_no_panel_covers_another():
    for one, other in itertools.combinations((panel["gridPos"] for panel in PANELS), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)


def test_every_panel_says_what_it_shows():
    for panel in PANELS:
        assert panel["title"] and panel["type"] == "row" or panel["description"], panel["id"]
