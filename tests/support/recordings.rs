//! The recorded answers of real servers, and small changes to them.

use super::{Answer, Server};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Every build on record, oldest first.
pub const BUILDS: [&str; 21] = [
    "b7376",
    "b7551",
    "b7710",
    "b7827",
    "b7964",
    "b8156",
    "b8352",
    "xllamacpp-0.2.14",
    "b8672",
    "b8929",
    "b9093",
    "b9294",
    "b9538",
    "b9713",
    "b9873",
    "b10068",
    "b10229",
    "b10566",
    "b10809",
    "b11063",
    "b11549",
];

/// `b7376` reports its build number; `b11549` reports `b0-unknown`.
pub const OLD: &str = "b7376";
pub const MIDDLE: &str = "b10068";
pub const NEW: &str = "b11549";

/// When a recording was made: before any request, during one, or after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    Idle,
    Busy,
    After,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Stage::Idle => "idle",
            Stage::Busy => "busy",
            Stage::After => "after",
        }
    }
}

/// A file or folder below `tests/`.
pub fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(relative)
}

pub fn read(relative: &str) -> Vec<u8> {
    let path = path(relative);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A file of a recorded llama-server.
pub fn file(build: &str, name: &str) -> Vec<u8> {
    read(&format!("recordings/llama-server/{build}/{name}"))
}

pub fn props(build: &str) -> Value {
    serde_json::from_slice(&file(build, "props.json")).unwrap()
}

pub fn models(build: &str) -> Value {
    serde_json::from_slice(&file(build, "models.json")).unwrap()
}

pub fn slots(build: &str, stage: Stage) -> Value {
    serde_json::from_slice(&file(build, &format!("slots-{}.json", stage.name()))).unwrap()
}

pub fn metrics(build: &str, stage: Stage) -> String {
    String::from_utf8(file(build, &format!("metrics-{}.txt", stage.name()))).unwrap()
}

/// A file of `tests/cases`: an answer of a server that is no recorded llama-server, or of a proxy.
pub fn case(name: &str) -> Vec<u8> {
    read(&format!("cases/{name}"))
}

/// One row of a table `answers.tsv`: what a recorded server answered at a path.
pub struct RecordedAnswer {
    /// With its query.
    pub path: String,
    pub status: u16,
    pub content_type: String,
    pub body: Vec<u8>,
}

/// The answers of a Docker Model Runner or a llama-swap in a state, those of every state first.
pub fn recorded_answers(kind: &str, state: &str) -> Vec<RecordedAnswer> {
    let mut answers = Vec::new();
    for folder in ["any", state] {
        let folder = format!("recordings/{kind}/{folder}");
        let table = String::from_utf8(read(&format!("{folder}/answers.tsv"))).unwrap();
        answers.extend(table.lines().map(|line| {
            let fields: Vec<_> = line.split('\t').collect();
            let [path, status, content_type, file] = fields[..] else {
                panic!("not a row of answers: {line}");
            };
            RecordedAnswer {
                path: path.to_owned(),
                status: status.parse().unwrap(),
                content_type: content_type.to_owned(),
                body: read(&format!("{folder}/{file}")),
            }
        }));
    }
    answers
}

/// The exposition with other values; panics when it has no such metric.
pub fn with_values(exposition: &str, values: &[(&str, &str)]) -> String {
    let mut lines: Vec<String> = exposition.lines().map(str::to_owned).collect();
    for (name, value) in values {
        let start = format!("llamacpp:{name} ");
        let line = lines.iter_mut().find(|line| line.starts_with(&start));
        *line.unwrap_or_else(|| panic!("no {name}")) = format!("{start}{value}");
    }
    lines.join("\n") + "\n"
}

impl Server {
    /// A llama-server as it was recorded.
    pub fn recorded(build: &str, stage: Stage) -> Server {
        let server = Server::start();
        server.answer_recorded(build, stage);
        server
    }

    /// Answers as a recorded llama-server.
    pub fn answer_recorded(&self, build: &str, stage: Stage) {
        self.answer("/health", Answer::json(r#"{"status":"ok"}"#));
        self.answer("/props", Answer::json(file(build, "props.json")));
        self.answer("/v1/models", Answer::json(file(build, "models.json")));
        self.answer("/models", Answer::json(file(build, "models.json")));
        self.replay(build, stage);
    }

    /// A Docker Model Runner or a llama-swap as it was recorded in that state.
    pub fn recorded_kind(kind: &str, state: &str) -> Server {
        let server = Server::start();
        for recorded in recorded_answers(kind, state) {
            let path = recorded.path.split('?').next().unwrap();
            let answer = Answer::new(recorded.status, &recorded.content_type, recorded.body);
            server.answer(path, answer);
        }
        server
    }

    /// A router as it was recorded, with the models of `file`, none of which is loaded.
    pub fn recorded_router(file: &str) -> Server {
        let recording = |file: &str| read(&format!("recordings/router/b10068/{file}"));
        let server = Server::start();
        server.answer("/health", Answer::json(recording("health.json")));
        server.answer("/props", Answer::json(recording("props.json")));
        for path in ["/models", "/v1/models"] {
            server.answer(path, Answer::json(recording(file)));
        }
        let metrics = Answer::new(400, "application/json", recording("metrics-nomodel.json"));
        server.answer("/metrics", metrics);
        server
    }

    /// Goes on to another stage of the recording.
    pub fn replay(&self, build: &str, stage: Stage) {
        let slots = file(build, &format!("slots-{}.json", stage.name()));
        let metrics = metrics(build, stage);
        // At once: slots that are several polls ahead of the counters are those of cancelled requests.
        self.answer_all([
            ("/slots", Answer::json(slots)),
            ("/metrics", Answer::exposition(metrics)),
        ]);
    }
}
