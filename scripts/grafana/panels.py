"""Builds the JSON of a Grafana dashboard: panels with the options of their type, in rows, laid out from left to right.

The JSON is that of Grafana 11; later versions read it as well.
"""

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GRID_WIDTH = 24


def query(expr, legend="__auto", instant=False, form="time_series"):
    """A query of a panel; `form` is time_series, heatmap or table."""
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": expr,
        "legendFormat": legend,
        "format": form,
        "instant": instant,
        "range": not instant,
    }


def thresholds(*steps):
    """(None, color), then (value, color) from which on the color holds."""
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}


PLAIN = thresholds((None, "green"))


def value_mapping(names):
    """Shows 0, 1, 2, … as these (name, color)."""
    options = {str(i): {"text": name, "color": color, "index": i} for i, (name, color) in enumerate(names)}
    return [{"type": "value", "options": options}]


def panel(kind, title, description, queries, width, height, options, defaults, overrides=()):
    targets = [one | {"refId": chr(ord("A") + i)} for i, one in enumerate(queries)]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"w": width, "h": height},
        "targets": targets,
        "options": options,
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
    }


def stat(title, description, unit, expr, legend="", steps=PLAIN, width=4, decimals=None, mappings=(), minimum=None):
    """The value now; with several series, one beside the other with its legend."""
    options = {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "wideLayout": True,
        "textMode": "value_and_name" if legend else "value",
        "showPercentChange": False,
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    defaults = {"unit": unit, "color": {"mode": "thresholds"}, "thresholds": steps, "mappings": list(mappings)}
    defaults |= {} if decimals is None else {"decimals": decimals}
    return panel("stat", title, description, [query(expr, legend, instant=True)], width, 4, options, defaults)


def graph(title, description, unit, *queries, width=8, steps=None, stack=False, bars=False, most=None, overrides=()):
    """A time series panel of (expr, legend); each value of the y axis is at least 0."""
    custom = {
        "drawStyle": "bars" if bars else "line",
        "lineWidth": 1,
        "fillOpacity": 60 if bars else 30 if stack else 10,
        "gradientMode": "none",
        "showPoints": "never",
        "spanNulls": False,
        "lineInterpolation": "linear",
        "pointSize": 5,
        "axisPlacement": "auto",
        "axisLabel": "",
        "axisColorMode": "text",
        "axisBorderShow": False,
        "axisCenteredZero": False,
        "barAlignment": 0,
        "scaleDistribution": {"type": "linear"},
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
        "hideFrom": {"tooltip": False, "viz": False, "legend": False},
        "thresholdsStyle": {"mode": "line" if steps else "off"},
    }
    defaults = {
        "unit": unit,
        "min": 0,
        "color": {"mode": "palette-classic"},
        "custom": custom,
        "thresholds": steps or PLAIN,
        "mappings": [],
    }
    defaults |= {} if most is None else {"max": most}
    options = {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["mean", "max", "lastNotNull"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel(
        "timeseries", title, description, [query(*one) for one in queries], width, 8, options, defaults, overrides
    )


def dashed(pattern):
    """An override for the series whose name matches: a limit, drawn as a dashed line without a fill."""
    properties = {"custom.lineStyle": {"fill": "dash", "dash": [8, 8]}, "custom.fillOpacity": 0}
    return {
        "matcher": {"id": "byRegexp", "options": pattern},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def heatmap(title, description, unit, expr, width=8):
    """The buckets of a histogram over time; the query is by le."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "showValue": "never",
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "color": {
            "mode": "scheme",
            "scheme": "Turbo",
            "fill": "dark-orange",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
    }
    defaults = {
        "unit": unit,
        "custom": {
            "scaleDistribution": {"type": "linear"},
            "hideFrom": {"tooltip": False, "viz": False, "legend": False},
        },
    }
    return panel("heatmap", title, description, [query(expr, "{{le}}", form="heatmap")], width, 8, options, defaults)


def state_timeline(title, description, expr, legend, mappings, width=24):
    """Colored stretches of time, one line for each series."""
    options = {
        "mergeValues": True,
        "showValue": "auto",
        "alignValue": "left",
        "rowHeight": 0.9,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    custom = {"lineWidth": 0, "fillOpacity": 70, "hideFrom": {"tooltip": False, "viz": False, "legend": False}}
    defaults = {
        "unit": "none",
        "color": {"mode": "thresholds"},
        "custom": custom,
        "thresholds": PLAIN,
        "mappings": mappings,
    }
    return panel("state-timeline", title, description, [query(expr, legend)], width, 7, options, defaults)


def table(title, description, columns, hidden, units=None, links=None, width=24):
    """Instant queries, joined by their labels, each of which is a column. `columns` are (name, expr), further columns
    with the values; `hidden` are left out, `units` and `links` are by column."""
    values = {
        f"Value #{chr(ord('A') + i)}" if len(columns) > 1 else "Value": name for i, (name, _) in enumerate(columns)
    }
    options = {
        "showHeader": True,
        "cellHeight": "sm",
        "footer": {"show": False, "reducer": ["sum"], "countRows": False, "fields": ""},
    }
    custom = {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False, "filterable": True}
    defaults = {"unit": "short", "custom": custom, "thresholds": PLAIN, "mappings": [], "color": {"mode": "thresholds"}}
    overrides = [
        {"matcher": {"id": "byName", "options": column}, "properties": [{"id": what, "value": value}]}
        for what, of_columns in (("unit", units or {}), ("links", links or {}))
        for column, value in of_columns.items()
    ]
    queries = [query(expr, instant=True, form="table") for _, expr in columns]
    made = panel("table", title, description, queries, width, 8, options, defaults, overrides)
    excluded = [column for column in hidden if column not in values.values()]
    excluded += [column for column, name in values.items() if name in hidden]
    renamed = {column: name for column, name in values.items() if name not in hidden}
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {"renameByName": renamed, "excludeByName": dict.fromkeys(excluded, True), "indexByName": {}},
        },
    ]
    return made


def lay_out(rows, write_out):
    """Gives each panel of each (title, is collapsed, panels) an id and a place; a collapsed row holds its panels.
    `write_out` completes a query."""
    made, number, top = [], 0, 0
    for title, is_collapsed, panels in rows:
        number += 1
        row = {"id": number, "type": "row", "title": title, "collapsed": is_collapsed, "panels": []}
        made.append(row | {"gridPos": {"x": 0, "y": top, "w": GRID_WIDTH, "h": 1}})
        top += 1
        left, height = 0, 0
        for one in panels:
            place = one["gridPos"]
            if left + place["w"] > GRID_WIDTH:
                top, left, height = top + height, 0, 0
            number += 1
            targets = [target | {"expr": write_out(target["expr"])} for target in one["targets"]]
            placed = one | {"id": number, "gridPos": {"x": left, "y": top} | place, "targets": targets}
            (made[-1]["panels"] if is_collapsed else made).append(placed)
            left, height = left + place["w"], max(height, place["h"])
        top += height
    return made


def datasource_variable(name, label):
    return {
        "name": name,
        "label": label,
        "type": "datasource",
        "query": "prometheus",
        "regex": "",
        "refresh": 1,
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "current": {},
        "options": [],
        "skipUrlSync": False,
    }


def label_variable(name, label, selector):
    """The values that the label `name` has in the series of the selector; by default all."""
    definition = f"label_values({selector}, {name})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": definition,
        "query": {"query": definition, "refId": "PrometheusVariableQueryEditor-VariableQuery", "qryType": 1},
        "refresh": 2,
        "regex": "",
        "sort": 1,
        "hide": 0,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "skipUrlSync": False,
    }


def choice_variable(name, label, choices, chosen):
    """One of (text, value)."""
    option = lambda text, value: {"selected": value == chosen, "text": text, "value": value}  # noqa: E731
    options = [option(text, value) for text, value in choices]
    [current] = [one for one in options if one["selected"]]
    return {
        "name": name,
        "label": label,
        "type": "custom",
        "query": ", ".join(f"{text} : {value}" for text, value in choices),
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "current": current,
        "options": options,
        "skipUrlSync": False,
    }


def annotation(name, expr, color, title, text=""):
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": color,
        "expr": expr,
        "step": "30s",
        "titleFormat": title,
        "textFormat": text,
        "useValueForTime": False,
    }
