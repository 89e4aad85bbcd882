//! `--check --json`, and hostile texts in it and in the report for people.

use serde_json::{Value, json};

use crate::called;
use crate::support::recordings::{self, NEW, OLD, Stage};
use crate::support::{Answer, Server, assert_contains};

/// The document of a check that exits with `code`.
fn document(arguments: &[&str], code: i32) -> Value {
    let check = ["--check", "--json", "--no-gpu", "--interval", "100ms"];
    let ended = called(&[&check, arguments].concat(), &[]);
    ended.assert_code(code);
    assert_eq!(ended.stderr, "");
    serde_json::from_str(&ended.stdout).unwrap()
}

fn report(arguments: &[&str]) -> String {
    let check = ["--check", "--no-gpu", "--interval", "100ms"];
    called(&[&check, arguments].concat(), &[]).stdout
}

#[test]
fn the_document_has_values_and_what_is_missing() {
    let server = Server::recorded(NEW, Stage::After);
    server.answer(
        "/metrics",
        Answer::error(501, "This server does not support metrics endpoint."),
    );
    let url = server.url();
    let document = document(&["--base-url", &url], 0);
    assert_eq!(
        (&document["schema"], &document["ok"]),
        (&json!(1), &json!(true))
    );
    let [of_server] = document["servers"].as_array().unwrap().as_slice() else {
        panic!("{document}");
    };
    assert_eq!(of_server["url"], json!(url));
    assert_eq!(of_server["kind"], "llama-server");
    let values = of_server["values"].as_array().unwrap();
    let slots = values
        .iter()
        .find(|value| value["metric"] == "llamacpp_slots")
        .unwrap();
    assert_eq!(slots["labels"]["server"], json!(server.authority()));
    assert!(slots["value"].is_f64(), "{slots}");
    let is_decode_calls = |missing: &&Value| missing["metric"] == "llamacpp_decode_calls_total";
    let missing = of_server["missing"]
        .as_array()
        .unwrap()
        .iter()
        .find(is_decode_calls)
        .unwrap();
    assert_eq!(
        (&missing["reason"], &missing["is_fixable"]),
        (&json!("metrics_off"), &json!(true))
    );
    assert!(
        missing["remedy"].as_str().unwrap().contains("--metrics"),
        "{missing}"
    );
    assert_eq!(document["exposition"]["valid"], json!(true));
}

#[test]
fn a_check_fails_for_each_server_that_is_down_or_refuses_the_key() {
    let up = Server::recorded(NEW, Stage::After);
    let down = Server::stopped();
    let refusing = Server::recorded(NEW, Stage::After);
    refusing.answer("/metrics", Answer::error(401, "Invalid API Key"));
    let urls = [up.url(), down.url(), refusing.url()];
    let arguments: Vec<&str> = urls.iter().flat_map(|url| ["--base-url", url]).collect();
    let document = document(&arguments, 1);
    let problems = document["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert_eq!(problems[0], json!(format!("{} is down", urls[1])));
    assert_eq!(
        problems[1],
        json!(format!("{} refuses the key or requires one", urls[2]))
    );
}

#[test]
fn a_check_sends_no_probe() {
    let server = Server::recorded(NEW, Stage::After);
    let document = document(
        &["--base-url", &server.url(), "--probe-interval", "10ms"],
        0,
    );
    let text = document.to_string();
    assert!(
        text.contains("no probe was sent") && !text.contains("probe_off"),
        "{text}"
    );
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.method == "GET")
    );
}

#[test]
fn json_needs_check() {
    let ended = called(&["--json"], &[]);
    ended.assert_code(2);
    assert_contains(&ended.stderr, &["--json", "--check"]);
}

#[test]
fn a_log_that_cannot_be_used_is_named() {
    let server = Server::recorded(NEW, Stage::After);
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("README.md");
    std::fs::write(&other, "Some text.\n".repeat(50)).unwrap();
    let missing = folder.path().join("server.log");
    for (path, reason, error) in [
        (missing.as_path(), "log_unreadable", "No such file"),
        (folder.path(), "log_unreadable", "directory"),
        (other.as_path(), "log_not_understood", ""),
    ] {
        let document = document(
            &[
                "--base-url",
                &server.url(),
                "--log-file",
                path.to_str().unwrap(),
            ],
            0,
        );
        let sources = document["servers"][0]["sources"].as_array().unwrap();
        let log = sources
            .iter()
            .find(|source| source["kind"] == "log")
            .unwrap();
        assert_eq!(log["reason"], json!(reason), "{log}");
        assert_eq!(log["name"], json!(path.to_str().unwrap()));
        assert!(
            log["error"].as_str().unwrap_or_default().contains(error),
            "{log}"
        );
    }
}

#[test]
fn hostile_texts_break_neither_report_nor_document() {
    let long = "x".repeat(10_000);
    let hostile = format!("<script>alert(\"1\")</script>\u{202e}\n\u{1b}[2J'{long}");
    let server = Server::recorded(OLD, Stage::Busy);
    let mut props = recordings::props(OLD);
    for key in ["model_alias", "build_info", "model_path"] {
        props[key] = json!(hostile);
    }
    server.answer_json("/props", props);
    let mut models = recordings::models(OLD);
    models["data"][0]["id"] = json!(hostile);
    server.answer_json("/v1/models", models);
    server.answer("/slots", Answer::error(500, &hostile));
    let document = document(&["--base-url", &server.url()], 0);
    let name = document["servers"][0]["models"][0]["model"]
        .as_str()
        .unwrap();
    assert!(hostile.starts_with(name) && name.len() > 400, "{name}");
    assert_eq!(document["exposition"]["valid"], json!(true));
    let text = report(&["--base-url", &server.url()]);
    assert_contains(
        &text,
        &["<script>alert(\"1\")</script>\\u{202e}\\n\\u{1b}[2J'"],
    );
    let is_plain = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
    assert!(text.chars().all(is_plain), "{text:?}");
    assert!(text.len() < 50_000, "{} bytes", text.len());
}

#[test]
fn a_router_of_twenty_models_has_one_line_for_each() {
    let server = Server::recorded_router("models-unloaded.json");
    let long = "m".repeat(100);
    let name = |number: usize| format!("{long}-{number:02}-{long}");
    let models = (0..20).map(|number| json!({"id": name(number), "status": {"value": "unloaded"}}));
    server.answer_json(
        "/models",
        json!({"data": models.collect::<Vec<_>>(), "object": "list"}),
    );
    let text = report(&["--base-url", &server.url()]);
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("mm…mm")).collect();
    assert_eq!(lines.len(), 20, "{text}");
    let unique: std::collections::BTreeSet<_> = lines.iter().collect();
    assert_eq!(unique.len(), 20, "two models look the same: {lines:#?}");
    assert!(
        lines.iter().all(|line| line.contains("unloaded")),
        "{lines:#?}"
    );
    assert!(text.lines().count() < 80, "{text}");
}

/// The line of the exposition that says whose it is.
const OURS: &str = "# TYPE llamacpp_exporter_build_info gauge\n\
    llamacpp_exporter_build_info{revision=\"r\",version=\"9.9.9\"} 1\n";

#[test]
fn the_running_exporter_is_looked_at() {
    let watched = Server::recorded(NEW, Stage::After);
    let exporter = Server::start();
    let (url, addr) = (watched.url(), exporter.authority());
    let state = |scrape: String| {
        exporter.answer("/metrics", Answer::new(200, "text/plain", &scrape));
        document(&["--base-url", &url, "--addr", &addr], 0)["exporter"].clone()
    };
    exporter.answer(
        "/healthz",
        Answer::new(503, "text/plain", "no poll is on time\n"),
    );
    let up = format!(
        "# HELP x\n{OURS}llamacpp_up{{server=\"{}\"}} 1\n",
        watched.authority()
    );
    let found = state(up.clone());
    assert_eq!(
        (&found["state"], &found["version"]),
        (&json!("running"), &json!("9.9.9"))
    );
    assert_eq!(found["health"], "no poll is on time");
    assert_eq!(found["servers"][watched.authority()], json!(true));
    assert_eq!(found["unwatched"], json!([]));
    assert_eq!(found["exposition"]["samples"], json!(2));

    let localhost = format!("localhost:{}", watched.port());
    let found = state(up.replace(&watched.authority(), &localhost));
    assert_eq!(
        found["unwatched"],
        json!([]),
        "another spelling of the same address"
    );
    let found = state(format!("# HELP x\n{OURS}"));
    assert_eq!(found["unwatched"], json!([watched.authority()]));
    let found = state(up + "a{b=\"} 1\n");
    assert_eq!(found["state"], "running");
    assert_eq!(
        found["exposition"]["error"],
        "line 5: a label's value without an end"
    );
    let found = state("# HELP x\nnode_exporter_build_info{a=\"b\"} 1\n".to_owned());
    assert_eq!(found["state"], "other");
    assert!(
        found["detail"]
            .as_str()
            .unwrap()
            .starts_with("node_exporter answers there")
    );
    exporter.stop();
    let found = document(&["--base-url", &url, "--addr", &addr], 0);
    assert_eq!(found["exporter"]["state"], "none");
}

#[test]
fn prometheus_is_asked_for_its_target() {
    let watched = Server::recorded(NEW, Stage::After);
    let prometheus = Server::start();
    let (url, of_prometheus) = (watched.url(), prometheus.url());
    let look = || {
        let arguments = [
            "--base-url",
            &url,
            "--prometheus-url",
            &of_prometheus,
            "--addr",
            "127.0.0.1:9105",
        ];
        document(&arguments, 0)["prometheus"][0].clone()
    };
    assert_eq!(look()["state"], "other", "it answers 404");
    let target = |url: &str, job: &str| json!({"labels": {"job": job}, "scrapeUrl": url, "health": "down", "lastError": "<b>\n", "lastScrape": ""});
    let targets = [
        target("http://a:secret@localhost:9105/metrics", "m"),
        target("http://h:9105/metrics", "node"),
    ];
    prometheus.answer_json(
        "/api/v1/targets",
        json!({"status": "success", "data": {"activeTargets": targets, "droppedTargets": []}}),
    );
    let found = look();
    assert_eq!(
        (&found["state"], &found["version"]),
        (&json!("running"), &json!(null))
    );
    let [target] = found["targets"].as_array().unwrap().as_slice() else {
        panic!("{found}");
    };
    assert_eq!(target["url"], "http://localhost:9105/metrics");
    assert_eq!(
        (&target["health"], &target["last_error"]),
        (&json!("down"), &json!("<b>\n"))
    );
    prometheus.stop();
    assert_eq!(look()["state"], "none");
}
