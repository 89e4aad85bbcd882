//! The table of metrics: the name, meaning and reading function of each.
//!
//! The exposition, `--check` and the README's reference are generated from it, or tested against
//! it. A new metric is one row here, plus the reading that feeds it.

use crate::metrics::need::Need;
use crate::readings::ModelStatus;
use crate::snapshot::histogram::Histogram;
use crate::snapshot::{Gpu, GpuMemory, Model, OwnMetrics, RequestFigures, Snapshot};

/// The type of a metric in Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricType {
    /// Grows until what it counts restarts.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations counted by size.
    Histogram,
}

impl MetricType {
    /// The word in `# TYPE`.
    pub fn name(self) -> &'static str {
        match self {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
            MetricType::Histogram => "histogram",
        }
    }
}

/// One metric: a row of [`FAMILIES`].
#[derive(Debug)]
pub struct Family {
    /// Its name, unit included.
    pub name: &'static str,
    /// Its type.
    pub metric_type: MetricType,
    /// Its labels besides `server`, `model` and `mode`.
    pub labels: &'static [&'static str],
    /// What is measured, over what, in which unit: the HELP text.
    pub help: &'static str,
    /// What it needs, in the order in which that is looked at when it is absent.
    pub needs: &'static [Need],
    /// How it is read.
    pub scope: Scope,
    /// A second way to read it.
    pub second_scope: Option<Scope>,
}

/// What a metric is about, and how its series are read from one of these. The scope decides which
/// labels a series has besides its own.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    /// A model: labels `server` and `model`, and `mode` where its server has modes.
    Model(Read<Model>),
    /// The requests of a model from one source: the labels of a model, and `source` if the family
    /// has it.
    Requests(Read<RequestFigures>),
    /// A base URL: label `server`.
    Server(Read<Snapshot>),
    /// A GPU of this machine: label `gpu`.
    Gpu(Read<Gpu>),
    /// The GPU that a server reports on, without its index: label `gpu` with the label `server`'s
    /// value. It contains a colon, and so is no index.
    ReportedGpu(Read<Snapshot>),
    /// The exporter.
    Exporter(Read<Exporter>),
}

/// Hands the series of one `T` to a sink.
pub type Read<T> = fn(&T, &mut dyn SeriesSink);

/// Takes the series of one family and one value of its scope.
pub trait SeriesSink {
    /// Takes one series, with labels besides those of the scope, sorted by name.
    fn series(&mut self, labels: &[Label], value: f64);

    /// Takes the series of a histogram, if there is one.
    fn histogram(&mut self, histogram: &Option<Histogram>);

    /// Takes the one series of a value, if it is known.
    fn value(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.series(&[], value);
        }
    }

    /// Takes the one series of a count, if it is known.
    fn count(&mut self, count: Option<u64>) {
        self.value(count.map(|count| count as f64));
    }
}

/// A label's name and value.
pub type Label<'a> = (&'a str, &'a str);

/// The exporter, at one scrape.
pub struct Exporter {
    /// Its build and process.
    pub own: OwnMetrics,
    /// Series left out of the scrape so far.
    pub series_dropped: u64,
}

impl Family {
    /// The same, with a second way to read it.
    const fn or(self, scope: Scope) -> Family {
        Family {
            second_scope: Some(scope),
            ..self
        }
    }
}

const fn row(
    name: &'static str,
    metric_type: MetricType,
    labels: &'static [&'static str],
    needs: &'static [Need],
    help: &'static str,
    scope: Scope,
) -> Family {
    Family {
        name,
        metric_type,
        labels,
        help,
        needs,
        scope,
        second_scope: None,
    }
}

use MetricType::{Counter, Gauge, Histogram as Buckets};
use Need::{
    Discovery, FirstRequest, GpuProcesses, GpuReport, Gpus, KvCache, Limits, LiveTokens, Log,
    Metrics, ModelList, ModelStore, NewMetrics, OwnProcess, Polls, Probes, Process, PromptCount,
    Props, Quantization, Rate, RequestList, Requests, SlotTokens, Slots, Speculation, Traffic,
    Work,
};
use Scope::{
    Exporter as OfExporter, Gpu as OfGpu, Model as OfModel, ReportedGpu, Requests as OfRequests,
    Server,
};

/// Every metric, in the order of the exposition.
#[rustfmt::skip] // a table: each row's meaning first, how it is read last
pub const FAMILIES: &[Family] = &[
    row("llamacpp_tokens_per_second", Gauge, &[], &[LiveTokens, Rate],
        "Tokens generated per second over the last poll interval, all slots; live while requests stream. A momentary value: for sums, averages and alerts use rate() of llamacpp_generated_tokens_total over at least 4 scrapes.",
        OfModel(|m, out| out.value(m.rates.tokens_per_second.or(m.stats.performance().tokens_per_second)))),
    row("llamacpp_batch_latency_seconds", Buckets, &[], &[Metrics],
        "Seconds per llama_decode() call, from poll intervals during which the server was never idle. Each call is observed as the mean of its interval: quantiles are of these means, not of single calls.",
        OfModel(|m, out| out.histogram(&m.rates.batch_latency))),
    row("llamacpp_first_token_latency_seconds", Buckets, &["source"], &[Requests],
        "Seconds from a request's start on a slot to its first token, without the wait for the slot; the exporter's own probes are not in it.",
        OfRequests(|r, out| out.histogram(&r.first_token))),
    row("llamacpp_memory_usage_bytes", Gauge, &[], &[Process],
        "Resident memory in bytes of the process that holds the model.",
        OfModel(|m, out| out.value(m.process.memory_usage.or(m.stats.memory().used_bytes)))),
    row("llamacpp_total_memory_bytes", Gauge, &[], &[Process, Limits],
        "Memory in bytes that the process that holds the model may use: its cgroup's limit, else the machine's memory.",
        OfModel(|m, out| out.value(m.process.total_memory.or(m.stats.memory().total_bytes)))),
    row("llamacpp_cpu_utilization_percent", Gauge, &[], &[Process, Limits, Rate],
        "CPU time of the process that holds the model over the last poll interval; 100 = all allowed CPUs fully used. A momentary value: for averages and alerts use rate() of llamacpp_process_cpu_seconds_total over at least 4 scrapes.",
        OfModel(|m, out| out.value(m.process.cpu_utilization.or(m.stats.performance().cpu_utilization)))),
    row("llamacpp_gpu_utilization_percent", Gauge, &["gpu"], &[Gpus, GpuReport],
        "Percentage of time that the GPU was busy, as its driver or the server's /stats reports it; gpu is the index, or for /stats the server's host:port.",
        OfGpu(|g, out| out.value(g.utilization)))
        .or(ReportedGpu(|s, out| out.value(s.models.iter().find_map(|m| m.stats.performance().gpu_utilization)))),
    row("llamacpp_temperature_celsius", Gauge, &["gpu"], &[Gpus, GpuReport],
        "Temperature of the GPU in degrees Celsius; gpu is the index, or for /stats the server's host:port.",
        OfGpu(|g, out| out.value(g.temperature)))
        .or(ReportedGpu(|s, out| out.value(s.models.iter().find_map(|m| m.stats.performance().temperature)))),
    row("llamacpp_model_size_bytes", Gauge, &[], &[ModelList],
        "Size of the model's weights in bytes.",
        OfModel(|m, out| out.value(m.facts.size))),
    row("llamacpp_model_parameters", Gauge, &[], &[ModelList],
        "Number of parameters of the model.",
        OfModel(|m, out| out.value(m.facts.parameters))),
    row("llamacpp_context_size_tokens", Gauge, &[], &[Slots, SlotTokens],
        "Tokens in the fullest slot, prompt and generated tokens together; an idle slot keeps those of its last request for reuse.",
        OfModel(|m, out| {
            let fullest = m.slots.context_tokens.iter().map(|(_, tokens)| *tokens).reduce(f64::max);
            out.value(fullest.or_else(|| m.stats.model()?.context_size));
        })),
    row("llamacpp_max_context_size_tokens", Gauge, &[], &[Props],
        "Number of tokens that one slot can hold.",
        OfModel(|m, out| out.value(m.facts.max_context_size))),
    row("llamacpp_kv_cache_usage_bytes", Gauge, &[], &[KvCache, Slots, SlotTokens],
        "Bytes of the KV cache that hold tokens, all slots; an idle slot keeps those of its last request for reuse.",
        OfModel(|m, out| out.value(m.kv_cache.usage_bytes.or(m.stats.memory().kv_cache_bytes)))),
    row("llamacpp_kv_cache_limit_bytes", Gauge, &[], &[KvCache],
        "Bytes allocated for the KV cache.",
        OfModel(|m, out| out.value(m.kv_cache.limit_bytes.or(m.stats.memory().kv_cache_max_bytes)))),
    row("llamacpp_kv_cache_usage_ratio", Gauge, &[], &[KvCache, Slots, SlotTokens],
        "Share of the KV cache's cells that hold tokens, all slots, from 0 to 1; as read last while the server answers late.",
        OfModel(|m, out| out.value(m.kv_cache_usage_ratio()))),
    row("llamacpp_thread_count", Gauge, &[], &[Process],
        "Number of threads of the process that holds the model.",
        OfModel(|m, out| out.value(m.process.thread_count.or(m.stats.system().threads)))),
    row("llamacpp_status", Gauge, &["status"], &[LiveTokens],
        "1 for the current status of the model, 0 for every other status.",
        OfModel(|m, out| {
            if let Some(now) = m.status {
                for status in ModelStatus::ALL {
                    out.series(&[("status", status.label())], f64::from(status == now));
                }
            }
        })),
    row("llamacpp_batch_size", Gauge, &[], &[Metrics, Traffic, Rate],
        "Tokens per llama_decode() call, prompt and generated tokens together, over the last poll interval; absent while idle. A momentary value: for averages divide the rates of the token counters by that of llamacpp_decode_calls_total.",
        OfModel(|m, out| out.value(m.rates.batch_size.or(m.stats.batch().size)))),
    row("llamacpp_optimal_batch_size", Gauge, &[], &[Metrics, Work],
        "Number of busy slots at which this server generates the most tokens per second, as observed.",
        OfModel(|m, out| out.value(m.stats.batch().optimal_size.or(m.rates.optimal_batch_size)))),

    row("llamacpp_prompt_tokens_total", Counter, &[], &[Metrics, PromptCount],
        "Prompt tokens computed, including those of requests in progress. Tokens taken from the cache are not included.",
        OfModel(|m, out| out.value(m.live.prompt_tokens))),
    row("llamacpp_prompt_tokens_cached_total", Counter, &[], &[Metrics, NewMetrics],
        "Prompt tokens taken from the cache instead of being computed; not part of llamacpp_prompt_tokens_total.",
        OfModel(|m, out| out.value(m.counters.prompt_tokens_cached))),
    row("llamacpp_prompt_seconds_total", Counter, &[], &[Metrics, PromptCount],
        "Seconds spent on prompt processing; before b10566 summed over slots that process prompts at the same time.",
        OfModel(|m, out| out.value(m.counters.prompt_seconds))),
    row("llamacpp_generated_tokens_total", Counter, &[], &[Metrics],
        "Tokens generated, including those of requests in progress: grows while they stream.",
        OfModel(|m, out| out.value(m.live.generated_tokens))),
    row("llamacpp_generation_seconds_total", Counter, &[], &[Metrics],
        "Seconds spent on generation by requests that have ended, summed over slots: two slots that generate for a second are 2 seconds.",
        OfModel(|m, out| out.value(m.counters.generation_seconds))),
    row("llamacpp_decode_calls_total", Counter, &[], &[Metrics],
        "Calls of llama_decode(), each of which computes one batch. With speculative decoding or images a lower bound: llama-server leaves out their calls.",
        OfModel(|m, out| out.value(m.live.decode_calls))),
    row("llamacpp_draft_tokens_total", Counter, &[], &[Metrics, NewMetrics],
        "Draft tokens proposed by speculative decoding, those accepted included.",
        OfModel(|m, out| out.value(m.counters.draft_tokens))),
    row("llamacpp_draft_tokens_accepted_total", Counter, &[], &[Metrics, NewMetrics],
        "Draft tokens that the model accepted; part of llamacpp_draft_tokens_total and of llamacpp_generated_tokens_total.",
        OfModel(|m, out| out.value(m.counters.draft_tokens_accepted))),
    row("llamacpp_drafts_total", Counter, &[], &[Metrics, NewMetrics],
        "Drafts of speculative decoding, each of one or several draft tokens.",
        OfModel(|m, out| out.value(m.counters.drafts))),
    row("llamacpp_model_loads_total", Counter, &[], &[LiveTokens],
        "Times that the model became loaded while this exporter watched, restarts of its server included; waking from sleep counts, as it loads the model again.",
        OfModel(|m, out| out.count(m.integrals.loads))),
    row("llamacpp_prompt_tokens_per_second", Gauge, &[], &[Metrics, PromptCount, Rate],
        "Prompt tokens computed per second over the last poll interval, all slots. A momentary value: for sums, averages and alerts use rate() of llamacpp_prompt_tokens_total over at least 4 scrapes.",
        OfModel(|m, out| out.value(m.rates.prompt_tokens_per_second))),
    row("llamacpp_requests_processing", Gauge, &[], &[LiveTokens],
        "Number of requests being processed on a slot; as read last while the server answers late.",
        OfModel(|m, out| out.value(m.counters.requests_processing))),
    row("llamacpp_requests_deferred", Gauge, &[], &[Metrics],
        "Number of requests waiting for a free slot; as read last while the server answers late.",
        OfModel(|m, out| out.value(m.counters.requests_deferred))),
    row("llamacpp_slots", Gauge, &[], &[Props],
        "Number of slots.",
        OfModel(|m, out| out.value(m.facts.slots))),
    row("llamacpp_slots_busy", Gauge, &[], &[LiveTokens],
        "Number of slots that are processing a request; as read last while the server answers late.",
        OfModel(|m, out| out.value(m.slots.busy.or(m.counters.requests_processing)))),
    row("llamacpp_context_tokens", Gauge, &["slot"], &[Slots, SlotTokens],
        "Tokens in each slot, prompt and generated tokens together; an idle slot keeps those of its last request for reuse. Absent if there are more than 64 slots.",
        OfModel(|m, out| {
            if m.slots.context_tokens.len() <= MOST_SLOTS {
                for (id, tokens) in &m.slots.context_tokens {
                    out.series(&[("slot", &id.to_string())], *tokens);
                }
            }
        })),
    row("llamacpp_context_active_tokens", Gauge, &[], &[Slots, SlotTokens],
        "Tokens in the slots that are processing a request, prompt and generated tokens together; 0 while idle, whatever prompts are cached.",
        OfModel(|m, out| out.value(m.slots.active_tokens))),
    row("llamacpp_model_training_context_tokens", Gauge, &[], &[ModelList],
        "Context size in tokens with which the model was trained.",
        OfModel(|m, out| out.value(m.facts.training_context))),
    row("llamacpp_draft_tokens_accepted_by_position_total", Counter, &["position"], &[Metrics, NewMetrics, Speculation],
        "Draft tokens that the model accepted, by their position in the draft, from 0; adds up to llamacpp_draft_tokens_accepted_total.",
        OfModel(|m, out| {
            for (position, tokens) in &m.counters.draft_tokens_accepted_by_position {
                out.series(&[("position", &position.to_string())], *tokens);
            }
        })),
    row("llamacpp_max_sequence_tokens", Gauge, &[], &[Metrics],
        "Tokens of the longest sequence since the server process started, prompt and generated tokens together.",
        OfModel(|m, out| out.value(m.counters.max_sequence_tokens))),
    row("llamacpp_model_info", Gauge, &["architecture", "backend", "quantization"], &[Props, Quantization],
        "Always 1; the labels describe the loaded model, as far as the server reports it. Absent until all that the server reports is known.",
        OfModel(|m, out| {
            if m.facts.is_description_pending {
                return;
            }
            let known = [
                ("architecture", m.facts.architecture.as_ref()),
                ("backend", m.facts.backend.as_ref()),
                ("quantization", m.facts.quantization.as_ref()),
            ];
            let known = known.into_iter().filter_map(|(label, value)| Some((label, value?.as_str())));
            let labels: Vec<_> = known.collect();
            if !labels.is_empty() {
                out.series(&labels, 1.0);
            }
        })),
    row("llamacpp_server_info", Gauge, &["kind", "version"], &[Props],
        "Always 1; the labels give the kind and version of the server at the base URL. Absent until both are known.",
        Server(|s, out| {
            if let Some(info) = s.info.as_ref().filter(|info| !info.is_version_pending) {
                let version = info.version.as_deref().unwrap_or_default();
                out.series(&[("kind", info.kind.label()), ("version", version)], 1.0);
            }
        })),
    row("llamacpp_models_disk_usage_bytes", Gauge, &[], &[ModelStore],
        "Disk space in bytes of Docker Model Runner's models.",
        Server(|s, out| out.value(s.models_disk_usage))),

    row("llamacpp_request_duration_seconds", Buckets, &["source"], &[Requests],
        "Seconds of prompt processing and generation per request, without the wait for a slot; source=\"activity\": from its arrival at llama-swap to the end of its response, including every wait and the loading of the model.",
        OfRequests(|r, out| out.histogram(&r.duration))),
    row("llamacpp_time_per_output_token_seconds", Buckets, &["source"], &[Requests],
        "Seconds of generation per token after the first, one observation per request: generation time / (generated tokens - 1). A request with a single token has none.",
        OfRequests(|r, out| out.histogram(&r.per_token))),
    row("llamacpp_request_prompt_tokens", Buckets, &["source"], &[Requests],
        "Prompt tokens computed per request, without tokens taken from the cache.",
        OfRequests(|r, out| out.histogram(&r.prompt_tokens))),
    row("llamacpp_request_generated_tokens", Buckets, &["source"], &[Requests],
        "Tokens generated per request.",
        OfRequests(|r, out| out.histogram(&r.generated_tokens))),
    row("llamacpp_requests_total", Counter, &["outcome", "source"], &[Requests],
        "Requests that ended, by outcome: ok, error, cancelled (its client disconnected), truncated (the context was full); only what the source can tell.",
        OfRequests(|r, out| {
            for (outcome, count) in &r.outcomes {
                out.series(&[("outcome", outcome.label())], *count as f64);
            }
        })),
    row("llamacpp_request_errors_total", Counter, &["code", "source"], &[Requests, FirstRequest],
        "Requests that ended in an error, by HTTP status code.",
        OfRequests(|r, out| {
            for (code, count) in &r.errors {
                out.series(&[("code", &code.to_string())], *count as f64);
            }
        })),
    row("llamacpp_request_cancellations_total", Counter, &["source"], &[Log, Requests],
        "Requests whose client disconnected before the end.",
        OfRequests(|r, out| out.count(r.cancellations))),
    row("llamacpp_request_record_gaps_total", Counter, &["source"], &[RequestList],
        "Polls that may have missed requests, because more had ended than the server lists.",
        OfRequests(|r, out| out.count(r.record_gaps))),
    row("llamacpp_log_lines_rejected_total", Counter, &["reason"], &[Log],
        "Lines of the server's log that were rejected as implausible, by reason: users can put text into the log.",
        Server(|s, out| {
            for (reason, count) in s.log_lines_rejected.iter().flatten() {
                out.series(&[("reason", reason)], *count as f64);
            }
        })),
    row("llamacpp_probe_first_token_latency_seconds", Buckets, &[], &[Probes],
        "Seconds from sending one of the exporter's probes to its first token, including network time and the wait for a slot.",
        OfRequests(|r, out| out.histogram(&r.probe_first_token))),
    row("llamacpp_probe_tokens_total", Counter, &[], &[Probes],
        "Tokens generated for the exporter's own probes.",
        OfRequests(|r, out| out.count(r.probe_tokens))),
    row("llamacpp_probe_prompt_tokens_total", Counter, &[], &[Probes],
        "Prompt tokens computed for the exporter's own probes.",
        OfRequests(|r, out| out.count(r.probe_prompt_tokens))),
    row("llamacpp_probe_failures_total", Counter, &["reason"], &[Probes],
        "Probes that got no token, by reason.",
        OfRequests(|r, out| {
            for (reason, count) in &r.probe_failures {
                out.series(&[("reason", reason.label())], *count as f64);
            }
        })),

    row("llamacpp_requests_deferred_seconds_total", Counter, &[], &[Metrics],
        "Seconds that requests waited for a free slot, summed over requests: the number waiting, integrated over this exporter's polls. Divided by the requests of the same time, it is their mean wait.",
        OfModel(|m, out| out.value(m.integrals.requests_deferred_seconds))),
    row("llamacpp_requests_processing_seconds_total", Counter, &[], &[LiveTokens],
        "Seconds that requests were on a slot, summed over slots: the number processing, integrated over this exporter's polls. Its rate is the mean number of busy slots.",
        OfModel(|m, out| out.value(m.integrals.requests_processing_seconds))),
    row("llamacpp_status_seconds_total", Counter, &["status"], &[LiveTokens],
        "Seconds that the model was in each status, from one poll of this exporter to the next. Time in which llamacpp_up is 0 counts for none.",
        OfModel(|m, out| {
            let seconds = m.integrals.status_seconds.iter().flatten();
            for (status, seconds) in ModelStatus::ALL.into_iter().zip(seconds) {
                out.series(&[("status", status.label())], *seconds);
            }
        })),

    row("llamacpp_gpu_memory_used_bytes", Gauge, &["gpu", "memory"], &[Gpus, GpuReport],
        "GPU memory in use, in bytes; on AMD, memory=\"vram\" is the GPU's own and memory=\"gtt\" is system memory that it uses.",
        OfGpu(|g, out| memory(g.memory_used, &[], out))),
    row("llamacpp_gpu_memory_total_bytes", Gauge, &["gpu", "memory"], &[Gpus, GpuReport],
        "GPU memory in bytes; on AMD, memory=\"vram\" is the GPU's own and memory=\"gtt\" is system memory that it may use.",
        OfGpu(|g, out| memory(g.memory_total, &[], out))),
    row("llamacpp_gpu_memory_free_bytes", Gauge, &["gpu", "memory"], &[Gpus, GpuReport],
        "GPU memory in bytes that can still be allocated; with the memory in use it is less than the total where the driver reserves some.",
        OfGpu(|g, out| memory(g.memory_free, &[], out))),
    row("llamacpp_gpu_power_watts", Gauge, &["gpu"], &[Gpus, GpuReport],
        "Power draw of the GPU in watts.",
        OfGpu(|g, out| out.value(g.power))),
    row("llamacpp_gpu_energy_joules_total", Counter, &["gpu"], &[Gpus, GpuReport],
        "Energy that the GPU has used since the exporter started, in joules: its power integrated over its readings; time of unknown power is not included.",
        OfGpu(|g, out| out.value(g.energy))),
    row("llamacpp_gpu_info", Gauge, &["gpu", "name", "uuid", "driver"], &[Gpus],
        "Always 1; the labels describe the GPU and its driver.",
        OfGpu(|g, out| {
            let [driver, name, uuid] = [&g.driver, &g.name, &g.uuid].map(|text| text.as_deref().unwrap_or_default());
            out.series(&[("driver", driver), ("name", name), ("uuid", uuid)], 1.0);
        })),
    row("llamacpp_process_gpu_memory_bytes", Gauge, &["gpu", "memory"], &[Gpus, Process, GpuProcesses],
        "GPU memory in bytes that the process that holds the model uses; on AMD, memory=\"vram\" is the GPU's own and memory=\"gtt\" is system memory.",
        OfModel(|m, out| {
            for (gpu, bytes) in &m.process.gpu_memory {
                memory(*bytes, &[("gpu", gpu)], out);
            }
        })),
    row("llamacpp_process_cpu_seconds_total", Counter, &[], &[Process],
        "User and system CPU time in seconds of the process that holds the model.",
        OfModel(|m, out| out.value(m.process.cpu_seconds))),
    row("llamacpp_process_start_time_seconds", Gauge, &[], &[Process],
        "Time at which the process that holds the model started, in seconds since 1970.",
        OfModel(|m, out| out.value(m.process.start_time))),

    row("llamacpp_up", Gauge, &[], &[Polls],
        "1 if the server answered the last poll (also while it is loading, busy or asleep), else 0.",
        Server(|s, out| out.value(s.up.map(f64::from)))),
    row("llamacpp_exporter_poll_duration_seconds", Gauge, &[], &[Polls],
        "Duration of the last poll in seconds.",
        Server(|s, out| out.value(s.up.map(|_| s.polls.duration.as_secs_f64())))),
    row("llamacpp_exporter_polls_total", Counter, &[], &[Polls],
        "Number of polls that have ended.",
        Server(|s, out| out.count(Some(s.polls.total)))),
    row("llamacpp_exporter_poll_errors_total", Counter, &["endpoint", "reason"], &[Polls],
        "Requests of polls that failed, by endpoint and reason; an endpoint that is switched off is not a failure.",
        Server(|s, out| {
            for ((endpoint, reason), count) in &s.polls.errors {
                out.series(&[("endpoint", endpoint), ("reason", reason.label())], *count as f64);
            }
        })),
    row("llamacpp_exporter_last_successful_poll_timestamp_seconds", Gauge, &[], &[Polls],
        "Time at which the last successful poll ended, in seconds since 1970.",
        Server(|s, out| out.value(s.polls.last_success))),
    row("llamacpp_discovered_servers", Gauge, &[], &[Discovery],
        "Number of llama.cpp servers of this machine that are watched because they were discovered. Absent without --discover.",
        OfExporter(|e, out| out.value(e.own.discovered_servers))),
    row("llamacpp_exporter_series_dropped", Gauge, &[], &[OwnProcess],
        "Series left out of this scrape because it reached its limit of 6 MiB or 200,000 series.",
        OfExporter(|e, out| out.count(Some(e.series_dropped)))),
    row("llamacpp_exporter_build_info", Gauge, &["revision", "version"], &[OwnProcess],
        "Always 1; the labels give the version and revision of the exporter.",
        OfExporter(|e, out| out.series(&[("revision", e.own.revision), ("version", e.own.version)], 1.0))),
    row("process_cpu_seconds_total", Counter, &[], &[OwnProcess],
        "User and system CPU time of the exporter in seconds.",
        OfExporter(|e, out| out.value(e.own.cpu_seconds))),
    row("process_resident_memory_bytes", Gauge, &[], &[OwnProcess],
        "Resident memory of the exporter in bytes.",
        OfExporter(|e, out| out.value(e.own.resident_bytes))),
    row("process_open_fds", Gauge, &[], &[OwnProcess],
        "Number of file descriptors that the exporter has open.",
        OfExporter(|e, out| out.value(e.own.open_fds))),
    row("process_max_fds", Gauge, &[], &[OwnProcess],
        "Largest number of file descriptors that the exporter may have open.",
        OfExporter(|e, out| out.value(e.own.max_fds))),
    row("process_start_time_seconds", Gauge, &[], &[OwnProcess],
        "Time at which the exporter started, in seconds since 1970.",
        OfExporter(|e, out| out.value(e.own.start_time))),
];

/// The most slots of a model that get a series each.
const MOST_SLOTS: usize = 64;

/// The metrics as the README shows them: a Markdown table.
pub fn reference() -> String {
    let mut text =
        String::from("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n");
    for family in FAMILIES {
        let of_model = matches!(family.scope, OfModel(_) | OfRequests(_));
        let of_server = of_model || matches!(family.scope, Server(_));
        let mut labels = family.labels.to_vec();
        labels.extend(of_model.then_some("model"));
        labels.extend(of_server.then_some("server"));
        labels.sort_unstable();
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        text.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            family.name,
            family.metric_type.name(),
            labels.join(", "),
            family.help
        ));
    }
    text
}

/// A GPU's memory, with the label `memory` where there are two kinds of it.
fn memory(bytes: GpuMemory, labels: &[Label], out: &mut dyn SeriesSink) {
    for (kind, bytes) in bytes.kinds() {
        let kind = kind.map(|kind| ("memory", kind));
        let labels: Vec<_> = labels.iter().copied().chain(kind).collect();
        out.series(&labels, bytes);
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
                family.metric_type == Counter,
                "{}",
                family.name
            );
            assert!(family.help.ends_with('.'), "{}", family.name);
            assert!(!family.needs.is_empty(), "{}", family.name);
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
