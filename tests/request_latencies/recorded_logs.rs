//! The logs of 21 builds of llama-server, and of a router, give the same figures.
//!
//! Each of the 21 holds a request of 122 prompt tokens and 120 generated ones,
//! one whose client hung up, and one of 1,752 prompt tokens and a single
//! generated one. The figures below were read off the logs by eye.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use llamacpp_exporter::readings::Update;
use llamacpp_exporter::requests::Requests;
use llamacpp_exporter::requests::log::parser::LoggedSlots;
use llamacpp_exporter::requests::log::{LogWriter, PolledModel, ServerLog};
use llamacpp_exporter::snapshot::{Outcome, RequestFigures};

/// Build; milliseconds of the first request's prompt, generation and both; of the
/// last request's prompt and both.
#[rustfmt::skip]
const BUILDS: [(&str, [f64; 5]); 21] = [
    ("b7376",            [ 370.24, 3784.21,  4154.45,  9336.56,  9336.56]),
    ("b7551",            [ 310.12, 3631.39,  3941.51,  5005.00,  5005.00]),
    ("b7710",            [ 279.43, 3105.36,  3384.80,  4827.64,  4827.64]),
    ("b7827",            [ 317.18, 3810.15,  4127.33,  4818.18,  4818.18]),
    ("b7964",            [ 292.65, 3136.28,  3428.93,  4823.45,  4823.45]),
    ("b8156",            [ 280.31, 3409.14,  3689.45,  4209.77,  4209.77]),
    ("b8352",            [ 284.60, 3099.24,  3383.84,  4102.15,  4102.15]),
    ("xllamacpp-0.2.14", [ 285.20, 3089.14,  3374.35,  4030.73,  4030.73]),
    ("b8672",            [ 411.09, 3938.33,  4349.42,  5964.18,  5964.18]),
    ("b8929",            [ 308.60, 3209.86,  3518.46,  4228.28,  4228.28]),
    ("b9093",            [ 306.03, 3004.04,  3310.07,  4297.16,  4297.16]),
    ("b9294",            [ 302.98, 3370.43,  3673.41,  4356.49,  4356.49]),
    ("b9538",            [ 355.55, 3066.11,  3421.66,  4477.46,  4477.46]),
    ("b9713",            [ 582.30, 3912.57,  4494.87,  4394.80,  4394.80]),
    ("b9873",            [ 329.85, 3133.00,  3462.85,  4357.94,  4357.94]),
    ("b10068",           [ 335.51, 3484.13,  3819.64,  4697.91,  4697.91]),
    ("b10229",           [ 281.90, 2936.45,  3218.34,  4182.73,  4182.74]),
    ("b10566",           [ 282.82, 2005.26,  2288.08,  4199.57,  4199.57]),
    ("b10809",           [ 242.54, 1740.95,  1983.49,  4202.08,  4202.08]),
    ("b11063",           [ 269.47, 1857.66,  2127.13,  4215.58,  4215.58]),
    ("b11549",           [4326.86, 6971.05, 11297.91, 11362.14, 11362.14]),
];

fn recording(name: &str) -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    fs::read_to_string(format!("{root}/tests/recordings/{name}/log.txt")).unwrap()
}

/// Reads a log as if each of its lines had just been written, and polls a server without
/// counters a while later.
fn requests_of(log: &str, model: &str, writer: LogWriter) -> (Arc<Requests>, ServerLog) {
    let requests = Arc::<Requests>::default();
    let server_log = ServerLog::new(Arc::clone(&requests));
    let now = Instant::now();
    server_log.found();
    for line in log.lines() {
        server_log.line(line.as_bytes(), now, false);
    }
    for seconds in [10, 20] {
        let later = now + Duration::from_secs(seconds);
        let polled = PolledModel {
            model,
            mode: None,
            writer: Some(writer),
            slots: None,
            counters: &Update::Absent,
        };
        requests.polled(later, [(model, true)]);
        server_log.polled(later, &[polled]);
    }
    (requests, server_log)
}

fn read(log: &str, writer: LogWriter) -> (RequestFigures, LoggedSlots) {
    let (requests, server_log) = requests_of(log, "m", writer);
    let of = requests.figures().remove(0);
    assert_eq!((of.model.as_str(), of.source), ("m", "log"));
    let rejected = server_log.lines_rejected().unwrap();
    assert!(
        rejected.iter().all(|(_, count)| *count == 0),
        "{rejected:?}"
    );
    assert!(server_log.notes(Instant::now()).is_empty());
    ((*of.figures).clone(), server_log.logged_slots("m"))
}

fn check(build: &str, figures: &RequestFigures, ms: [f64; 5]) {
    let [prompt, generation, total, long_prompt, long_total] = ms;
    for (what, histogram, count, sum) in [
        (
            "first token",
            &figures.first_token,
            2,
            (prompt + long_prompt) / 1e3,
        ),
        ("duration", &figures.duration, 2, (total + long_total) / 1e3),
        ("per token", &figures.per_token, 1, generation / 119.0 / 1e3),
        ("prompt tokens", &figures.prompt_tokens, 2, 122.0 + 1752.0),
        (
            "generated tokens",
            &figures.generated_tokens,
            2,
            120.0 + 1.0,
        ),
    ] {
        let histogram = histogram.as_ref().unwrap();
        assert_eq!(histogram.count(), count, "{build}: {what}");
        assert!(
            (histogram.sum() - sum).abs() < 1e-9,
            "{build}: {what}: {} is not {sum}",
            histogram.sum()
        );
    }
    assert_eq!(figures.cancellations, Some(1), "{build}");
    assert!(figures.errors.values().all(|count| *count == 0), "{build}");
    let outcomes = [
        (Outcome::Ok, 2),
        (Outcome::Error, 0),
        (Outcome::Cancelled, 1),
        (Outcome::Truncated, 0),
    ];
    assert_eq!(figures.outcomes, outcomes.into(), "{build}");
}

#[test]
fn the_log_of_every_build_gives_the_same_figures() {
    for (build, ms) in BUILDS {
        let (figures, layout) = read(
            &recording(&format!("llama-server/{build}")),
            LogWriter::Server,
        );
        check(build, &figures, ms);
        // b9294 to b9713 do not say how their slots share the cache.
        let silent = ["b9294", "b9538", "b9713"].contains(&build);
        let expected = LoggedSlots {
            slots: Some(2),
            slot_context: Some(2048),
            kv_unified: (!silent).then_some(false),
        };
        assert_eq!(layout, expected, "{build}");
    }
}

/// What puts something around each line.
const WRAPPERS: [fn(&str) -> String; 7] = [
    |line| {
        json!({"log": format!("{line}\n"), "stream": "stderr", "time": "2026-11-24T20:12:22Z"})
            .to_string()
    },
    |line| json!({"MESSAGE": line, "_PID": "77", "_SYSTEMD_UNIT": "llama.service"}).to_string(),
    |line| {
        json!({"MESSAGE": format!("\x1b[32m{line}\x1b[0m").as_bytes(), "_PID": "77"}).to_string()
    },
    |line| json!({"type": "other", "level": "info", "msg": line}).to_string(),
    |line| {
        format!(
            "time=2026-11-26T11:38:12.899Z level=INFO msg={}",
            json!(line)
        )
    },
    |line| format!("__CURSOR=s=1\n_PID=77\nMESSAGE={line}\nPRIORITY=6\n"),
    |line| format!("[pod/llama-7d9f/server] {line}"),
];

#[test]
fn colours_and_prefixes_change_nothing() {
    for (build, ms) in BUILDS {
        let log = recording(&format!("llama-server/{build}"));
        for wrap in WRAPPERS {
            let wrapped: String = log.lines().map(|line| wrap(line) + "\n").collect();
            let what = format!("{build} {:?}", wrapped.lines().next());
            check(&what, &read(&wrapped, LogWriter::Server).0, ms);
        }
        for prefix in [
            "\u{1b}[36mllama-1  |\u{1b}[0m ",
            "Nov 24 20:12:22 host llama-server[4711]: ",
            "2026-11-24T20:12:22.123456789Z stderr F ",
            "\u{1b}[32m",
            "[4711] ",
        ] {
            let wrapped: String = log
                .lines()
                .map(|line| format!("{prefix}{line}\u{1b}[0m\r\n"))
                .collect();
            let writer = if prefix == "[4711] " {
                LogWriter::RouterChild(4711)
            } else {
                LogWriter::Server
            };
            check(
                &format!("{build} {prefix:?}"),
                &read(&wrapped, writer).0,
                ms,
            );
        }
    }
}

#[test]
fn a_routers_log_counts_for_the_model_that_a_poll_found_at_its_port() {
    let log = recording("router/b10068");
    let port = log.split_once(" on port ").unwrap().1;
    let port = port.split_whitespace().next().unwrap().parse().unwrap();
    let (requests, server_log) = requests_of(&log, "alpha/one:Q4", LogWriter::RouterChild(port));
    let all = requests.figures();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].model, "alpha/one:Q4");
    let duration = all[0].figures.duration.as_ref().unwrap();
    assert_eq!((duration.count(), duration.sum()), (1, 2.81593));
    let layout = server_log.logged_slots("alpha/one:Q4");
    assert_eq!(layout.slot_context, Some(1024));
}
