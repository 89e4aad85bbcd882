"""The rows about tokens and requests."""

from grafana.panels import dashed, graph, heatmap, stat, thresholds
from grafana.queries import BY, LOG, NAME, SPECULATION, buckets, quantiles, rate, ratio

RED_BELOW_1 = thresholds((None, "red"), (1, "green"))
RED_ABOVE_0 = thresholds((None, "green"), (1, "red"))
AMBER_ABOVE_0 = thresholds((None, "green"), (1, "orange"))

OVERVIEW = [
    stat(
        "Servers up",
        "Share of the servers that answered the last poll; loading, busy and sleeping ones did.",
        "percentunit",
        "sum(llamacpp_up{H}) / count(llamacpp_up{H})",
        steps=RED_BELOW_1,
        decimals=0,
    ),
    stat(
        "Models by state",
        "Number of models in each state now.",
        "none",
        "sum by (status) (llamacpp_status{S}) > 0",
        "{{status}}",
        width=8,
    ),
    stat(
        "Tokens per second",
        "Tokens that all models generate now: over the last poll interval.",
        "suffix: tokens/s",
        "sum(llamacpp_tokens_per_second{S})",
        decimals=1,
    ),
    stat(
        "Tokens",
        "Tokens generated in the time range of the dashboard.",
        "short",
        "sum(increase(llamacpp_generated_tokens_total{S}[$__range]))",
    ),
    stat(
        "Alerts firing",
        "Alerts of deploy/prometheus/rules.yml; 0 also if Prometheus has not loaded them.",
        "none",
        'count(ALERTS{alertname=~"LlamaCpp.+",alertstate="firing"}) or vector(0)',
        steps=RED_ABOVE_0,
    ),
    stat(
        "Time to first token, p95",
        f"One request in twenty takes longer from its slot to its first token; last 15 minutes, by model. {LOG}",
        "s",
        "histogram_quantile(0.95, sum by (model, le) (rate(llamacpp_first_token_latency_seconds_bucket{S}[15m])))",
        "{{model}}",
        thresholds((None, "green"), (2, "orange"), (5, "red")),
        width=8,
    ),
    stat("Requests running", "Requests that are on a slot now.", "none", "sum(llamacpp_requests_processing{S})"),
    stat(
        "Requests waiting",
        "Requests that wait for a free slot now.",
        "none",
        "sum(llamacpp_requests_deferred{S})",
        steps=AMBER_ABOVE_0,
    ),
    stat(
        "Slots busy",
        "Share of the slots at work now.",
        "percentunit",
        "sum(llamacpp_slots_busy{S}) / (sum(llamacpp_slots{S}) > 0)",
        decimals=0,
    ),
    stat(
        "KV cache in use",
        "Of the fullest server. Cached prompts of idle slots are included: full is no sign of load.",
        "percentunit",
        "max(llamacpp_kv_cache_usage_ratio{S})",
        decimals=0,
    ),
]

THROUGHPUT = [
    graph(
        "Generated tokens",
        "All slots together, running requests included. Last poll: the live value of one poll interval.",
        "suffix: tokens/s",
        (rate("llamacpp_generated_tokens_total"), NAME),
        ("llamacpp_tokens_per_second{S}", f"{NAME} last poll"),
        overrides=[dashed("/last poll/")],
    ),
    graph(
        "Prompt tokens",
        "Computed, and taken from the cache instead (from b10566 on). Last poll: the live value of one poll interval.",
        "suffix: tokens/s",
        (rate("llamacpp_prompt_tokens_total"), f"{NAME} computed"),
        (rate("llamacpp_prompt_tokens_cached_total"), f"{NAME} cached"),
        ("llamacpp_prompt_tokens_per_second{S}", f"{NAME} last poll"),
        overrides=[dashed("/last poll/")],
    ),
    graph(
        "Prompt tokens from the cache",
        "Share of all prompt tokens. Absent before b10566, and while no prompt is processed.",
        "percentunit",
        (
            ratio(
                rate("llamacpp_prompt_tokens_cached_total"),
                f"({rate('llamacpp_prompt_tokens_cached_total')} + {rate('llamacpp_prompt_tokens_total')})",
            ),
            NAME,
        ),
        most=1,
    ),
    graph(
        "Requests by outcome",
        f"Requests that ended, by how. {LOG}",
        "reqps",
        (rate("llamacpp_requests_total", by="model, outcome"), "{{model}} {{outcome}}"),
        stack=True,
    ),
    graph(
        "Failed and cancelled requests",
        "Errors by HTTP status, and clients that disconnected (log only). " + LOG,
        "reqps",
        (rate("llamacpp_request_errors_total", by="model, code"), "{{model}} {{code}}"),
        (rate("llamacpp_request_cancellations_total", by="model"), "{{model}} cancelled"),
        width=8,
    ),
    graph(
        "Time spent",
        "Seconds per second on prompts and on generation, by requests that ended; slots add up.",
        "none",
        (rate("llamacpp_prompt_seconds_total"), f"{NAME} prompts"),
        (rate("llamacpp_generation_seconds_total"), f"{NAME} generation"),
    ),
    graph(
        "Draft tokens accepted",
        f"Share of the draft tokens that the model accepted. {SPECULATION}",
        "percentunit",
        (ratio(rate("llamacpp_draft_tokens_accepted_total"), rate("llamacpp_draft_tokens_total")), NAME),
        most=1,
    ),
    graph(
        "Draft tokens accepted, by position",
        f"Accepted tokens per draft, by their position in it. {SPECULATION}",
        "none",
        (
            rate("llamacpp_draft_tokens_accepted_by_position_total", by=f"{BY}, position")
            + f"\n/ on ({BY}) group_left () ({rate('llamacpp_drafts_total')} > 0)",
            "{{model}} position {{position}}",
        ),
    ),
    graph(
        "Tokens of probes",
        "Generated and prompt tokens of the exporter's own completions, which the server's counters include. "
        "Needs --probe-interval.",
        "suffix: tokens/s",
        (rate("llamacpp_probe_tokens_total"), f"{NAME} generated"),
        (rate("llamacpp_probe_prompt_tokens_total"), f"{NAME} prompt"),
    ),
]

BY_SOURCE = BY + ", source"
NAME_SOURCE = NAME + " {{source}}"
LATENCY = [
    heatmap(
        "Time to first token",
        f"From the slot to the first token; the wait for the slot is not in it. {LOG}",
        "s",
        buckets("llamacpp_first_token_latency_seconds"),
    ),
    heatmap(
        "Time per output token",
        f"One value for each request: its generation time over its tokens after the first. {LOG}",
        "s",
        buckets("llamacpp_time_per_output_token_seconds"),
    ),
    heatmap(
        "Request duration",
        f"From the slot to the last token (llama-swap: from the arrival, loading included). {LOG}",
        "s",
        buckets("llamacpp_request_duration_seconds"),
    ),
    graph(
        "Time to first token",
        f"From the slot to the first token, by source. {LOG}",
        "s",
        *quantiles("llamacpp_first_token_latency_seconds", BY_SOURCE, NAME_SOURCE),
    ),
    graph(
        "Time per output token",
        f"Over requests, by source. {LOG}",
        "s",
        *quantiles("llamacpp_time_per_output_token_seconds", BY_SOURCE, NAME_SOURCE),
    ),
    graph(
        "Request duration",
        f"From the slot to the last token, by source. {LOG}",
        "s",
        *quantiles("llamacpp_request_duration_seconds", BY_SOURCE, NAME_SOURCE),
    ),
    graph(
        "Time to first token of probes",
        "What a client waits: network, queue and a prompt of one word. Needs --probe-interval.",
        "s",
        *quantiles("llamacpp_probe_first_token_latency_seconds"),
    ),
    graph(
        "Mean wait for a slot",
        f"Seconds that requests waited, over the requests that ended. {LOG}",
        "s",
        (ratio(rate("llamacpp_requests_deferred_seconds_total"), rate("llamacpp_requests_total")), NAME),
    ),
    graph(
        "Time of a decode call",
        "Of one llama_decode(), each as the mean of its poll interval; only while the server is never idle "
        "from one poll to the next.",
        "s",
        *quantiles("llamacpp_batch_latency_seconds"),
    ),
]

SIZES = [
    heatmap(
        "Prompt tokens per request",
        f"Computed tokens, without those from the cache. {LOG}",
        "short",
        buckets("llamacpp_request_prompt_tokens"),
    ),
    heatmap("Generated tokens per request", LOG, "short", buckets("llamacpp_request_generated_tokens")),
    graph(
        "Tokens per request",
        f"Median and percentile of prompt and answer. {LOG}",
        "short",
        *quantiles("llamacpp_request_prompt_tokens", "model", "{{model}} prompt"),
        *quantiles("llamacpp_request_generated_tokens", "model", "{{model}} answer"),
    ),
    graph(
        "Tokens per decode call",
        "The mean batch size: prompt and generated tokens that one llama_decode() computes. Last poll: the "
        "live value of one poll interval.",
        "none",
        (
            ratio(
                f"({rate('llamacpp_generated_tokens_total')} + {rate('llamacpp_prompt_tokens_total')})",
                rate("llamacpp_decode_calls_total"),
            ),
            NAME,
        ),
        ("llamacpp_batch_size{S}", f"{NAME} last poll"),
        overrides=[dashed("/last poll/")],
        width=12,
    ),
    graph(
        "Decode calls",
        "Calls of llama_decode() per second.",
        "cps",
        (rate("llamacpp_decode_calls_total"), NAME),
        width=12,
    ),
]
