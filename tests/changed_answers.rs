//! Every recorded answer of every endpoint, changed at random: the exporter keeps running, answers
//! every scrape, and each exposition is valid.
//!
//! `EXPORTER_TEST_SECONDS` is how long (60), `EXPORTER_TEST_SEED` the seed of the changes.

mod support;

use fastrand::Rng;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::recordings::{self, BUILDS, Stage};
use support::{Answer, Exporter, Scrape, Server};

/// What a server answers: status, content type and body by path and query.
type Answers = BTreeMap<String, (u16, String, Vec<u8>)>;

/// Whether an event of one in so many occurs.
fn one_in(random: &mut Rng, times: usize) -> bool {
    random.usize(..times) == 0
}

/// An index below `count`, or 0.
fn below(random: &mut Rng, count: usize) -> usize {
    random.usize(..count.max(1))
}

fn json_answer(body: Vec<u8>) -> (u16, String, Vec<u8>) {
    (200, "application/json; charset=utf-8".to_owned(), body)
}

/// Every state of every recorded llama-server.
fn llama_servers() -> Vec<Answers> {
    let stages = [Stage::Idle, Stage::Busy, Stage::After];
    let all = BUILDS
        .iter()
        .flat_map(|build| stages.map(|stage| (build, stage)));
    let answers = all.map(|(build, stage)| {
        let models = recordings::file(build, "models.json");
        let metrics = recordings::metrics(build, stage).into_bytes();
        let stats = json!({"memory": {"used_bytes": 5, "total_bytes": 9, "kv_cache_bytes": 1},
            "performance": {"tokens_per_second": 1.5, "cpu_utilization": 3, "temperature": 40},
            "model": {"name": "ai/adapted", "size_bytes": 7}, "batch": {"size": 2, "latency_ms": 4},
            "system": {"threads": 8, "status": "running"}});
        Answers::from([
            ("/health".into(), json_answer(br#"{"status":"ok"}"#.into())),
            (
                "/props".into(),
                json_answer(recordings::file(build, "props.json")),
            ),
            ("/models".into(), json_answer(models.clone())),
            ("/v1/models".into(), json_answer(models)),
            (
                "/slots".into(),
                json_answer(recordings::slots(build, stage).to_string().into_bytes()),
            ),
            (
                "/metrics".into(),
                (200, "text/plain; version=0.0.4".into(), metrics),
            ),
            ("/stats".into(), json_answer(stats.to_string().into_bytes())),
        ])
    });
    answers.collect()
}

/// Every state of the recorded router; its two models are called so in it.
fn routers() -> Vec<Answers> {
    let file = |name: &str| recordings::read(&format!("recordings/router/b10068/{name}"));
    let states = [
        "both-loaded",
        "crashed",
        "loaded",
        "loading",
        "sleeping",
        "unloaded",
    ];
    let answers = states.map(|state| {
        let metrics = |name: &str| (200, "text/plain".to_owned(), file(name));
        Answers::from([
            ("/health".into(), json_answer(file("health.json"))),
            ("/props".into(), json_answer(file("props.json"))),
            (
                "/models".into(),
                json_answer(file(&format!("models-{state}.json"))),
            ),
            ("/metrics".into(), metrics("metrics-both-alpha.txt")),
            ("/slots".into(), json_answer(file("slots-both-alpha.json"))),
        ])
    });
    answers.into()
}

/// Every state of a recorded server whose folders have a table of answers.
fn tabled(kind: &str) -> Vec<Answers> {
    let states = std::fs::read_dir(recordings::path("recordings").join(kind)).unwrap();
    let mut states: Vec<_> = states.map(|state| state.unwrap().path()).collect();
    states.retain(|state| state.is_dir() && !state.ends_with("any"));
    states.sort();
    let answers = states.iter().map(|state| {
        let state = state.file_name().unwrap().to_str().unwrap();
        let answers = recordings::recorded_answers(kind, state).into_iter();
        let answers = answers.map(|a| (a.path, (a.status, a.content_type, a.body)));
        answers.collect()
    });
    answers.collect()
}

/// A value that no endpoint promises.
fn strange(random: &mut Rng) -> Value {
    match below(random, 16) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(0),
        4 => json!(u64::MAX),
        5 => json!(i64::MIN),
        6 => json!(1.5),
        7 => json!(1e308),
        8 => json!(""),
        9 => json!("NaN"),
        10 => json!("x".repeat(below(random, 20_000))),
        11 => json!("\u{0}\"\\\n\r\u{202e}🦙{}=,"),
        12 => json!([]),
        13 => json!({}),
        14 => json!(random.u64(..)),
        _ => {
            let levels = below(random, 300);
            (0..levels).fold(json!(1), |inner, _| json!([inner]))
        }
    }
}

/// Some value within `value`, in which larger ones are as likely as small ones.
fn any_part<'a>(value: &'a mut Value, random: &mut Rng) -> &'a mut Value {
    let count = match value {
        Value::Array(items) => items.len(),
        Value::Object(fields) => fields.len(),
        _ => 0,
    };
    if count == 0 || one_in(random, 6) {
        return value;
    }
    let chosen = below(random, count);
    match value {
        Value::Array(items) => any_part(&mut items[chosen], random),
        Value::Object(fields) => any_part(fields.values_mut().nth(chosen).unwrap(), random),
        _ => unreachable!("it has parts"),
    }
}

fn change_json(document: &mut Value, random: &mut Rng) {
    let part = any_part(document, random);
    match (part, below(random, 5)) {
        (Value::Array(items), 0) if !items.is_empty() => {
            drop(items.remove(below(random, items.len())));
        }
        (Value::Array(items), 1) if !items.is_empty() => {
            // Once more, or some hundred times.
            let again = items[below(random, items.len())].clone();
            let times = if one_in(random, 4) { 300 } else { 1 };
            items.extend(std::iter::repeat_n(again, times));
        }
        (Value::Array(items), 2) => items.reverse(),
        (Value::Object(fields), 0) if !fields.is_empty() => {
            let key = fields
                .keys()
                .nth(below(random, fields.len()))
                .unwrap()
                .clone();
            fields.remove(&key);
        }
        (Value::Object(fields), 1) => {
            // The values change places.
            let keys: Vec<_> = fields.keys().cloned().collect();
            let mut values: Vec<_> = std::mem::take(fields).into_iter().map(|(_, v)| v).collect();
            let by = below(random, values.len());
            values.rotate_left(by);
            *fields = keys.into_iter().zip(values).collect::<Map<_, _>>();
        }
        (Value::Object(fields), 2) => {
            let key = "k".repeat(below(random, 6000));
            fields.insert(key, strange(random));
        }
        (Value::Number(number), 0 | 1) => {
            let number = number.as_f64().unwrap_or_default();
            let changed = [number + 1.0, -number, number * 1e9, number / 3.0][below(random, 4)];
            *any_part(document, random) = json!(changed);
        }
        (Value::String(text), 0) => *text = text.repeat(1 + below(random, 400)),
        (part, _) => *part = strange(random),
    }
}

fn change_exposition(text: &str, random: &mut Rng) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.is_empty() {
        return text.to_owned();
    }
    let at = below(random, lines.len());
    let line = lines[at].clone();
    let (name, value) = line.rsplit_once(' ').unwrap_or((&line, ""));
    match below(random, 9) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(at, line.clone()),
        2 => lines.reverse(),
        3 => {
            let values = [
                "NaN",
                "+Inf",
                "-1",
                "1e308",
                "1e+006",
                "1.#INF",
                "-nan(ind)",
                "1,5",
                "0x7",
                "",
                "18446744073709551616",
                "0.5",
            ];
            lines[at] = format!("{name} {}", values[below(random, values.len())]);
        }
        4 => lines[at] = format!("{name}{{model=\"m{}\"}} {value}", below(random, 3)),
        5 => lines[at] = format!("{line} 1700000000000 # {{a=\"b\"}} 1"),
        6 => lines[at] = line.chars().take(below(random, line.len())).collect(),
        7 => lines[at] = "x".repeat(below(random, 40_000)),
        _ => return text.replace('\n', "\r\n"),
    }
    lines.join("\n") + "\n"
}

/// One body with changes of its values and of its bytes.
fn change_body(body: &[u8], random: &mut Rng) -> Vec<u8> {
    let mut text = String::from_utf8_lossy(body).into_owned();
    for _ in 0..=below(random, 4) {
        match serde_json::from_str::<Value>(&text) {
            Ok(mut document) => {
                change_json(&mut document, random);
                text = document.to_string();
            }
            Err(_) => text = change_exposition(&text, random),
        }
    }
    if one_in(random, 8) {
        // The first key stands twice.
        text = text.replacen("{\"", "{\"id\":7,\"id\":\"m\",\"", 1);
    }
    let mut bytes = text.into_bytes();
    match below(random, 20) {
        0 => bytes.truncate(below(random, bytes.len())),
        1 if !bytes.is_empty() => {
            let at = below(random, bytes.len());
            bytes[at] = random.u8(..);
        }
        2 => bytes = b"<!doctype html><html><body>It works!</body></html>".into(),
        _ => {}
    }
    bytes
}

/// What goes wrong now and then with the answer as a whole.
fn change_answer(status: u16, content_type: &str, body: Vec<u8>, random: &mut Rng) -> Answer {
    let status = if one_in(random, 12) {
        [204, 302, 400, 401, 404, 500, 501, 502, 503][below(random, 9)]
    } else {
        status
    };
    let cut = below(random, body.len());
    let answer = Answer::new(status, content_type, body);
    match below(random, 16) {
        0 => answer.chunked(),
        1 => answer.until_closed(),
        2 => answer.cut_after(cut),
        3 => Answer::reset(),
        4 => answer.header("Process-Start-Time-Unix", &below(random, 3).to_string()),
        _ => answer,
    }
}

/// Checks the text with promtool, where it is installed.
///
/// It may object to the name of `llamacpp_thread_count` alone, which was asked for: it ends as the
/// series of a histogram does.
fn check_with_promtool(text: &str) {
    let promtool = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/prometheus/usr/bin/promtool");
    let child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return };
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let output = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let mut objections: Vec<_> = output.lines().collect();
    objections
        .retain(|line| !line.trim().is_empty() && !line.starts_with("llamacpp_thread_count "));
    assert!(objections.is_empty(), "{objections:?} about\n{text}");
}

/// Plays states of one kind of server, changed at random, until `end`; gives how many.
fn play(kind: &str, states: &[Answers], seed: u64, end: Instant) -> usize {
    let mut random = Rng::with_seed(seed);
    let server = Server::start();
    let serve = |path: &str, answer: Answer| {
        server.answer(path, answer);
    };
    let mut exporter = Exporter::watching(&server)
        .interval("20ms")
        .timeout("5s")
        .start();
    let mut rounds = 0;
    while Instant::now() < end || rounds == 0 {
        let state = &states[below(&mut random, states.len())];
        let everything = one_in(&mut random, 10);
        for (path, (status, content_type, body)) in state {
            let answer = if everything || one_in(&mut random, 3) {
                let body = change_body(body, &mut random);
                change_answer(*status, content_type, body, &mut random)
            } else {
                Answer::new(*status, content_type, body)
            };
            serve(path, answer);
        }
        // Read strictly: no series twice, no value that no metric can have.
        let scrape = exporter.after_polls(1 + below(&mut random, 3) as u64);
        assert!(exporter.is_alive(), "{kind}: {}", exporter.output());
        assert_eq!(exporter.get("/").status, 200, "{kind}");
        check_with_promtool(&scrape.text);
        rounds += 1;
    }
    // Correct answers are exported again.
    for (path, (status, content_type, body)) in &states[0] {
        serve(path, Answer::new(*status, content_type, body));
    }
    let is_well = |scrape: &Scrape| scrape.up() && scrape.has("llamacpp_status");
    exporter.until(&format!("the {kind} is exported again"), is_well);
    let memory = exporter.peak_memory();
    assert!(memory < 32 << 20, "{kind}: {memory} bytes of memory");
    rounds
}

#[test]
fn recorded_answers_that_are_changed_at_random() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let seconds = number("EXPORTER_TEST_SECONDS").unwrap_or(60);
    let seed = number("EXPORTER_TEST_SEED").unwrap_or(20_261_126);
    println!("EXPORTER_TEST_SEED={seed} EXPORTER_TEST_SECONDS={seconds}");
    let end = Instant::now() + Duration::from_secs(seconds);
    let kinds = [
        ("llama-server", llama_servers()),
        ("router", routers()),
        ("model-runner", tabled("model-runner")),
        ("llama-swap", tabled("llama-swap")),
    ];
    thread::scope(|scope| {
        for (index, (kind, states)) in kinds.iter().enumerate() {
            let thread = thread::Builder::new().name((*kind).to_owned());
            let play = move || {
                let rounds = play(kind, states, seed.wrapping_add(index as u64), end);
                println!("{kind}: {rounds} rounds");
            };
            thread.spawn_scoped(scope, play).unwrap();
        }
    });
}
