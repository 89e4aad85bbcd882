//! What a metric needs: where its value comes from, and what must have happened. From what the
//! snapshot says about a need follows why a metric is absent.

use crate::readings::{ModelStatus, ServerKind};
use crate::snapshot::{Absence, Gpu, Missing, Model, Snapshot, Source, SourceKind};

/// Something that a metric needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// `/metrics` of the model's llama-server.
    Metrics,
    /// A family of `/metrics` that llama-server has from b10566 on.
    NewMetrics,
    /// `/slots` of the model's llama-server.
    Slots,
    /// The tokens of each slot, which `/slots` has from b9294 on.
    SlotTokens,
    /// `/metrics` or `/slots`.
    LiveTokens,
    /// `/props` of the model's llama-server.
    Props,
    /// The quantization of the model, which `/props` has from b9873 on.
    Quantization,
    /// The list of models, `/v1/models`.
    ModelList,
    /// The list of models that Docker Model Runner has stored.
    ModelStore,
    /// Requests that ended, by the log or by what the server itself lists of them.
    Requests,
    /// A list of ended requests that the server keeps.
    RequestList,
    /// The log of the server.
    Log,
    /// A request that has ended.
    FirstRequest,
    /// The exporter's own probes.
    Probes,
    /// The process that holds the model.
    Process,
    /// The limits of memory and CPU of that process.
    Limits,
    /// The size of the KV cache, by the process and the model file.
    KvCache,
    /// The GPUs of this machine.
    Gpus,
    /// A driver of the GPU that reports the value.
    GpuReport,
    /// The GPU memory of single processes.
    GpuProcesses,
    /// Speculative decoding.
    Speculation,
    /// Prompt tokens of completed requests in `/metrics`.
    PromptCount,
    /// Two polls with exact counts.
    Rate,
    /// Requests over the last interval.
    Traffic,
    /// Work since the exporter started.
    Work,
    /// A poll of the server that has ended.
    Polls,
    /// The search for servers.
    Discovery,
    /// The exporter's own process.
    OwnProcess,
}

/// What a metric is looked at for: a model, a server, or this machine.
pub(super) struct Context<'a> {
    /// The server, if the metric is about one.
    pub server: Option<&'a Snapshot>,
    /// The model, if it is about one that is known.
    pub model: Option<&'a Model>,
    /// The sources of the model, then those of its whole server.
    pub sources: Vec<&'a Source>,
    /// This machine's sources.
    pub machine: &'a [Source],
    /// This machine's GPUs.
    pub gpus: &'a [Gpu],
}

const METRICS: &str = "/metrics";
const SLOTS: &str = "/slots";

/// Why one of `needs` is not there, or what else is the reason that a value is absent.
pub(super) fn missing(needs: &[Need], context: &Context) -> Missing {
    let mut missing = needs.iter().filter_map(|need| context.lacks(*need));
    missing
        .next()
        .unwrap_or_else(|| Absence::NotReported.into())
}

impl Context<'_> {
    /// Why this need is not there, if it is not.
    fn lacks(&self, need: Need) -> Option<Missing> {
        let reason = |reason: Absence| Some(Missing::from(reason));
        match need {
            Need::Metrics => self.lacks_endpoint(METRICS),
            Need::Slots => self.lacks_endpoint(SLOTS),
            Need::LiveTokens => {
                let without_metrics = self.lacks_endpoint(METRICS)?;
                self.lacks_endpoint(SLOTS).and(Some(without_metrics))
            }
            Need::Props => self.lacks_endpoint("/props"),
            Need::Quantization => {
                let is_llama_cpp = self.kind().is_some_and(ServerKind::is_llama_cpp);
                is_llama_cpp.then(|| Absence::BuildTooOld.into())
            }
            Need::ModelList => self.lacks_endpoint("/v1/models"),
            Need::NewMetrics => {
                let counters = &self.model?.counters;
                let is_old = counters.decode_calls.is_some() && counters.drafts.is_none();
                is_old.then(|| Absence::BuildTooOld.into())
            }
            Need::SlotTokens => {
                let slots = &self.model?.slots;
                match slots.context_tokens.len() {
                    0 if slots.are_unused => reason(Absence::SlotsUnused),
                    0 => reason(Absence::BuildTooOld),
                    _ => reason(Absence::TooManySlots),
                }
            }
            Need::ModelStore => match self.kind()? {
                ServerKind::ModelRunner => self.server_lacks("/engines/df"),
                _ => reason(Absence::OtherKind),
            },
            Need::Requests => self.lacks_requests(),
            Need::RequestList => match self.lists_requests() {
                true => self.lacks_requests(),
                false => self.lacks_server().or_else(|| reason(Absence::OtherKind)),
            },
            Need::Log => self.lacks_log(),
            Need::FirstRequest => self
                .lacks_loaded_model()
                .or_else(|| reason(Absence::NoRequestYet)),
            Need::Probes => self
                .source(|kind| *kind == SourceKind::Probe)
                .or_else(|| self.lacks_loaded_model())
                .or_else(|| reason(Absence::NoRequestYet)),
            Need::Process => self.lacks_process(),
            Need::Limits => self.source(|kind| *kind == SourceKind::Cgroup),
            Need::KvCache => self.lacks_kv_cache(),
            Need::Gpus => self.lacks_gpu(),
            Need::GpuReport => reason(Absence::GpuDoesNotReport),
            Need::GpuProcesses => {
                let is_hidden =
                    |source: &&Source| source.absence == Some(Absence::GpuProcessesHidden);
                let hidden = self.machine.iter().find(is_hidden);
                hidden
                    .map(of_source)
                    .or_else(|| reason(Absence::GpuNotUsed))
            }
            Need::Speculation => reason(Absence::NoSpeculativeDecoding),
            Need::PromptCount => {
                let notes = &self.model?.notes;
                let is_uncounted = notes.contains(&Absence::PromptsUncounted);
                is_uncounted.then(|| Absence::PromptsUncounted.into())
            }
            Need::Rate => match self.server?.polls.total {
                0 | 1 => reason(Absence::SecondPoll),
                _ => reason(Absence::RateUnknown),
            },
            Need::Traffic => {
                let is_idle = self.model?.status == Some(ModelStatus::Idle);
                let is_known = is_idle && self.server?.polls.total > 1;
                is_known.then(|| Absence::Idle.into())
            }
            Need::Work => reason(Absence::NoWorkYet),
            Need::Polls => self.lacks_server(),
            Need::Discovery => self.machine_lacks(&SourceKind::Discovery),
            Need::OwnProcess => reason(Absence::OwnProcessUnreadable),
        }
    }

    /// The kind of the server.
    fn kind(&self) -> Option<ServerKind> {
        Some(self.server?.info.as_ref()?.kind)
    }

    /// Whether the server keeps a list of requests that have ended.
    fn lists_requests(&self) -> bool {
        self.kind().is_some_and(ServerKind::lists_requests)
    }

    /// Why a source of the model, or else of the whole server, is not read.
    fn source(&self, is_it: impl Fn(&SourceKind) -> bool) -> Option<Missing> {
        let mut found = self.sources.iter().filter(|source| is_it(&source.kind));
        found
            .next()
            .copied()
            .filter(|source| source.absence.is_some())
            .map(of_source)
    }

    fn machine_lacks(&self, kind: &SourceKind) -> Option<Missing> {
        let mut sources = self.machine.iter();
        let source = sources.find(|source| source.kind == *kind && source.absence.is_some());
        source.map(of_source)
    }

    /// Why nothing is known of the server.
    fn lacks_server(&self) -> Option<Missing> {
        let server = self.server?;
        match server.up {
            None => Some(Absence::FirstPoll.into()),
            Some(true) => None,
            Some(false) => Some(server.down.clone().unwrap_or(Absence::ServerDown.into())),
        }
    }

    /// Why the server has no such model in memory.
    fn lacks_model(&self) -> Option<Missing> {
        if let Some(missing) = self.lacks_server() {
            return Some(missing);
        }
        let Some(model) = self.model else {
            let unread = self.source(|kind| *kind == SourceKind::ModelServer);
            let has_others = self.server.is_some_and(|server| !server.models.is_empty());
            let reason = match has_others {
                true => Absence::ModelGone,
                false => Absence::NoModel,
            };
            return unread.or(Some(reason.into()));
        };
        unloaded(model).map(Missing::from)
    }

    /// Why the server of the model is not there, or is not read.
    fn lacks_loaded_model(&self) -> Option<Missing> {
        let missing = self.lacks_model();
        missing.or_else(|| {
            let model = self.model?;
            let reason = match model.status {
                Some(ModelStatus::Loading) => Some(Absence::ModelLoading),
                Some(ModelStatus::Sleeping) => Some(Absence::ModelAsleep),
                _ if is_other_engine(model) => Some(Absence::OtherEngine),
                _ => None,
            };
            reason.map(Missing::from)
        })
    }

    /// Why an endpoint of the model's server is not read.
    fn lacks_endpoint(&self, path: &str) -> Option<Missing> {
        let is_endpoint =
            |kind: &SourceKind| matches!(kind, SourceKind::Endpoint(of) if *of == path);
        self.lacks_loaded_model()
            .or_else(|| self.source(|kind| *kind == SourceKind::ModelServer))
            .or_else(|| self.source(is_endpoint))
    }

    /// Why an endpoint of the server at the base URL is not read.
    fn server_lacks(&self, path: &str) -> Option<Missing> {
        self.lacks_server()
            .or_else(|| self.source(|kind| matches!(kind, SourceKind::Endpoint(of) if *of == path)))
    }

    fn lacks_log(&self) -> Option<Missing> {
        let log = self.source(|kind| matches!(kind, SourceKind::Log(_)));
        match log {
            Some(missing) => Some(missing),
            None if self.lists_requests() => self
                .source(|kind| *kind == SourceKind::RequestRecords)
                .or(Some(Absence::OtherKind.into())),
            None => self.lacks_loaded_model(),
        }
    }

    fn lacks_requests(&self) -> Option<Missing> {
        if !self.lists_requests() {
            let missing = self.lacks_log();
            return missing.or(Some(Absence::NoRequestYet.into()));
        }
        self.source(|kind| *kind == SourceKind::RequestRecords)
            .or_else(|| self.lacks_loaded_model())
            .or(Some(Absence::NoRequestYet.into()))
    }

    fn lacks_process(&self) -> Option<Missing> {
        self.lacks_model()
            .or_else(|| self.machine_lacks(&SourceKind::Procfs))
            .or_else(|| self.source(|kind| matches!(kind, SourceKind::Process(_))))
            .or_else(|| {
                let is_found = self.model?.process.pid.is_some();
                (!is_found).then(|| Absence::ProcessNotFound.into())
            })
    }

    fn lacks_kv_cache(&self) -> Option<Missing> {
        if self
            .model
            .is_some_and(|of| of.kv_cache.limit_bytes.is_some())
        {
            return None;
        }
        self.lacks_endpoint("/props")
            .or_else(|| self.lacks_process())
            .or_else(|| self.source(|kind| *kind == SourceKind::Environment))
            .or_else(|| self.source(|kind| matches!(kind, SourceKind::ModelFile(_))))
            .or(Some(Absence::KvCacheNotComputable.into()))
    }

    fn lacks_gpu(&self) -> Option<Missing> {
        if !self.gpus.is_empty() {
            return None;
        }
        let is_driver = |source: &&Source| matches!(source.kind, SourceKind::GpuDriver(_));
        let drivers = self.machine.iter().filter(is_driver);
        let mut missing = drivers.filter(|source| source.absence.is_some());
        let is_installed = |source: &&Source| source.absence != Some(Absence::NoNvidiaSmi);
        missing
            .clone()
            .find(is_installed)
            .or_else(|| missing.next())
            .map(of_source)
            .or(Some(Absence::NoGpu.into()))
    }
}

/// Why a source is not read.
fn of_source(source: &Source) -> Missing {
    Missing {
        reason: source.absence.unwrap_or(Absence::NotReported),
        detail: source.error.clone(),
        advice: None,
    }
}

/// Why the model is not in memory.
fn unloaded(model: &Model) -> Option<Absence> {
    match model.status? {
        ModelStatus::Unloaded => Some(Absence::ModelUnloaded),
        ModelStatus::Downloading => Some(Absence::ModelDownloading),
        ModelStatus::Failed => Some(Absence::ModelFailed),
        _ => None,
    }
}

/// Whether another engine than llama.cpp runs the model.
fn is_other_engine(model: &Model) -> bool {
    let backend = model.facts.backend.as_deref();
    backend.is_some_and(|backend| backend != "llama.cpp")
}
