//! The logs that llama-swap and Docker Model Runner serve over HTTP: their requests are counted
//! once, for the right model, and connections end with what they are for.

use crate::support::recordings::{MIDDLE, Stage};
use crate::support::{Answer, Exporter, Scrape, Server, wait_until};
use serde_json::{Value, json};

const SWAP_LOG: &str = "/logs/stream/";
const LOADING: &str = "srv    load_model: loading model 'm.gguf'";
const SLOTS: &str =
    "srv    load_model: initializing, n_slots = 1, n_ctx_slot = 2048, kv_unified = 'false'";

/// What llama-server writes about a request of 7 prompt tokens and so many generated ones.
fn request(task: u64, generated: u64) -> Vec<String> {
    [
        format!("slot launch_slot_: id  0 | task {task} | processing task, is_child = 0"),
        format!("slot print_timing: id  0 | task {task} | prompt eval time =      25.00 ms /     7 tokens (x)"),
        format!("slot print_timing: id  0 | task {task} |        eval time =     100.00 ms / {generated:>5} tokens (x)"),
        format!("slot print_timing: id  0 | task {task} |       total time =     125.00 ms / {generated:>5} tokens"),
        format!("slot      release: id  0 | task {task} | stop processing: n_tokens = 26, truncated = 0"),
    ]
    .into()
}

/// A log that is served over HTTP.
struct Log<'a> {
    server: &'a Server,
    path: String,
    text: String,
    /// The number of the next line, if each line has Docker Model Runner's wrapper.
    wrapped: Option<u32>,
}

impl<'a> Log<'a> {
    /// llama-swap's log of a model.
    fn of_swap(server: &'a Server, name: &str) -> Log<'a> {
        let log = Log {
            server,
            path: format!("{SWAP_LOG}{name}"),
            text: String::new(),
            wrapped: None,
        };
        log.serve();
        log
    }

    /// Docker Model Runner's log, in which each line is a second younger than the one before.
    fn of_runner(server: &'a Server) -> Log<'a> {
        let log = Log {
            server,
            path: "/logs".to_owned(),
            text: String::new(),
            wrapped: Some(0),
        };
        log.serve();
        log
    }

    fn serve(&self) {
        let answer = Answer::new(200, "text/plain", &self.text);
        // Before all lines of Docker Model Runner's log that a test adds later.
        let answer = answer.header("Date", "Thu, 26 Nov 2026 12:00:00 GMT");
        self.server.answer(&self.path, answer.growing());
    }

    fn write(&mut self, lines: &[String]) {
        for line in lines {
            match &mut self.wrapped {
                None => self.text += line,
                Some(number) => {
                    *number += 1;
                    let time = format!("2026-11-26T12:{:02}:{:02}", *number / 60, *number % 60);
                    self.text +=
                        &format!("[{time}.000000000Z] time={time}.000Z level=INFO msg=\"{line}\"");
                }
            }
            self.text.push('\n');
        }
        self.serve();
    }

    /// Ends the connection, and serves this from then on.
    fn cut(&mut self, text: &str) {
        let answer = Answer::new(200, "text/plain", "another log\n");
        self.server.answer(&self.path, answer.growing());
        self.text = text.to_owned();
        self.serve();
    }
}

fn counted(scrape: &Scrape, model: &str, source: &str) -> Option<f64> {
    let labels = [("model", model), ("source", source)];
    scrape.get("llamacpp_request_duration_seconds_count", &labels)
}

fn until_counted(exporter: &Exporter, model: &str, source: &str, count: f64) -> Scrape {
    exporter.until(&format!("{count} requests of {model}"), |scrape| {
        counted(scrape, model, source) == Some(count)
    })
}

/// llama-swap with these models: those whose own server cannot be reached, and those without a
/// process.
fn swap(ready: &[&str], unloaded: &[&str]) -> Server {
    let server = Server::start();
    server.answer("/health", Answer::new(200, "text/plain", "OK"));
    server.answer_json("/api/version", json!({"version": "v250"}));
    server.answer_json("/api/metrics/activity", json!({"data": []}));
    serve_models(&server, ready, unloaded);
    server
}

fn serve_models(server: &Server, ready: &[&str], unloaded: &[&str]) {
    let process = |name: &&str| json!({"model": name, "state": "ready", "proxy": "", "cmd": ""});
    let model = |name: &&str| json!({"id": name, "owned_by": "llama-swap"});
    let processes: Vec<Value> = ready.iter().map(process).collect();
    let models: Vec<Value> = ready.iter().chain(unloaded).map(model).collect();
    server.answer_json("/v1/models", json!({"data": models}));
    server.answer_json("/running", json!({"running": processes}));
}

#[test]
fn the_log_of_each_model_of_llama_swap_is_counted() {
    let server = swap(&["a"], &["b/x y"]);
    let mut first = Log::of_swap(&server, "a");
    let mut second = Log::of_swap(&server, "b%2Fx%20y");
    first.write(&request(1, 20));
    let exporter = Exporter::watching(&server).start();
    // The log of a model that is not loaded is open, too: its first request counts.
    wait_until("both logs are open", || {
        server.count(&first.path) == 1 && server.count(&second.path) == 1
    });
    for path in [&first.path, &second.path] {
        assert_eq!(server.requests_to(path)[0].query, "no-history");
    }
    // What such a response begins with is new: there is no history in it.
    until_counted(&exporter, "a", "log", 1.0);
    second.write(&[LOADING.to_owned()]);
    second.write(&request(0, 30));
    serve_models(&server, &["a", "b/x y"], &[]);
    let scrape = until_counted(&exporter, "b/x y", "log", 1.0);
    let labels = [("model", "b/x y"), ("source", "log")];
    let tokens = "llamacpp_request_generated_tokens_sum";
    assert_eq!(scrape.get(tokens, &labels), Some(30.0));
    assert_eq!(counted(&scrape, "a", "log"), Some(1.0));

    // A connection that ends within a line; the next one goes on.
    first.write(&request(2, 20)[..2]);
    first.cut("");
    wait_until("it is opened again", || server.count(&first.path) > 1);
    let rest = &request(2, 20)[2..];
    first.write(&[&rest[0][40..]].map(str::to_owned));
    first.write(&rest[1..]);
    first.write(&request(3, 20));
    until_counted(&exporter, "a", "log", 2.0);

    // The server is started again.
    let before = exporter.threads();
    server.stop();
    exporter.until("llama-swap is down", Scrape::down);
    wait_until("both threads have ended", || {
        exporter.threads() <= before - 2
    });
    first.cut("");
    server.restart();
    let opened = server.count(&first.path);
    wait_until("it is opened again", || server.count(&first.path) > opened);
    first.write(&[LOADING.to_owned()]);
    first.write(&request(1, 20));
    until_counted(&exporter, "a", "log", 3.0);
}

#[test]
fn a_request_of_llama_swap_is_counted_by_the_log_or_the_activity() {
    let server = swap(&["a"], &[]);
    let exporter = Exporter::watching(&server).start();
    exporter.until("it is polled", |scrape| {
        counted(scrape, "a", "activity") == Some(0.0)
    });
    let mut listed = Vec::new();
    let mut list = |status: u16| {
        let id = listed.len() + 1;
        listed.push(
            json!({"id": id, "timestamp": format!("2026-08-22T10:00:{id:02}Z"), "model": "a",
            "resp_status_code": status, "duration_ms": 130,
            "tokens": {"cache_tokens": 0, "input_tokens": 7, "output_tokens": 20}}),
        );
        server.answer_json("/api/metrics/activity", json!({"data": listed}));
    };
    // Until the log is seen to report requests, the activity counts them.
    list(200);
    until_counted(&exporter, "a", "activity", 1.0);
    let mut log = Log::of_swap(&server, "a");
    let exporter = Exporter::watching(&server).start();
    wait_until("the log is open", || server.count(&log.path) > 1);
    log.write(&request(1, 20));
    until_counted(&exporter, "a", "log", 1.0);
    log.write(&request(2, 20));
    log.write(&["srv    send_error: task id = 3, error: a failure".to_owned()]);
    list(200);
    list(200);
    list(500);
    let outcome = |scrape: &Scrape, source: &str, outcome: &str| {
        let labels = [("model", "a"), ("source", source), ("outcome", outcome)];
        scrape.get("llamacpp_requests_total", &labels)
    };
    let scrape = exporter.until("the failure is counted", |scrape| {
        outcome(scrape, "activity", "error") == Some(1.0)
            && outcome(scrape, "log", "ok") == Some(2.0)
    });
    assert_eq!(outcome(&scrape, "log", "error"), Some(0.0));
    assert_eq!(outcome(&scrape, "activity", "ok"), Some(0.0));
    assert_eq!(counted(&scrape, "a", "activity"), Some(0.0));
}

/// Without `/metrics`, whether the model's own server can be reached or not.
#[test]
fn the_log_of_llama_swap_counts_tokens_while_they_stream() {
    let own = Server::recorded(MIDDLE, Stage::Idle);
    own.answer("/metrics", Answer::error(501, "not supported"));
    let slot = |generated: u64| {
        let next = json!([{"n_decoded": generated}]);
        json!([{"id": 0, "n_ctx": 2048, "is_processing": true, "id_task": 0,
            "n_prompt_tokens": 7 + generated, "n_prompt_tokens_processed": 7, "next_token": next}])
    };
    let proxy = own.url();
    for proxy in [proxy.as_str(), ""] {
        let server = swap(&[], &["a"]);
        let mut log = Log::of_swap(&server, "a");
        let exporter = Exporter::watching(&server).start();
        wait_until("the log is open", || server.count(&log.path) == 1);
        let generated =
            |scrape: &Scrape| scrape.get("llamacpp_generated_tokens_total", &[("model", "a")]);
        let prompt =
            |scrape: &Scrape| scrape.get("llamacpp_prompt_tokens_total", &[("model", "a")]);
        // Two lives: the counters of each start at 0.
        for life in 1..=2 {
            own.answer_json("/slots", json!([]));
            log.write(&[LOADING.to_owned(), SLOTS.to_owned()]);
            let ready = json!({"model": "a", "state": "ready", "proxy": proxy, "cmd": ""});
            server.answer_json("/running", json!({"running": [ready]}));
            exporter.until("it is loaded", |scrape| generated(scrape) == Some(0.0));
            log.write(&request(0, 20)[..1]);
            for tokens in [5, 15] {
                own.answer_json("/slots", slot(tokens));
                if proxy.is_empty() {
                    let line = "slot print_timing: id  0 | task 0 | n_gen =";
                    log.write(&[format!("{line} {tokens:>6}, tg =  15.74 t/s")]);
                }
                exporter.until("tokens count while they stream", |scrape| {
                    generated(scrape) == Some(tokens as f64)
                });
            }
            log.write(&request(0, 20)[1..]);
            own.answer_json("/slots", json!([]));
            // The activity has the same request, and in the second life that before, too.
            let listed = (1..=life).map(|id| {
                json!({"id": id, "timestamp": format!("2026-08-22T10:00:{id:02}Z"), "model": "a",
                    "resp_status_code": 200, "duration_ms": 130,
                    "tokens": {"cache_tokens": 0, "input_tokens": 7, "output_tokens": 20}})
            });
            let listed: Vec<_> = listed.collect();
            server.answer_json("/api/metrics/activity", json!({"data": listed}));
            exporter.until("all of its tokens count once", |scrape| {
                generated(scrape) == Some(20.0) && prompt(scrape) == Some(7.0)
            });
            let polls = exporter.scrape().polls();
            let scrape = exporter.after_polls(polls + 3);
            assert_eq!(generated(&scrape), Some(20.0), "life {life} at {proxy:?}");
            server.answer_json("/running", json!({"running": []}));
            exporter.until("it is unloaded", |scrape| generated(scrape).is_none());
        }
    }
}

#[test]
fn the_log_of_a_model_that_is_gone_is_closed() {
    let server = swap(&[], &["a", "b"]);
    let logs = ["a", "b"].map(|name| Log::of_swap(&server, name));
    let exporter = Exporter::watching(&server).start();
    wait_until("both logs are open", || {
        logs.iter().all(|log| server.count(&log.path) == 1)
    });
    exporter.after_polls(2);
    let before = exporter.threads();
    serve_models(&server, &[], &["b"]);
    wait_until("one thread has ended", || exporter.threads() < before);
    let requests = server.requests_to(&logs[0].path);
    wait_until("its connection is closed", || {
        !server.requests_to(&logs[0].path)[0].is_waiting()
    });
    assert_eq!(requests.len(), 1);
    assert!(server.requests_to(&logs[1].path)[0].is_waiting());
}

#[test]
fn a_server_that_serves_no_logs_is_not_asked_again() {
    let server = swap(&["a"], &[]);
    server.answer("/logs/stream/a", Answer::error(400, "invalid logger"));
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(20);
    assert_eq!(server.count("/logs/stream/a"), 1);
    assert_eq!(counted(&exporter.scrape(), "a", "log"), None);
    let exporter = Exporter::watching(&server)
        .args(&["--no-request-records"])
        .start();
    exporter.after_polls(3);
    assert_eq!(server.count("/logs/stream/a"), 1, "switched off");
}

#[test]
fn the_number_of_logs_that_are_read_is_limited() {
    let names: Vec<String> = (0..100).map(|number| format!("m{number:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let server = swap(&names[99..], &names[..99]);
    // Each begins with a line that does not end.
    for name in &names {
        let line = Answer::new(200, "text/plain", "x".repeat(1 << 20));
        server.answer(&format!("{SWAP_LOG}{name}"), line.growing());
    }
    let exporter = Exporter::watching(&server).start();
    let opened = || {
        let paths = names.iter().map(|name| format!("{SWAP_LOG}{name}"));
        paths.filter(|path| server.count(path) > 0).count()
    };
    wait_until("64 logs are open", || opened() == 64);
    exporter.after_polls(5);
    assert_eq!(opened(), 64);
    assert_eq!(server.count(&format!("{SWAP_LOG}m099")), 1, "it is loaded");
    let memory = exporter.peak_memory() >> 20;
    assert!(memory < 32, "{memory} MiB");
}

/// Docker Model Runner with these llama.cpp runners.
fn runner(names: &[&str]) -> Server {
    let server = Server::start();
    server.answer_json("/engines/_configure", json!([]));
    server.answer_json("/engines/df", json!({"models_disk_usage": 1}));
    server.answer_json("/version", json!({"version": "v1.2.6"}));
    let models = ["a", "b"].map(
        |name| json!({"id": format!("sha256:{name}"), "tags": [format!("ai/{name}:1")], "config": {}}),
    );
    server.answer_json("/models", json!(models));
    server.answer("/metrics", Answer::exposition("# No active runners\n"));
    records(&server, &[]);
    run(&server, names);
    server
}

fn run(server: &Server, names: &[&str]) {
    run_used(server, names, 0);
}

/// Runs these, last used in that second.
fn run_used(server: &Server, names: &[&str], second: u32) {
    let last_used = format!("2026-11-26T12:00:{second:02}Z");
    let runner = |name: &&str| {
        json!({"backend_name": "llama.cpp", "model_name": name, "mode": "completion",
            "last_used": last_used})
    };
    server.answer_json(
        "/engines/ps",
        json!(names.iter().map(runner).collect::<Vec<_>>()),
    );
}

/// The records of these models: of each so many requests of 10 generated tokens.
fn records(server: &Server, models: &[(&str, usize)]) {
    let timings = json!({"timings": {"cache_n": 0, "prompt_n": 7, "prompt_ms": 25.0, "predicted_n": 10, "predicted_ms": 100.0}});
    let models = models.iter().map(|(model, count)| {
        let record = |id| {
            json!({"id": format!("{model}_{id}"), "model": model, "url": "/v1/chat/completions",
            "response": timings.to_string(), "status_code": 200})
        };
        json!({"count": count, "model": model, "records": (0..*count).map(record).collect::<Vec<_>>()})
    });
    server.answer_json("/engines/requests", json!(models.collect::<Vec<_>>()));
}

const A: &str = "ai/a:1";
const B: &str = "ai/b:1";

#[test]
fn requests_of_docker_model_runner_are_counted_by_its_log_or_its_records() {
    let server = runner(&[]);
    let mut log = Log::of_runner(&server);
    log.text = "[2026-11-26T11:59:59.1Z] time=x level=INFO msg=\"a server before\"\n".to_owned();
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(3);
    assert_eq!(server.count("/logs"), 0, "nothing needs it yet");
    run(&server, &[A]);
    wait_until("the log is open", || server.count("/logs") == 1);
    assert_eq!(server.requests_to("/logs")[0].query, "follow=true");
    let generated =
        |scrape: &Scrape, model| scrape.get("llamacpp_generated_tokens_total", &[("model", model)]);
    log.write(&request(1, 20)[..1]);
    for tokens in [5, 15] {
        let progress = "slot print_timing: id  0 | task 1 | n_gen = ";
        log.write(&[format!(
            "{progress}{tokens:>6}, tg =  15.74 t/s, tg_3s =  15.90 t/s"
        )]);
        exporter.until("tokens count while they stream", |scrape| {
            generated(scrape, A) == Some(f64::from(tokens))
        });
    }
    log.write(&request(1, 20)[1..]);
    let scrape = until_counted(&exporter, A, "log", 1.0);
    assert_eq!(
        scrape.get("llamacpp_tokens_per_second", &[("model", A)]),
        None
    );
    exporter.until("all of its tokens count once", |scrape| {
        generated(scrape, A) == Some(20.0)
            && scrape.get("llamacpp_prompt_tokens_total", &[("model", A)]) == Some(7.0)
    });
    // The same request in the records.
    records(&server, &[(A, 1)]);
    let polls = exporter.scrape().polls();
    let scrape = exporter.after_polls(polls + 3);
    assert_eq!(counted(&scrape, A, "log"), Some(1.0));
    assert_eq!(counted(&scrape, A, "records"), None);

    // The connection ends: what is written meanwhile is counted, and nothing twice.
    let text = log.text.clone();
    log.cut(&text);
    log.write(&request(2, 20));
    records(&server, &[(A, 2)]);
    until_counted(&exporter, A, "log", 2.0);

    // A second one is loaded: no line can be attributed any more, to either.
    log.write(&request(3, 20)[..3]);
    log.write(&[LOADING.to_owned()]);
    run(&server, &[A, B]);
    let polls = exporter.scrape().polls();
    exporter.after_polls(polls + 3);
    log.write(&request(3, 20)[3..]);
    log.write(&request(4, 20));
    records(&server, &[(A, 4), (B, 1)]);
    let scrape = until_counted(&exporter, A, "records", 2.0);
    assert_eq!(counted(&scrape, A, "log"), Some(2.0));
    let scrape = until_counted(&exporter, B, "records", 1.0);
    assert_eq!(counted(&scrape, B, "log"), None);
    assert_eq!(
        generated(&scrape, A),
        Some(20.0),
        "what the records had since"
    );
    assert_eq!(generated(&scrape, B), Some(10.0));

    // The first is unloaded: the other one stays with its records while it is loaded.
    run(&server, &[B]);
    log.write(&request(5, 20));
    records(&server, &[(B, 2)]);
    let scrape = until_counted(&exporter, B, "records", 2.0);
    assert_eq!(counted(&scrape, B, "log"), None);
    assert_eq!(generated(&scrape, B), Some(20.0));
    run(&server, &[]);
    exporter.until("it is unloaded", |scrape| generated(scrape, B).is_none());
    log.write(&[LOADING.to_owned()]);
    run(&server, &[B]);
    log.write(&request(0, 20));
    until_counted(&exporter, B, "log", 1.0);
}

/// The sums of durations and generated tokens, as clients added up the timings in their answers.
fn assert_sums(scrape: &Scrape, model: &str, seconds: f64, tokens: f64) {
    let labels = [("model", model), ("source", "log")];
    let sum = |name: &str| scrape.get(name, &labels).unwrap();
    let duration = sum("llamacpp_request_duration_seconds_sum");
    assert!((duration - seconds).abs() < 1e-4, "{duration} of {seconds}");
    assert_eq!(sum("llamacpp_request_generated_tokens_sum"), tokens);
}

#[test]
fn recorded_streams_tell_what_clients_saw() {
    let recording = |name: &str| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recordings/");
        let text = std::fs::read_to_string(format!("{folder}{name}")).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let server = swap(&[], &["a"]);
    let mut log = Log::of_swap(&server, "a");
    let exporter = Exporter::watching(&server).start();
    wait_until("the log is open", || server.count(&log.path) == 1);
    log.write(&recording("llama-swap/log-stream.txt"));
    serve_models(&server, &["a"], &[]);
    assert_sums(
        &until_counted(&exporter, "a", "log", 3.0),
        "a",
        8.590211,
        26.0,
    );

    let server = runner(&[A]);
    let mut log = Log::of_runner(&server);
    log.wrapped = None;
    let exporter = Exporter::watching(&server).start();
    wait_until("the log is open", || server.count("/logs") == 1);
    exporter.after_polls(2);
    let lines = recording("model-runner/log.txt");
    let is_last = |line: &String| line.contains("n_decoded =    118");
    let running = lines.iter().position(is_last).unwrap() + 1;
    log.write(&lines[..running]);
    let generated =
        |scrape: &Scrape| scrape.get("llamacpp_generated_tokens_total", &[("model", A)]);
    exporter.until("the second request streams", |scrape| {
        generated(scrape) == Some(3.0 + 118.0)
    });
    log.write(&lines[running..]);
    assert_sums(
        &until_counted(&exporter, A, "log", 2.0),
        A,
        176.673905,
        123.0,
    );
    exporter.until("all is counted", |scrape| generated(scrape) == Some(123.0));
}

#[test]
fn without_a_log_the_records_of_docker_model_runner_tell_its_tokens() {
    for (missing, why) in [
        (Answer::error(404, "not found"), "before April 2026"),
        (
            Answer::new(200, "text/plain", "log without a time\n"),
            "no Date",
        ),
    ] {
        let server = runner(&[A]);
        server.answer("/logs", missing);
        records(&server, &[(A, 0)]);
        let exporter = Exporter::watching(&server).start();
        exporter.until(why, |scrape| counted(scrape, A, "records") == Some(0.0));
        records(&server, &[(A, 3)]);
        let scrape = until_counted(&exporter, A, "records", 3.0);
        let of = |name: &str| scrape.get(name, &[("model", A)]);
        assert_eq!(of("llamacpp_generated_tokens_total"), Some(30.0), "{why}");
        assert_eq!(of("llamacpp_prompt_tokens_total"), Some(21.0));
        assert_eq!(of("llamacpp_tokens_per_second"), None);
        assert_eq!(counted(&scrape, A, "log"), None);
    }
}

#[test]
fn a_log_that_sends_no_line_of_new_requests_is_left_for_the_records() {
    let server = runner(&[A]);
    let _silent = Log::of_runner(&server);
    let exporter = Exporter::watching(&server).start();
    wait_until("the log is open", || server.count("/logs") == 1);
    let polls = exporter.scrape().polls();
    exporter.after_polls(polls + 3);
    run_used(&server, &[A], 7);
    records(&server, &[(A, 1)]);
    exporter.until("its tokens are counted", |scrape| {
        scrape.get("llamacpp_generated_tokens_total", &[("model", A)]) == Some(10.0)
    });
    assert_eq!(server.count("/logs"), 1, "it is not asked again");
    records(&server, &[(A, 2)]);
    until_counted(&exporter, A, "records", 2.0);

    // This one has lines of each request.
    let server = runner(&[A]);
    let mut log = Log::of_runner(&server);
    let exporter = Exporter::watching(&server).start();
    wait_until("the log is open", || server.count("/logs") == 1);
    let polls = exporter.scrape().polls();
    exporter.after_polls(polls + 3);
    for second in 1..=3 {
        log.write(&request(u64::from(second), 20));
        run_used(&server, &[A], second);
        records(&server, &[(A, second as usize)]);
        until_counted(&exporter, A, "log", f64::from(second));
    }
}
