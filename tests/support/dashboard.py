"""Reads dashboard.json as Grafana does: panels, queries, and the substitution of variables."""

import json
import re
from dataclasses import dataclass

from support import ROOT

# Variables of one value. $__rate_interval is Grafana's, with the default Prometheus data source: four times the scrape
# interval of 15 s; $__range is the time range that is shown.
VALUES = {"__rate_interval": "1m", "__range": "10m", "quantile": "0.95"}
# The choice "All" of a variable.
ALL = object()


@dataclass(frozen=True)
class Query:
    panel: str
    panel_id: int
    description: str
    ref: str
    expr: str
    instant: bool

    def __str__(self):
        return f"{self.panel_id} {self.panel} {self.ref}"


def load():
    return json.loads((ROOT / "dashboard.json").read_text())


def panels(dashboard):
    """Every panel, including those in a collapsed row."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def queries(dashboard):
    return [
        Query(panel["title"], panel["id"], panel["description"], target["refId"], target["expr"], target["instant"])
        for panel in panels(dashboard)
        for target in panel.get("targets", [])
    ]


def variables(dashboard):
    """The query variables, by name."""
    return {v["name"]: v for v in dashboard["templating"]["list"] if v["type"] == "query"}


def substitute(expr, dashboard, choices):
    """The query that Grafana sends when the variables are set to `choices`: ALL, or lists of values."""

    def value(match):
        name = match[1] or match[2]
        if name in VALUES:
            return VALUES[name]
        choice = choices[name]
        if choice is ALL:
            return variables(dashboard)[name]["allValue"]
        # Inside a PromQL string, so each backslash is doubled.
        escaped = [re.sub(r"([\\^$*+?.()|\[\]{}])", r"\\\\\1", one) for one in choice]
        return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"

    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, expr)


def metrics(expr):
    """The names of the metrics that a query reads."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    words = re.findall(r"[a-zA-Z_:][\w:]*(?![\w:]*\s*\()", bare)
    return {word for word in words if "_" in word and not word.startswith("__")}
