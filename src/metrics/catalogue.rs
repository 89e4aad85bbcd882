//! The one table of metrics: what each is called, what it means, and how it is
//! read from a snapshot.
//!
//! The exposition, `--check` and the README's reference are all driven by it,
//! or tested against it. Adding a metric is one row here, plus the reading
//! that feeds it.

use crate::readings::ModelStatus;
use crate::snapshot::histogram::Histogram;
use crate::snapshot::{Gpu, GpuMemory, Model, OwnMetrics, RequestFigures, Snapshot};

/// What Prometheus calls the type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows within one life of what it counts.
    Counter,
    /// A level.
    Gauge,
    /// Observations counted by size.
    Histogram,
}

impl Kind {
    /// The word that `# TYPE` takes.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// Takes one series: its own labels, and its value.
pub type Sink<'a> = dyn FnMut(&[(&'static str, &str)], f64) + 'a;

/// How a family is read, and from what: that decides which labels it gets besides its own.
#[derive(Clone, Copy)]
pub enum Read {
    /// One value a model: label `model`.
    Model(fn(&Model) -> Option<f64>),
    /// Several series a model: label `model` and those it adds.
    ModelSeries(fn(&Model, &mut Sink)),
    /// A histogram a model: label `model`.
    ModelHistogram(fn(&Model) -> Option<&Histogram>),
    /// A histogram a model and source of requests: labels `model` and `source`.
    RequestHistogram(fn(&RequestFigures) -> Option<&Histogram>),
    /// One value a model and source of requests: labels `model` and `source`.
    Request(fn(&RequestFigures) -> Option<f64>),
    /// Several series a model and source of requests: labels `model`, `source` and those it adds.
    RequestSeries(fn(&RequestFigures, &mut Sink)),
    /// What the exporter's own probe did: label `model`.
    Probe(fn(&RequestFigures) -> Option<f64>),
    /// Several series of what the probe did: label `model` and those it adds.
    ProbeSeries(fn(&RequestFigures, &mut Sink)),
    /// One value a base URL.
    Server(fn(&Snapshot) -> Option<f64>),
    /// Several series a base URL.
    ServerSeries(fn(&Snapshot, &mut Sink)),
    /// One value a GPU of this machine: label `gpu`. Where a server tells of
    /// its GPU by itself, one value a model: label `model` in place of it.
    Gpu(fn(&Gpu) -> Option<f64>, Option<fn(&Model) -> Option<f64>>),
    /// Several series a GPU of this machine: label `gpu` and those it adds.
    GpuSeries(fn(&Gpu, &mut Sink)),
    /// One value of this program.
    Exporter(fn(&OwnMetrics) -> Option<f64>),
    /// Several series of this program.
    ExporterSeries(fn(&OwnMetrics, &mut Sink)),
    /// How many series this scrape leaves out.
    SeriesDropped,
}

impl Read {
    /// Whether its series are about single models, of which there may be many.
    pub fn is_about_a_model(self) -> bool {
        match self {
            Read::Model(_)
            | Read::ModelSeries(_)
            | Read::ModelHistogram(_)
            | Read::RequestHistogram(_)
            | Read::Request(_)
            | Read::RequestSeries(_)
            | Read::Probe(_)
            | Read::ProbeSeries(_)
            | Read::Gpu(..) => true,
            Read::Server(_)
            | Read::ServerSeries(_)
            | Read::GpuSeries(_)
            | Read::Exporter(_)
            | Read::ExporterSeries(_)
            | Read::SeriesDropped => false,
        }
    }
}

/// One metric: a row of [`FAMILIES`].
pub struct Family {
    /// Its name, unit included.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Labels besides `model` and `server`.
    pub labels: &'static [&'static str],
    /// What it means: the HELP line.
    pub help: &'static str,
    /// How it is read.
    pub read: Read,
}

const fn row(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    read: Read,
) -> Family {
    Family {
        name,
        kind,
        labels,
        help,
        read,
    }
}

use Kind::{Counter, Gauge};

/// Every metric, in the order of the exposition.
#[rustfmt::skip] // a table reads as a table: a row's meaning first, its reading last
pub const FAMILIES: &[Family] = &[
    row("llamacpp_tokens_per_second", Gauge, &[],
        "Tokens generated per second over the last interval, all slots, live while they stream.",
        Read::Model(|m| m.tokens_per_second)),
    row("llamacpp_batch_latency_seconds", Kind::Histogram, &[],
        "Time of one llama_decode() call, seen over intervals that were busy from end to end.",
        Read::ModelHistogram(|m| m.batch_latency.as_ref())),
    row("llamacpp_first_token_latency_seconds", Kind::Histogram, &[],
        "From a request's start on a slot (probe: from sending it) to its first token.",
        Read::RequestHistogram(|r| r.first_token.as_ref())),
    row("llamacpp_memory_usage_bytes", Gauge, &[],
        "Resident memory of the process that holds the model.",
        Read::Model(|m| m.memory_usage)),
    row("llamacpp_total_memory_bytes", Gauge, &[],
        "Memory that the process that holds the model may use.",
        Read::Model(|m| m.total_memory)),
    row("llamacpp_cpu_utilization_percent", Gauge, &[],
        "CPU time of the process that holds the model over the last interval; 100 is every CPU it may run on.",
        Read::Model(|m| m.cpu_utilization)),
    row("llamacpp_gpu_utilization_percent", Gauge, &["gpu"],
        "Busy share of the GPU.",
        Read::Gpu(|g| g.utilization, Some(|m| m.gpu_utilization))),
    row("llamacpp_temperature_celsius", Gauge, &["gpu"],
        "Temperature of the GPU.",
        Read::Gpu(|g| g.temperature, Some(|m| m.temperature))),
    row("llamacpp_model_size_bytes", Gauge, &[],
        "Size of the model's weights.",
        Read::Model(|m| m.size)),
    row("llamacpp_model_parameters", Gauge, &[],
        "Number of the model's parameters.",
        Read::Model(|m| m.parameters)),
    row("llamacpp_context_size_tokens", Gauge, &[],
        "Tokens now in the fullest slot.",
        Read::Model(|m| m.context_size)),
    row("llamacpp_max_context_size_tokens", Gauge, &[],
        "Most tokens that one slot can hold.",
        Read::Model(|m| m.max_context_size)),
    row("llamacpp_kv_cache_usage_bytes", Gauge, &[],
        "Bytes of KV cache that hold tokens, all slots.",
        Read::Model(|m| m.kv_cache_usage)),
    row("llamacpp_kv_cache_limit_bytes", Gauge, &[],
        "Bytes of KV cache allocated.",
        Read::Model(|m| m.kv_cache_limit)),
    row("llamacpp_kv_cache_usage_ratio", Gauge, &[],
        "Share of the KV cache's cells that hold tokens, all slots.",
        Read::Model(|m| m.kv_cache_ratio)),
    row("llamacpp_thread_count", Gauge, &[],
        "Threads of the process that holds the model.",
        Read::Model(|m| m.threads)),
    row("llamacpp_status", Gauge, &["status"],
        "1 for the state that the model is in, 0 for the others.",
        Read::ModelSeries(|m, sink| {
            if let Some(now) = m.status {
                for status in ModelStatus::ALL {
                    sink(&[("status", status.label())], f64::from(status == now));
                }
            }
        })),
    row("llamacpp_batch_size", Gauge, &[],
        "Tokens per llama_decode() call over the last interval that had any.",
        Read::Model(|m| m.batch_size)),
    row("llamacpp_optimal_batch_size", Gauge, &[],
        "Number of busy slots at which this server generates fastest.",
        Read::Model(|m| m.optimal_batch_size)),

    row("llamacpp_prompt_tokens_total", Counter, &[],
        "Prompt tokens computed, those of running requests included.",
        Read::Model(|m| m.prompt_tokens)),
    row("llamacpp_prompt_tokens_cached_total", Counter, &[],
        "Prompt tokens reused from the cache.",
        Read::Model(|m| m.prompt_tokens_cached)),
    row("llamacpp_prompt_seconds_total", Counter, &[],
        "Time spent on prompts.",
        Read::Model(|m| m.prompt_seconds)),
    row("llamacpp_generated_tokens_total", Counter, &[],
        "Tokens generated, those of running requests included: moves while they stream.",
        Read::Model(|m| m.generated_tokens)),
    row("llamacpp_generation_seconds_total", Counter, &[],
        "Time spent generating by requests that have ended; slots add up.",
        Read::Model(|m| m.generation_seconds)),
    row("llamacpp_decode_calls_total", Counter, &[],
        "Calls of llama_decode().",
        Read::Model(|m| m.decode_calls)),
    row("llamacpp_draft_tokens_total", Counter, &[],
        "Draft tokens proposed by speculative decoding.",
        Read::Model(|m| m.draft_tokens)),
    row("llamacpp_draft_tokens_accepted_total", Counter, &[],
        "Draft tokens that the model accepted.",
        Read::Model(|m| m.draft_tokens_accepted)),
    row("llamacpp_prompt_tokens_per_second", Gauge, &[],
        "Prompt tokens computed per second over the last interval, all slots.",
        Read::Model(|m| m.prompt_tokens_per_second)),
    row("llamacpp_requests_processing", Gauge, &[],
        "Requests on a slot.",
        Read::Model(|m| m.requests_processing)),
    row("llamacpp_requests_deferred", Gauge, &[],
        "Requests waiting for a slot.",
        Read::Model(|m| m.requests_deferred)),
    row("llamacpp_slots", Gauge, &[],
        "Slots that there are.",
        Read::Model(|m| m.slots)),
    row("llamacpp_slots_busy", Gauge, &[],
        "Slots at work.",
        Read::Model(|m| m.slots_busy)),
    row("llamacpp_context_tokens", Gauge, &["slot"],
        "Tokens now in each slot; left out beyond 64 slots.",
        Read::ModelSeries(|m, sink| {
            if m.context_tokens.len() <= MOST_SLOTS {
                for (id, tokens) in &m.context_tokens {
                    sink(&[("slot", &id.to_string())], *tokens);
                }
            }
        })),
    row("llamacpp_max_sequence_tokens", Gauge, &[],
        "Longest sequence seen, prompt and generated tokens together.",
        Read::Model(|m| m.max_sequence_tokens)),
    row("llamacpp_model_info", Gauge, &["architecture", "backend", "mode", "quantization"],
        "1; its labels say what the model is, as far as the server tells.",
        Read::ModelSeries(|m, sink| {
            // Where the label `mode` stands on every series of the model, it stands here already.
            let mode = m.mode.as_ref().filter(|_| !m.mode_tells);
            let known = [
                ("architecture", m.architecture.as_ref()),
                ("backend", m.backend.as_ref()),
                ("mode", mode),
                ("quantization", m.quantization.as_ref()),
            ];
            let labels: Vec<_> = known
                .into_iter()
                .filter_map(|(label, value)| Some((label, value?.as_str())))
                .collect();
            if !labels.is_empty() {
                sink(&labels, 1.0);
            }
        })),
    row("llamacpp_server_info", Gauge, &["kind", "version"],
        "1; its labels say what answers at the base URL.",
        Read::ServerSeries(|s, sink| {
            if let Some(info) = &s.info {
                let version = info.version.as_deref().unwrap_or_default();
                sink(&[("kind", info.kind), ("version", version)], 1.0);
            }
        })),
    row("llamacpp_models_disk_usage_bytes", Gauge, &[],
        "Bytes of Docker Model Runner's store of models.",
        Read::Server(|s| s.models_disk_usage)),

    row("llamacpp_gpu_memory_used_bytes", Gauge, &["gpu", "memory"],
        "Memory of the GPU that is in use; AMD: memory=\"vram\" is its own, \"gtt\" is system memory that it uses.",
        Read::GpuSeries(|g, sink| memory(g.memory_used, &[], sink))),
    row("llamacpp_gpu_memory_total_bytes", Gauge, &["gpu", "memory"],
        "Memory of the GPU; AMD: memory=\"vram\" is its own, \"gtt\" is system memory that it may use.",
        Read::GpuSeries(|g, sink| memory(g.memory_total, &[], sink))),
    row("llamacpp_gpu_power_watts", Gauge, &["gpu"],
        "Power that the GPU draws.",
        Read::Gpu(|g| g.power, None)),
    row("llamacpp_gpu_info", Gauge, &["gpu", "name", "uuid", "driver"],
        "1; its labels say what the GPU is.",
        Read::GpuSeries(|g, sink| {
            let word = |word: &'_ Option<String>| word.clone().unwrap_or_default();
            let (name, uuid, driver) = (word(&g.name), word(&g.uuid), word(&g.driver));
            sink(&[("name", &name), ("uuid", &uuid), ("driver", &driver)], 1.0);
        })),
    row("llamacpp_process_gpu_memory_bytes", Gauge, &["gpu", "memory"],
        "GPU memory of the process that holds the model; AMD: memory=\"vram\" or \"gtt\", as above.",
        Read::ModelSeries(|m, sink| {
            for (gpu, bytes) in &m.process_gpu_memory {
                memory(*bytes, &[("gpu", gpu)], sink);
            }
        })),
    row("llamacpp_process_cpu_seconds_total", Counter, &[],
        "User and system CPU time of the process that holds the model.",
        Read::Model(|m| m.process_cpu_seconds)),

    row("llamacpp_request_duration_seconds", Kind::Histogram, &[],
        "Prompt and generation of one request.",
        Read::RequestHistogram(|r| r.duration.as_ref())),
    row("llamacpp_time_per_output_token_seconds", Kind::Histogram, &[],
        "Generation time of one request per generated token; requests of a single token have none.",
        Read::RequestHistogram(|r| r.per_token.as_ref())),
    row("llamacpp_request_prompt_tokens", Kind::Histogram, &[],
        "Prompt tokens of one request that were computed, not taken from the cache.",
        Read::RequestHistogram(|r| r.prompt_tokens.as_ref())),
    row("llamacpp_request_generated_tokens", Kind::Histogram, &[],
        "Generated tokens of one request.",
        Read::RequestHistogram(|r| r.generated_tokens.as_ref())),
    row("llamacpp_request_errors_total", Counter, &["code"],
        "Requests that ended in an error.",
        Read::RequestSeries(|r, sink| {
            for (code, count) in &r.errors {
                sink(&[("code", &code.to_string())], *count as f64);
            }
        })),
    row("llamacpp_request_cancellations_total", Counter, &[],
        "Requests whose client went away.",
        Read::Request(|r| r.cancellations.map(|count| count as f64))),
    row("llamacpp_request_record_gaps_total", Counter, &[],
        "Polls at which every record that is kept was new: others may have been lost before them.",
        Read::Request(|r| r.record_gaps.map(|count| count as f64))),
    row("llamacpp_log_lines_rejected_total", Counter, &["reason"],
        "Lines of the server's log that were not believed: the log may hold what its users wrote.",
        Read::ServerSeries(|s, sink| {
            for (reason, count) in s.log_lines_rejected.iter().flatten() {
                sink(&[("reason", reason)], *count as f64);
            }
        })),
    row("llamacpp_probe_tokens_total", Counter, &[],
        "Tokens generated for the exporter's own probes.",
        Read::Probe(|r| r.probe_tokens.map(|count| count as f64))),
    row("llamacpp_probe_prompt_tokens_total", Counter, &[],
        "Prompt tokens computed for the exporter's own probes.",
        Read::Probe(|r| r.probe_prompt_tokens.map(|count| count as f64))),
    row("llamacpp_probe_failures_total", Counter, &["reason"],
        "Probes that got no token.",
        Read::ProbeSeries(|r, sink| {
            for (reason, count) in &r.probe_failures {
                sink(&[("reason", reason.label())], *count as f64);
            }
        })),

    row("llamacpp_up", Gauge, &[],
        "1 when the last poll of the base URL got an answer from it (loading, busy and asleep are up), else 0.",
        Read::Server(|s| s.up.map(f64::from))),
    row("llamacpp_exporter_poll_duration_seconds", Gauge, &[],
        "Length of the last poll.",
        Read::Server(|s| s.up.map(|_| s.polls.duration.as_secs_f64()))),
    row("llamacpp_exporter_polls_total", Counter, &[],
        "Polls done.",
        Read::Server(|s| Some(s.polls.total as f64))),
    row("llamacpp_exporter_poll_errors_total", Counter, &["endpoint", "reason"],
        "Requests of polls that failed; what is switched off at the server is no failure.",
        Read::ServerSeries(|s, sink| {
            for ((endpoint, reason), count) in &s.polls.errors {
                sink(&[("endpoint", endpoint), ("reason", reason.label())], *count as f64);
            }
        })),
    row("llamacpp_exporter_last_poll_timestamp_seconds", Gauge, &[],
        "When the last successful poll ended, in seconds since 1970.",
        Read::Server(|s| s.polls.last_success)),
    row("llamacpp_exporter_series_dropped", Gauge, &[],
        "Series that this scrape leaves out: it would have more than 16 MiB, or than 200,000 series.",
        Read::SeriesDropped),
    row("llamacpp_exporter_build_info", Gauge, &["revision", "version"],
        "1; its labels say which build of the exporter this is.",
        Read::ExporterSeries(|e, sink| {
            sink(&[("revision", e.revision), ("version", e.version)], 1.0);
        })),
    row("process_cpu_seconds_total", Counter, &[],
        "User and system CPU time of the exporter.",
        Read::Exporter(|e| e.cpu_seconds)),
    row("process_resident_memory_bytes", Gauge, &[],
        "Resident memory of the exporter.",
        Read::Exporter(|e| e.resident_bytes)),
    row("process_open_fds", Gauge, &[],
        "File descriptors that the exporter has open.",
        Read::Exporter(|e| e.open_fds)),
    row("process_max_fds", Gauge, &[],
        "File descriptors that the exporter may have open.",
        Read::Exporter(|e| e.max_fds)),
    row("process_start_time_seconds", Gauge, &[],
        "When the exporter started, in seconds since 1970.",
        Read::Exporter(|e| e.start_time)),
];

/// The most slots of a model that get a series each.
pub const MOST_SLOTS: usize = 64;

/// The metrics as the README shows them: a Markdown table.
pub fn reference() -> String {
    let mut text =
        String::from("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n");
    for family in FAMILIES {
        let common: &[&str] = match family.read {
            Read::Model(_) | Read::ModelSeries(_) | Read::ModelHistogram(_) => &["model"],
            Read::Probe(_) | Read::ProbeSeries(_) => &["model"],
            Read::RequestHistogram(_) | Read::Request(_) | Read::RequestSeries(_) => {
                &["model", "source"]
            }
            _ => &[],
        };
        let mut labels: Vec<_> = family
            .labels
            .iter()
            .chain(common)
            .map(|l| format!("`{l}`"))
            .collect();
        labels.sort();
        text.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            family.name,
            family.kind.name(),
            labels.join(", "),
            family.help
        ));
    }
    text
}

/// A GPU's memory, with the label `memory` beside `labels` where there are two kinds of it.
fn memory(bytes: GpuMemory, labels: &[(&'static str, &str)], sink: &mut Sink) {
    for (kind, bytes) in bytes.kinds() {
        let kind = kind.map(|kind| ("memory", kind));
        let labels: Vec<_> = labels.iter().copied().chain(kind).collect();
        sink(&labels, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_valid_and_unique_and_say_their_type() {
        let mut names: Vec<_> = FAMILIES.iter().map(|family| family.name).collect();
        for family in FAMILIES {
            let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(family.name.chars().all(valid), "{}", family.name);
            assert_eq!(
                family.name.ends_with("_total"),
                family.kind == Kind::Counter,
                "{}",
                family.name
            );
            assert!(family.help.ends_with('.'), "{}", family.name);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FAMILIES.len());
    }

    #[test]
    fn the_readme_holds_the_reference() {
        let readme = include_str!("../../README.md");
        assert!(
            readme.contains(&reference()),
            "put this into README.md:\n{}",
            reference()
        );
    }
}
