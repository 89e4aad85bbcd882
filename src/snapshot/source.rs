//! Where values come from, as the status page and `--check` show it: each endpoint, log, process,
//! file and driver, when it was read last, and why it is not read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bounds;
use crate::bounds::label_enum::label_enum;
use crate::snapshot::Absence;

/// The most sources that are kept for one base URL.
pub const MOST_SOURCES: usize = 1000;
/// The most bytes of an error's text.
const MAX_ERROR_BYTES: usize = 512;

/// What values are read from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceKind {
    /// An endpoint of the server, by its path.
    Endpoint(&'static str),
    /// The llama-server of one model, where the server at the base URL has started it.
    ModelServer,
    /// A log: its path, or its URL if it is read over HTTP; `None` if no log was given.
    Log(Option<Arc<str>>),
    /// What a server with many models reports of their requests.
    RequestRecords,
    /// The exporter's own probes.
    Probe,
    /// The process that holds the model, by its PID if it was found.
    Process(Option<u32>),
    /// The limits of that process: its cgroup.
    Cgroup,
    /// The environment variables of that process.
    Environment,
    /// The model's file.
    ModelFile(Arc<str>),
    /// The driver of a GPU, by its program or kernel interface.
    GpuDriver(&'static str),
    /// The processes of this machine.
    Procfs,
    /// The search for servers on this machine.
    Discovery,
}

/// One source, as the last poll left it.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// What it is.
    pub kind: SourceKind,
    /// The model whose values it has, if the base URL has several.
    pub model: Option<Arc<str>>,
    /// Why it was not read at the last poll; `None` if it was read, or its values still hold.
    pub absence: Option<Absence>,
    /// When it was read last; older than the last poll if that did not need to ask it.
    pub read_at: Option<Instant>,
    /// How long the last read took, if that is measured.
    pub duration: Option<Duration>,
    /// What went wrong at the last read, and where. Holds no secret; may quote the server.
    pub error: Option<Arc<str>>,
}

impl Source {
    /// A source that is read continuously, or needs no reading.
    pub fn new(kind: SourceKind) -> Source {
        Source {
            kind,
            model: None,
            absence: None,
            read_at: None,
            duration: None,
            error: None,
        }
    }

    /// A source that is not read.
    pub fn missing(kind: SourceKind, absence: Absence) -> Source {
        Source {
            absence: Some(absence),
            ..Source::new(kind)
        }
    }

    /// The same with the text of what went wrong, cut if it is long.
    #[must_use]
    pub fn with_error(self, error: &str) -> Source {
        Source {
            error: Some(bounds::cut_at(error, MAX_ERROR_BYTES).into()),
            ..self
        }
    }

    /// The same for one of several models.
    #[must_use]
    pub fn of_model(self, model: Option<&str>) -> Source {
        Source {
            model: model.map(Arc::from),
            ..self
        }
    }

    /// Its state, as one word.
    pub fn state(&self) -> SourceState {
        self.absence.map_or(SourceState::Read, Absence::state)
    }
}

impl SourceKind {
    /// What it is, in a word or two: `endpoint`, `log`, `process`.
    pub fn label(&self) -> &'static str {
        match self {
            SourceKind::Endpoint(_) => "endpoint",
            SourceKind::ModelServer => "model's server",
            SourceKind::Log(_) => "log",
            SourceKind::RequestRecords => "request records",
            SourceKind::Probe => "probe",
            SourceKind::Process(_) => "process",
            SourceKind::Cgroup => "cgroup",
            SourceKind::Environment => "environment",
            SourceKind::ModelFile(_) => "model file",
            SourceKind::GpuDriver(_) => "GPU driver",
            SourceKind::Procfs => "procfs",
            SourceKind::Discovery => "discovery",
        }
    }

    /// Which one it is: the path, URL, PID or program; empty where there is only one.
    pub fn name(&self) -> String {
        match self {
            SourceKind::Endpoint(path) | SourceKind::GpuDriver(path) => (*path).to_owned(),
            SourceKind::Log(path) => path.as_deref().unwrap_or_default().to_owned(),
            SourceKind::ModelFile(path) => path.to_string(),
            SourceKind::Process(pid) => pid.map_or_else(String::new, |pid| pid.to_string()),
            SourceKind::ModelServer
            | SourceKind::RequestRecords
            | SourceKind::Probe
            | SourceKind::Cgroup
            | SourceKind::Environment
            | SourceKind::Procfs
            | SourceKind::Discovery => String::new(),
        }
    }
}

label_enum! {
    /// Whether a source is read, and if not, why, as one word.
    pub enum SourceState {
        /// It was read, or its values still hold.
        Read = "read",
        /// It is not read now, and will be: nothing has to be done.
        Waiting = "waiting",
        /// It is switched off.
        Off = "off",
        /// It may not be read.
        Refused = "refused",
        /// There is no such source here.
        NotThere = "not_there",
        /// Reading it failed.
        Failed = "failed",
    }
}

/// Why a value is missing: the reason, and what is known of this case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Missing {
    /// The reason.
    pub reason: Absence,
    /// What went wrong; may quote the server.
    pub detail: Option<Arc<str>>,
    /// What to do in this case, if that is more exact than the reason's remedy.
    pub advice: Option<Arc<str>>,
}

impl Missing {
    /// Why, as one sentence without a full stop; may quote the server.
    pub fn why(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{}: {detail}", self.reason.why()),
            None => self.reason.why().to_owned(),
        }
    }

    /// What to do.
    pub fn remedy(&self) -> &str {
        self.advice.as_deref().unwrap_or(self.reason.remedy())
    }
}

impl From<Absence> for Missing {
    fn from(reason: Absence) -> Missing {
        Missing {
            reason,
            detail: None,
            advice: None,
        }
    }
}
