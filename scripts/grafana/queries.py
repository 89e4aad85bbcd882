"""The pieces of the dashboard's queries, legends and descriptions.

What a panel needs that a llama-server on a CPU has not is a sentence of its description: "Needs …".
"""

RATE = "[$__rate_interval]"
# The labels of a model's series, and how a legend shows them.
BY = "job, instance, server, model"
NAME = "{{model}} {{server}} {{instance}}"
SERVER = "{{server}} {{instance}}"
LOG = "Needs the requests of the server: --log-file, Docker Model Runner's records or llama-swap."
GPU = "Needs a GPU on the exporter's machine that its driver reports on."
SPECULATION = "Needs speculative decoding."


def rate(metric, selector="S", by=BY):
    """Per second, of a counter; `selector` is S, H or X (`with_selectors`)."""
    return f"sum by ({by}) (rate({metric}{{{selector}}}{RATE}))"


def ratio(part, whole):
    """No answer while the whole is 0."""
    return f"{part}\n/ ({whole} > 0)"


def quantile(metric, quantile="$quantile", by=BY):
    """Of a histogram, for the percentile that the user chose by default."""
    return f"histogram_quantile({quantile}, sum by ({by}, le) (rate({metric}_bucket{{S}}{RATE})))"


def quantiles(metric, by=BY, name=NAME):
    """The median and the percentile that the user chose, with their legends."""
    return [(quantile(metric, "0.5", by), f"{name} median"), (quantile(metric, by=by), f"{name} p${{quantile:text}}")]


def buckets(metric):
    """Of a histogram, for a heat map."""
    return f"sum by (le) (increase({metric}_bucket{{S}}{RATE}))"


def of_exporter(expr):
    """The families process_… are those of every program: only of this one."""
    return f"{expr} and on (job, instance) llamacpp_exporter_build_info{{X}}"


# The labels that {S}, {H} and {X} select by.
SELECTORS = {"S": ["job", "instance", "server", "model"], "H": ["job", "instance", "server"], "X": ["job", "instance"]}


def with_selectors(expr):
    """Writes out {S} (a model's series), {H} (a server's) and {X} (an exporter's)."""
    for short, labels in SELECTORS.items():
        long = ", ".join(f'{label}=~"${label}"' for label in labels)
        expr = expr.replace(f"{{{short}}}", f"{{{long}}}").replace(f"{{{short},", f"{{{long}, ")
    return expr
