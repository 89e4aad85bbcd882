//! The table of reasons: why a value is absent, and what to do to get it. The log, the notes, the
//! status page and `--check` take their texts from here.

use crate::snapshot::SourceState;

/// Declares the reasons, each with its state, its id, why, and what to do.
macro_rules! absences {
    ($($variant:ident $state:ident $id:literal, $why:literal, $remedy:literal;)*) => {
        /// Why a value is absent.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[expect(missing_docs, reason = "each row of the table has its text")]
        pub enum Absence {
            $($variant,)*
        }

        impl Absence {
            /// Every reason, in the order of the table.
            pub const ALL: &[Absence] = &[$(Absence::$variant),*];

            /// Its name in JSON and tests, which does not change.
            pub fn id(self) -> &'static str {
                match self { $(Absence::$variant => $id,)* }
            }

            /// The state of a source that is not read for this reason.
            pub fn state(self) -> SourceState {
                match self { $(Absence::$variant => SourceState::$state,)* }
            }

            /// Why, as one sentence without a full stop.
            pub fn why(self) -> &'static str {
                match self { $(Absence::$variant => $why,)* }
            }

            /// What to do, or why nothing has to be done; one sentence without a full stop.
            pub fn remedy(self) -> &'static str {
                match self { $(Absence::$variant => $remedy,)* }
            }

            /// Whether people can do something about it.
            pub fn is_fixable(self) -> bool {
                self.state() != SourceState::Waiting && !self.remedy().starts_with("nothing to do")
            }

            /// Both in one line, for the log and the notes.
            pub fn note(self) -> &'static str {
                match self { $(Absence::$variant => concat!($why, ": ", $remedy),)* }
            }
        }
    };
}

#[rustfmt::skip] // a table: why on the second line, what to do on the third
absences! {
    // The server.
    FirstPoll Waiting "first_poll",
        "the first poll has not ended yet",
        "nothing to do, it ends within a few seconds";
    PollOverdue Failed "poll_overdue",
        "the poll of this server is overdue",
        "look at the exporter's log; raise its CPU limit if it has one";
    ServerDown Failed "server_down",
        "the server is down",
        "start the server, or give its address with --base-url";
    ServerLate Failed "server_late",
        "the server does not answer in time",
        "raise llama-server's --threads-http, or send fewer requests at a time";
    NotLlamaCpp NotThere "not_llama_cpp",
        "another product answers at this address, not llama.cpp",
        "give the address of a llama.cpp server with --base-url";
    KeyRequired Refused "key_required",
        "the server requires an API key, and the exporter has none",
        "put the key into a file and give it with --api-key-file (LLAMACPP_API_KEY_FILE)";
    KeyUnreadable Refused "key_unreadable",
        "the server requires an API key, which the exporter may not read",
        "run the exporter as the server's user or as root with CAP_SYS_PTRACE, or give the server with --base-url and its key";
    KeyRejected Refused "key_rejected",
        "the server or a proxy in front of it rejects the exporter's key or password",
        "check the file of --api-key-file (LLAMACPP_API_KEY_FILE) and the user and password in --base-url";
    OtherKind NotThere "other_kind",
        "servers of this kind do not have it",
        "nothing to do, it does not apply here";

    // Models.
    NoModel Waiting "no_model",
        "the server has no model",
        "load or pull a model: its series begin then";
    ModelGone NotThere "model_gone",
        "the server no longer has this model",
        "nothing to do, the figures of its requests are kept for an hour";
    ModelUnnamed Waiting "model_unnamed",
        "the server has not named its model yet",
        "the model's series begin when it has; if the model is loading, that is when it has loaded; --model NAME names it before";
    ModelLoading Waiting "model_loading",
        "the model is loading",
        "nothing to do, it is known once the model has loaded";
    ModelUnloaded Waiting "model_unloaded",
        "the model is not loaded",
        "nothing to do, a request loads it; the exporter never does";
    ModelDownloading Waiting "model_downloading",
        "the model is being downloaded",
        "nothing to do, it is known once the model has loaded";
    ModelAsleep Waiting "model_asleep",
        "the model is asleep",
        "nothing to do, the next request wakes it; the exporter never does";
    ModelFailed Failed "model_failed",
        "the process of the model ended with an error",
        "look at the server's log";
    OtherEngine NotThere "other_engine",
        "another engine than llama.cpp runs the model",
        "nothing to do, only llama.cpp reports it";

    // The endpoints.
    MetricsOff Off "metrics_off",
        "/metrics is switched off",
        "start llama-server with --metrics to get token counters, decode calls and waiting requests; where its log is read (--log-file), that counts tokens";
    OllamaMetricsOff Off "ollama_metrics_off",
        "/metrics of Ollama's llama-servers is switched off",
        "set LLAMA_ARG_ENDPOINT_METRICS=1 in the environment of Ollama to get token counters, decode calls and waiting requests";
    RunnerMetricsOff Off "runner_metrics_off",
        "its /metrics is switched off",
        "start Docker Model Runner without DISABLE_METRICS=1 to get token counters";
    SlotsOff Off "slots_off",
        "/slots is switched off",
        "start llama-server with --slots to get context use and exact live tokens";
    MetricsNotServed NotThere "metrics_not_served",
        "/metrics is not served at this address",
        "give the server's own address with --base-url, or let the proxy in front of it pass on /metrics";
    SlotsNotServed NotThere "slots_not_served",
        "/slots is not served at this address",
        "give the server's own address with --base-url, or let the proxy in front of it pass on /slots";
    NotServed NotThere "not_served",
        "the endpoint is not served at this address",
        "give the server's own address with --base-url, or let the proxy in front of it pass on this endpoint";
    ProxyPassesOnV1 NotThere "proxy_passes_on_v1",
        "a proxy passes on only /v1/models to the server",
        "to see more, configure it to pass on /health, /props, /metrics and /slots too";
    ProxyPassesOnHealth NotThere "proxy_passes_on_health",
        "a proxy passes on only /health and /v1/models to the server",
        "to see more, configure it to pass on /props, /metrics and /slots too";
    RouterListsOnly NotThere "router_lists_only",
        "only the router's list of models can be read",
        "give the API key, or configure the proxy to pass on /health, /props, /models, /metrics and /slots";
    EndpointFailing Failed "endpoint_failing",
        "the request for it fails",
        "look at the error and at the server's log";
    AnswerLate Waiting "answer_late",
        "the server has not answered in time, as it is busy",
        "nothing to do, it is known again when the server answers; before b10566 it answers between two batches";
    MayFallAsleep Waiting "may_fall_asleep",
        "the server is left alone while it is idle, so that it can fall asleep",
        "nothing to do, it is read again after the next request; from b10566 on, /metrics is always read";
    NotYetPolled Waiting "not_yet_polled",
        "the last poll had no time for this model",
        "nothing to do, the next poll starts with it";
    BuildTooOld NotThere "build_too_old",
        "this build of the server does not report it",
        "use a newer build of llama.cpp, b10566 or later";
    NotReported NotThere "not_reported",
        "the server does not report it",
        "nothing to do, it appears when the server reports it";

    // The servers of single models.
    RunnerNotSeen NotThere "runner_not_seen",
        "no process that can be seen from here is certain to be the llama-server of a model, which has its live tokens, slots and KV cache",
        "run the exporter on Model Runner's machine, as Model Runner's user or as root with CAP_SYS_PTRACE, in a container with --pid=host --user 0 --cap-add SYS_PTRACE";
    RunnerNotAllowed Refused "runner_not_allowed",
        "the Unix socket of a model's llama-server may not be opened, and it has the model's live tokens, slots and KV cache",
        "run the exporter as Model Runner's user or as root with CAP_SYS_PTRACE, in a container with --pid=host --user 0 --cap-add SYS_PTRACE";
    RunnerAmbiguous NotThere "runner_ambiguous",
        "several processes run the same model in the same mode",
        "end all but one of them: none is read, as the right one is unknown";
    RunnerLeftOut NotThere "runner_left_out",
        "its /metrics leaves out models that were loaded by name",
        "load a model by its ID (sha256:…) to get its counters from there";
    RunnerSamplesAmbiguous NotThere "runner_samples_ambiguous",
        "its /metrics has several samples for one model and mode",
        "load the model under one name: no sample is used, as the right one is unknown";
    OllamaServerNotFound NotThere "ollama_server_not_found",
        "the llama-server of a model was not found among the processes that can be seen from here, so its tokens are unknown, and its status is idle even while it is running",
        "run the exporter on Ollama's machine, as Ollama's user or as root, in a container with the host's PID and network namespaces";
    OllamaServerUnreachable NotThere "ollama_server_unreachable",
        "the llama-server of a model cannot be reached, so its tokens are unknown, and its status is idle even while it is running",
        "run the exporter in the network namespace of Ollama";
    SwapServerUnreachable NotThere "swap_server_unreachable",
        "a model's own server cannot be reached, so its tokens are counted every 3 s by its log, or at the end of each request, and its status is idle even while it is running",
        "run the exporter on llama-swap's machine, or let the server listen at an address that can be reached";
    SwapOtherEngine NotThere "swap_other_engine",
        "a model's own server is not a llama-server, so its tokens are counted at the end of each request, and its status is idle even while it is running",
        "nothing to do, only a llama-server reports live tokens";

    // Requests: the log, the records, the probe.
    LogNotGiven Off "log_not_given",
        "no log of the server is read",
        "give the exporter llama-server's log with --log-file FILE (LLAMACPP_LOG_FILE)";
    OllamaLogNotGiven Off "ollama_log_not_given",
        "Ollama's log is not read",
        "give the exporter Ollama's log (journalctl -n 0 -fu ollama -o cat | llamacpp-exporter --log-file -) to get latencies, and token counters while one model is loaded";
    OnlyForBaseUrls Off "only_for_base_urls",
        "logs and probes are only for base URLs, and this server was discovered",
        "give its address with --base-url to have its log read with --log-file, or to probe it with --probe-interval";
    LogWaiting Waiting "log_waiting",
        "the log has not been opened yet",
        "nothing to do, it is read once its writer has it open";
    LogUnreadable Failed "log_unreadable",
        "the log file cannot be read",
        "check the path of --log-file and the rights of the exporter's user; in a container, mount the folder";
    LogNotUnderstood Failed "log_not_understood",
        "no line of the log is understood",
        "--log-file needs the output of llama-server itself (b7376 or later) at its default verbosity (-lv 3)";
    LogHasNoRequests Failed "log_has_no_requests",
        "the server answers requests that its log does not report",
        "check that --log-file is this server's log, written at the default verbosity (-lv 3)";
    LogOfSeveralServers Failed "log_of_several_servers",
        "the log has lines of several servers and is no longer counted",
        "give --log-file the log of one server";
    LogUnused Off "log_unused",
        "--log-file has no effect here",
        "remove it, as only the logs of llama-server, its router and Ollama are understood";
    LogAmbiguous Waiting "log_ambiguous",
        "the log is not used now",
        "its lines do not say which of the loaded models they are about, or the llama-server of the loaded model was not found";
    LogNotServed NotThere "log_not_served",
        "the server does not serve its log",
        "update llama-swap or Docker Model Runner; until then, requests are counted by what else they report";
    LogSilent NotThere "log_silent",
        "the server's log sends no lines of new requests",
        "restart Docker Model Runner, and read its log with one program at a time, as it sends new lines to none once a reader has left; until then, its records are used";
    RequestRecordsOff Off "request_records_off",
        "the server's records of its requests are not read",
        "remove --no-request-records (LLAMACPP_NO_REQUEST_RECORDS)";
    ProbeOff Off "probe_off",
        "the exporter sends no probes",
        "send one every minute with --probe-interval 1m (LLAMACPP_PROBE_INTERVAL)";
    ProbeNotPossible NotThere "probe_not_possible",
        "servers of this kind are not probed, as a probe could load a model",
        "nothing to do, it does not apply here";
    NoRequestYet Waiting "no_request_yet",
        "no request has ended yet",
        "nothing to do, it is known after the next request";

    // The process and the machine.
    ProcessNotFound NotThere "process_not_found",
        "the server's process is not on this machine, or cannot be seen from here",
        "run the exporter on the server's machine, as the server's user or as root; in a container, with --pid=host";
    ProcessNotVisible Refused "process_not_visible",
        "the server's process cannot be told from others",
        "run the exporter as the server's user or as root with CAP_SYS_PTRACE, or name the process with --pid-file";
    ProcessInOtherNamespace Refused "process_in_other_namespace",
        "the server's process is in another PID namespace",
        "run the exporter's container with --pid=host, or name the process with --pid-file";
    ProcessShared NotThere "process_shared",
        "the process serves another model too",
        "nothing to do, its memory and CPU are reported for that one";
    PidFileUnusable Failed "pid_file_unusable",
        "the PID file does not name the server's process",
        "check the file of --pid-file (LLAMACPP_PID_FILE)";
    NotLinux NotThere "not_linux",
        "processes and GPUs are only read on Linux",
        "nothing to do on this system";
    ProcfsEmpty Failed "procfs_empty",
        "there are no processes in the folder of --procfs",
        "mount the host's /proc at this folder, or correct --procfs (LLAMACPP_PROCFS)";
    LimitsUnknown NotThere "limits_unknown",
        "the limits of memory and CPU are unknown, as the cgroup of the server cannot be seen from here",
        "in a container, share the host's cgroup namespace and pass its /sys with --sysfs";
    EnvironmentUnreadable Refused "environment_unreadable",
        "the size of the KV cache is unknown, as environment variables of the server may set it and cannot be read",
        "run the exporter as the server's user or as root with CAP_SYS_PTRACE";
    ModelFileUnreadable Failed "model_file_unreadable",
        "the size of the KV cache is unknown, as the model file cannot be read",
        "run the exporter as the server's user or as root, where the model file can be read";
    KvCacheNotComputable NotThere "kv_cache_not_computable",
        "the KV cache of this model cannot be computed from its file and the server's arguments",
        "nothing to do; models without a plain KV cache have no such value";

    // GPUs.
    GpuOff Off "gpu_off",
        "not read: --no-gpu is set",
        "remove --no-gpu (LLAMACPP_NO_GPU)";
    NoNvidiaSmi NotThere "no_nvidia_smi",
        "no nvidia-smi was found",
        "for an NVIDIA GPU install nvidia-smi or add its folder to PATH; in a container start it with --gpus all";
    NoGpu NotThere "no_gpu",
        "this machine has no GPU that can be read",
        "for NVIDIA, install nvidia-smi or add its folder to PATH, in a container start it with --gpus all; for AMD and Intel, mount the host's /sys and give it with --sysfs";
    GpuSilent Failed "gpu_silent",
        "nvidia-smi reports no GPU",
        "run nvidia-smi as the exporter's user and look at the driver; start the container with --gpus all";
    GpuSuspended Waiting "gpu_suspended",
        "GPUs that are suspended or may suspend soon are not read",
        "nothing to do, reading would keep the GPU awake";
    GpuStarting Waiting "gpu_starting",
        "nvidia-smi has not printed anything yet",
        "nothing to do, its first reading takes a few seconds";
    GpuDoesNotReport NotThere "gpu_does_not_report",
        "the driver of this GPU does not report it",
        "nothing to do, it depends on the GPU and its driver";
    GpuProcessesHidden Refused "gpu_processes_hidden",
        "nvidia-smi reports no processes",
        "in a container it may only see the container's own; share the host's PID namespace (--pid=host)";
    GpuNotUsed NotThere "gpu_not_used",
        "no GPU memory of the server's process is known",
        "nothing to do if the model runs on the CPU; else start llama-server with --n-gpu-layers";

    // The exporter.
    DiscoveryOff Off "discovery_off",
        "servers are not discovered",
        "start the exporter with --discover (LLAMACPP_DISCOVER=1)";
    DiscoveryLate Failed "discovery_late",
        "the search for servers has not ended in time",
        "look at the exporter's log";
    OwnProcessUnreadable NotThere "own_process_unreadable",
        "the exporter cannot read its own process",
        "nothing to do on this system";

    // The value itself.
    SecondPoll Waiting "second_poll",
        "it needs a second poll",
        "nothing to do, it is known after the next poll";
    RateUnknown Waiting "rate_unknown",
        "it needs two polls in a row, and counts that are exact enough",
        "nothing to do, it is known after one of the next polls; rate() of the counter is known meanwhile";
    Idle Waiting "idle",
        "the model is idle",
        "nothing to do, it is known while requests run";
    NoWorkYet Waiting "no_work_yet",
        "the model has not worked long enough since the exporter started",
        "nothing to do, it is known after some requests";
    SlotsUnused Waiting "slots_unused",
        "no slot has had a task yet",
        "nothing to do, it is known after the first request";
    TooManySlots NotThere "too_many_slots",
        "the model has more than 64 slots",
        "nothing to do, llamacpp_context_size_tokens has the fullest slot";
    NoSpeculativeDecoding NotThere "no_speculative_decoding",
        "the server does not use speculative decoding",
        "start llama-server with a draft model (--model-draft) or another --spec-type";
    PromptsUncounted NotThere "prompts_uncounted",
        "/metrics does not count the prompt tokens of completed requests, as llama-server before b10566 does not count those of embeddings and reranking",
        "give the exporter the server's log with --log-file, or use a newer build; until then they are not exported";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn reasons_have_ids_and_texts_that_can_stand_in_a_list() {
        let ids: BTreeSet<_> = Absence::ALL.iter().map(|reason| reason.id()).collect();
        assert_eq!(ids.len(), Absence::ALL.len());
        for reason in Absence::ALL {
            let is_snake = |id: &str| {
                id.chars()
                    .all(|c| c.is_ascii_lowercase() || "_1".contains(c))
            };
            assert!(is_snake(reason.id()), "{}", reason.id());
            for text in [reason.why(), reason.remedy()] {
                assert!(!text.is_empty() && !text.ends_with('.'), "{text}");
            }
            assert_ne!(reason.state(), SourceState::Read, "{}", reason.id());
        }
    }
}
