"""Reads docs/queries.md: the query below each heading."""

import re

from support import ROOT

# The ranges in the document: over which "now" is averaged, and over which things are counted.
NOW, TOTAL = "5m", "1d"


def load():
    """The queries by their name."""
    text = (ROOT / "docs" / "queries.md").read_text()
    found = re.findall(r"^### ([^\n]+)\n\n```promql\n([^`]+)```$", text, re.MULTILINE)
    queries = dict(found)
    assert len(queries) == len(found) == text.count("```promql"), "a query without a name, or a name that is used twice"
    return queries


def substitute(expr, now, total, step):
    """The query with other ranges, in seconds; `step` is that of a subquery."""
    expr = re.sub(rf"\[{TOTAL}:\w+\]", f"[{total}s:{step}s]", expr)
    return expr.replace(f"[{NOW}]", f"[{now}s]").replace(f"[{TOTAL}]", f"[{total}s]")
