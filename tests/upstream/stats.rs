//! The `/stats` document: served by forks and adapters of llama.cpp, all of its fields optional.

use crate::support::recordings::{MIDDLE, Stage};
use crate::support::{Answer, Exporter, Scrape, Server, for_each, for_each_case};
use serde_json::{Value, json};

fn document() -> Value {
    json!({
        "memory": {"used_bytes": 5_000_000_000_u64, "total_bytes": 16_000_000_000_u64,
            "kv_cache_bytes": 200_000_000, "kv_cache_max_bytes": 800_000_000},
        "performance": {"tokens_per_second": 42.5, "cpu_utilization": 75.5,
            "gpu_utilization": 88.0, "temperature": 66.5},
        "model": {"name": "ai/adapted", "size_bytes": 1_300_000_000, "parameters": 1_240_000_000,
            "context_size": 1500, "max_context_size": 8192},
        "batch": {"size": 16, "optimal_size": 32, "latency_ms": 12.5},
        "system": {"threads": 8, "status": "running"},
    })
}

/// A server with `/stats` alone.
fn adapter(document: &Value) -> Server {
    let server = Server::start();
    server.answer_json("/stats", document);
    server
}

fn scrape_of(server: &Server) -> Scrape {
    let exporter = Exporter::watching(server).start();
    let scrape = exporter.after_polls(1);
    scrape.assert_errors(0);
    scrape
}

#[test]
fn a_server_with_stats_alone_is_watched() {
    let scrape = scrape_of(&adapter(&document()));
    scrape.assert_up();
    scrape.assert_status("running");
    let model = &[("model", "ai/adapted")];
    for (metric, value) in [
        ("llamacpp_tokens_per_second", 42.5),
        ("llamacpp_model_size_bytes", 1.3e9),
        ("llamacpp_model_parameters", 1.24e9),
        ("llamacpp_context_size_tokens", 1500.0),
        ("llamacpp_max_context_size_tokens", 8192.0),
        ("llamacpp_batch_size", 16.0),
    ] {
        assert_eq!(
            scrape.get(metric, model),
            Some(value),
            "{metric} in\n{scrape:?}"
        );
    }
}

#[test]
fn a_gpu_without_an_index_is_labelled_with_its_server() {
    let server = adapter(&document());
    let scrape = scrape_of(&server);
    for (metric, value) in [
        ("llamacpp_gpu_utilization_percent", 88.0),
        ("llamacpp_temperature_celsius", 66.5),
    ] {
        let sample = scrape.sample(metric, &[]).expect(metric);
        assert_eq!(sample.value, value);
        let labels: Vec<_> = sample.labels.iter().collect();
        assert_eq!(labels, [(&"gpu".to_owned(), &server.authority())]);
    }
}

#[test]
fn the_batch_latency_is_observed_once_a_poll() {
    let server = adapter(&document());
    let exporter = Exporter::watching(&server).start();
    let scrape = exporter.after_polls(3);
    let count = scrape
        .value("llamacpp_batch_latency_seconds_count")
        .unwrap();
    let asked = server.count("/stats") as f64;
    // The scrape may be older than the last request.
    assert!(
        count <= asked && count >= asked - 1.0,
        "{count} for {asked} polls\n{scrape:?}"
    );
    let sum = scrape.value("llamacpp_batch_latency_seconds_sum").unwrap();
    assert!((sum / count - 0.0125).abs() < 1e-9, "{scrape:?}");
    let bucket = |bound| scrape.get("llamacpp_batch_latency_seconds_bucket", &[("le", bound)]);
    assert_eq!(
        (bucket("0.01"), bucket("0.025")),
        (Some(0.0), Some(count)),
        "{scrape:?}"
    );
}

#[test]
fn the_status_of_stats_is_exported() {
    for status in ["idle", "loading", "running"] {
        let mut document = document();
        document["system"]["status"] = json!(status);
        assert_eq!(scrape_of(&adapter(&document)).status(), Some(status));
    }
    let mut document = document();
    document["system"]["status"] = json!("on fire");
    // Any of our states would be a guess.
    let scrape = scrape_of(&adapter(&document));
    assert!(
        scrape.up() && scrape.status().is_none_or(|status| status == "idle"),
        "{scrape:?}"
    );
}

#[test]
fn stats_are_read_below_the_base_url_and_below_its_v1() {
    // What the base URL ends in, where the document is, and where it may be asked for.
    let cases = [
        ("", "/stats", vec!["/stats", "/v1/stats"]),
        ("/", "/stats", vec!["/stats", "/v1/stats"]),
        ("", "/v1/stats", vec!["/stats", "/v1/stats"]),
        ("/", "/v1/stats", vec!["/stats", "/v1/stats"]),
        ("/v1", "/v1/stats", vec!["/v1/stats"]),
        ("/v1/", "/v1/stats", vec!["/v1/stats"]),
        ("/llm/v1", "/llm/v1/stats", vec!["/llm/v1/stats"]),
    ];
    let cases = cases.map(|case| (case.1, case));
    for_each_case(cases, |(suffix, place, may): (&str, &str, Vec<&str>)| {
        let server = Server::start();
        server.answer_json(place, document());
        let exporter = Exporter::with_url(&format!("{}{suffix}", server.url())).start();
        let scrape = exporter.after_polls(2);
        scrape.assert_value("llamacpp_batch_size", 16.0);
        scrape.assert_errors(0);
        for request in server
            .requests()
            .iter()
            .filter(|request| request.path.ends_with("/stats"))
        {
            assert!(
                may.contains(&request.path.as_str()),
                "{suffix}: {request:?}"
            );
        }
        for elsewhere in may.iter().filter(|path| **path != place) {
            assert!(
                server.count(elsewhere) <= 1,
                "{suffix}: where it is not it is asked once"
            );
        }
    });
}

#[test]
fn missing_stats_are_requested_once_after_each_reconnect() {
    for answer in [
        Answer::error(404, "File Not Found"),
        Answer::error(501, "This server does not support stats."),
    ] {
        let server = Server::recorded(MIDDLE, Stage::Idle);
        server
            .answer("/stats", answer.clone())
            .answer("/v1/stats", answer);
        let exporter = Exporter::watching(&server).start();
        for connected in 1..=3 {
            let scrape = exporter.after_polls(5);
            assert_eq!(server.count("/stats"), connected, "once a connection");
            assert_eq!(server.count("/v1/stats"), connected, "once a connection");
            assert!(
                scrape.errors_of("/stats").is_empty(),
                "no fault: {scrape:?}"
            );
            server.stop();
            exporter.until("down", |scrape| scrape.down());
            server.restart();
            exporter.until("up again", Scrape::up);
        }
    }
}

#[test]
fn stats_may_appear_after_a_reconnect() {
    let server = Server::recorded(MIDDLE, Stage::Idle);
    let exporter = Exporter::watching(&server).start();
    let scrape = exporter.after_polls(2);
    scrape.assert_absent(&["llamacpp_optimal_batch_size"]);

    server.stop();
    exporter.until("down", |scrape| scrape.down());
    server.answer_json("/stats", document());
    server.restart();
    exporter.until("up again", Scrape::up);
    let before = server.count("/stats");
    let scrape = exporter.after_polls(3);
    scrape.assert_value("llamacpp_batch_size", 16.0);
    assert!(
        server.count("/stats") >= before + 3,
        "where it is, it is polled"
    );
}

#[test]
fn the_endpoints_of_a_llama_server_take_precedence_over_stats() {
    let server = Server::recorded(MIDDLE, Stage::After);
    server.answer_json("/stats", document());
    let scrape = scrape_of(&server);
    for (metric, value) in [
        // From the llama-server.
        ("llamacpp_generated_tokens_total", 120.0),
        ("llamacpp_tokens_per_second", 0.0),
        ("llamacpp_model_size_bytes", 246_587_904.0),
        ("llamacpp_model_parameters", 268_098_176.0),
        ("llamacpp_context_size_tokens", 241.0),
        ("llamacpp_max_context_size_tokens", 2048.0),
        // Nothing ran in the interval, so the llama-server does not tell.
        ("llamacpp_batch_size", 16.0),
    ] {
        scrape.assert_value(metric, value);
    }
    scrape.assert_status("idle");
    // There is one model, whatever the document calls it.
    let model = "/models/gemma-3-270m-it-Q4_K_M.gguf";
    for sample in scrape
        .samples
        .iter()
        .filter(|sample| sample.labels.contains_key("model"))
    {
        assert_eq!(sample.labels["model"], model, "{scrape:?}");
    }
}

#[test]
fn every_field_of_stats_may_be_missing() {
    let whole = document();
    let mut partial = vec![];
    for (section, fields) in whole.as_object().unwrap() {
        let mut without = whole.clone();
        without.as_object_mut().unwrap().remove(section);
        partial.push(without);
        for field in fields.as_object().unwrap().keys() {
            let mut without = whole.clone();
            without[section].as_object_mut().unwrap().remove(field);
            partial.push(without);
        }
    }
    let server = adapter(&whole);
    let exporter = Exporter::watching(&server).interval("20ms").start();
    for document in partial {
        server.answer_json("/stats", &document);
        let scrape = exporter.after_polls(1);
        assert!(
            scrape.up() && scrape.errors() == 0,
            "{document}:\n{scrape:?}"
        );
        let size = document["batch"]["size"].as_f64();
        assert_eq!(
            scrape.value("llamacpp_batch_size"),
            size,
            "{document}:\n{scrape:?}"
        );
    }
}

#[test]
fn a_missing_field_is_absent() {
    let scrape = scrape_of(&adapter(&json!({"performance": {"tokens_per_second": 7}})));
    scrape.assert_value("llamacpp_tokens_per_second", 7.0);
    scrape.assert_absent(&[
        "llamacpp_batch_size",
        "llamacpp_batch_latency_seconds",
        "llamacpp_context_size_tokens",
        "llamacpp_max_context_size_tokens",
        "llamacpp_model_size_bytes",
        "llamacpp_model_parameters",
        "llamacpp_generated_tokens_total",
    ]);
}

#[test]
fn a_field_of_the_wrong_type_is_absent() {
    for wrong in [
        json!("fast"),
        json!(null),
        json!([1]),
        json!({"value": 1}),
        json!(true),
    ] {
        let mut document = document();
        document["performance"]["tokens_per_second"] = wrong.clone();
        document["model"]["name"] = if wrong.is_string() {
            json!(7)
        } else {
            wrong.clone()
        };
        document["batch"] = wrong.clone();
        let scrape = scrape_of(&adapter(&document));
        assert!(
            !scrape.has("llamacpp_tokens_per_second"),
            "{wrong}:\n{scrape:?}"
        );
        assert!(!scrape.has("llamacpp_batch_size"), "{wrong}:\n{scrape:?}");
        assert_eq!(
            scrape.value("llamacpp_context_size_tokens"),
            Some(1500.0),
            "{wrong}:\n{scrape:?}"
        );
        scrape.assert_status("running");
    }
}

const NOT_THE_DOCUMENT: [&str; 6] = [
    "<html></html>",
    "[]",
    "7",
    "null",
    "{\"memory\":",
    "{\"detail\":\"Not Found\"}",
];

#[test]
fn a_server_that_answers_another_document_has_no_stats() {
    for_each(NOT_THE_DOCUMENT, |body| {
        let server = Server::recorded(MIDDLE, Stage::After);
        server
            .answer("/stats", Answer::json(body))
            .answer("/v1/stats", Answer::json(body));
        let exporter = Exporter::watching(&server).start();
        let scrape = exporter.after_polls(3);
        // A server without the document is no error, whatever it answers instead.
        scrape.assert_errors(0);
        assert_eq!(
            (server.count("/stats"), server.count("/v1/stats")),
            (1, 1),
            "{body}"
        );
        scrape.assert_value("llamacpp_generated_tokens_total", 120.0);
    });
}

#[test]
fn stats_that_become_another_document_are_a_parse_error() {
    for_each(NOT_THE_DOCUMENT, |body| {
        let server = Server::recorded(MIDDLE, Stage::After);
        server.answer_json("/stats", document());
        let exporter = Exporter::watching(&server).start();
        let scrape = exporter.after_polls(1);
        scrape.assert_value("llamacpp_batch_size", 16.0);

        server.answer("/stats", Answer::json(body));
        let scrape = exporter.after_polls(2);
        assert_eq!(
            scrape.errors_of("/stats").into_keys().collect::<Vec<_>>(),
            ["parse"]
        );
        exporter.assert_logged(1, &["endpoint=/stats", "reason=parse"]);
        scrape.assert_absent(&["llamacpp_batch_size"]);
        scrape.assert_value("llamacpp_generated_tokens_total", 120.0);

        server.answer_json("/stats", document());
        let scrape = exporter.after_polls(1);
        scrape.assert_value("llamacpp_batch_size", 16.0);
    });
}

#[test]
fn impossible_numbers_are_absent() {
    for wrong in [-1.0, -0.001, 1e300] {
        let document = json!({
            "memory": {"used_bytes": wrong},
            "performance": {"tokens_per_second": wrong, "cpu_utilization": wrong},
            "model": {"size_bytes": wrong, "parameters": wrong, "context_size": wrong,
                "max_context_size": wrong},
            "batch": {"size": wrong, "optimal_size": wrong, "latency_ms": wrong},
            "system": {"threads": wrong, "status": "idle"},
        });
        let scrape = scrape_of(&adapter(&document));
        scrape.assert_status("idle");
        for sample in &scrape.samples {
            let of_the_exporter = [
                "llamacpp_up",
                "llamacpp_status",
                "llamacpp_server_info",
                "llamacpp_model_info",
                "llamacpp_model_loads_total",
                "llamacpp_exporter_",
                "process_",
            ];
            let expected = of_the_exporter
                .iter()
                .any(|start| sample.name.starts_with(start));
            assert!(expected, "{sample:?} from {wrong}:\n{scrape:?}");
        }
    }
}

#[test]
fn a_percentage_is_at_most_100() {
    for percent in [-5.0, 100.5, 800.0, 1e300] {
        let mut document = document();
        document["performance"]["cpu_utilization"] = json!(percent);
        document["performance"]["gpu_utilization"] = json!(percent);
        let scrape = scrape_of(&adapter(&document));
        for sample in scrape
            .samples
            .iter()
            .filter(|sample| sample.name.ends_with("_percent"))
        {
            assert!(sample.value <= 100.0, "{sample:?} from {percent}");
        }
    }
}

#[test]
fn values_of_failed_stats_are_absent() {
    let server = adapter(&document());
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(1);
    server.answer("/stats", Answer::error(500, "no"));
    let scrape = exporter.until("an error", |scrape| scrape.errors() > 0);
    assert!(
        scrape.errors_of("/stats").contains_key("status"),
        "{scrape:?}"
    );
    scrape.assert_absent(&["llamacpp_tokens_per_second"]);
    server.answer_json("/stats", document());
    let scrape = exporter.after_polls(1);
    scrape.assert_value("llamacpp_tokens_per_second", 42.5);
}
