//! A router with several loaded models, scripted after the recordings of b10068: what one model's
//! server does must not tell on the others.

mod support;

use serde_json::{Value, json};
use support::recordings::{self, MIDDLE, Stage};
use support::{Answer, Exporter, Server};

/// Where a model's own server is asked through the router.
fn child(path: &str, model: &str) -> String {
    format!("{path}?model={model}&autoload=false")
}

/// `/models` with these, all loaded.
fn loaded(models: &[&str]) -> Answer {
    let entry = |model: &&str| -> Value {
        json!({"id": model, "status": {"value": "loaded", "args": ["llama-server", "--port", "0"]}})
    };
    let models: Vec<_> = models.iter().map(entry).collect();
    Answer::json(json!({ "data": models }).to_string())
}

/// A router whose models are all loaded and at work.
fn router(models: &[&str]) -> Server {
    let server = Server::start();
    server.answer("/health", Answer::json(r#"{"status":"ok"}"#));
    let props = json!({"role": "router", "max_instances": 4, "build_info": "b10068-abc"});
    server.answer("/props", Answer::json(props.to_string()));
    server.answer("/models", loaded(models));
    for model in models {
        for path in ["/props", "/metrics", "/slots"] {
            server.answer(&child(path, model), answer_of(path));
        }
    }
    server
}

/// What a recorded llama-server at work answers.
fn answer_of(path: &str) -> Answer {
    match path {
        "/props" => Answer::json(recordings::file(MIDDLE, "props.json")),
        "/slots" => Answer::json(recordings::file(MIDDLE, "slots-busy.json")),
        _ => Answer::exposition(recordings::metrics(MIDDLE, Stage::Busy)),
    }
}

#[test]
fn one_failing_model_is_told_once_while_the_others_answer() {
    let server = router(&["a", "b", "c"]);
    let broken = child("/slots", "b");
    server.answer(&broken, Answer::error(500, "broken"));
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(6);
    let failed = exporter.logged(&["endpoint=/slots"]);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].contains("a request failed") && failed[0].contains("model=b"));

    server.answer(&broken, answer_of("/slots"));
    exporter.wait_for_log(&["it answers again", "endpoint=/slots", "model=b"]);
    exporter.after_polls(3);
    assert_eq!(exporter.logged(&["endpoint=/slots"]).len(), 2);
}
