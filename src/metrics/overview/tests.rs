//! Each metric, absent for each of its reasons: a world in which everything is read and no value is
//! known, changed by one thing at a time.

use super::*;
use crate::metrics::exposition;
use crate::metrics::need::Need;
use crate::readings::{ModelFacts, ModelStatus, ServerKind};
use crate::snapshot::{Absence, RequestFigures, ServerInfo, SourceKind};

/// What the overview is made of.
#[derive(Clone)]
struct World {
    server: Snapshot,
    gpus: Vec<Gpu>,
    machine: Vec<Source>,
}

impl World {
    /// A llama-server that is idle, whose sources are all read, and no value of which is known.
    fn new() -> World {
        let mut server = Snapshot {
            server: "h:1".to_owned(),
            up: Some(true),
            info: Some(ServerInfo {
                kind: ServerKind::LlamaServer,
                version: None,
                is_version_pending: true,
            }),
            models: vec![Model {
                name: "m".to_owned(),
                status: Some(ModelStatus::Idle),
                ..Model::default()
            }],
            ..Snapshot::default()
        };
        server.polls.total = 5;
        server.models[0].process.pid = Some(7);
        for path in ["/metrics", "/slots", "/props", "/v1/models"] {
            server.sources.push(Source::new(SourceKind::Endpoint(path)));
        }
        World {
            server,
            gpus: vec![Gpu {
                index: "0".to_owned(),
                ..Gpu::default()
            }],
            machine: Vec::new(),
        }
    }

    fn model(&mut self) -> &mut Model {
        &mut self.server.models[0]
    }

    fn kind(&mut self, kind: ServerKind) {
        let info = self.server.info.as_mut();
        info.unwrap().kind = kind;
    }

    fn lacks(&mut self, kind: SourceKind, why: Absence) {
        self.server.sources.retain(|source| source.kind != kind);
        self.server.sources.push(Source::missing(kind, why));
    }

    fn machine_lacks(&mut self, kind: SourceKind, why: Absence) {
        self.machine.push(Source::missing(kind, why));
    }

    fn overview(&self) -> Overview {
        let servers = [Arc::new(self.server.clone())];
        overview(&servers, &self.gpus, &self.machine, &OwnMetrics::default())
    }
}

const METRICS: SourceKind = SourceKind::Endpoint("/metrics");
const SLOTS: SourceKind = SourceKind::Endpoint("/slots");
const PROPS: SourceKind = SourceKind::Endpoint("/props");
const LIST: SourceKind = SourceKind::Endpoint("/v1/models");
const NVIDIA: SourceKind = SourceKind::GpuDriver("nvidia-smi");

/// The needs of which `/metrics` is the first, and those of which all that is read of a model is.
const OF_METRICS: &[Need] = &[Need::Metrics];
const OF_SERVER: &[Need] = &[
    Need::Metrics,
    Need::Slots,
    Need::LiveTokens,
    Need::Props,
    Need::ModelList,
];
const OF_LOG: &[Need] = &[Need::Log, Need::Requests];

/// A reason, the needs that are missing for it, and the change that makes it.
type Case = (Absence, &'static [Need], fn(&mut World));

#[rustfmt::skip] // a table
const CASES: &[Case] = &[
    (Absence::FirstPoll, OF_SERVER, |w| (w.server.up, w.server.models) = (None, Vec::new())),
    (Absence::FirstPoll, &[Need::Polls], |w| (w.server.up, w.server.models) = (None, Vec::new())),
    (Absence::PollOverdue, OF_SERVER, |w| w.server = w.server.without_values()),
    (Absence::ServerDown, OF_SERVER, |w| w.server.up = Some(false)),
    (Absence::ServerLate, OF_SERVER, |w| down(w, Absence::ServerLate)),
    (Absence::NotLlamaCpp, OF_SERVER, |w| down(w, Absence::NotLlamaCpp)),
    (Absence::KeyRequired, OF_SERVER, |w| endpoints(w, Absence::KeyRequired)),
    (Absence::KeyUnreadable, OF_SERVER, |w| endpoints(w, Absence::KeyUnreadable)),
    (Absence::KeyRejected, OF_SERVER, |w| endpoints(w, Absence::KeyRejected)),
    (Absence::OtherKind, &[Need::ModelStore, Need::RequestList], |_| ()),
    (Absence::OtherKind, &[Need::Log], |w| w.kind(ServerKind::LlamaSwap)),

    (Absence::NoModel, OF_SERVER, |w| w.server.models.clear()),
    (Absence::NoModel, &[Need::Process, Need::Probes, Need::Requests], |w| w.server.models.clear()),
    (Absence::ModelGone, OF_SERVER, |w| w.server.requests.push(requests_of("gone"))),
    (Absence::ModelUnnamed, OF_SERVER, |w| {
        w.server.models.clear();
        w.lacks(SourceKind::ModelServer, Absence::ModelUnnamed);
    }),
    (Absence::ModelLoading, OF_SERVER, |w| w.model().status = Some(ModelStatus::Loading)),
    (Absence::ModelUnloaded, OF_SERVER, |w| w.model().status = Some(ModelStatus::Unloaded)),
    (Absence::ModelUnloaded, &[Need::Process, Need::Requests, Need::Probes],
        |w| w.model().status = Some(ModelStatus::Unloaded)),
    (Absence::ModelDownloading, OF_SERVER, |w| w.model().status = Some(ModelStatus::Downloading)),
    (Absence::ModelAsleep, OF_SERVER, |w| w.model().status = Some(ModelStatus::Sleeping)),
    (Absence::ModelFailed, OF_SERVER, |w| w.model().status = Some(ModelStatus::Failed)),
    (Absence::OtherEngine, OF_SERVER, |w| w.model().facts.backend = Some("vllm".to_owned())),

    (Absence::MetricsOff, OF_METRICS, |w| w.lacks(METRICS, Absence::MetricsOff)),
    (Absence::MetricsOff, &[Need::LiveTokens], |w| {
        w.lacks(METRICS, Absence::MetricsOff);
        w.lacks(SLOTS, Absence::SlotsOff);
    }),
    (Absence::OllamaMetricsOff, OF_METRICS, |w| w.lacks(METRICS, Absence::OllamaMetricsOff)),
    (Absence::RunnerMetricsOff, OF_METRICS, |w| w.lacks(METRICS, Absence::RunnerMetricsOff)),
    (Absence::SlotsOff, &[Need::Slots], |w| w.lacks(SLOTS, Absence::SlotsOff)),
    (Absence::MetricsNotServed, OF_METRICS, |w| w.lacks(METRICS, Absence::MetricsNotServed)),
    (Absence::SlotsNotServed, &[Need::Slots], |w| w.lacks(SLOTS, Absence::SlotsNotServed)),
    (Absence::NotServed, &[Need::Props], |w| w.lacks(PROPS, Absence::NotServed)),
    (Absence::NotServed, &[Need::ModelList], |w| w.lacks(LIST, Absence::NotServed)),
    (Absence::ProxyPassesOnV1, OF_METRICS, |w| w.lacks(METRICS, Absence::ProxyPassesOnV1)),
    (Absence::ProxyPassesOnHealth, OF_METRICS, |w| w.lacks(METRICS, Absence::ProxyPassesOnHealth)),
    (Absence::RouterListsOnly, OF_SERVER, |w| {
        w.server.models.clear();
        w.lacks(SourceKind::ModelServer, Absence::RouterListsOnly);
    }),
    (Absence::EndpointFailing, OF_SERVER, |w| endpoints(w, Absence::EndpointFailing)),
    (Absence::EndpointFailing, &[Need::ModelStore], |w| {
        w.kind(ServerKind::ModelRunner);
        w.lacks(SourceKind::Endpoint("/engines/df"), Absence::EndpointFailing);
    }),
    (Absence::AnswerLate, OF_METRICS, |w| w.lacks(METRICS, Absence::AnswerLate)),
    (Absence::MayFallAsleep, OF_METRICS, |w| w.lacks(METRICS, Absence::MayFallAsleep)),
    (Absence::NotYetPolled, OF_METRICS, |w| w.lacks(METRICS, Absence::NotYetPolled)),
    (Absence::BuildTooOld, &[Need::NewMetrics], |w| w.model().counters.decode_calls = Some(1.0)),
    (Absence::BuildTooOld, &[Need::SlotTokens], |w| w.model().kv_cache.limit_bytes = Some(1.0)),
    (Absence::BuildTooOld, &[Need::Quantization], |_| ()),
    (Absence::NotReported, OF_METRICS, |_| ()),

    (Absence::RunnerNotSeen, OF_SERVER, |w| w.lacks(SourceKind::ModelServer, Absence::RunnerNotSeen)),
    (Absence::RunnerNotAllowed, OF_SERVER, |w| w.lacks(SourceKind::ModelServer, Absence::RunnerNotAllowed)),
    (Absence::RunnerAmbiguous, OF_SERVER, |w| w.lacks(SourceKind::ModelServer, Absence::RunnerAmbiguous)),
    (Absence::RunnerLeftOut, OF_METRICS, |w| w.lacks(METRICS, Absence::RunnerLeftOut)),
    (Absence::RunnerSamplesAmbiguous, OF_METRICS, |w| w.lacks(METRICS, Absence::RunnerSamplesAmbiguous)),
    (Absence::OllamaServerNotFound, OF_SERVER, |w| w.lacks(SourceKind::ModelServer, Absence::OllamaServerNotFound)),
    (Absence::OllamaServerUnreachable, OF_SERVER, |w| w.lacks(SourceKind::ModelServer, Absence::OllamaServerUnreachable)),
    (Absence::SwapServerUnreachable, OF_SERVER, |w| w.lacks(SourceKind::ModelServer, Absence::SwapServerUnreachable)),
    (Absence::SwapOtherEngine, OF_SERVER, |w| w.lacks(SourceKind::ModelServer, Absence::SwapOtherEngine)),

    (Absence::LogNotGiven, OF_LOG, |w| w.lacks(SourceKind::Log(None), Absence::LogNotGiven)),
    (Absence::OllamaLogNotGiven, OF_LOG, |w| w.lacks(SourceKind::Log(None), Absence::OllamaLogNotGiven)),
    (Absence::OnlyForBaseUrls, OF_LOG, |w| w.lacks(SourceKind::Log(None), Absence::OnlyForBaseUrls)),
    (Absence::LogWaiting, OF_LOG, |w| w.lacks(log(), Absence::LogWaiting)),
    (Absence::LogUnreadable, OF_LOG, |w| w.lacks(log(), Absence::LogUnreadable)),
    (Absence::LogNotUnderstood, OF_LOG, |w| w.lacks(log(), Absence::LogNotUnderstood)),
    (Absence::LogHasNoRequests, OF_LOG, |w| w.lacks(log(), Absence::LogHasNoRequests)),
    (Absence::LogOfSeveralServers, OF_LOG, |w| w.lacks(log(), Absence::LogOfSeveralServers)),
    (Absence::LogUnused, &[Need::Log], |w| w.lacks(log(), Absence::LogUnused)),
    (Absence::LogAmbiguous, OF_LOG, |w| w.lacks(log(), Absence::LogAmbiguous)),
    (Absence::LogNotServed, &[Need::Log], |w| {
        w.kind(ServerKind::LlamaSwap);
        w.lacks(log(), Absence::LogNotServed);
    }),
    (Absence::LogSilent, &[Need::Log], |w| {
        w.kind(ServerKind::ModelRunner);
        w.lacks(log(), Absence::LogSilent);
    }),
    (Absence::RequestRecordsOff, &[Need::Requests, Need::RequestList, Need::Log], |w| {
        w.kind(ServerKind::ModelRunner);
        w.lacks(SourceKind::RequestRecords, Absence::RequestRecordsOff);
    }),
    (Absence::NoRequestYet, &[Need::Requests, Need::Probes], |_| ()),
    (Absence::NoRequestYet, &[Need::FirstRequest], |w| w.kind(ServerKind::LlamaSwap)),
    (Absence::NoRequestYet, &[Need::RequestList], |w| w.kind(ServerKind::LlamaSwap)),
    (Absence::ProbeOff, &[Need::Probes], |w| w.lacks(SourceKind::Probe, Absence::ProbeOff)),
    (Absence::ProbeNotPossible, &[Need::Probes], |w| w.lacks(SourceKind::Probe, Absence::ProbeNotPossible)),

    (Absence::ProcessNotFound, &[Need::Process, Need::KvCache], |w| w.model().process.pid = None),
    (Absence::ProcessNotVisible, &[Need::Process, Need::KvCache], |w| process(w, Absence::ProcessNotVisible)),
    (Absence::ProcessInOtherNamespace, &[Need::Process, Need::KvCache], |w| process(w, Absence::ProcessInOtherNamespace)),
    (Absence::ProcessShared, &[Need::Process, Need::KvCache], |w| process(w, Absence::ProcessShared)),
    (Absence::PidFileUnusable, &[Need::Process, Need::KvCache], |w| process(w, Absence::PidFileUnusable)),
    (Absence::NotLinux, &[Need::Process, Need::KvCache], |w| w.machine_lacks(SourceKind::Procfs, Absence::NotLinux)),
    (Absence::ProcfsEmpty, &[Need::Process, Need::KvCache], |w| w.machine_lacks(SourceKind::Procfs, Absence::ProcfsEmpty)),
    (Absence::LimitsUnknown, &[Need::Limits], |w| w.lacks(SourceKind::Cgroup, Absence::LimitsUnknown)),
    (Absence::EnvironmentUnreadable, &[Need::KvCache], |w| w.lacks(SourceKind::Environment, Absence::EnvironmentUnreadable)),
    (Absence::ModelFileUnreadable, &[Need::KvCache], |w| w.lacks(SourceKind::ModelFile("m.gguf".into()), Absence::ModelFileUnreadable)),
    (Absence::KvCacheNotComputable, &[Need::KvCache], |_| ()),

    (Absence::GpuOff, &[Need::Gpus], |w| gpus(w, Absence::GpuOff)),
    (Absence::NotLinux, &[Need::Gpus], |w| gpus(w, Absence::NotLinux)),
    (Absence::NoNvidiaSmi, &[Need::Gpus], |w| gpus(w, Absence::NoNvidiaSmi)),
    (Absence::NoGpu, &[Need::Gpus], |w| {
        gpus(w, Absence::NoNvidiaSmi);
        w.machine_lacks(SourceKind::GpuDriver("drm"), Absence::NoGpu);
    }),
    (Absence::GpuSilent, &[Need::Gpus], |w| gpus(w, Absence::GpuSilent)),
    (Absence::GpuSuspended, &[Need::Gpus], |w| gpus(w, Absence::GpuSuspended)),
    (Absence::GpuStarting, &[Need::Gpus], |w| gpus(w, Absence::GpuStarting)),
    (Absence::GpuDoesNotReport, &[Need::GpuReport], |_| ()),
    (Absence::GpuProcessesHidden, &[Need::GpuProcesses],
        |w| w.machine_lacks(SourceKind::GpuDriver("processes"), Absence::GpuProcessesHidden)),
    (Absence::GpuNotUsed, &[Need::GpuProcesses], |_| ()),

    (Absence::DiscoveryOff, &[Need::Discovery], |w| w.machine_lacks(SourceKind::Discovery, Absence::DiscoveryOff)),
    (Absence::DiscoveryLate, &[Need::Discovery], |w| w.machine_lacks(SourceKind::Discovery, Absence::DiscoveryLate)),
    (Absence::OwnProcessUnreadable, &[Need::OwnProcess], |_| ()),

    (Absence::SecondPoll, &[Need::Rate], |w| {
        w.server.polls.total = 1;
    }),
    (Absence::RateUnknown, &[Need::Rate], |w| w.model().status = Some(ModelStatus::Running)),
    (Absence::Idle, &[Need::Traffic], |_| ()),
    (Absence::NoWorkYet, &[Need::Work], |_| ()),
    (Absence::SlotsUnused, &[Need::SlotTokens], |w| {
        w.model().slots.are_unused = true;
        w.model().kv_cache.limit_bytes = Some(1.0);
    }),
    (Absence::NoSpeculativeDecoding, &[Need::Speculation], |w| w.model().counters.drafts = Some(0.0)),
    (Absence::PromptsUncounted, &[Need::PromptCount], |w| w.model().notes.push(Absence::PromptsUncounted)),
];

/// Metrics that always have a series where the reason applies.
const ALWAYS: &[&str] = &[
    "llamacpp_exporter_polls_total",
    "llamacpp_exporter_series_dropped",
    "llamacpp_exporter_build_info",
    "llamacpp_gpu_info",
];

fn log() -> SourceKind {
    SourceKind::Log(Some("/log".into()))
}

fn down(world: &mut World, why: Absence) {
    world.server.up = Some(false);
    world.server.down = Some(why.into());
}

fn endpoints(world: &mut World, why: Absence) {
    for kind in [METRICS, SLOTS, PROPS, LIST] {
        world.lacks(kind, why);
    }
}

fn process(world: &mut World, why: Absence) {
    world.model().process.pid = None;
    world.lacks(SourceKind::Process(None), why);
}

fn gpus(world: &mut World, why: Absence) {
    world.gpus.clear();
    world.machine_lacks(NVIDIA, why);
}

fn requests_of(model: &str) -> crate::snapshot::ModelRequests {
    crate::snapshot::ModelRequests {
        model: model.to_owned(),
        mode: None,
        source: "log",
        figures: Arc::new(RequestFigures::default()),
    }
}

/// The reasons for which a metric is absent.
fn reasons(overview: &Overview, family: &str) -> Vec<Absence> {
    let state = overview.families.iter().find(|of| of.family.name == family);
    let absent = state.unwrap().absent.iter();
    absent.map(|of| of.missing.reason).collect()
}

#[test]
fn each_metric_is_absent_for_each_reason_of_each_of_its_needs() {
    let mut seen = BTreeSet::new();
    let mut covered = BTreeSet::new();
    for (reason, needs, change) in CASES {
        let mut world = World::new();
        change(&mut world);
        let overview = world.overview();
        for family in FAMILIES {
            let is_of_case = family.needs.iter().any(|need| needs.contains(need));
            if !is_of_case || ALWAYS.contains(&family.name) {
                continue;
            }
            let found = reasons(&overview, family.name);
            if found.contains(reason) {
                seen.insert(*reason);
                let of_family = family.needs.iter().filter(|need| needs.contains(need));
                covered.extend(of_family.map(|need| (family.name, format!("{need:?}"))));
            } else {
                // Something else that it needs is missing, too, or another need is met first.
                assert!(
                    family.needs.len() > 1 || found.is_empty(),
                    "{}: {found:?} instead of {reason:?}",
                    family.name
                );
            }
        }
    }
    for family in FAMILIES.iter().filter(|of| !ALWAYS.contains(&of.name)) {
        for need in family.needs {
            let pair = (family.name, format!("{need:?}"));
            assert!(covered.contains(&pair), "{pair:?} is in no case");
        }
    }
    let unseen: Vec<_> = Absence::ALL
        .iter()
        .filter(|reason| !seen.contains(reason))
        .collect();
    assert_eq!(
        unseen,
        [&Absence::TooManySlots],
        "it is in a test of its own"
    );
}

#[test]
fn more_than_64_slots_have_no_series_each() {
    let mut world = World::new();
    world.model().slots.context_tokens = (0..65).map(|slot| (slot, 1.0)).collect();
    let found = reasons(&world.overview(), "llamacpp_context_tokens");
    assert_eq!(found, [Absence::TooManySlots]);
}

#[test]
fn a_metric_is_absent_where_the_exposition_has_no_series_of_it() {
    let mut world = World::new();
    world.model().facts = ModelFacts {
        slots: Some(2.0),
        ..ModelFacts::default()
    };
    let unloaded = Model {
        name: "n".to_owned(),
        status: Some(ModelStatus::Unloaded),
        ..Model::default()
    };
    world.server.models.push(unloaded);
    let overview = world.overview();
    let servers = [Arc::new(world.server)];
    let text = exposition::render(&servers, &world.gpus, &OwnMetrics::default());
    for state in &overview.families {
        assert_eq!(
            state.series.count,
            series(&text, state.family.name),
            "{}",
            state.family.name
        );
    }
    let names = ["m", "n"].map(|name| Subject::Model("h:1".to_owned(), (name.to_owned(), None)));
    let [m, n] = names;
    let server = Subject::Server("h:1".to_owned());
    assert_eq!(overview.subjects, [server, m, n, Subject::Machine]);
    let of_slots = overview
        .families
        .iter()
        .find(|of| of.family.name == "llamacpp_slots");
    let absent = &of_slots.unwrap().absent;
    assert_eq!(absent[0].missing.reason, Absence::ModelUnloaded);
    assert_eq!(absent[0].subjects, [2]);
}

/// How many series of a family a scrape has.
fn series(text: &str, family: &str) -> usize {
    let suffixes = ["", "_bucket", "_sum", "_count"];
    let of_family = |line: &&str| {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let suffix = name.strip_prefix(family);
        suffix.is_some_and(|suffix| suffixes.contains(&suffix))
    };
    text.lines().filter(of_family).count()
}

#[test]
fn a_remedy_stands_once_and_what_people_can_do_comes_first() {
    let mut world = World::new();
    world.lacks(METRICS, Absence::MetricsOff);
    world.lacks(SLOTS, Absence::SlotsOff);
    let overview = world.overview();
    let remedies = overview.remedies();
    let texts: BTreeSet<_> = remedies.iter().map(|remedy| remedy.text).collect();
    assert_eq!(texts.len(), remedies.len());
    assert!(remedies.is_sorted_by_key(|remedy| !remedy.is_fixable));
    let of = |reason: Absence| {
        let mut remedies = remedies.iter();
        let remedy = remedies.find(|of| of.text == reason.remedy()).unwrap();
        let names = remedy.families.iter().map(|of| of.name);
        names.collect::<Vec<_>>()
    };
    let (metrics, slots) = (of(Absence::MetricsOff), of(Absence::SlotsOff));
    assert!(
        metrics.contains(&"llamacpp_generated_tokens_total"),
        "{metrics:?}"
    );
    assert!(slots.contains(&"llamacpp_context_tokens"), "{slots:?}");
}
