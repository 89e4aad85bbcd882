"""The catalogue of metrics, as the README has it: a unit test compares that table with the program's own."""

import re

from support import ROOT


def families():
    """The type of each family, by name."""
    return dict(re.findall(r"^\| `((?:llamacpp|process)_\w+)` \| (\w+) \|", (ROOT / "README.md").read_text(), re.M))


def series_names():
    """The names that a query can read."""
    names = set()
    for name, kind in families().items():
        names |= {name + suffix for suffix in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    return names
