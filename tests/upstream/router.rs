//! A llama-server as a router: its models one by one, independent of each other.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::exporter::{program, run};
use crate::support::recordings::{self, MIDDLE, NEW, OLD, Stage};
use crate::support::server::Request;
use crate::support::{Answer, Exporter, Scrape, Server, wait_until};
use crate::{json_case, kind};

/// What one model's server is asked for.
const MODEL_ENDPOINTS: [&str; 3] = ["/props", "/metrics", "/slots"];

/// Where a model's own server is asked through the router.
fn of_model(path: &str, model: &str) -> String {
    format!("{path}?model={model}&autoload=false")
}

/// `/models` with these, all loaded.
fn loaded_models(models: &[&str]) -> Answer {
    let entry = |model: &&str| -> Value {
        json!({"id": model, "status": {"value": "loaded", "args": ["llama-server", "--port", "0"]}})
    };
    let models: Vec<_> = models.iter().map(entry).collect();
    Answer::json(json!({ "data": models }).to_string())
}

/// A router whose models are all loaded and at work.
fn busy_router(models: &[&str]) -> Server {
    let server = Server::start();
    server.answer_json("/health", r#"{"status":"ok"}"#);
    let props = json!({"role": "router", "max_instances": 4, "build_info": "b10068-abc"});
    server.answer_json("/props", props);
    server.answer("/models", loaded_models(models));
    for model in models {
        for path in MODEL_ENDPOINTS {
            server.answer(&of_model(path, model), busy_answer(path));
        }
    }
    server
}

/// What a recorded llama-server at work answers.
fn busy_answer(path: &str) -> Answer {
    match path {
        "/props" => Answer::json(recordings::file(MIDDLE, "props.json")),
        "/slots" => Answer::json(recordings::file(MIDDLE, "slots-busy.json")),
        _ => Answer::exposition(recordings::metrics(MIDDLE, Stage::Busy)),
    }
}

#[test]
fn a_failing_model_is_logged_once() {
    let server = busy_router(&["a", "b", "c"]);
    let broken = of_model("/slots", "b");
    server.answer(&broken, Answer::error(500, "broken"));
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(6);
    let failed = exporter.logged(&["endpoint=/slots"]);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].contains("a request failed") && failed[0].contains("model=b"));
    server.answer(&broken, busy_answer("/slots"));
    exporter.wait_for_log(&["requests succeed again", "endpoint=/slots", "model=b"]);
    exporter.after_polls(3);
    exporter.assert_logged(2, &["endpoint=/slots"]);
}

/// The state of one model.
fn status_of(scrape: &Scrape, model: &str) -> Option<String> {
    let mut states = scrape.all("llamacpp_status");
    states.retain(|state| state.labels["model"] == model && state.value == 1.0);
    assert!(states.len() <= 1, "{states:?}");
    states.first().map(|state| state.labels["status"].clone())
}

#[test]
fn slow_models_take_turns_and_have_no_status_in_between() {
    let models = ["a", "b", "c", "d", "e", "f"];
    let server = busy_router(&models);
    for (model, path) in models.iter().flat_map(|m| MODEL_ENDPOINTS.map(|p| (m, p))) {
        let slow = busy_answer(path).delayed(Duration::from_millis(200));
        server.answer(&of_model(path, model), slow);
    }
    let exporter = Exporter::watching(&server).timeout("500ms").start();
    // In how many polls each was seen at work; each poll is counted once.
    let mut seen = BTreeMap::new();
    let mut unseen = 0;
    let mut polls = 0;
    wait_until("two polls of each model", || {
        let scrape = exporter.scrape();
        if scrape.polls() == polls {
            return false;
        }
        polls = scrape.polls();
        for model in models {
            match status_of(&scrape, model).as_deref() {
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
fn unanswered_requests_do_not_exhaust_the_descriptors() {
    let server = busy_router(&[]);
    // The router answers requests without a query; the server of a model never answers.
    server.answer("/props?", server.answer_of("/props"));
    server.answer("/props", Answer::never());
    let exporter = Exporter::watching(&server).timeout("50ms").start();
    let mut names = (0..).map(|number| format!("m{number}"));
    wait_until("150 requests are unanswered", || {
        let models: Vec<_> = names.by_ref().take(4).collect();
        let models: Vec<_> = models.iter().map(String::as_str).collect();
        server.answer("/models", loaded_models(&models));
        let polls = exporter.scrape().polls();
        wait_until("a poll", || exporter.scrape().polls() > polls);
        let unanswered = |request: &&Request| request.query.contains("model=");
        server.requests().iter().filter(unanswered).count() > 150
    });
    let open = server.open_connections();
    // A hundred that wait, and what a poll uses.
    assert!((50..=105).contains(&open), "{open}");
    assert!(exporter.scrape().up());
}

#[test]
fn a_llama_server_that_becomes_a_router_is_detected_again() {
    let server = Server::recorded(NEW, Stage::After);
    let router = Server::recorded_router("models-unloaded.json");
    // It is never seen down in between.
    let exporter = Exporter::watching(&server).start();
    let is = |kind_of_server: &'static str| {
        move |scrape: &Scrape| kind(scrape) == Some(kind_of_server) && scrape.has("llamacpp_status")
    };
    exporter.until("a llama-server", is("llama-server"));
    for path in ["/health", "/props", "/models", "/v1/models", "/metrics"] {
        server.answer(path, router.answer_of(path));
    }
    server.answer_404("/slots");
    let scrape = exporter.until("a router", is("router"));
    assert_eq!(scrape.all("llamacpp_up").len(), 1);
    server.answer_recorded(NEW, Stage::After);
    exporter.until("a llama-server again", is("llama-server"));
}

#[test]
fn a_downloaded_model_is_unloaded() {
    let server = Server::recorded_router("models-unloaded.json");
    server.answer(
        "/models",
        json_case("26-router-status-downloaded/models.json"),
    );
    let exporter = Exporter::watching(&server).start();
    let scrape = exporter.after_polls(2);
    let is_in = |model: &str, status: &str| {
        scrape.get("llamacpp_status", &[("model", model), ("status", status)])
    };
    assert_eq!(
        is_in("ggml-org/gemma-3-270m-GGUF:Q8_0", "unloaded"),
        Some(1.0)
    );
    assert_eq!(is_in("other", "failed"), Some(1.0));
    scrape.assert_errors(0);
}

#[test]
fn a_model_in_an_unknown_state_has_no_status() {
    let server = Server::recorded_router("models-unloaded.json");
    let mut models: Value =
        serde_json::from_slice(&recordings::case("26-router-status-downloaded/models.json"))
            .unwrap();
    models["data"][0]["status"]["value"] = json!("hibernating");
    models["data"][1]["status"] = json!({"value": "unloaded"});
    server.answer_json("/models", models);
    let url = server.url();
    let report = run(program().args(["--base-url", &url, "--check", "--interval", "100ms"])).stdout;
    let line = |model: &str, status: &str| format!("    {model:<31} {status}\n");
    let lines = [
        line("ggml-org/gemma-3-270m-GGUF:Q8_0", "unknown"),
        line("other", "unloaded"),
    ];
    assert!(report.contains(&lines.concat()), "{report}");
}

/// A router with one idle model, whose server was started with `args`.
fn router_of_one_model(args: &[&str]) -> Server {
    let server = Server::start();
    // Before b10566 /metrics is not asked of a server that may fall asleep, until it should have.
    let props = json!({"role": "router", "build_info": "b10068-abc"});
    server.answer_json("/health", r#"{"status":"ok"}"#);
    server.answer_json("/props", props);
    let model = json!({"id": "m", "status": {"value": "loaded", "args": args}});
    let models = json!({"data": [model], "object": "list"});
    server.answer_json("/models", models);
    let metrics = recordings::metrics(OLD, Stage::After);
    server.answer("/metrics", Answer::exposition(metrics));
    server.answer(
        "/slots",
        Answer::json(recordings::file(OLD, "slots-after.json")),
    );
    server
}

#[test]
fn a_sleep_timer_of_any_length_is_accepted() {
    for seconds in ["18446744073709551615", "9223372036854775807", "0", "-1"] {
        let server = router_of_one_model(&["llama-server", "--sleep-idle-seconds", seconds]);
        let mut exporter = Exporter::watching(&server).start();
        let scrape = exporter.after_polls(3);
        assert!(exporter.is_alive() && scrape.up(), "{seconds}: {scrape:?}");
        let models = server.count("/models");
        assert!(models > 2, "{seconds}: the router was asked {models} times");
    }
}

#[test]
fn a_model_or_slot_listed_twice_is_one_series() {
    let server = router_of_one_model(&[]);
    let model = |value: &str| json!({"id": "m", "status": {"value": value, "args": []}});
    let models = json!({"data": [model("loaded"), model("unloaded"), model("loaded")]});
    server.answer_json("/models", models);
    let slot =
        |id: u32| json!({"id": id, "n_ctx": 8, "is_processing": false, "n_prompt_tokens": 5});
    let slots = json!([slot(0), slot(0), slot(1)]);
    server.answer_json("/slots", slots);
    let exporter = Exporter::watching(&server).start();
    // A series that stands twice fails every scrape.
    let scrape = exporter.after_polls(3);
    scrape.assert_status("idle");
    assert_eq!(scrape.all("llamacpp_context_tokens").len(), 2, "{scrape:?}");
}
