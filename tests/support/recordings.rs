//! The recorded answers of genuine llama-servers, and small changes to them.

use super::server::{Answer, Server};
use serde_json::Value;
use std::path::PathBuf;

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

/// `b7376` tells its build number; `b11549` does not (`b0-unknown`).
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

fn folder() -> PathBuf {
    [
        env!("CARGO_MANIFEST_DIR"),
        "tests",
        "recordings",
        "llama-server",
    ]
    .iter()
    .collect()
}

pub fn file(build: &str, name: &str) -> Vec<u8> {
    let path = folder().join(build).join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
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
        server.answer("/health", Answer::json(r#"{"status":"ok"}"#));
        server.answer("/props", Answer::json(file(build, "props.json")));
        server.answer("/v1/models", Answer::json(file(build, "models.json")));
        server.answer("/models", Answer::json(file(build, "models.json")));
        server.replay(build, stage);
        server
    }

    /// Goes on to another stage of the recording.
    pub fn replay(&self, build: &str, stage: Stage) {
        let slots = file(build, &format!("slots-{}.json", stage.name()));
        // Slots first: whoever reads /metrics and then /slots never sees a slot that is older.
        self.answer("/slots", Answer::json(slots));
        self.answer("/metrics", Answer::exposition(metrics(build, stage)));
    }
}
