"""The rows about servers, models, the machine and the exporter."""

from grafana.panels import dashed, graph, state_timeline, table, thresholds, value_mapping
from grafana.queries import BY, GPU, NAME, RATE, SERVER, of_exporter, rate, ratio

# Bad first: a number for each state, to draw it.
STATES = [
    ("failed", "red"),
    ("unloaded", "text"),
    ("downloading", "blue"),
    ("loading", "yellow"),
    ("sleeping", "purple"),
    ("idle", "green"),
    ("running", "dark-green"),
]
STATE = "sum without (status) (\n     " + "\n  or ".join(
    f'{i} * llamacpp_status{{S,status="{name}"}}' for i, (name, _) in enumerate(STATES)
) + "\n)"  # fmt: skip

QUEUE = [
    graph(
        "Requests on slots and waiting",
        "Mean numbers, whatever the scrape interval.",
        "none",
        (rate("llamacpp_requests_processing_seconds_total"), f"{NAME} on a slot"),
        (rate("llamacpp_requests_deferred_seconds_total"), f"{NAME} waiting"),
        stack=True,
    ),
    graph(
        "Requests at the last poll",
        "On a slot, and waiting for one.",
        "none",
        ("llamacpp_requests_processing{S}", f"{NAME} on a slot"),
        ("llamacpp_requests_deferred{S}", f"{NAME} waiting"),
    ),
    graph(
        "Slots",
        "Busy at the last poll, and all. Best: the number of busy slots at which this server generated most; "
        "known once it worked with several numbers of them.",
        "none",
        ("llamacpp_slots_busy{S}", f"{NAME} busy"),
        ("llamacpp_slots{S}", f"{NAME} all"),
        ("llamacpp_optimal_batch_size{S}", f"{NAME} best"),
        overrides=[dashed("/(all|best)$/")],
    ),
    graph(
        "Share of the slots at work",
        "1 is saturated: a further request waits.",
        "percentunit",
        (f"{rate('llamacpp_requests_processing_seconds_total')}\n/ (sum by ({BY}) (llamacpp_slots{{S}}) > 0)", NAME),
        most=1,
        steps=thresholds((None, "transparent"), (0.9, "red")),
        width=24,
    ),
]

CONTEXT = [
    graph(
        "Context of each slot",
        "Tokens in each slot, the cached prompt of an ended request included.",
        "short",
        ("llamacpp_context_tokens{S}", "{{model}} slot {{slot}} {{server}} {{instance}}"),
        ("llamacpp_max_context_size_tokens{S}", f"{NAME} most"),
        overrides=[dashed("/most$/")],
        width=12,
    ),
    graph(
        "Context of running requests",
        "Tokens in the slots at work; 0 while idle.",
        "short",
        ("llamacpp_context_active_tokens{S}", NAME),
        width=12,
    ),
    graph(
        "KV cache",
        "Share of the cells that hold tokens, idle slots' cached prompts included.",
        "percentunit",
        ("llamacpp_kv_cache_usage_ratio{S}", NAME),
        most=1,
    ),
    graph(
        "KV cache bytes",
        "In use and allocated. Needs llama-server's arguments: its process on the exporter's machine.",
        "bytes",
        ("llamacpp_kv_cache_usage_bytes{S}", f"{NAME} in use"),
        ("llamacpp_kv_cache_limit_bytes{S}", f"{NAME} allocated"),
        overrides=[dashed("/allocated$/")],
    ),
    graph(
        "Longest contexts",
        "The fullest slot now, the longest sequence since the server started, what a slot can hold, and what the model "
        "was trained with.",
        "short",
        ("llamacpp_context_size_tokens{S}", f"{NAME} fullest slot"),
        ("llamacpp_max_sequence_tokens{S}", f"{NAME} longest"),
        ("llamacpp_max_context_size_tokens{S}", f"{NAME} slot"),
        ("llamacpp_model_training_context_tokens{S}", f"{NAME} training"),
        overrides=[dashed("/(slot|training)$/")],
    ),
]

ON_MACHINE = "Needs the server on the exporter's machine."
MACHINE = [
    graph(
        "Memory",
        f"Resident memory of the model's process, its mapped file included, and what it may use. {ON_MACHINE}",
        "bytes",
        ("llamacpp_memory_usage_bytes{S}", NAME),
        ("llamacpp_total_memory_bytes{S}", f"{NAME} limit"),
        overrides=[dashed("/limit$/")],
    ),
    graph(
        "CPU cores",
        f"Cores that the model's process keeps busy. {ON_MACHINE}",
        "none",
        (rate("llamacpp_process_cpu_seconds_total"), NAME),
    ),
    graph(
        "CPU utilization",
        f"At the last poll; 100% is every CPU that the process may run on. {ON_MACHINE}",
        "percent",
        ("llamacpp_cpu_utilization_percent{S}", NAME),
        most=100,
    ),
    graph("Threads", f"Of the model's process. {ON_MACHINE}", "none", ("llamacpp_thread_count{S}", NAME)),
    graph(
        "GPU utilization",
        f"Share of the time in which the GPU was busy, whoever used it. {GPU}",
        "percent",
        ("llamacpp_gpu_utilization_percent{X}", "GPU {{gpu}} {{instance}}"),
        most=100,
    ),
    graph(
        "GPU memory",
        f"In use, free, and there: a driver may reserve the rest. {GPU}",
        "bytes",
        ("llamacpp_gpu_memory_used_bytes{X}", "GPU {{gpu}} {{memory}} {{instance}}"),
        ("llamacpp_gpu_memory_free_bytes{X}", "GPU {{gpu}} {{memory}} {{instance}} free"),
        ("llamacpp_gpu_memory_total_bytes{X}", "GPU {{gpu}} {{memory}} {{instance}} total"),
        overrides=[dashed("/total$/")],
    ),
    graph(
        "GPU memory by model",
        f"Of the model's process. {GPU}",
        "bytes",
        ("llamacpp_process_gpu_memory_bytes{S}", "{{model}} GPU {{gpu}} {{memory}} {{server}} {{instance}}"),
    ),
    graph(
        "GPU temperature",
        GPU,
        "celsius",
        ("llamacpp_temperature_celsius{X}", "GPU {{gpu}} {{instance}}"),
        steps=thresholds((None, "transparent"), (87, "red")),
    ),
    graph("GPU power", GPU, "watt", ("llamacpp_gpu_power_watts{X}", "GPU {{gpu}} {{instance}}")),
    graph(
        "Tokens per joule",
        f"Generated tokens over the energy of all GPUs of the machine, idle time included. {GPU}",
        "suffix: tokens/J",
        (
            ratio(
                rate("llamacpp_generated_tokens_total", by="job, instance"),
                rate("llamacpp_gpu_energy_joules_total", "X", "job, instance"),
            ),
            "{{instance}}",
        ),
    ),
]

MODEL_LINK = [
    {
        "title": "Show this model only",
        "url": "/d/llamacpp-exporter?${__url_time_range}&${datasource:queryparam}&var-model=${__data.fields.model}",
    }
]
# At the address of the scrape, which the browser must reach.
STATUS_PAGE_LINK = [{"title": "Status page of this exporter", "url": "http://${__data.fields.instance}/", "targetBlank": True}]
MODELS = [
    state_timeline(
        "State",
        "State of each model. A gap: the server does not answer, or the exporter is not scraped.",
        STATE,
        NAME,
        value_mapping(STATES),
    ),
    graph(
        "Loads",
        "Times that the exporter saw the model become loaded, in each interval; waking up is a load.",
        "none",
        (f"sum by ({BY}) (increase(llamacpp_model_loads_total{{S}}{RATE}))", NAME),
        bars=True,
    ),
    graph(
        "Time in each state",
        "Share of the time; less than 100% in sum where the server did not answer.",
        "percentunit",
        (rate("llamacpp_status_seconds_total", by="model, status"), "{{model}} {{status}}"),
        stack=True,
    ),
    graph(
        "Age of the process",
        f"Since the model's process started: it falls to 0 at a restart. {ON_MACHINE}",
        "s",
        ("time() - llamacpp_process_start_time_seconds{S}", NAME),
    ),
    table(
        "Models",
        "What runs where. Empty cells: the server does not say.",
        [
            ("Info", "llamacpp_model_info{S}"),
            ("Size", f"sum by ({BY}) (llamacpp_model_size_bytes{{S}})"),
            ("Parameters", f"sum by ({BY}) (llamacpp_model_parameters{{S}})"),
            ("Training context", f"max by ({BY}) (llamacpp_model_training_context_tokens{{S}})"),
            (
                "Server",
                f"max by ({BY}) (llamacpp_status{{S}})\n"
                "* on (job, instance, server) group_left (kind, version) llamacpp_server_info{H}",
            ),
        ],
        hidden=["Time", "__name__", "job", "Info", "Server"],
        units={"Size": "bytes"},
        links={"model": MODEL_LINK, "instance": STATUS_PAGE_LINK},
    ),
    table("GPUs", GPU, [("Info", "llamacpp_gpu_info{X}")], ["Time", "__name__", "job", "Info"], width=12),
    graph(
        "Disk space of models",
        "Needs Docker Model Runner.",
        "bytes",
        ("llamacpp_models_disk_usage_bytes{H}", SERVER),
        width=12,
    ),
]

EXPORTER = [
    graph("Servers up", "1 if the server answered the last poll.", "none", ("llamacpp_up{H}", SERVER), most=1, width=6),
    graph(
        "Age of the values",
        "Since the last successful poll.",
        "s",
        ("time() - llamacpp_exporter_last_successful_poll_timestamp_seconds{H}", SERVER),
        width=6,
    ),
    graph(
        "Polls",
        "Polls that ended.",
        "cps",
        (rate("llamacpp_exporter_polls_total", "H", "job, instance, server"), SERVER),
        width=6,
    ),
    graph(
        "Duration of a poll", "Of the last one.", "s", ("llamacpp_exporter_poll_duration_seconds{H}", SERVER), width=6
    ),
    graph(
        "Failed requests of polls",
        "By endpoint and reason; an endpoint that is switched off does not count.",
        "cps",
        (
            rate("llamacpp_exporter_poll_errors_total", "H", "job, instance, server, endpoint, reason"),
            "{{endpoint}} {{reason}} {{server}} {{instance}}",
        ),
    ),
    graph(
        "Failed probes",
        "Probes that got no token, by reason. Needs --probe-interval.",
        "cps",
        (rate("llamacpp_probe_failures_total", by=BY + ", reason"), NAME + " {{reason}}"),
    ),
    graph(
        "Rejected log lines",
        "Lines and requests of the log that are implausible, by reason. Needs --log-file.",
        "cps",
        (
            rate("llamacpp_log_lines_rejected_total", "H", "job, instance, server, reason"),
            "{{reason}} {{server}} {{instance}}",
        ),
    ),
    graph(
        "Polls that missed requests",
        "More requests had ended than the server lists. Needs Docker Model Runner's records or llama-swap.",
        "cps",
        (rate("llamacpp_request_record_gaps_total"), NAME),
    ),
    graph(
        "CPU",
        "Cores that the exporter keeps busy.",
        "none",
        (of_exporter(f"rate(process_cpu_seconds_total{{X}}{RATE})"), "{{instance}}"),
        width=6,
    ),
    graph(
        "Memory",
        "Resident memory of the exporter.",
        "bytes",
        (of_exporter("process_resident_memory_bytes{X}"), "{{instance}}"),
        width=6,
    ),
    graph(
        "File descriptors",
        "Open, and the most that may be open.",
        "none",
        (of_exporter("process_open_fds{X}"), "{{instance}} open"),
        (of_exporter("process_max_fds{X}"), "{{instance}} most"),
        overrides=[dashed("/most$/")],
        width=6,
    ),
    graph(
        "Age",
        "Since the exporter started.",
        "s",
        (of_exporter("time() - process_start_time_seconds{X}"), "{{instance}}"),
        width=6,
    ),
    table(
        "Version",
        "Of each exporter. The link at its address leads to its status page.",
        [("Info", "llamacpp_exporter_build_info{X}")],
        ["Time", "__name__", "job", "Info"],
        links={"instance": STATUS_PAGE_LINK},
    ),
    graph(
        "Series left out",
        "Because the scrape reached its limit.",
        "none",
        ("llamacpp_exporter_series_dropped{X}", "{{instance}}"),
    ),
    graph(
        "Servers found",
        "Servers that the exporter found on its machine and watches. Needs --discover.",
        "none",
        ("llamacpp_discovered_servers{X}", "{{instance}}"),
    ),
]
