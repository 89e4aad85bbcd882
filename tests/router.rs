//! A router with several loaded models, scripted after the recordings of b10068: what one model's
//! server does must not tell on the others.

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use support::recordings::{self, MIDDLE, Stage};
use support::server::Request;
use support::{Answer, Exporter, Scrape, Server, eventually};

/// What one model's server is asked for.
const ENDPOINTS: [&str; 3] = ["/props", "/metrics", "/slots"];

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
        for path in ENDPOINTS {
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

/// The state of one model.
fn status(scrape: &Scrape, model: &str) -> Option<String> {
    let mut states = scrape.all("llamacpp_status");
    states.retain(|state| state.labels["model"] == model && state.value == 1.0);
    assert!(states.len() <= 1, "{states:?}");
    states.first().map(|state| state.labels["status"].clone())
}

#[test]
fn slow_models_take_turns_and_have_no_status_in_polls_that_do_not_reach_them() {
    let models = ["a", "b", "c", "d", "e", "f"];
    let server = router(&models);
    for (model, path) in models.iter().flat_map(|m| ENDPOINTS.map(|p| (m, p))) {
        let slow = answer_of(path).delayed(Duration::from_millis(200));
        server.answer(&child(path, model), slow);
    }
    let exporter = Exporter::watching(&server).timeout("500ms").start();
    // In how many polls each was seen at work; each poll is counted once.
    let mut seen = BTreeMap::new();
    let mut unseen = 0;
    let mut polls = 0;
    eventually("each was asked in two polls", || {
        let scrape = exporter.scrape();
        if scrape.polls() == polls {
            return false;
        }
        polls = scrape.polls();
        for model in models {
            match status(&scrape, model).as_deref() {
                Some("running") => *seen.entry(model).or_insert(0) += 1,
                None => unseen += 1,
                other => panic!("{model} is {other:?} in\n{scrape:?}"),
            }
        }
        seen.len() == models.len() && seen.values().all(|polls| *polls >= 2)
    });
    assert!(unseen > 0, "they were not slow enough for this test");
    // No model was asked twice before each other was asked once.
    let (least, most) = (seen.values().min(), seen.values().max());
    assert!(most.unwrap() - least.unwrap() <= 1, "{seen:?}");
}

#[test]
fn models_that_come_and_go_unanswered_do_not_use_up_the_descriptors() {
    let server = router(&[]);
    // The router itself is asked without a query; whatever model's server is asked says nothing.
    server.answer("/props?", server.script("/props"));
    server.answer("/props", Answer::never());
    let exporter = Exporter::watching(&server).timeout("50ms").start();
    let mut names = (0..).map(|number| format!("m{number}"));
    eventually("150 requests are unanswered", || {
        let models: Vec<_> = names.by_ref().take(4).collect();
        let models: Vec<_> = models.iter().map(String::as_str).collect();
        server.answer("/models", loaded(&models));
        let polls = exporter.scrape().polls();
        eventually("a poll", || exporter.scrape().polls() > polls);
        let unanswered = |request: &&Request| request.query.contains("model=");
        server.requests().iter().filter(unanswered).count() > 150
    });
    let open = server.open();
    // A hundred that wait, and what a poll uses.
    assert!((50..=105).contains(&open), "{open}");
    assert!(exporter.scrape().up());
}
