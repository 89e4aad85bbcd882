"""Reads dashboard.json as Grafana does: panels, queries, and the substitution of variables."""

import json
import re
from dataclasses import dataclass

from support import ROOT

# Grafana's $__rate_interval with the default Prometheus data source: four times the scrape interval of 15 s.
RATE_INTERVAL = "1m"
# The choice "All" of a variable.
ALL = object()


@dataclass(frozen=True)
class Query:
    panel: str
    ref: str
    expr: str
    instant: bool

    def __str__(self):
        return f"{self.panel} {self.ref}{' instant' if self.instant else ''}"


def load():
    return json.loads((ROOT / "dashboard.json").read_text())


def panels(dashboard):
    """Every panel, including those in a collapsed row."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def queries(dashboard):
    return [
        Query(panel["title"], target["refId"], target["expr"], target.get("instant", False))
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
        if name in ("__rate_interval", "__interval"):
            return RATE_INTERVAL
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
