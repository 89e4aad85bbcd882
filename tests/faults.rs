//! What can go wrong at the server, and what must not come of it.
//!
//! A server that answers as a recorded, busy llama-server does breaks in one way at one of its
//! endpoints and is mended later. Whatever the fault: the exporter stays up, answers its own
//! scrapers at once, stays small, counts the right reason, says so once, exports nothing that it
//! does not know, and is right again at the next poll when the fault has ended.

mod support;

use serde_json::{Value, json};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use support::exporter::{Scraping, Start};
use support::recordings::{self, MIDDLE, NEW, OLD, Stage, with_values};
use support::{Answer, ENDLESS, Exporter, Scrape, Server, all_at_once};

const HEALTH: &str = "/health";
const PROPS: &str = "/props";
const MODELS: &str = "/v1/models";
const METRICS: &str = "/metrics";
const SLOTS: &str = "/slots";
/// What a llama-server answers on.
const ENDPOINTS: [&str; 5] = [HEALTH, PROPS, MODELS, METRICS, SLOTS];

const MEMORY_LIMIT: u64 = 32 << 20;

/// A busy llama-server of December 2025.
fn server() -> Server {
    Server::recorded(OLD, Stage::Busy)
}

/// What the exporter has to say about that server while nothing is wrong.
fn assert_all_is_well(scrape: &Scrape) {
    assert!(scrape.up(), "{scrape:?}");
    assert_eq!(scrape.status(), Some("running"), "{scrape:?}");
    for (metric, value) in [
        ("llamacpp_generated_tokens_total", 2.0),
        ("llamacpp_prompt_tokens_total", 122.0),
        ("llamacpp_decode_calls_total", 2.0),
        ("llamacpp_requests_processing", 1.0),
        ("llamacpp_slots", 2.0),
        ("llamacpp_slots_busy", 1.0),
        ("llamacpp_max_context_size_tokens", 2048.0),
        ("llamacpp_model_size_bytes", 246_587_904.0),
    ] {
        assert_eq!(scrape.value(metric), Some(value), "{metric} in\n{scrape:?}");
    }
}

/// The exporter under observation while something is wrong.
struct Patient {
    // Dropped in this order: the scrapes end before the exporter does.
    scraping: Scraping,
    exporter: Exporter,
}

impl Patient {
    fn watching(server: &Server) -> Self {
        Self::of(Exporter::watching(server))
    }

    fn of(start: Start) -> Self {
        let exporter = start.start();
        let scraping = exporter.keep_scraping();
        Patient { scraping, exporter }
    }

    /// Waits for the fault to be noticed and to last, and asserts that it is counted under
    /// `reason` alone, that no other endpoint is blamed, and that one line of the log tells of it.
    fn suffers(&self, endpoint: &str, reason: &str) -> Scrape {
        self.exporter
            .until(&format!("{reason} counted at {endpoint}"), |scrape| {
                scrape.errors_of(endpoint).contains_key(reason)
            });
        let scrape = self.exporter.after_polls(1);
        let errors = scrape.errors_of(endpoint);
        assert_eq!(errors.keys().collect::<Vec<_>>(), [reason], "{scrape:?}");
        assert_eq!(
            errors[reason],
            scrape.errors(),
            "another endpoint is blamed: {scrape:?}"
        );
        self.has_said_once(&[&format!("endpoint={endpoint}"), &format!("reason={reason}")]);
        scrape
    }

    fn has_said_once(&self, words: &[&str]) {
        let lines = self.exporter.logged(words);
        assert_eq!(
            lines.len(),
            1,
            "lines with {words:?} in the log:\n{}",
            self.exporter.output()
        );
    }

    /// Everything is right by the end of the next poll, stays so, and was served throughout.
    fn recovers(self) {
        // One poll may have begun before the mending; the next one has not.
        let scrape = self.exporter.after_polls(1);
        assert_all_is_well(&scrape);
        let later = self.exporter.after_polls(1);
        assert_all_is_well(&later);
        assert_eq!(scrape.errors(), later.errors(), "errors go on: {later:?}");
        self.stays_well();
    }

    /// It lives, it is small, and it answered every scrape.
    fn stays_well(mut self) {
        assert!(self.exporter.is_alive());
        if let Some(memory) = self.exporter.most_memory() {
            assert!(memory < MEMORY_LIMIT, "{memory} bytes of memory");
        }
        self.scraping.all_were_answered();
    }
}

/// The course of a fault: `endpoint` answers so for a while, and then as before.
fn breaks(endpoint: &str, answer: Answer, reason: &str) {
    let server = server();
    let healthy = server.script(endpoint);
    // What a server calls its model is asked until it is known: it has to break before.
    let at_once = endpoint == MODELS;
    if at_once {
        server.answer(endpoint, answer.clone());
    }
    let timeout = if reason == "timeout" { "1s" } else { "10s" };
    let patient = Patient::of(Exporter::watching(&server).timeout(timeout));
    if !at_once {
        assert_all_is_well(&patient.exporter.after_polls(1));
        server.answer(endpoint, answer);
    }
    let scrape = patient.suffers(endpoint, reason);
    if endpoint == METRICS && reason != "timeout" {
        // Nobody knows these any longer. (A time-out means busy: then they stand.)
        assert_eq!(
            scrape.value("llamacpp_decode_calls_total"),
            None,
            "{scrape:?}"
        );
        assert_eq!(
            scrape.value("llamacpp_generated_tokens_total"),
            None,
            "{scrape:?}"
        );
    }
    server.answer(endpoint, healthy);
    patient.recovers();
}

fn each_breaks(endpoints: &[&str], answer: Answer, reason: &str) {
    let cases = endpoints
        .iter()
        .map(|endpoint| (*endpoint, *endpoint))
        .collect();
    all_at_once(cases, |endpoint| breaks(endpoint, answer.clone(), reason));
}

/// What the exporter shows of a server in which nothing is to be counted as an error.
fn shown(server: &Server) -> Scrape {
    let patient = Patient::watching(server);
    let scrape = patient.exporter.after_polls(2);
    assert_eq!(
        scrape.errors(),
        0,
        "{scrape:?}\n{}",
        patient.exporter.output()
    );
    patient.stays_well();
    scrape
}

#[test]
fn errors_are_counted_from_zero_for_each_endpoint_that_is_asked() {
    let server = server();
    let exporter = Exporter::watching(&server).start();
    let scrape = exporter.after_polls(1);
    let reasons = [
        "connect",
        "timeout",
        "status",
        "too_large",
        "parse",
        "unauthorized",
    ];
    for (endpoint, reason) in ENDPOINTS.iter().flat_map(|e| reasons.map(|r| (*e, r))) {
        let labels = [("endpoint", endpoint), ("reason", reason)];
        let errors = scrape.sample("llamacpp_exporter_poll_errors_total", &labels);
        let errors = errors.map(|sample| sample.value);
        assert_eq!(errors, Some(0.0), "{endpoint} {reason} in\n{scrape:?}");
    }
}

// The connection.

#[test]
fn a_server_that_refuses_connections_is_down() {
    let server = server();
    let patient = Patient::watching(&server);
    assert_all_is_well(&patient.exporter.after_polls(1));

    server.stop();
    patient.exporter.until("down", |scrape| scrape.down());
    let scrape = patient.exporter.after_polls(3);
    assert!(scrape.errors_of(HEALTH)["connect"] >= 3, "{scrape:?}");
    patient.has_said_once(&["endpoint=/health", "reason=connect"]);
    for family in &scrape.families {
        let of_the_exporter = ["llamacpp_up", "llamacpp_exporter_", "process_"];
        let expected = of_the_exporter
            .iter()
            .any(|start| family.0.starts_with(start));
        assert!(
            expected,
            "{} of a server that is gone:\n{scrape:?}",
            family.0
        );
    }

    server.start_again();
    patient.recovers();
}

#[test]
fn a_server_that_comes_after_the_exporter_is_found() {
    let server = server();
    server.stop();
    let patient = Patient::watching(&server);
    let scrape = patient.exporter.after_polls(3);
    assert!(scrape.down() && scrape.status().is_none(), "{scrape:?}");
    patient.has_said_once(&["endpoint=/health", "reason=connect"]);

    server.start_again();
    patient.recovers();
}

#[test]
fn every_time_that_a_server_goes_down_is_logged_once() {
    let server = server();
    let patient = Patient::watching(&server);
    for times in 1..=3 {
        assert_all_is_well(&patient.exporter.after_polls(1));
        server.stop();
        patient.exporter.after_polls(3);
        assert_eq!(
            patient
                .exporter
                .logged(&["endpoint=/health", "reason=connect"])
                .len(),
            times
        );
        server.start_again();
    }
    patient.recovers();
}

#[test]
fn a_name_that_does_not_resolve_is_a_server_that_is_down() {
    let patient = Patient::of(Exporter::of("http://no-such-host.invalid:8080"));
    let scrape = patient
        .exporter
        .until("an error", |scrape| scrape.errors() > 0);
    assert!(scrape.down(), "{scrape:?}");
    // A resolver that finds nobody to ask takes its time.
    let errors = scrape.errors_of(HEALTH);
    assert!(
        errors.contains_key("connect") || errors.contains_key("timeout"),
        "{scrape:?}"
    );
    patient.stays_well();
}

#[test]
fn a_reset_in_place_of_an_answer() {
    each_breaks(&ENDPOINTS, Answer::reset(), "connect");
}

#[test]
fn a_connection_that_ends_midway_through_the_body() {
    all_at_once(
        ENDPOINTS.map(|endpoint| (endpoint, endpoint)).into(),
        |endpoint| {
            let answer = server().script(endpoint).cut_after(10);
            breaks(endpoint, answer, "connect");
        },
    );
}

#[test]
fn a_scrape_does_not_wait_for_a_poll() {
    for endpoint in ENDPOINTS {
        let server = server();
        server.answer(endpoint, Answer::never());
        let exporter = Exporter::watching(&server).timeout(ENDLESS).start();
        support::eventually("the poll waits for its answer", || {
            server.count(endpoint) == 1
        });
        for _ in 0..20 {
            exporter.scrape();
        }
        assert!(server.requests_to(endpoint)[0].is_waiting(), "{endpoint}");
    }
}

#[test]
fn no_answer_at_all() {
    each_breaks(&ENDPOINTS, Answer::never(), "timeout");
}

#[test]
fn one_byte_a_second() {
    all_at_once(
        ENDPOINTS.map(|endpoint| (endpoint, endpoint)).into(),
        |endpoint| {
            let answer = server().script(endpoint).dripping(Duration::from_secs(1));
            breaks(endpoint, answer, "timeout");
        },
    );
}

// The answer.

#[test]
fn an_internal_error() {
    each_breaks(
        &ENDPOINTS,
        Answer::error(500, "the model is on fire"),
        "status",
    );
}

#[test]
fn a_key_that_is_missing_or_wrong() {
    each_breaks(
        &ENDPOINTS,
        Answer::error(401, "Invalid API Key"),
        "unauthorized",
    );
}

#[test]
fn html_in_place_of_json_or_an_exposition() {
    each_breaks(&ENDPOINTS, Answer::html(), "parse");
}

#[test]
fn truncated_documents() {
    all_at_once(
        ENDPOINTS.map(|endpoint| (endpoint, endpoint)).into(),
        |endpoint| {
            let body = String::from_utf8(server().script(endpoint).body().to_vec()).unwrap();
            // The exposition ends within the name of a metric.
            let end = body
                .find("\nllamacpp:n_decode")
                .map_or(body.len() / 2, |start| start + 12);
            breaks(endpoint, Answer::json(&body[..end]), "parse");
        },
    );
}

#[test]
fn empty_documents() {
    each_breaks(&ENDPOINTS, Answer::json(""), "parse");
}

#[test]
fn no_content() {
    let nothing = Answer::new(204, "application/json", "");
    each_breaks(&ENDPOINTS, nothing, "status");
}

#[test]
fn documents_of_the_wrong_shape() {
    let bodies = [
        "null",
        "[]",
        "[[]]",
        "{}",
        "7",
        r#""text""#,
        r#"[{"id":{}}]"#,
        r#"{"data":7}"#,
    ];
    all_at_once(bodies.map(|body| (body, body)).into(), |body| {
        let server = server();
        let patient = Patient::watching(&server);
        let healthy = ENDPOINTS.map(|endpoint| server.script(endpoint));
        for endpoint in ENDPOINTS {
            server.answer(endpoint, Answer::json(body));
        }
        patient.exporter.after_polls(2);
        for (endpoint, answer) in ENDPOINTS.iter().zip(healthy) {
            server.answer(endpoint, answer);
        }
        patient.recovers();
    });
}

/// The beginning of an answer that could become what is expected of the endpoint.
fn beginning(endpoint: &str) -> Answer {
    match endpoint {
        METRICS => Answer::exposition("# HELP a "),
        SLOTS => Answer::json(r#"[{"id":0,"params":""#),
        _ => Answer::json(r#"{"status":""#),
    }
}

#[test]
fn a_gigabyte_by_content_length() {
    gigabyte(&ENDPOINTS, |answer| answer);
}

#[test]
fn a_gigabyte_in_chunks() {
    gigabyte(&ENDPOINTS, Answer::chunked);
}

#[test]
fn a_gigabyte_that_ends_with_the_connection() {
    gigabyte(&[HEALTH, PROPS, MODELS, METRICS], Answer::until_closed);
}

/// Reading up to the limits takes more of a processor than any other test: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn gigabyte(endpoints: &[&str], frame: impl Fn(Answer) -> Answer + Sync) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cases = endpoints
        .iter()
        .map(|endpoint| (*endpoint, *endpoint))
        .collect();
    all_at_once(cases, |endpoint| {
        let server = server();
        let healthy = server.script(endpoint);
        server.answer(endpoint, frame(beginning(endpoint)).and_a_gigabyte_more());
        let patient = Patient::of(Exporter::watching(&server).timeout("60s"));
        patient.suffers(endpoint, "too_large");
        for request in server.requests_to(endpoint) {
            // No endpoint's limit is larger; the system holds some more for us.
            assert!(request.flooded < 40 << 20, "it read on: {request:?}");
        }
        server.answer(endpoint, healthy);
        patient.recovers();
    });
}

#[test]
fn an_exposition_of_a_hundred_thousand_families() {
    let server = server();
    let strangers: String = (0..100_000)
        .map(|number| format!("m{number} 1\n"))
        .collect();
    let exposition = recordings::metrics(OLD, Stage::Busy) + &strangers;
    server.answer(METRICS, Answer::exposition(exposition));
    let patient = Patient::of(Exporter::watching(&server).timeout("60s"));
    patient.exporter.after_polls(2);
    server.replay(OLD, Stage::Busy);
    patient.recovers();
}

#[test]
fn a_head_without_end() {
    let padding = "a".repeat(256 << 10);
    let answer = Answer::json("{}").header("X-Padding", &padding);
    each_breaks(&ENDPOINTS, answer, "too_large");
}

#[test]
fn json_nested_a_hundred_thousand_deep() {
    for (open, close) in [("[", "]"), (r#"{"data":"#, "}")] {
        let nested = open.repeat(100_000) + "1" + &close.repeat(100_000);
        each_breaks(&[PROPS, MODELS, SLOTS], Answer::json(nested), "parse");
    }
}

#[test]
fn json_nested_deep_where_nobody_looks() {
    let nested = "[".repeat(100_000) + &"]".repeat(100_000);
    let server = server();
    for endpoint in [PROPS, MODELS] {
        let known = String::from_utf8(server.script(endpoint).body().to_vec()).unwrap();
        let body = known.replacen('{', &format!(r#"{{"unknown":{nested},"#), 1);
        server.answer(endpoint, Answer::json(body));
    }
    // It may be read or be an error; it must not end the exporter.
    let patient = Patient::watching(&server);
    patient.exporter.after_polls(2);
    for endpoint in [PROPS, MODELS] {
        server.answer(
            endpoint,
            support::Answer::json(recordings::file(OLD, file_of(endpoint))),
        );
    }
    patient.recovers();
}

fn file_of(endpoint: &str) -> &'static str {
    if endpoint == PROPS {
        "props.json"
    } else {
        "models.json"
    }
}

#[test]
fn invalid_utf8() {
    // In /metrics it costs its line alone: see `upstream::samples`.
    let endpoints = [(PROPS, "gemma"), (MODELS, "gemma"), (SLOTS, "n_decoded")];
    all_at_once(
        endpoints.map(|case| (case.0, case)).into(),
        |(endpoint, place)| {
            let mut body = server().script(endpoint).body().to_vec();
            // The last place where it stands is one that counts.
            let at = body
                .windows(place.len())
                .rposition(|part| part == place.as_bytes())
                .unwrap();
            body[at + 1] = 0xff;
            breaks(endpoint, Answer::json(body), "parse");
        },
    );
}

#[test]
fn an_answer_that_is_compressed_though_nobody_asked() {
    // gzip of `{"status":"ok"}`, stored without compression.
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x01\x0f\x00\xf0\xff{\"status\":\"ok\"}\
        \xdd\xed\x13\x1d\x0f\x00\x00\x00";
    let answer = Answer::json(gzip).header("Content-Encoding", "gzip");
    each_breaks(&ENDPOINTS, answer, "parse");
}

#[test]
fn what_is_not_http() {
    each_breaks(
        &ENDPOINTS,
        Answer::raw("SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        "parse",
    );
}

#[test]
fn every_way_to_frame_a_body_is_read() {
    let not_kept = |answer: Answer| answer.header("Connection", "close");
    for frame in [
        Answer::chunked,
        Answer::until_closed,
        Answer::http_1_0,
        not_kept,
    ] {
        let server = server();
        for endpoint in ENDPOINTS {
            server.answer(endpoint, frame(server.script(endpoint)));
        }
        assert_all_is_well(&shown(&server));
    }
}

// Who is asked, and how.

#[test]
fn redirects_are_not_followed_and_the_key_goes_nowhere_else() {
    let elsewhere = server();
    let target = format!("{}/v1/props?token=hush", elsewhere.url());
    let statuses = [301, 302, 303, 307, 308];
    all_at_once(
        statuses.map(|status| ("a redirect", status)).into(),
        |status| {
            let server = server();
            let healthy = server.script(PROPS);
            let redirect = Answer::new(status, "text/html", "moved").header("Location", &target);
            server.answer(PROPS, redirect);
            let patient =
                Patient::of(Exporter::watching(&server).variable("LLAMACPP_API_KEY", "sk-secret"));
            patient.suffers(PROPS, "status");
            // Whoever set the URL learns where to point it.
            patient.has_said_once(&["endpoint=/props", &elsewhere.authority()]);
            assert_eq!(
                server.requests_to(PROPS)[0].header("Authorization"),
                Some("Bearer sk-secret")
            );
            server.answer(PROPS, healthy);
            patient.recovers();
        },
    );
    assert!(
        elsewhere.requests().is_empty(),
        "{:?}",
        elsewhere.requests()
    );
}

#[test]
fn a_redirect_to_the_server_itself_is_not_followed_either() {
    let server = server();
    server.answer("/moved", server.script(HEALTH));
    each_breaks(
        &ENDPOINTS,
        Answer::new(307, "text/html", "").header("Location", "/moved"),
        "status",
    );
    assert_eq!(server.count("/moved"), 0);
}

#[test]
fn questions_are_plain() {
    let server = server();
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(3);
    for request in server.requests() {
        assert_eq!(request.method, "GET");
        assert_eq!(request.header("Host"), Some(server.authority().as_str()));
        assert_eq!(request.header("Accept-Encoding"), None, "{request:?}");
        assert_eq!(request.header("Authorization"), None, "{request:?}");
        assert_eq!(request.header("Cookie"), None, "{request:?}");
        let agent = request.header("User-Agent").unwrap_or_default();
        assert!(agent.starts_with("llamacpp-exporter/"), "{agent}");
    }
}

#[test]
fn the_questions_of_a_poll_share_a_connection_that_ends_with_it() {
    let server = server();
    let exporter = Exporter::watching(&server).interval("200ms").start();
    exporter.after_polls(5);
    let requests = server.requests();
    let connections = requests
        .iter()
        .map(|request| request.connection)
        .max()
        .unwrap();
    let polls = server.count(HEALTH);
    assert!(requests.len() >= 4 * (polls - 1), "{requests:?}");
    // The first poll asks for what is not there, too, which may cost it a second one.
    assert!(
        connections <= polls + 1,
        "{connections} connections in {polls} polls: {requests:?}"
    );
    // A connection that is kept open holds one of the server's threads.
    support::eventually("no connection is open between two polls", || {
        server.open() == 0
    });
}

#[test]
fn the_key_goes_with_every_question() {
    let server = server();
    let exporter = Exporter::watching(&server)
        .variable("LLAMACPP_API_KEY", "sk-secret")
        .start();
    exporter.after_polls(2);
    for request in server.requests_to(METRICS) {
        assert_eq!(
            request.header("Authorization"),
            Some("Bearer sk-secret"),
            "{request:?}"
        );
    }
}

// States of the server that are no faults.

#[test]
fn a_server_that_loads_its_model_is_up() {
    let server = server();
    let loading = Answer::error(503, "Loading model");
    for endpoint in ENDPOINTS {
        server.answer(endpoint, loading.clone());
    }
    let patient = Patient::watching(&server);
    let scrape = patient.exporter.after_polls(2);
    assert!(scrape.up(), "{scrape:?}");
    assert_eq!(scrape.status(), Some("loading"), "{scrape:?}");
    assert_eq!(scrape.errors(), 0, "{scrape:?}");
    server.answer(HEALTH, Answer::json(r#"{"status":"ok"}"#));
    server.answer(PROPS, Answer::json(recordings::file(OLD, "props.json")));
    server.answer(MODELS, Answer::json(recordings::file(OLD, "models.json")));
    server.replay(OLD, Stage::Busy);
    patient.recovers();
}

#[test]
fn metrics_that_are_switched_off_are_no_fault_and_the_log_says_how_to_switch_them_on() {
    let server = server();
    server.answer(
        METRICS,
        Answer::error(501, "This server does not support metrics endpoint."),
    );
    let patient = Patient::watching(&server);
    let scrape = patient.exporter.after_polls(3);
    assert_eq!(scrape.errors(), 0, "{scrape:?}");
    assert_eq!(scrape.status(), Some("running"), "{scrape:?}");
    assert_eq!(scrape.value("llamacpp_slots_busy"), Some(1.0), "{scrape:?}");
    assert_eq!(
        scrape.value("llamacpp_generated_tokens_total"),
        None,
        "{scrape:?}"
    );
    assert_eq!(
        scrape.value("llamacpp_decode_calls_total"),
        None,
        "{scrape:?}"
    );
    patient.has_said_once(&["--metrics"]);
    patient.stays_well();
}

#[test]
fn slots_that_are_switched_off_are_no_fault() {
    let server = server();
    server.answer(
        SLOTS,
        Answer::error(501, "This server does not support slots endpoint."),
    );
    let patient = Patient::watching(&server);
    let scrape = patient.exporter.after_polls(3);
    assert_eq!(scrape.errors(), 0, "{scrape:?}");
    assert_eq!(scrape.status(), Some("running"), "{scrape:?}");
    assert_eq!(
        scrape.value("llamacpp_decode_calls_total"),
        Some(2.0),
        "{scrape:?}"
    );
    patient.has_said_once(&["--slots"]);
    patient.stays_well();
}

// What the documents say.

#[test]
fn a_number_that_is_none_is_left_out() {
    let nonsense = [
        "NaN", "nan", "-nan", "+Inf", "-Inf", "inf", "1e999", "1e300", "-1", "-1e300",
    ];
    all_at_once(nonsense.map(|value| (value, value)).into(), |nonsense| {
        let server = server();
        let exposition = with_values(
            &recordings::metrics(OLD, Stage::Busy),
            &[
                ("prompt_tokens_total", nonsense),
                ("tokens_predicted_total", nonsense),
                ("n_decode_total", nonsense),
                ("n_tokens_max", nonsense),
                ("requests_deferred", nonsense),
            ],
        );
        server.answer(METRICS, Answer::exposition(exposition));
        let scrape = shown(&server);
        for absent in [
            "llamacpp_prompt_tokens_total",
            "llamacpp_generated_tokens_total",
            "llamacpp_decode_calls_total",
            "llamacpp_max_sequence_tokens",
            "llamacpp_requests_deferred",
            "llamacpp_tokens_per_second",
            "llamacpp_batch_size",
        ] {
            assert!(!scrape.has(absent), "{absent} from {nonsense}:\n{scrape:?}");
        }
        // What stands beside it is known all the same.
        assert_eq!(
            scrape.value("llamacpp_prompt_seconds_total"),
            Some(0.37),
            "{scrape:?}"
        );
        assert_eq!(
            scrape.value("llamacpp_requests_processing"),
            Some(1.0),
            "{scrape:?}"
        );
        assert_eq!(scrape.status(), Some("running"), "{scrape:?}");
    });
}

#[test]
fn counters_past_a_million_have_six_digits() {
    let server = server();
    let exposition = with_values(
        &recordings::metrics(OLD, Stage::Busy),
        &[
            ("tokens_predicted_total", "1.23457e+06"),
            ("n_decode_total", "9.87654e+12"),
        ],
    );
    server.answer(METRICS, Answer::exposition(exposition));
    let scrape = shown(&server);
    // Two tokens are on their way in a slot. Whole numbers are written out.
    let text = |name| scrape.sample(name, &[]).map(|sample| sample.text.clone());
    assert_eq!(
        text("llamacpp_generated_tokens_total").as_deref(),
        Some("1234572")
    );
    assert_eq!(
        text("llamacpp_decode_calls_total").as_deref(),
        Some("9876540000000")
    );
}

#[test]
fn negative_and_huge_numbers_in_json_never_come_out() {
    let nonsense = [
        "-1",
        "-9223372036854775809",
        "1e300",
        "1e999",
        "18446744073709551616",
        "0.5",
        "\"2\"",
        "true",
        "null",
        "[]",
        "{}",
    ];
    all_at_once(nonsense.map(|value| (value, value)).into(), |value| {
        let server = server();
        let models = String::from_utf8(recordings::file(OLD, "models.json")).unwrap();
        let models = models
            .replace("268098176", value)
            .replace("246587904", value);
        server.answer(MODELS, Answer::json(models));
        let props = String::from_utf8(recordings::file(OLD, "props.json")).unwrap();
        let props = props.replace("2048", value);
        let props = props.replace("\"total_slots\":2", &format!("\"total_slots\":{value}"));
        server.answer(PROPS, Answer::json(props));
        let slots = r#"[{"id":0,"n_ctx":VALUE,"is_processing":true,"id_task":9,
            "n_prompt_tokens":VALUE,"n_prompt_tokens_processed":VALUE,
            "next_token":[{"n_decoded":VALUE}]}]"#;
        server.answer(SLOTS, Answer::json(slots.replace("VALUE", value)));

        let patient = Patient::watching(&server);
        // Every scrape is checked for what is not a number, infinite or negative.
        let scrape = patient.exporter.after_polls(3);
        assert!(scrape.up(), "{scrape:?}");
        for sample in &scrape.samples {
            let counts = [
                "_tokens",
                "_tokens_total",
                "_parameters",
                "_slots",
                "_bytes",
            ];
            if counts.iter().any(|end| sample.name.ends_with(end)) {
                let whole = sample.value.fract() == 0.0 && sample.value < 9.1e15;
                assert!(whole, "{value} gave {sample:?}");
            }
        }
        server.answer(MODELS, Answer::json(recordings::file(OLD, "models.json")));
        server.answer(PROPS, Answer::json(recordings::file(OLD, "props.json")));
        server.replay(OLD, Stage::Busy);
        patient.recovers();
    });
}

#[test]
fn a_model_may_have_any_name() {
    let long = "m".repeat(10_000);
    let names = [
        r#"ai/"quoted""#,
        r"C:\models\gemma.gguf",
        "two\nlines",
        "tab\tand\rreturn",
        "a{b=\"c\"} 1\n# EOF",
        "模型-🦙",
        "nul\0byte",
        " ",
        long.as_str(),
    ];
    all_at_once(names.map(|name| ("a name", name)).into(), |name| {
        let server = server();
        let mut props = recordings::props(OLD);
        props["model_alias"] = json!(name);
        server.answer(PROPS, Answer::json(props.to_string()));
        let mut models = recordings::models(OLD);
        models["data"][0]["id"] = json!(name);
        server.answer(MODELS, Answer::json(models.to_string()));

        let scrape = shown(&server);
        let shown = scrape
            .label("llamacpp_generated_tokens_total", "model")
            .unwrap();
        if name == long {
            assert!(long.starts_with(shown.trim_end_matches('…')), "{shown}");
        } else {
            assert_eq!(shown, name);
        }
    });
}

#[test]
fn ten_thousand_slots() {
    let server = server();
    let slots: Vec<Value> = (0..10_000)
        .map(|id| {
            json!({"id": id, "n_ctx": 2048, "speculative": false, "is_processing": true,
            "id_task": id, "n_prompt_tokens": id, "n_prompt_tokens_processed": 3,
            "next_token": [{"has_next_token": true, "n_remain": 1, "n_decoded": 2}]})
        })
        .collect();
    let mut props = recordings::props(OLD);
    props["total_slots"] = json!(10_000);
    server.answer(PROPS, Answer::json(props.to_string()));
    server.answer(SLOTS, Answer::json(Value::from(slots).to_string()));

    let scrape = shown(&server);
    assert_eq!(scrape.value("llamacpp_slots"), Some(10_000.0), "{scrape:?}");
    assert_eq!(
        scrape.value("llamacpp_slots_busy"),
        Some(10_000.0),
        "{scrape:?}"
    );
    assert_eq!(
        scrape.value("llamacpp_generated_tokens_total"),
        Some(20_000.0),
        "{scrape:?}"
    );
    assert_eq!(
        scrape.value("llamacpp_context_size_tokens"),
        Some(9_999.0),
        "{scrape:?}"
    );
    // One series a slot would be too many.
    assert!(!scrape.has("llamacpp_context_tokens"), "{scrape:?}");
}

#[test]
fn sixty_four_slots_are_shown_one_by_one_and_sixty_five_are_not() {
    for (count, shown_slots) in [(64, 64), (65, 0)] {
        let server = Server::recorded(MIDDLE, Stage::Busy);
        let slots: Vec<Value> = (0..count)
            .map(|id| {
                json!({"id": id, "n_ctx": 2048, "is_processing": true,
                "n_prompt_tokens": 100 + id, "next_token": [{"n_decoded": 1}]})
            })
            .collect();
        server.answer(SLOTS, Answer::json(Value::from(slots).to_string()));
        let scrape = shown(&server);
        assert_eq!(
            scrape.all("llamacpp_context_tokens").len(),
            shown_slots,
            "{scrape:?}"
        );
    }
}

#[test]
fn the_exposition_of_builds_7010_to_7100_is_one_json_string() {
    let server = server();
    let exposition = recordings::metrics(OLD, Stage::Busy);
    server.answer(METRICS, Answer::exposition(json!(exposition).to_string()));
    assert_all_is_well(&shown(&server));
}

#[test]
fn both_shapes_of_next_token_are_read() {
    for next_token in [json!([{"n_decoded": 5}]), json!({"n_decoded": 5})] {
        let server = server();
        let slots = json!([{"id": 0, "n_ctx": 2048, "is_processing": true, "id_task": 1,
            "next_token": next_token}]);
        server.answer(SLOTS, Answer::json(slots.to_string()));
        let scrape = shown(&server);
        assert_eq!(
            scrape.value("llamacpp_generated_tokens_total"),
            Some(5.0),
            "{scrape:?}"
        );
    }
}

#[test]
fn expositions_may_have_comments_blank_lines_labels_timestamps_and_strangers() {
    let server = server();
    let known = recordings::metrics(OLD, Stage::Busy);
    let known = known.replace(
        "n_decode_total 2\n",
        "n_decode_total{a=\"b \\\"} 7\"} 2 1700000000000\n",
    );
    let exposition = format!(
        "\n# a comment\n#\n{known}\n\nllamacpp:of_tomorrow{{x=\"y\"}} 7\nother_metric 1e3\r\n# EOF\n"
    );
    server.answer(METRICS, Answer::exposition(exposition));
    assert_all_is_well(&shown(&server));
}

// Lives of the server.

#[test]
fn after_a_restart_counters_count_from_the_new_life_and_no_rate_is_absurd() {
    let server = Server::recorded(NEW, Stage::After);
    let patient = Patient::watching(&server);
    let scrape = patient.exporter.after_polls(2);
    assert_eq!(
        scrape.value("llamacpp_generated_tokens_total"),
        Some(120.0),
        "{scrape:?}"
    );

    server.stop();
    patient.exporter.until("down", |scrape| scrape.down());
    let young = with_values(
        &recordings::metrics(NEW, Stage::After),
        &[
            ("tokens_predicted_total", "7"),
            ("prompt_tokens_total", "9"),
            ("n_decode_total", "8"),
        ],
    );
    let life = Answer::new(200, "text/plain", young).header("Process-Start-Time-Unix", "99999");
    server.answer(METRICS, life);
    server.start_again();
    let scrape = patient.exporter.until("up again", Scrape::up);
    for rate in [
        "llamacpp_tokens_per_second",
        "llamacpp_prompt_tokens_per_second",
    ] {
        assert!(
            scrape.value(rate).is_none_or(|rate| rate == 0.0),
            "invented: {scrape:?}"
        );
    }
    let scrape = patient.exporter.after_polls(1);
    assert_eq!(
        scrape.value("llamacpp_generated_tokens_total"),
        Some(7.0),
        "{scrape:?}"
    );
    assert_eq!(
        scrape.value("llamacpp_prompt_tokens_total"),
        Some(9.0),
        "{scrape:?}"
    );
    assert_eq!(
        scrape.value("llamacpp_decode_calls_total"),
        Some(8.0),
        "{scrape:?}"
    );
    assert_eq!(
        scrape.value("llamacpp_tokens_per_second"),
        Some(0.0),
        "{scrape:?}"
    );
    patient.stays_well();
}

#[test]
fn a_restart_between_two_polls_is_noticed() {
    let server = Server::recorded(NEW, Stage::After);
    let patient = Patient::watching(&server);
    patient.exporter.after_polls(2);
    // The new life has done more than the old one; only its identity tells.
    let more = with_values(
        &recordings::metrics(NEW, Stage::After),
        &[
            ("tokens_predicted_total", "100000"),
            ("n_decode_total", "100000"),
        ],
    );
    let life = Answer::new(200, "text/plain", more).header("Process-Start-Time-Unix", "99999");
    server.answer(METRICS, life);
    let scrape = patient.exporter.until("the new life is read", |scrape| {
        scrape.value("llamacpp_generated_tokens_total") == Some(100_000.0)
    });
    let rate = scrape.value("llamacpp_tokens_per_second");
    assert!(rate.is_none_or(|rate| rate == 0.0), "invented: {scrape:?}");
    patient.stays_well();
}
