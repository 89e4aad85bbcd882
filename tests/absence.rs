//! Which metrics are absent and why, from real polls of recorded servers: the reasons agree with
//! the exposition, and each state of a server has its own.

mod support;

use std::ffi::OsString;
use std::sync::Arc;

use llamacpp_exporter::collector::Poller;
use llamacpp_exporter::collector::clock::SystemClock;
use llamacpp_exporter::metrics::exposition;
use llamacpp_exporter::metrics::overview::{Overview, Subject, overview};
use llamacpp_exporter::settings::{self, Settings};
use llamacpp_exporter::snapshot::{
    Absence, OwnMetrics, Snapshot, SnapshotCell, Source, SourceKind,
};
use serde_json::json;
use support::recordings::{BUILDS, MIDDLE, NEW, OLD, Stage};
use support::{Answer, Scrape, Server, file_with, for_each, for_each_case, wait_for};

fn settings(url: &str, arguments: &[&str]) -> Settings {
    let own = ["--base-url", url, "--procfs", "/nonexistent", "--no-gpu"];
    let arguments = own.iter().chain(arguments).map(OsString::from);
    settings::parse(arguments.collect(), |_| None).unwrap().1
}

/// A poller in this process, and its last snapshot.
struct Polled {
    poller: Poller,
    cell: Arc<SnapshotCell>,
}

impl Polled {
    fn new(url: &str, arguments: &[&str]) -> Polled {
        let settings = settings(url, arguments);
        let poller = Poller::new(&settings.base_urls[0], &settings).unwrap();
        let cell = Arc::new(SnapshotCell::new(Snapshot::default()));
        poller.watch_requests(&settings, &cell).unwrap();
        Polled { poller, cell }
    }

    fn poll(&mut self) -> Arc<Snapshot> {
        self.cell.publish(Arc::new(self.poller.poll(&SystemClock)));
        self.cell.load()
    }
}

/// Which metrics of a snapshot are absent. Checks that they are those that the exposition lacks.
fn absent(snapshot: &Arc<Snapshot>) -> Overview {
    let servers = [Arc::clone(snapshot)];
    let own = OwnMetrics::default();
    let machine = [
        Source::missing(SourceKind::Discovery, Absence::DiscoveryOff),
        Source::missing(SourceKind::GpuDriver("all"), Absence::GpuOff),
    ];
    let overview = overview(&servers, &[], &machine, &own);
    let text = exposition::render(&servers, &[], &own);
    let scrape = Scrape::parse(&text);
    for state in &overview.families {
        let name = state.family.name;
        let there: usize = ["", "_bucket", "_sum", "_count"]
            .iter()
            .map(|suffix| scrape.all(&format!("{name}{suffix}")).len())
            .sum();
        assert_eq!(state.series.count, there, "{name}");
        for of in &state.absent {
            for subject in of.subjects.iter().map(|index| &overview.subjects[*index]) {
                let Subject::Model(server, (model, mode)) = subject else {
                    continue;
                };
                let mut labels = vec![("server", server.as_str()), ("model", model)];
                labels.extend(mode.as_deref().map(|mode| ("mode", mode)));
                let ends = ["", "_count"].map(|end| format!("{name}{end}"));
                let is_there = ends.iter().any(|name| scrape.get(name, &labels).is_some());
                assert!(!is_there, "{name} of {model}:\n{text}");
            }
        }
    }
    overview
}

/// The ids of the reasons for which a metric is absent.
fn reasons(overview: &Overview, family: &str) -> Vec<&'static str> {
    let state = overview.families.iter().find(|of| of.family.name == family);
    let absent = state.unwrap_or_else(|| panic!("no {family}")).absent.iter();
    absent.map(|of| of.missing.reason.id()).collect()
}

const TOKENS: &str = "llamacpp_generated_tokens_total";
const RATE: &str = "llamacpp_tokens_per_second";
const BATCH: &str = "llamacpp_batch_size";
const CACHED: &str = "llamacpp_prompt_tokens_cached_total";
const CONTEXT: &str = "llamacpp_context_tokens";
const SLOTS: &str = "llamacpp_slots";
const SIZE: &str = "llamacpp_model_size_bytes";
const LATENCY: &str = "llamacpp_first_token_latency_seconds";
const PROBE: &str = "llamacpp_probe_tokens_total";
const MEMORY: &str = "llamacpp_memory_usage_bytes";

#[test]
fn of_each_build_every_absent_metric_has_its_reason() {
    for_each(BUILDS, |build| {
        let server = Server::recorded(build, Stage::Idle);
        let mut polled = Polled::new(&server.url(), &[]);
        let first = absent(&polled.poll());
        assert_eq!(reasons(&first, BATCH), ["second_poll"], "{build}");
        for stage in [Stage::Idle, Stage::Busy, Stage::After] {
            server.replay(build, stage);
            polled.poll();
            let overview = absent(&polled.poll());
            for state in &overview.families {
                let name = state.family.name;
                let found = reasons(&overview, name);
                // What a llama-server of any build could report has a more exact reason.
                assert!(
                    !found.contains(&"not_reported"),
                    "{name} of {build} {stage:?}"
                );
            }
            let is_new = BUILDS[BUILDS.len() - 4..].contains(&build);
            let expected: &[&str] = if is_new { &[] } else { &["build_too_old"] };
            assert_eq!(reasons(&overview, CACHED), expected, "{build}");
        }
        let overview = absent(&polled.poll());
        let has_slot_tokens = BUILDS.iter().position(|of| *of == "b9294")
            <= BUILDS.iter().position(|of| *of == build);
        let expected: &[&str] = if has_slot_tokens {
            &[]
        } else {
            &["build_too_old"]
        };
        assert_eq!(reasons(&overview, CONTEXT), expected, "{build}");
        assert_eq!(reasons(&overview, LATENCY), ["log_not_given"]);
        assert_eq!(reasons(&overview, PROBE), ["probe_off"]);
        assert_eq!(reasons(&overview, MEMORY), ["process_not_found"]);
    });
}

/// A server in a state, the arguments of the exporter, and metrics with their reasons after two
/// polls.
struct Case {
    server: fn() -> Server,
    arguments: &'static [&'static str],
    expected: &'static [(&'static str, &'static str)],
}

fn changed(build: &str, path: &str, answer: Answer) -> Server {
    let server = Server::recorded(build, Stage::After);
    server.answer(path, answer);
    server
}

fn loading() -> Server {
    let server = Server::start();
    let answer = Answer::error(503, "Loading model");
    server.answer_everything(answer);
    server
}

fn in_state(kind: &'static str, state: &'static str) -> Server {
    Server::recorded_kind(kind, state)
}

#[rustfmt::skip] // a table
const CASES: &[(&str, Case)] = &[
    ("nothing listens", Case {
        server: Server::stopped, arguments: &[],
        expected: &[(TOKENS, "server_down"), (LATENCY, "server_down"), (MEMORY, "server_down")] }),
    ("another product", Case {
        server: || {
            let server = Server::start();
            server.answer_json("/v1/models", json!({"data": [{"id": "m", "owned_by": "vllm"}]}));
            server
        },
        arguments: &[], expected: &[(TOKENS, "not_llama_cpp")] }),
    ("loading", Case {
        server: loading,
        arguments: &["--model", "m"],
        expected: &[(TOKENS, "model_loading"), (SLOTS, "model_loading"), (LATENCY, "log_not_given")] }),
    ("loading without a name", Case {
        server: loading,
        arguments: &[], expected: &[(TOKENS, "model_unnamed")] }),
    ("without /metrics", Case {
        server: || changed(NEW, "/metrics", Answer::error(501, "not enabled")),
        arguments: &[], expected: &[(TOKENS, "metrics_off"), (BATCH, "metrics_off")] }),
    ("without /slots", Case {
        server: || changed(NEW, "/slots", Answer::error(501, "not enabled")),
        arguments: &[], expected: &[(CONTEXT, "slots_off")] }),
    ("without both", Case {
        server: || {
            let server = changed(NEW, "/slots", Answer::error(501, "not enabled"));
            server.answer("/metrics", Answer::error(501, "not enabled"));
            server
        },
        arguments: &[], expected: &[(RATE, "metrics_off"), (CONTEXT, "slots_off"), ("llamacpp_status", "metrics_off")] }),
    ("a proxy without /metrics", Case {
        server: || changed(NEW, "/metrics", Answer::error(404, "File Not Found")),
        arguments: &[], expected: &[(TOKENS, "metrics_not_served")] }),
    ("a proxy that passes on /v1 only", Case {
        server: || {
            let server = Server::start();
            server.answer_like(&Server::recorded(NEW, Stage::After), &["/v1/models"]);
            server
        },
        arguments: &[], expected: &[(TOKENS, "proxy_passes_on_v1"), (SLOTS, "proxy_passes_on_v1")] }),
    ("a server that answers late", Case {
        server: || changed(OLD, "/metrics", Answer::never()), arguments: &["--timeout", "200ms"],
        expected: &[(TOKENS, "answer_late")] }),
    ("several models of Ollama write into one log", Case {
        server: || in_state("ollama", "two-loaded"), arguments: &["--log-file", "Cargo.toml"],
        expected: &[(LATENCY, "log_ambiguous")] }),
    ("a model that runs on another engine", Case {
        server: || {
            let server = in_state("model-runner", "idle");
            let body = server.answer_of("/engines/ps");
            let text = String::from_utf8(body.body().to_vec()).unwrap();
            server.answer("/engines/ps", Answer::json(text.replace("llama.cpp", "vllm")));
            server
        },
        arguments: &[], expected: &[(TOKENS, "other_engine"), (CONTEXT, "other_engine")] }),
    ("a key is required", Case {
        server: || {
            let server = Server::recorded(NEW, Stage::After);
            for path in ["/props", "/metrics", "/slots"] {
                server.answer(path, Answer::error(401, "Invalid API Key"));
            }
            server
        },
        arguments: &[], expected: &[(TOKENS, "key_required"), (SLOTS, "key_required")] }),
    ("/metrics fails", Case {
        server: || changed(NEW, "/metrics", Answer::error(500, "broken")),
        arguments: &[], expected: &[(TOKENS, "endpoint_failing")] }),
    ("a log that is not there", Case {
        server: || Server::recorded(NEW, Stage::After), arguments: &["--log-file", "/nonexistent/log"],
        expected: &[(LATENCY, "log_unreadable")] }),
    ("a probe of a server with many models", Case {
        server: || in_state("llama-swap", "ready-idle"), arguments: &["--probe-interval", "1m"],
        expected: &[(PROBE, "probe_not_possible")] }),
    ("a router's models", Case {
        server: || Server::recorded_router("models-unloaded.json"), arguments: &[],
        expected: &[(TOKENS, "model_unloaded"), (SIZE, "model_unloaded")] }),
    ("a router whose model has crashed", Case {
        server: || Server::recorded_router("models-crashed.json"), arguments: &[],
        expected: &[(TOKENS, "model_failed")] }),
    ("a router whose model sleeps", Case {
        server: || Server::recorded_router("models-sleeping.json"), arguments: &[],
        expected: &[(TOKENS, "model_asleep")] }),
    ("Docker Model Runner, by name", Case {
        server: || in_state("model-runner", "idle"), arguments: &[],
        expected: &[(RATE, "runner_not_seen"), ("llamacpp_decode_calls_total", "runner_not_seen"), (CONTEXT, "runner_not_seen")] }),
    ("Docker Model Runner without /metrics", Case {
        server: || in_state("model-runner", "metrics-disabled"), arguments: &[],
        expected: &[(RATE, "runner_not_seen")] }),
    ("Docker Model Runner without models", Case {
        server: || in_state("model-runner", "no-models"), arguments: &[],
        expected: &[(TOKENS, "no_model")] }),
    ("Docker Model Runner without records", Case {
        server: || in_state("model-runner", "idle"), arguments: &["--no-request-records"],
        expected: &[(LATENCY, "request_records_off")] }),
    ("llama-swap", Case {
        server: || in_state("llama-swap", "ready-idle"), arguments: &[],
        expected: &[("llamacpp_decode_calls_total", "swap_server_unreachable"), ("llamacpp_models_disk_usage_bytes", "other_kind")] }),
    ("llama-swap, stopped", Case {
        server: || in_state("llama-swap", "stopped"), arguments: &[],
        expected: &[(SLOTS, "model_unloaded")] }),
    ("Ollama", Case {
        server: || in_state("ollama", "one-loaded"), arguments: &[],
        expected: &[(TOKENS, "ollama_server_not_found")] }),
];

#[test]
fn each_state_of_a_server_has_its_reason() {
    for_each_case(
        CASES.iter().map(|(name, case)| (*name, case)),
        |case: &Case| {
            let server = (case.server)();
            let mut polled = Polled::new(&server.url(), case.arguments);
            polled.poll();
            for (family, reason) in case.expected {
                // The log is opened by a thread.
                wait_for(&format!("{family}: {reason}"), || {
                    let overview = absent(&polled.poll());
                    let found = reasons(&overview, family);
                    found.contains(reason).then_some(())
                });
            }
        },
    );
}

#[test]
fn a_rejected_key_is_told_from_a_missing_one() {
    let key = file_with("wrong-key\n");
    let server = Server::recorded(NEW, Stage::After);
    server.answer("/metrics", Answer::error(401, "Invalid API Key"));
    let path = key.path().to_str().unwrap();
    let mut polled = Polled::new(&server.url(), &["--api-key-file", path]);
    let snapshot = polled.poll();
    assert_eq!(reasons(&absent(&snapshot), TOKENS), ["key_rejected"]);
    let texts = format!("{:?}", snapshot.sources);
    assert!(!texts.contains("wrong-key"), "{texts}");
}

#[test]
fn every_recorded_state_agrees_with_the_exposition() {
    let states = |kind: &'static str| {
        let folder = support::recordings::path(&format!("recordings/{kind}"));
        let folders = std::fs::read_dir(folder).unwrap();
        let names = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let is_state = |name: &String| {
            let answers = format!("recordings/{kind}/{name}/answers.tsv");
            name != "any" && support::recordings::path(&answers).exists()
        };
        let states: Vec<_> = names.filter(is_state).map(|name| (kind, name)).collect();
        states
    };
    let all = ["model-runner", "llama-swap", "ollama"]
        .into_iter()
        .flat_map(states);
    for_each_case(
        all.map(|(kind, state)| (format!("{kind} {state}"), (kind, state))),
        |(kind, state): (&str, String)| {
            let server = Server::recorded_kind(kind, &state);
            let mut polled = Polled::new(&server.url(), &[]);
            for _ in 0..2 {
                absent(&polled.poll());
            }
        },
    );
}

#[test]
fn an_idle_server_that_may_fall_asleep_is_said_to_be_left_alone() {
    let server = Server::recorded(OLD, Stage::After);
    let mut polled = Polled::new(&server.url(), &["--sleep-idle-seconds", "600"]);
    let states = [polled.poll(), polled.poll(), polled.poll()];
    let source = |snapshot: &Snapshot, path: &str| {
        let mut sources = snapshot.sources.iter();
        let source = sources.find(|of| matches!(of.kind, SourceKind::Endpoint(of) if of == path));
        source.unwrap_or_else(|| panic!("no {path}")).clone()
    };
    let [first, .., last] = states.each_ref().map(|state| source(state, "/metrics"));
    assert_eq!(
        (first.absence, last.absence),
        (None, Some(Absence::MayFallAsleep))
    );
    assert_eq!(first.read_at, last.read_at, "it was not read again");
    assert!(first.duration.is_some());
    let props = states
        .each_ref()
        .map(|state| source(state, "/props").read_at);
    assert!(props[0] < props[2], "it was read again");
    assert_eq!(reasons(&absent(&states[2]), BATCH), ["may_fall_asleep"]);
}

#[test]
fn a_server_that_goes_keeps_its_sources_and_says_why_it_is_down() {
    let server = Server::recorded(MIDDLE, Stage::After);
    let mut polled = Polled::new(&server.url(), &[]);
    let up = polled.poll();
    assert_eq!(up.down, None);
    server.stop();
    let down = polled.poll();
    let missing = down.down.as_ref().expect("it is down");
    assert_eq!(missing.reason, Absence::ServerDown);
    assert!(
        missing.why().starts_with("the server is down: "),
        "{missing:?}"
    );
    assert!(
        missing.remedy().starts_with("nothing listens there"),
        "{missing:?}"
    );
    let of_metrics = |snapshot: &Snapshot| {
        let mut sources = snapshot.sources.iter();
        let found = sources.find(|of| of.kind == SourceKind::Endpoint("/metrics"));
        found.and_then(|of| of.read_at)
    };
    assert_eq!(of_metrics(&up), of_metrics(&down));
}

#[test]
fn a_log_that_is_not_llama_servers_is_not_understood() {
    let log = file_with("");
    let server = Server::recorded(NEW, Stage::After);
    let path = log.path().to_str().unwrap().to_owned();
    let mut polled = Polled::new(&server.url(), &["--log-file", &path]);
    wait_for("the log is found", || {
        let overview = absent(&polled.poll());
        reasons(&overview, LATENCY).is_empty().then_some(())
    });
    std::fs::write(&path, "some other program\n").unwrap();
    wait_for("the log is not understood", || {
        let snapshot = polled.poll();
        let of_log = |kind: &SourceKind| matches!(kind, SourceKind::Log(Some(of)) if **of == *path);
        let source = snapshot.sources.iter().find(|of| of_log(&of.kind))?;
        (source.absence == Some(Absence::LogNotUnderstood)).then_some(())
    });
}
