//! Answers that cannot be used: status, format, size, framing, redirects.

use std::sync::{Mutex, PoisonError};

use crate::support::recordings::{self, OLD, Stage};
use crate::support::{Answer, Exporter, for_each, for_each_case};
use crate::{ENDPOINTS, HEALTH, METRICS, MODELS, Monitored, PROPS, SLOTS};
use crate::{assert_fault, assert_fault_at, assert_healthy, scrape_without_errors, server};

#[test]
fn a_status_of_500() {
    assert_fault_at(&ENDPOINTS, Answer::error(500, "internal error"), "status");
}

#[test]
fn a_missing_or_wrong_key() {
    assert_fault_at(
        &ENDPOINTS,
        Answer::error(401, "Invalid API Key"),
        "unauthorized",
    );
}

#[test]
fn html_in_place_of_json_or_an_exposition() {
    assert_fault_at(&ENDPOINTS, Answer::html(), "parse");
}

#[test]
fn truncated_documents() {
    for_each(ENDPOINTS, |endpoint| {
        let body = String::from_utf8(server().answer_of(endpoint).body().to_vec()).unwrap();
        // The exposition ends within the name of a metric.
        let end = body
            .find("\nllamacpp:n_decode")
            .map_or(body.len() / 2, |start| start + 12);
        assert_fault(endpoint, Answer::json(&body[..end]), "parse");
    });
}

#[test]
fn empty_documents() {
    assert_fault_at(&ENDPOINTS, Answer::json(""), "parse");
}

#[test]
fn a_status_of_204() {
    let nothing = Answer::new(204, "application/json", "");
    assert_fault_at(&ENDPOINTS, nothing, "status");
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
    for_each(bodies, |body| {
        let server = server();
        let monitored = Monitored::watching(&server);
        let healthy = ENDPOINTS.map(|endpoint| server.answer_of(endpoint));
        for endpoint in ENDPOINTS {
            server.answer(endpoint, Answer::json(body));
        }
        monitored.exporter.after_polls(2);
        for (endpoint, answer) in ENDPOINTS.iter().zip(healthy) {
            server.answer(endpoint, answer);
        }
        monitored.assert_recovered();
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
fn a_gigabyte_with_content_length() {
    assert_gigabyte_is_not_read(&ENDPOINTS, |answer| answer);
}

#[test]
fn a_gigabyte_in_chunks() {
    assert_gigabyte_is_not_read(&ENDPOINTS, Answer::chunked);
}

#[test]
fn a_gigabyte_until_the_connection_closes() {
    assert_gigabyte_is_not_read(&[HEALTH, PROPS, MODELS, METRICS], Answer::until_closed);
}

/// Reading up to the limits takes more of a processor than any other test: one at a time.
static SEQUENTIAL: Mutex<()> = Mutex::new(());

fn assert_gigabyte_is_not_read(endpoints: &[&str], frame: impl Fn(Answer) -> Answer + Sync) {
    let _alone = SEQUENTIAL.lock().unwrap_or_else(PoisonError::into_inner);
    for_each(endpoints.iter().copied(), |endpoint| {
        let server = server();
        let healthy = server.answer_of(endpoint);
        server.answer(endpoint, frame(beginning(endpoint)).and_a_gigabyte_more());
        let monitored = Monitored::of(Exporter::watching(&server).timeout("60s"));
        monitored.assert_counted(endpoint, "too_large");
        for request in server.requests_to(endpoint) {
            // No endpoint's limit is larger; the system holds some more for us.
            assert!(request.flooded < 40 << 20, "it read on: {request:?}");
        }
        server.answer(endpoint, healthy);
        monitored.assert_recovered();
    });
}

#[test]
fn an_exposition_of_a_hundred_thousand_families() {
    let server = server();
    let unknown: String = (0..100_000)
        .map(|number| format!("m{number} 1\n"))
        .collect();
    let exposition = recordings::metrics(OLD, Stage::Busy) + &unknown;
    server.answer(METRICS, Answer::exposition(exposition));
    let monitored = Monitored::of(Exporter::watching(&server).timeout("60s"));
    monitored.exporter.after_polls(2);
    server.replay(OLD, Stage::Busy);
    monitored.assert_recovered();
}

#[test]
fn a_response_head_without_end() {
    let padding = "a".repeat(256 << 10);
    let answer = Answer::json("{}").header("X-Padding", &padding);
    assert_fault_at(&ENDPOINTS, answer, "too_large");
}

#[test]
fn json_nested_a_hundred_thousand_deep() {
    for (open, close) in [("[", "]"), (r#"{"data":"#, "}")] {
        let nested = open.repeat(100_000) + "1" + &close.repeat(100_000);
        assert_fault_at(&[PROPS, MODELS, SLOTS], Answer::json(nested), "parse");
    }
}

#[test]
fn deep_json_in_an_unknown_field() {
    let nested = "[".repeat(100_000) + &"]".repeat(100_000);
    let server = server();
    for endpoint in [PROPS, MODELS] {
        let known = String::from_utf8(server.answer_of(endpoint).body().to_vec()).unwrap();
        let body = known.replacen('{', &format!(r#"{{"unknown":{nested},"#), 1);
        server.answer(endpoint, Answer::json(body));
    }
    // It may be read or be an error; it must not end the exporter.
    let monitored = Monitored::watching(&server);
    monitored.exporter.after_polls(2);
    for endpoint in [PROPS, MODELS] {
        server.answer(
            endpoint,
            Answer::json(recordings::file(OLD, file_of(endpoint))),
        );
    }
    monitored.assert_recovered();
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
    for_each_case(endpoints.map(|case| (case.0, case)), |(endpoint, place)| {
        let mut body = server().answer_of(endpoint).body().to_vec();
        // The last place where it stands is one that counts.
        let at = body
            .windows(place.len())
            .rposition(|part| part == place.as_bytes())
            .unwrap();
        body[at + 1] = 0xff;
        assert_fault(endpoint, Answer::json(body), "parse");
    });
}

#[test]
fn an_unrequested_compressed_answer() {
    // gzip of `{"status":"ok"}`, stored without compression.
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x01\x0f\x00\xf0\xff{\"status\":\"ok\"}\
        \xdd\xed\x13\x1d\x0f\x00\x00\x00";
    let answer = Answer::json(gzip).header("Content-Encoding", "gzip");
    let compressed = server();
    compressed.answer(PROPS, answer.clone());
    let exporter = Exporter::watching(&compressed).start();
    exporter.wait_for_log(&["endpoint=/props", "is compressed"]);
    assert_fault_at(&ENDPOINTS, answer, "parse");
}

/// It began as HTTP: the advice for what is not HTTP would be wrong.
#[test]
fn a_server_that_ends_within_its_answers() {
    let server = server();
    for endpoint in ENDPOINTS {
        let cut = "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"status\":";
        server.answer(endpoint, Answer::raw(cut));
    }
    let exporter = Exporter::watching(&server).start();
    exporter.wait_for_log(&["the server is down", "check that the server is running"]);
}

#[test]
fn an_answer_that_is_not_http() {
    assert_fault_at(
        &ENDPOINTS,
        Answer::raw("SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        "parse",
    );
}

#[test]
fn every_framing_of_a_body_is_read() {
    let not_kept = |answer: Answer| answer.header("Connection", "close");
    for frame in [
        Answer::chunked,
        Answer::until_closed,
        Answer::http_1_0,
        not_kept,
    ] {
        let server = server();
        for endpoint in ENDPOINTS {
            server.answer(endpoint, frame(server.answer_of(endpoint)));
        }
        assert_healthy(&scrape_without_errors(&server));
    }
}

#[test]
fn redirects_are_not_followed_and_do_not_receive_the_key() {
    let elsewhere = server();
    let target = format!("{}/v1/props?token=secret", elsewhere.url());
    let statuses = [301, 302, 303, 307, 308];
    for_each(statuses, |status| {
        let server = server();
        let healthy = server.answer_of(PROPS);
        let redirect = Answer::new(status, "text/html", "moved").header("Location", &target);
        server.answer(PROPS, redirect);
        let monitored =
            Monitored::of(Exporter::watching(&server).env("LLAMACPP_API_KEY", "sk-secret"));
        monitored.assert_counted(PROPS, "status");
        // The log names the target of the redirect.
        monitored.assert_logged_once(&["endpoint=/props", &elsewhere.authority()]);
        assert_eq!(
            server.requests_to(PROPS)[0].header("Authorization"),
            Some("Bearer sk-secret")
        );
        server.answer(PROPS, healthy);
        monitored.assert_recovered();
    });
    assert!(
        elsewhere.requests().is_empty(),
        "{:?}",
        elsewhere.requests()
    );
}

#[test]
fn a_redirect_to_the_server_itself_is_not_followed() {
    let server = server();
    server.answer("/moved", server.answer_of(HEALTH));
    assert_fault_at(
        &ENDPOINTS,
        Answer::new(307, "text/html", "").header("Location", "/moved"),
        "status",
    );
    assert_eq!(server.count("/moved"), 0);
}
