//! llama-swap and the servers of its models: which source counts the tokens, and which servers are
//! polled. The answers are recorded ones with other names, addresses and numbers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use crate::json_case;
use crate::support::recordings::{MIDDLE, NEW, OLD, Stage};
use crate::support::{Answer, ENDLESS, Exporter, Scrape, Server};
use serde_json::{Value, json};

const GENERATED: &str = "llamacpp_generated_tokens_total";
const ACTIVITY: &str = "/api/metrics/activity";
const OLD_ACTIVITY: &str = "/api/metrics";

/// llama-swap with these ready models, by name and address.
fn swap(models: &[(&str, &str)]) -> Server {
    let server = Server::start();
    answer_as_swap(&server, models);
    server
}

fn answer_as_swap(server: &Server, models: &[(&str, &str)]) {
    let health = Answer::new(200, "text/plain; charset=utf-8", "OK");
    server.answer("/health", health);
    let version = json!({"version": "v250"});
    server.answer_json("/api/version", version);
    let processes = models.iter().map(|(name, proxy)| ready(name, proxy));
    run(server, processes.collect());
    let model = |(name, _): &(&str, &str)| json!({"id": name, "owned_by": "llama-swap", "meta": {"llamaswap": {"type": "model"}}});
    let listed: Vec<_> = models.iter().map(model).collect();
    server.answer_json("/v1/models", json!({"data": listed}));
    ended(server, &[]);
}

fn ready(model: &str, proxy: &str) -> Value {
    json!({"model": model, "state": "ready", "proxy": proxy, "cmd": "", "ttl": 0})
}

fn run(server: &Server, processes: Vec<Value>) {
    server.answer_json("/running", json!({"running": processes}));
}

/// Lists these requests as ended.
fn ended(server: &Server, requests: &[Value]) {
    let page = json!({"data": requests, "page": 1, "limit": 999, "total": requests.len()});
    server.answer_json(ACTIVITY, page);
}

/// A request of the model `m` with so many tokens generated.
fn request(id: u64, generated: u64) -> Value {
    let timestamp = format!("2026-08-22T10:{:02}:{:02}Z", id / 60, id % 60);
    json!({"id": id, "timestamp": timestamp, "model": "m", "resp_status_code": 200,
        "tokens": {"cache_tokens": -1, "input_tokens": 2 * generated, "output_tokens": generated}})
}

/// A port where nobody listens, of a machine that is reached.
fn nobody() -> String {
    format!("http://{}", Server::stopped().authority())
}

fn generated(scrape: &Scrape, model: &str) -> Option<f64> {
    scrape.get(GENERATED, &[("model", model)])
}

fn status(scrape: &Scrape, model: &str) -> Option<String> {
    let all = scrape.all("llamacpp_status");
    let mut states = all
        .iter()
        .filter(|sample| sample.labels["model"] == model && sample.value == 1.0);
    states.next().map(|sample| sample.labels["status"].clone())
}

fn until_generated(exporter: &Exporter, tokens: f64) -> Scrape {
    exporter.until(&format!("{tokens} tokens"), |scrape| {
        generated(scrape, "m") == Some(tokens)
    })
}

/// Every value that a counter had on the way to `tokens`.
fn on_the_way(exporter: &Exporter, tokens: f64) -> Vec<Option<f64>> {
    let values = std::cell::RefCell::new(Vec::new());
    exporter.until(&format!("{tokens} tokens"), |scrape| {
        let value = generated(scrape, "m");
        values.borrow_mut().push(value);
        value == Some(tokens)
    });
    values.into_inner()
}

fn case(folder: &str, file: &str) -> Answer {
    json_case(&format!("{folder}/{file}"))
}

#[test]
fn requests_listed_at_the_start_are_not_counted() {
    const CASE: &str = "16-llama-swap-activity-after-restart";
    let server = swap(&[("m", &nobody())]);
    // Another address than in the recording, where somebody may listen.
    let running = String::from_utf8(case(CASE, "running.json").body().to_vec()).unwrap();
    let running = running.replace("http://localhost:5800", &nobody());
    server.answer("/running", Answer::json(running));
    server.answer(ACTIVITY, case(CASE, "activity-before.json"));
    for _ in 0..2 {
        let exporter = Exporter::watching(&server).start();
        for scrape in [until_generated(&exporter, 0.0), exporter.after_polls(3)] {
            assert_eq!(generated(&scrape, "m"), Some(0.0), "{scrape:?}");
            let prompt = scrape.get("llamacpp_prompt_tokens_total", &[("model", "m")]);
            assert_eq!(prompt, Some(0.0), "{scrape:?}");
            assert_eq!(status(&scrape, "m").as_deref(), Some("idle"));
            scrape.assert_errors(0);
        }
    }
}

#[test]
fn an_empty_list_may_be_written_as_null() {
    let server = swap(&[("m", &nobody())]);
    let null = json!({"data": null, "page": 1, "limit": 999, "total": 0});
    server.answer_json(ACTIVITY, null);
    let exporter = Exporter::watching(&server).interval("100ms").start();
    assert_eq!(until_generated(&exporter, 0.0).errors(), 0);
    ended(&server, &[request(1, 50)]);
    until_generated(&exporter, 50.0);
}

#[test]
fn counters_continue_when_llama_swap_is_back() {
    let server = swap(&[("m", &nobody())]);
    let mut requests: Vec<_> = (1..=10).map(|id| request(id, 50)).collect();
    ended(&server, &requests);
    let exporter = Exporter::watching(&server).start();
    until_generated(&exporter, 0.0);
    requests.push(request(11, 7));
    ended(&server, &requests);
    until_generated(&exporter, 7.0);

    // It was out of reach for a while.
    server.stop();
    exporter.until("down", Scrape::down);
    requests.push(request(12, 5));
    ended(&server, &requests);
    server.restart();
    until_generated(&exporter, 12.0);

    // A proxy reports that it is down.
    let paths = [
        "/health",
        "/running",
        "/v1/models",
        ACTIVITY,
        "/props",
        "/engines/ps",
    ];
    let scripts = paths.map(|path| (path, server.answer_of(path)));
    for path in paths {
        server.answer(path, Answer::new(502, "text/html", "Bad Gateway"));
    }
    exporter.until("down", Scrape::down);
    exporter.after_polls(2);
    for (path, script) in scripts {
        server.answer(path, script);
    }
    requests.push(request(13, 4));
    ended(&server, &requests);
    until_generated(&exporter, 16.0);

    // It was started anew: its list begins again.
    server.stop();
    exporter.until("down", Scrape::down);
    ended(&server, &[]);
    server.restart();
    let scrape = exporter.until("up", Scrape::up);
    assert_eq!(generated(&scrape, "m"), Some(16.0), "{scrape:?}");
    let mut after = request(1, 3);
    after["timestamp"] = json!("2026-08-22T11:00:00Z");
    ended(&server, &[after]);
    until_generated(&exporter, 19.0);
}

#[test]
fn the_list_of_older_versions_is_read() {
    let server = swap(&[("m", &nobody())]);
    server.answer_404(ACTIVITY);
    let list = |requests: Value| {
        server.answer_json(OLD_ACTIVITY, requests);
    };
    list(json!([request(0, 50)]));
    let exporter = Exporter::watching(&server).start();
    until_generated(&exporter, 0.0);
    let flat = json!({"id": 2, "timestamp": "2026-08-22T10:05:00Z", "model": "m",
        "cache_tokens": 0, "input_tokens": 3, "output_tokens": 4, "duration_ms": 20});
    list(json!([request(0, 50), request(1, 5), flat]));
    let scrape = until_generated(&exporter, 9.0);
    scrape.assert_errors(0);
    // Without such a list there are no counters and no errors.
    server.answer_404(OLD_ACTIVITY);
    let exporter = Exporter::watching(&server).start();
    let scrape = exporter.after_polls(3);
    assert_eq!(generated(&scrape, "m"), None, "{scrape:?}");
    scrape.assert_errors(0);
}

#[test]
fn requests_missing_from_the_list_are_logged() {
    let server = swap(&[("m", &nobody())]);
    ended(&server, &[request(1, 50)]);
    let exporter = Exporter::watching(&server).start();
    until_generated(&exporter, 0.0);
    ended(&server, &[request(2000, 6), request(2001, 5)]);
    until_generated(&exporter, 11.0);
    exporter.after_polls(2);
    exporter.assert_logged(1, &["more requests have ended"]);
}

#[test]
fn a_server_that_fails_for_a_while_keeps_its_own_counters() {
    let own = Server::recorded(OLD, Stage::Busy);
    let server = swap(&[("m", &own.url())]);
    ended(&server, &[request(1, 1000)]);
    let exporter = Exporter::watching(&server).timeout("300ms").start();
    until_generated(&exporter, 2.0);
    ended(&server, &[request(1, 1000), request(2, 50_000)]);
    let scripts =
        ["/health", "/props", "/metrics", "/slots"].map(|path| (path, own.answer_of(path)));
    for fault in [
        Answer::never(),
        Answer::reset(),
        Answer::error(500, "out of order"),
    ] {
        for (path, _) in &scripts {
            own.answer(path, fault.clone());
        }
        for _ in 0..3 {
            let scrape = exporter.after_polls(1);
            let value = generated(&scrape, "m");
            assert!(value.is_none_or(|value| value == 2.0), "{scrape:?}");
            assert_ne!(status(&scrape, "m").as_deref(), Some("idle"), "{scrape:?}");
        }
        for (path, script) in scripts.clone() {
            own.answer(path, script);
        }
        let values = on_the_way(&exporter, 2.0);
        assert!(
            values.iter().flatten().all(|value| *value == 2.0),
            "{values:?}"
        );
    }
}

#[test]
fn a_reloaded_model_may_have_another_source_of_counters() {
    let own = Server::recorded(NEW, Stage::After);
    let server = swap(&[("m", &own.url())]);
    let mut requests = vec![request(1, 1000)];
    ended(&server, &requests);
    let exporter = Exporter::watching(&server).start();
    let of_server = exporter.until("read", |scrape| generated(scrape, "m").is_some());
    assert!(generated(&of_server, "m").unwrap() > 0.0);

    // Requests that the counters of the server include do not count again.
    requests.push(request(2, 120));
    ended(&server, &requests);
    run(&server, vec![ready("m", &nobody())]);
    until_generated(&exporter, 0.0);
    requests.push(request(3, 9));
    ended(&server, &requests);
    until_generated(&exporter, 9.0);
    // It is unloaded, and was used once more before that.
    requests.push(request(4, 1));
    ended(&server, &requests);
    run(&server, vec![]);
    exporter.until("unloaded", |scrape| {
        status(scrape, "m").as_deref() == Some("unloaded") && generated(scrape, "m").is_none()
    });
    run(&server, vec![ready("m", &nobody())]);
    until_generated(&exporter, 10.0);
}

#[test]
fn a_server_without_metrics_has_its_tokens_counted_by_the_activity() {
    let own = Server::recorded(MIDDLE, Stage::Busy);
    own.answer("/metrics", Answer::error(501, "not supported"));
    let server = swap(&[]);
    ended(&server, &[request(1, 1000)]);
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(1);
    // Its first request has ended when it is seen first.
    ended(&server, &[request(1, 1000), request(2, 5)]);
    run(&server, vec![ready("m", &own.url())]);
    let scrape = until_generated(&exporter, 5.0);
    assert_eq!(
        status(&scrape, "m").as_deref(),
        Some("running"),
        "{scrape:?}"
    );
    ended(&server, &[request(1, 1000), request(2, 5), request(3, 6)]);
    until_generated(&exporter, 11.0);
    // A restart of the server while it is loaded changes nothing about that.
    own.answer_recorded(NEW, Stage::After);
    let later = exporter.after_polls(3);
    assert_eq!(generated(&later, "m"), Some(11.0), "{later:?}");
}

#[test]
fn a_model_of_another_engine_is_counted_by_the_activity() {
    const CASE: &str = "15-llama-swap-vllm-model";
    const MODEL: &str = "Q3-30B-CODER-VLLM";
    let own = Server::start();
    own.answer("/health", Answer::new(200, "text/plain", ""));
    own.answer("/v1/models", case(CASE, "vllm-models.json"));
    let metrics = case(CASE, "vllm-metrics.txt");
    own.answer("/metrics", Answer::new(200, "text/plain", metrics.body()));
    let server = swap(&[(MODEL, &own.url())]);
    server.answer(ACTIVITY, case(CASE, "activity.json"));
    server.answer("/v1/models", case(CASE, "models.json"));
    let exporter = Exporter::watching(&server).start();
    let scrape = exporter.until("history", |scrape| generated(scrape, MODEL) == Some(0.0));
    assert_eq!(
        status(&scrape, MODEL).as_deref(),
        Some("idle"),
        "{scrape:?}"
    );
    let mut activity: Value = serde_json::from_slice(case(CASE, "activity.json").body()).unwrap();
    let mut newest = activity["data"][0].clone();
    newest["id"] = json!(3);
    activity["data"].as_array_mut().unwrap().insert(0, newest);
    server.answer_json(ACTIVITY, activity);
    let scrape = exporter.until("a request", |scrape| {
        generated(scrape, MODEL) == Some(233.0)
    });
    let later = exporter.after_polls(3);
    for scrape in [scrape, later] {
        assert_eq!(
            status(&scrape, MODEL).as_deref(),
            Some("idle"),
            "{scrape:?}"
        );
        scrape.assert_errors(0);
    }
    assert_eq!(
        own.requests().len(),
        1,
        "once while it is loaded: {:?}",
        own.requests()
    );
    exporter.assert_logged(1, &["not a llama-server"]);
}

/// A request of the model `m` that was answered in 2 s: 5 prompt tokens in 0.1 s, then `generated`
/// tokens in 0.2 s less a microsecond, as a llama-server of b11434 or later says.
fn timed(id: u64, generated: u64) -> Value {
    let mut request = request(id, generated);
    request["req_path"] = json!("/v1/chat/completions");
    request["resp_content_type"] = json!("text/event-stream");
    request["duration_ms"] = json!(2000);
    request["tokens"] = json!({"cache_tokens": 20, "input_tokens": 5, "output_tokens": generated,
        "draft_tokens": -1, "draft_acc_tokens": -1, "prompt_per_second": 50,
        "tokens_per_second": (generated as f64 - 1.0) / 0.199_999});
    request
}

fn failed(id: u64, status: u16) -> Value {
    let mut failed = request(id, 0);
    failed["resp_status_code"] = json!(status);
    failed["resp_content_type"] = json!("application/json");
    failed["duration_ms"] = json!(5);
    failed
}

/// A family of `m`'s requests in the activity.
fn of_activity(scrape: &Scrape, family: &str, label: &[(&str, &str)]) -> Option<f64> {
    let labels = [&[("model", "m"), ("source", "activity")], label].concat();
    scrape.get(&format!("llamacpp_{family}"), &labels)
}

fn until_answered(exporter: &Exporter, requests: f64) -> Scrape {
    exporter.until(&format!("{requests} requests"), |scrape| {
        let ok = [("outcome", "ok")];
        of_activity(scrape, "requests_total", &ok) == Some(requests)
    })
}

#[test]
fn the_activity_counts_each_request_once() {
    // Whether its own server can be reached or not.
    let own = Server::recorded(NEW, Stage::After);
    for proxy in [own.url(), nobody()] {
        let server = swap(&[("m", &proxy)]);
        let mut listed = vec![timed(1, 7), failed(2, 500)];
        ended(&server, &listed);
        let exporter = Exporter::watching(&server).start();
        let scrape = until_answered(&exporter, 0.0);
        let error = [("outcome", "error")];
        assert_eq!(of_activity(&scrape, "requests_total", &error), Some(0.0));
        for code in ["400", "404", "429", "500", "502", "503"] {
            let code = [("code", code)];
            assert_eq!(
                of_activity(&scrape, "request_errors_total", &code),
                Some(0.0)
            );
        }
        assert_eq!(
            of_activity(&scrape, "request_duration_seconds_count", &[]),
            Some(0.0)
        );

        let mut cut = timed(5, 0);
        cut["tokens"] = json!({"input_tokens": 0, "output_tokens": 0, "cache_tokens": 0,
            "prompt_per_second": 0, "tokens_per_second": 0});
        listed.extend([timed(3, 21), failed(4, 418), cut]);
        ended(&server, &listed);
        until_answered(&exporter, 1.0);
        let scrape = exporter.after_polls(3);
        for (family, sum) in [
            ("request_duration_seconds", 2.0),
            ("first_token_latency_seconds", 0.1),
            ("time_per_output_token_seconds", 0.199_999 / 20.0),
            ("request_prompt_tokens", 5.0),
            ("request_generated_tokens", 21.0),
        ] {
            let of = |part: &str| of_activity(&scrape, &format!("{family}_{part}"), &[]);
            assert_eq!(of("count"), Some(1.0), "{family}");
            assert!((of("sum").unwrap() - sum).abs() < 1e-9, "{family}");
        }
        assert_eq!(of_activity(&scrape, "requests_total", &error), Some(1.0));
        let teapot = [("code", "418")];
        assert_eq!(
            of_activity(&scrape, "request_errors_total", &teapot),
            Some(1.0)
        );
        assert_eq!(
            of_activity(&scrape, "request_cancellations_total", &[]),
            None
        );
        scrape.assert_errors(0);

        // llama-swap restarts, and so do its identifiers.
        server.stop();
        exporter.until("down", Scrape::down);
        ended(&server, &[timed(1, 30), timed(2, 30)]);
        server.restart();
        until_answered(&exporter, 3.0);
        assert_eq!(
            of_activity(&exporter.after_polls(3), "request_record_gaps_total", &[]),
            Some(0.0)
        );

        // More have ended than are listed.
        ended(&server, &[timed(900, 30)]);
        let scrape = until_answered(&exporter, 4.0);
        assert_eq!(
            of_activity(&scrape, "request_record_gaps_total", &[]),
            Some(1.0)
        );

        // The exporter restarts: what is listed is history.
        let exporter = Exporter::watching(&server).start();
        until_answered(&exporter, 0.0);
        let scrape = exporter.after_polls(3);
        assert_eq!(
            of_activity(&scrape, "requests_total", &[("outcome", "ok")]),
            Some(0.0)
        );
    }
}

#[test]
fn a_version_that_lists_no_failures_has_no_errors() {
    let server = swap(&[("m", &nobody())]);
    server.answer(ACTIVITY, Answer::new(404, "text/plain", "not found"));
    let old = |id: u64| {
        json!({"id": id, "timestamp": "2025-12-30T10:00:00Z", "model": "m",
        "cache_tokens": 0, "input_tokens": 5, "output_tokens": 3, "prompt_per_second": 50,
        "tokens_per_second": 100, "duration_ms": 130})
    };
    server.answer_json(OLD_ACTIVITY, json!([old(0)]));
    let exporter = Exporter::watching(&server).start();
    until_answered(&exporter, 0.0);
    server.answer_json(OLD_ACTIVITY, json!([old(0), old(1)]));
    let scrape = until_answered(&exporter, 1.0);
    assert_eq!(
        of_activity(&scrape, "requests_total", &[("outcome", "error")]),
        None
    );
    assert!(scrape.all("llamacpp_request_errors_total").is_empty());
    // Then the duration is that of llama-server's prompt and generation.
    assert_eq!(
        of_activity(&scrape, "request_duration_seconds_count", &[]),
        Some(0.0)
    );
    assert_eq!(
        of_activity(&scrape, "request_prompt_tokens_sum", &[]),
        Some(5.0)
    );
}

#[test]
fn no_request_records_switches_the_activity_off() {
    let server = swap(&[("m", &nobody())]);
    let watch = |server: &Server| {
        Exporter::watching(server)
            .args(["--no-request-records"])
            .start()
    };
    let exporter = watch(&server);
    until_generated(&exporter, 0.0);
    ended(&server, &[timed(1, 21)]);
    let scrape = until_generated(&exporter, 21.0);
    assert!(scrape.all("llamacpp_requests_total").is_empty());

    // Where the models' own servers count the tokens, it is not read again.
    let own = Server::recorded(OLD, Stage::Busy);
    let server = swap(&[("m", &own.url())]);
    let exporter = watch(&server);
    until_generated(&exporter, 2.0);
    exporter.after_polls(3);
    assert_eq!(server.count(ACTIVITY), 1);
}

/// An address of this machine that others can reach, if it has any. Nothing is sent.
fn outside_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// Every way to write the loopback address, with that port.
fn spellings(port: u16) -> Vec<String> {
    [
        "127.0.0.1",
        "0.0.0.0",
        "127.1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::ffff:0.0.0.0]",
        "localhost",
        "LOCALHOST",
        "me:secret@127.0.0.1",
    ]
    .map(|host| format!("http://{host}:{port}/some/path"))
    .to_vec()
}

#[test]
fn a_llama_swap_on_another_host_directs_no_requests_to_loopback() {
    let Some(outside) = outside_address() else {
        eprintln!("skipped: this machine has no address but loopback ones");
        return;
    };
    let victim = Server::start_at(Ipv4Addr::LOCALHOST.into());
    victim.answer_recorded(OLD, Stage::Busy);
    let own = Server::start_at(outside);
    own.answer_recorded(OLD, Stage::Busy);
    let server = Server::start_at(outside);
    let mut models: BTreeMap<String, String> = spellings(victim.port())
        .into_iter()
        .enumerate()
        .map(|(number, proxy)| (format!("other {number:02}"), proxy))
        .collect();
    models.insert("own".into(), format!("http://{outside}:{}", own.port()));
    let models: Vec<_> = models
        .iter()
        .map(|(name, proxy)| (name.as_str(), proxy.as_str()))
        .collect();
    answer_as_swap(&server, &models);
    let exporter = Exporter::watching(&server).start();
    let scrape = exporter.until("its own host is read", |scrape| {
        generated(scrape, "own") == Some(2.0)
    });
    for scrape in [scrape, exporter.after_polls(3)] {
        for (name, proxy) in &models[..models.len() - 1] {
            assert_eq!(status(&scrape, name).as_deref(), Some("idle"), "{proxy}");
            assert_eq!(generated(&scrape, name), Some(0.0), "{proxy}");
        }
        scrape.assert_errors(0);
    }
    assert!(victim.requests().is_empty(), "{:?}", victim.requests());
}

#[test]
fn only_host_and_port_of_a_proxy_address_are_used() {
    let own = Server::start_at(Ipv4Addr::LOCALHOST.into());
    own.answer_recorded(OLD, Stage::Busy);
    for proxy in spellings(own.port()) {
        let server = swap(&[("m", &proxy)]);
        let exporter = Exporter::watching(&server)
            .env("LLAMACPP_API_KEY", "sk-of-llama-swap")
            .start();
        until_generated(&exporter, 2.0);
        assert!(!exporter.output().contains("secret"), "{proxy}");
    }
    for request in own.requests() {
        assert!(!request.path.starts_with("/some"), "{request:?}");
        assert_eq!(request.header("Authorization"), None, "{request:?}");
    }
}

#[test]
fn a_poll_reads_at_most_sixteen_new_servers() {
    let own = Server::start();
    own.answer_404("/props");
    let server = Server::start();
    let names: Vec<_> = (0..60).map(|number| format!("m{number:02}")).collect();
    let models: Vec<_> = names.iter().map(|name| (name.clone(), own.url())).collect();
    let models: Vec<_> = models
        .iter()
        .map(|(name, proxy)| (name.as_str(), proxy.as_str()))
        .collect();
    answer_as_swap(&server, &models);
    // One poll for certain, and another only after this test.
    let exporter = Exporter::watching(&server).interval(ENDLESS).start();
    let scrape = exporter.until("the first poll", |scrape| scrape.polls() == 1);
    assert_eq!(own.requests().len(), 16);
    let known = names.iter().filter(|name| status(&scrape, name).is_some());
    assert_eq!(
        known.count(),
        16,
        "a model that was not polled has no status"
    );
    let exporter = Exporter::watching(&server).start();
    exporter.until("all are known", |scrape| {
        names
            .iter()
            .all(|name| status(scrape, name).as_deref() == Some("idle"))
    });
}

#[test]
fn slow_servers_take_turns_and_have_no_status_in_between() {
    let slow: Vec<_> = (0..6).map(|_| Server::recorded(OLD, Stage::Busy)).collect();
    let names: Vec<_> = (0..slow.len()).map(|number| format!("m{number}")).collect();
    for server in &slow {
        for path in ["/health", "/props", "/v1/models", "/metrics", "/slots"] {
            server.answer(
                path,
                server.answer_of(path).delayed(Duration::from_millis(150)),
            );
        }
    }
    let urls: Vec<_> = slow.iter().map(Server::url).collect();
    let models: Vec<_> = names
        .iter()
        .zip(&urls)
        .map(|(name, url)| (name.as_str(), url.as_str()))
        .collect();
    let server = swap(&models);
    let exporter = Exporter::watching(&server).timeout("500ms").start();
    let mut seen = BTreeMap::<&str, usize>::new();
    let polls = 2 * slow.len() as u64;
    let last = exporter.scrape().polls() + polls;
    loop {
        let scrape = exporter.after_polls(1);
        for name in &names {
            match status(&scrape, name).as_deref() {
                None => {}
                Some("running") => *seen.entry(name).or_default() += 1,
                other => panic!("{name} is {other:?}: {scrape:?}"),
            }
        }
        if scrape.polls() >= last {
            break;
        }
    }
    assert_eq!(
        seen.len(),
        slow.len(),
        "each had its turn in {polls} polls: {seen:?}"
    );
}

#[test]
fn a_model_named_twice_is_one_series() {
    let own = Server::recorded(OLD, Stage::Busy);
    let server = swap(&[("m", &own.url()), ("m", &nobody())]);
    let exporter = Exporter::watching(&server).start();
    let scrape = until_generated(&exporter, 2.0);
    // The strict reader of the exposition accepts it.
    assert_eq!(scrape.all(GENERATED).len(), 1, "{scrape:?}");
}

#[test]
fn a_model_in_an_unknown_state_has_no_status() {
    let server = swap(&[("m", &nobody())]);
    run(&server, vec![json!({"model": "m", "state": "hibernating"})]);
    let exporter = Exporter::watching(&server).start();
    let scrape = exporter.after_polls(2);
    scrape.assert_up();
    assert_eq!(status(&scrape, "m"), None, "{scrape:?}");
}
