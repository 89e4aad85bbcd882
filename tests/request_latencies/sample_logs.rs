//! Logs of users, whole or in part: each is written while the exporter follows it.

use std::fs;

use crate::support::recordings::{self, Stage};
use crate::support::{Answer, Exporter, Scrape, Server, for_each_case};

/// What a log contains of one model: finished requests and the sum of their seconds, embeddings
/// and the sum of all prompt tokens, cancellations, errors, and finished requests that are
/// truncated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    finished: u64,
    /// In hundredths of a millisecond, as the log prints it.
    duration: u64,
    embeddings: u64,
    prompt_tokens: u64,
    cancellations: u64,
    /// By the outcome `error`.
    errors: u64,
    truncated: u64,
}

struct Case {
    log: &'static str,
    /// The router's child whose log it is, if it is a router's.
    child: Option<u16>,
    counts: Counts,
    /// What the exporter logs about it.
    message: Option<&'static str>,
}

const NOTHING: Counts = Counts {
    finished: 0,
    duration: 0,
    embeddings: 0,
    prompt_tokens: 0,
    cancellations: 0,
    errors: 0,
    truncated: 0,
};

const fn finished(duration: u64, prompt_tokens: u64) -> Counts {
    Counts {
        finished: 1,
        duration,
        prompt_tokens,
        ..NOTHING
    }
}

const fn cancelled(cancellations: u64) -> Counts {
    Counts {
        cancellations,
        ..NOTHING
    }
}

const fn case(log: &'static str, counts: Counts) -> Case {
    Case {
        log,
        child: None,
        counts,
        message: None,
    }
}

const fn of_child(port: u16, log: &'static str, counts: Counts) -> Case {
    Case {
        child: Some(port),
        ..case(log, counts)
    }
}

const fn with_message(log: &'static str, counts: Counts, message: &'static str) -> Case {
    Case {
        message: Some(message),
        ..case(log, counts)
    }
}

const CASES: [Case; 13] = [
    case(
        "docker-json-log-old-builds/log.txt",
        finished(541_305, 1360),
    ),
    case("release-before-timings/log.txt", finished(52_507, 237)),
    // The second server's lines are the first's no longer.
    with_message(
        "two-servers-in-one-log/log.txt",
        finished(391_973, 21),
        "the log has lines of several servers",
    ),
    of_child(
        34255,
        "log-prefixes-in-the-wild/log-compose-router.txt",
        NOTHING,
    ),
    of_child(
        42751,
        "log-prefixes-in-the-wild/log-rsyslog-router.txt",
        cancelled(1),
    ),
    of_child(
        42027,
        "log-prefixes-in-the-wild/log-router-old-timings.txt",
        finished(1_690_153, 27),
    ),
    case(
        "log-prefixes-in-the-wild/log-journal-cancel.txt",
        cancelled(1),
    ),
    case("log-prefixes-in-the-wild/log-journal-nohost.txt", NOTHING),
    case("log-prefixes-in-the-wild/log-lmstudio.txt", NOTHING),
    case("speculative-and-truncated/log.txt", finished(391_973, 21)),
    case("embeddings-cancelled-while-deferred/log.txt", cancelled(3)),
    with_message(
        "very-old-log-formats/log-info.txt",
        NOTHING,
        "no line of the log is understood",
    ),
    with_message(
        "very-old-log-formats/log-json.txt",
        NOTHING,
        "no line of the log is understood",
    ),
];

/// A llama-server without counters, or a router with one child.
fn server(child: Option<u16>) -> Server {
    let Some(port) = child else {
        let server = Server::recorded("b10068", Stage::Idle);
        server.answer("/metrics", Answer::error(501, "no metrics"));
        return server;
    };
    let server = Server::start();
    let port = port.to_string();
    let arguments = ["llama-server", "--host", "127.0.0.1", "--port", &port];
    let models = serde_json::json!({"object": "list", "data": [
        {"id": "m", "object": "model", "owned_by": "llamacpp", "created": 1,
         "status": {"value": "loaded", "args": arguments}},
    ]});
    server.answer_json("/health", r#"{"status":"ok"}"#);
    server.answer(
        "/props",
        Answer::json(r#"{"role":"router","max_instances":4,"build_info":"b10068-x"}"#),
    );
    for path in ["/models", "/v1/models"] {
        server.answer_json(path, &models);
    }
    for path in ["/metrics", "/slots", "/props"] {
        let path = format!("{path}?model=m&autoload=false");
        server.answer(&path, Answer::error(501, "switched off"));
    }
    server
}

fn counts(scrape: &Scrape) -> Option<Counts> {
    let value = |name: &str| {
        let all = scrape.all(&format!("llamacpp_request_{name}"));
        all.iter()
            .find(|sample| sample.labels["source"] == "log")
            .map(|sample| sample.value)
    };
    let outcome = |outcome: &str| {
        let all = scrape.all("llamacpp_requests_total");
        let mut found = all
            .iter()
            .filter(|sample| sample.labels["outcome"] == outcome);
        found.next().map(|sample| sample.value as u64)
    };
    let finished = value("duration_seconds_count")? as u64;
    let cancellations = value("cancellations_total")? as u64;
    assert_eq!(outcome("cancelled")?, cancellations);
    Some(Counts {
        finished,
        duration: (value("duration_seconds_sum")? * 1e5).round() as u64,
        embeddings: value("prompt_tokens_count")? as u64 - finished,
        prompt_tokens: value("prompt_tokens_sum")? as u64,
        cancellations,
        errors: outcome("error")?,
        truncated: outcome("truncated")?,
    })
}

fn check(case: &Case) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let server = server(case.child);
    let exporter = Exporter::watching(&server)
        .args(["--log-file".as_ref(), file.path()])
        .start();
    exporter.until("the log is followed", |scrape| {
        counts(scrape) == Some(NOTHING)
    });
    fs::write(&file, recordings::case(&format!("logs/{}", case.log))).unwrap();
    exporter.until("its requests are counted", |scrape| {
        counts(scrape) == Some(case.counts)
    });
    if let Some(message) = case.message {
        exporter.wait_for_log(&[message]);
    }
    // What comes late, such as an embedding whose timings might have followed it, would be there.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let scrape = exporter.after_polls(2);
    assert_eq!(counts(&scrape), Some(case.counts));
    let models = scrape.all("llamacpp_request_duration_seconds_count");
    assert_eq!(models.len(), 1, "a log adds no label");
}

#[test]
fn each_log_has_its_counts() {
    for_each_case(CASES.iter().map(|case| (case.log, case)), check);
}
