//! Every array, object and string of every document of every kind of server, as large as the limit
//! of its body: the memory of the exporter, its polls and its scrapes stay within their limits.
//!
//! Prints a table with `--nocapture`. To take no minute, bodies are smaller: two mebibytes at most,
//! and 128 KiB where nothing adds up. With `EXPORTER_TEST_BODY_MIB=128` each is as large as its
//! limit; that takes two minutes of a release build.

mod support;

use serde_json::{Value, json};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::recordings::{self, OLD, Stage};
use support::{Answer, Exporter, Server, for_each_case, wait_until};

/// What the exporter may have resident at most, besides the bytes of a scrape: 32 MiB, 4 of which
/// are for its program.
const MEMORY_LIMIT: u64 = 28 << 20;
const SCRAPE_LIMIT: usize = 16 << 20;

/// A document of a server.
struct Document {
    kind: Kind,
    path: &'static str,
    /// The most bytes of it that are read.
    limit: usize,
    value: Value,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    LlamaServer,
    Router,
    ModelRunner,
    LlamaSwap,
    Ollama,
    Stats,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn props() -> Value {
    json!({"total_slots": 1, "model_alias": "m", "model_path": "/m.gguf", "model_ftype": "Q4_0",
        "build_info": "b10068-a", "role": "", "is_sleeping": false, "unknown": {"a": ["b"]},
        "default_generation_settings": {"n_ctx": 8, "params": {"samplers": ["x"]}}})
}

fn models() -> Value {
    json!({"data": [{"id": "m", "owned_by": "llamacpp", "meta": {"n_params": 1, "ftype": "Q4_0"}}]})
}

fn slots() -> Value {
    json!([{"id": 0, "n_ctx": 8, "is_processing": true, "id_task": 1, "n_prompt_tokens": 3,
        "next_token": [{"n_decoded": 2}], "params": {"stop": ["x"]}}])
}

fn stats() -> Value {
    json!({"memory": {"used_bytes": 1}, "performance": {"tokens_per_second": 1},
        "model": {"name": "m", "size_bytes": 1}, "batch": {"size": 1},
        "system": {"threads": 1, "status": "idle"}})
}

fn router_models() -> Value {
    json!({"data": [{"id": "m", "meta": {"n_params": 1, "ftype": "Q4_0"},
        "status": {"value": "loaded", "args": ["llama-server", "--port", "1"]}}]})
}

fn ps() -> Value {
    json!([{"backend_name": "llama.cpp", "model_name": "ai/m", "mode": "completion", "in_use": true}])
}

fn store() -> Value {
    json!([{"id": "sha256:0123456789abcdef", "tags": ["ai/m:latest"], "config": {
        "quantization": "Q4_0", "parameters": "1M", "architecture": "llama", "size": "1MiB",
        "gguf": {"llama.block_count": "32"}}}])
}

fn configured() -> Value {
    json!([{"Backend": "llama.cpp", "Model": "ai/m", "ModelID": "sha256:0123456789abcdef",
        "Mode": "completion", "Config": {"context-size": 8, "runtime-flags": ["x"]}}])
}

fn records() -> Value {
    let response = json!({"usage": {"prompt_tokens": 1},
        "timings": {"prompt_n": 1, "prompt_ms": 1.0, "predicted_n": 2, "predicted_ms": 1.0}});
    json!([{"count": 1, "model": "ai/m", "config": {}, "records": [{"id": "a", "model": "ai/m",
        "method": "POST", "url": "/", "request": "{}", "response": response.to_string(),
        "error": "", "timestamp": 1, "status_code": 200, "user_agent": "x"}]}])
}

fn running() -> Value {
    json!({"running": [{"model": "m", "state": "ready", "cmd": "c", "proxy": "http://h.invalid:1",
        "name": "", "description": "", "ttl": 0}]})
}

fn swap_models() -> Value {
    json!({"data": [{"id": "m", "meta": {"llamaswap": {"type": "model"}}}]})
}

fn activity() -> Value {
    json!({"data": [{"id": 1, "model": "m", "resp_status_code": 200,
        "tokens": {"cache_tokens": 1, "input_tokens": 1, "output_tokens": 1}}]})
}

/// `/api/ps` has `context_length` beside `details`, `/api/tags` in them.
fn ollama_models() -> Value {
    json!({"models": [{"name": "m:latest", "model": "m:latest", "size": 1, "digest": "d",
        "details": {"family": "gemma3", "families": ["gemma3"], "parameter_size": "1M",
            "quantization_level": "Q4_0", "context_length": 8},
        "expires_at": "2026-11-26T20:19:14Z", "size_vram": 0, "context_length": 8}]})
}

fn documents() -> Vec<Document> {
    use Kind::{LlamaServer, LlamaSwap, ModelRunner, Ollama, Router, Stats};
    let documents = [
        (
            LlamaServer,
            "/health",
            64 * KIB,
            json!({"status": "ok", "error": {"message": "m"}}),
        ),
        (LlamaServer, "/props", 4 * MIB, props()),
        (LlamaServer, "/v1/models", 4 * MIB, models()),
        (LlamaServer, "/slots", 32 * MIB, slots()),
        (Stats, "/stats", MIB, stats()),
        (Router, "/models", 32 * MIB, router_models()),
        (ModelRunner, "/engines/ps", 4 * MIB, ps()),
        (ModelRunner, "/models", 128 * MIB, store()),
        (ModelRunner, "/engines/_configure", 4 * MIB, configured()),
        (
            ModelRunner,
            "/engines/df",
            64 * KIB,
            json!({"models_disk_usage": 1}),
        ),
        (ModelRunner, "/engines/requests", 32 * MIB, records()),
        (ModelRunner, "/version", 64 * KIB, json!({"version": "v"})),
        (LlamaSwap, "/running", 4 * MIB, running()),
        (LlamaSwap, "/v1/models", 16 * MIB, swap_models()),
        (LlamaSwap, "/api/metrics/activity", 8 * MIB, activity()),
        (LlamaSwap, "/api/version", 64 * KIB, json!({"version": "v"})),
        (Ollama, "/api/ps", 4 * MIB, ollama_models()),
        (Ollama, "/api/tags", 16 * MIB, ollama_models()),
        (Ollama, "/api/version", 64 * KIB, json!({"version": "v"})),
    ];
    let document = |(kind, path, limit, value)| Document {
        kind,
        path,
        limit,
        value,
    };
    documents.map(document).into()
}

/// A server of that kind of which nothing is large.
fn server(kind: Kind) -> Server {
    let server = Server::start();
    let answer = |path: &str, value: Value| {
        server.answer_json(path, value);
    };
    let metrics = recordings::metrics(OLD, Stage::Busy);
    match kind {
        Kind::LlamaServer => return Server::recorded(OLD, Stage::Busy),
        Kind::Stats => answer("/stats", stats()),
        Kind::Router => {
            answer("/health", json!({"status": "ok"}));
            answer(
                "/props",
                json!({"role": "router", "build_info": "b11434-a"}),
            );
            answer("/models", router_models());
            answer("/slots", slots());
            server.answer("/metrics", Answer::exposition(metrics));
        }
        Kind::ModelRunner => {
            answer("/engines/ps", ps());
            answer("/models", store());
            answer("/engines/_configure", configured());
            answer("/engines/df", json!({"models_disk_usage": 1}));
            answer("/engines/requests", records());
            answer("/version", json!({"version": "v"}));
            server.answer("/metrics", Answer::exposition("# No active runners\n"));
        }
        Kind::LlamaSwap => {
            answer("/running", running());
            answer("/v1/models", swap_models());
            answer("/api/metrics/activity", activity());
            answer("/api/version", json!({"version": "v"}));
        }
        Kind::Ollama => {
            server.answer("/", Answer::new(200, "text/plain", "Ollama is running"));
            answer("/api/ps", ollama_models());
            answer("/api/tags", ollama_models());
            answer("/api/version", json!({"version": "v"}));
        }
    }
    server
}

/// The pointers of every list, map and text in `value`, as RFC 6901 has them.
fn pointers(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), value)];
    while let Some((pointer, value)) = open.pop() {
        match value {
            Value::Array(items) => {
                let below = items.iter().enumerate();
                open.extend(below.map(|(index, item)| (format!("{pointer}/{index}"), item)));
            }
            Value::Object(fields) => {
                open.extend(fields.iter().map(|(key, field)| {
                    let key = key.replace('~', "~0").replace('/', "~1");
                    (format!("{pointer}/{key}"), field)
                }));
            }
            Value::String(_) => {}
            _ => continue,
        }
        found.push(pointer);
    }
    found.sort();
    found
}

/// Every way to make the value at `pointer` large, and the document with it.
fn inflated(document: &Value, pointer: &str, limit: usize) -> Vec<(&'static str, String)> {
    const PLACE: &str = "\"@here@\"";
    let mut frame = document.clone();
    let place = frame.pointer_mut(pointer).unwrap();
    let value = std::mem::replace(place, json!("@here@"));
    let frame = frame.to_string();
    let room = limit - frame.len() - 64;
    let filled = |large: String| frame.replacen(PLACE, &large, 1);
    match &value {
        Value::String(_) => {
            let (plain, escapes) = ("x".repeat(room / 2), "\\ud83e\\udd99".repeat(room / 24));
            vec![("a long text", filled(format!("\"{plain}{escapes}\"")))]
        }
        Value::Array(items) => {
            let short = repeated(&items[0], room, |item, number| distinct(item, number, 8));
            let long = repeated(&items[0], room, |item, number| distinct(item, number, 500));
            vec![
                ("many items", filled(format!("[{short}]"))),
                ("many items with long names", filled(format!("[{long}]"))),
                (
                    "many numbers",
                    filled(format!("[{}0]", "0,".repeat(room / 2))),
                ),
                ("deep", filled("[".repeat(room / 2) + &"]".repeat(room / 2))),
            ]
        }
        Value::Object(fields) => {
            let mut many = String::from("{");
            for number in 0.. {
                if many.len() + 40 > room / 2 {
                    break;
                }
                let _ = write!(many, "\"llama.k{number}\":\"v{number}\",");
            }
            let known = Value::from(fields.clone()).to_string();
            let many = many + &known[1..];
            let long = format!("{{\"{}\":1,{}", "k".repeat(room - known.len()), &known[1..]);
            vec![("many keys", filled(many)), ("a long key", filled(long))]
        }
        _ => unreachable!("neither list, map nor text"),
    }
}

/// As many of `item` as fit `room`, each changed by its number.
fn repeated(item: &Value, room: usize, change: impl Fn(&Value, usize) -> Value) -> String {
    let mut text = String::new();
    for number in 0.. {
        let next = change(item, number).to_string();
        if text.len() + next.len() + 1 > room {
            break;
        }
        if number > 0 {
            text.push(',');
        }
        text += &next;
    }
    text
}

/// `value` with names that no other number has, of so many bytes.
fn distinct(value: &Value, number: usize, bytes: usize) -> Value {
    match value {
        Value::String(text) if text.len() < 40 && !text.starts_with('{') => {
            // States and kinds are kept: they decide whether the rest is read.
            let kept = ["llama.cpp", "completion", "loaded", "ready", "model", ""];
            if kept.contains(&text.as_str()) {
                return value.clone();
            }
            json!(format!(
                "{number:08}{}",
                "n".repeat(bytes.saturating_sub(8))
            ))
        }
        Value::Array(items) => items
            .iter()
            .map(|item| distinct(item, number, bytes))
            .collect(),
        Value::Object(fields) => {
            let change = |(key, field): (&String, &Value)| {
                let field = match (key.as_str(), field) {
                    ("id", Value::Number(_)) => json!(number + 1),
                    _ => distinct(field, number, bytes),
                };
                (key.clone(), field)
            };
            fields.iter().map(change).collect()
        }
        other => other.clone(),
    }
}

/// Expositions that are large in every way.
fn expositions(limit: usize, labels: &str) -> Vec<(&'static str, String)> {
    let room = limit - 1024;
    let many = |line: &dyn Fn(usize) -> String| {
        let mut text = String::new();
        for number in 0.. {
            let next = line(number);
            if text.len() + next.len() > room {
                return text;
            }
            text += &next;
        }
        unreachable!("numbers do not end")
    };
    let calls = "llamacpp:n_decode_total";
    let name = "n".repeat(500);
    let samples = many(&|number| format!("{calls}{{model=\"m{number}\"{labels}}} 1\n"));
    vec![
        ("many models", samples.clone()),
        (
            "many models with long names",
            many(&|number| format!("{calls}{{model=\"{number}{name}\"{labels}}} 1\n")),
        ),
        (
            "many families",
            many(&|number| format!("llamacpp:f{number} 1\n")),
        ),
        ("many lines that are no sample", many(&|_| "!\n".to_owned())),
        (
            "a sample and many comments",
            format!("{calls} 1\n{}", many(&|_| "#\n".to_owned())),
        ),
        (
            "a long line",
            format!("{calls} 1\n{}\n", "x".repeat(room - 100)),
        ),
        (
            "a long label",
            format!(
                "{calls}{{model=\"{}\"{labels}}} 1\n",
                "x".repeat(room - 100)
            ),
        ),
        (
            "many labels",
            format!(
                "{calls}{{{}}} 1\n",
                many(&|number| format!("l{number}=\"\","))
            ),
        ),
        (
            "in quotes",
            json!(&samples[..samples.len() / 2]).to_string(),
        ),
        (
            "in quotes, of escapes",
            format!("\"{}\"", "\\u0041".repeat(room / 6)),
        ),
    ]
}

struct Case {
    kind: Kind,
    path: &'static str,
    what: String,
    answer: Answer,
}

/// All of them, made one by one: together they would take gigabytes.
fn cases() -> impl Iterator<Item = Case> {
    // The list of a document is where its items add up.
    let given = std::env::var("EXPORTER_TEST_BODY_MIB").ok();
    let given = given.map(|mib| mib.parse::<usize>().unwrap() * MIB);
    let most = move |is_list: bool| given.unwrap_or(if is_list { 2 * MIB } else { 128 * KIB });
    let documents = documents().into_iter().flat_map(move |document| {
        pointers(&document.value)
            .into_iter()
            .flat_map(move |pointer| {
                let value = document.value.pointer(&pointer).unwrap();
                let is_list = value.is_array() && pointer.matches('/').count() < 2;
                let limit = document.limit.min(most(is_list));
                let inflated = inflated(&document.value, &pointer, limit);
                let (kind, path) = (document.kind, document.path);
                inflated.into_iter().map(move |(how, body)| Case {
                    kind,
                    path,
                    what: format!("{how} at {pointer:?}"),
                    answer: Answer::json(body),
                })
            })
    });
    let metrics = [
        (Kind::LlamaServer, MIB, ""),
        (
            Kind::ModelRunner,
            16 * MIB,
            ",backend=\"llama.cpp\",mode=\"completion\"",
        ),
    ];
    documents.chain(metrics.into_iter().flat_map(move |(kind, limit, labels)| {
        let texts = expositions(limit.min(most(false)), labels).into_iter();
        texts.map(move |(what, text)| Case {
            kind,
            path: "/metrics",
            what: what.to_owned(),
            answer: Answer::exposition(text),
        })
    }))
}

/// What one case cost: a row of the table.
fn measure(case: &Case) -> String {
    let server = server(case.kind);
    server.answer(case.path, case.answer.clone());
    let mut exporter = Exporter::watching(&server)
        .interval("50ms")
        .timeout("30s")
        .start();
    // The first answer of records is history: only at the second one they count.
    wait_until("two polls", || exporter.polls() >= 2);
    assert!(exporter.is_alive());
    let scrape = exporter.scrape();
    let text = &scrape.text;
    let memory = exporter.peak_data_memory();
    let poll = scrape
        .value("llamacpp_exporter_poll_duration_seconds")
        .unwrap();
    let row = format!(
        "{:?} {}, {}: {} KiB of body, {} KiB of memory, {poll:.3} s of poll, {} KiB of scrape",
        case.kind,
        case.path,
        case.what,
        case.answer.body().len() / KIB,
        memory / 1024,
        text.len() / KIB,
    );
    assert!(
        memory < MEMORY_LIMIT + text.len() as u64,
        "too much memory: {row}"
    );
    assert!(text.len() < SCRAPE_LIMIT, "too large a scrape: {row}");
    // A poll may take eight time-outs.
    assert!(poll < 240.0, "too long a poll: {row}");
    row
}

#[test]
fn documents_of_the_largest_size_stay_within_the_limits() {
    let measured = AtomicUsize::new(0);
    for_each_case(cases().map(|case| (case.what.clone(), case)), |case| {
        println!("{}", measure(&case));
        measured.fetch_add(1, Ordering::Relaxed);
    });
    assert!(measured.into_inner() > 100);
}
