//! Whatever a server answers, the exporter stays alive, small and right.

mod support;

use serde_json::json;
use support::recordings::{self, OLD, Stage};
use support::{Answer, Exporter, Server};

/// A router with one idle model, whose server was started with `args`.
fn router(args: &[&str]) -> Server {
    let server = Server::start();
    // Before b10566 /metrics is not asked of a server that may fall asleep, until it should have.
    let props = json!({"role": "router", "build_info": "b10068-abc"});
    server.answer("/health", Answer::json(r#"{"status":"ok"}"#));
    server.answer("/props", Answer::json(props.to_string()));
    let model = json!({"id": "m", "status": {"value": "loaded", "args": args}});
    let models = json!({"data": [model], "object": "list"});
    server.answer("/models", Answer::json(models.to_string()));
    let metrics = recordings::metrics(OLD, Stage::After);
    server.answer("/metrics", Answer::exposition(metrics));
    server.answer(
        "/slots",
        Answer::json(recordings::file(OLD, "slots-after.json")),
    );
    server
}

#[test]
fn a_sleep_timer_of_any_length_does_not_end_the_process() {
    for seconds in ["18446744073709551615", "9223372036854775807", "0", "-1"] {
        let server = router(&["llama-server", "--sleep-idle-seconds", seconds]);
        let mut exporter = Exporter::watching(&server).start();
        let scrape = exporter.after_polls(3);
        assert!(exporter.is_alive() && scrape.up(), "{seconds}: {scrape:?}");
        let models = server.count("/models");
        assert!(models > 2, "{seconds}: the router was asked {models} times");
    }
}

/// What is shown of a recorded server whose `/metrics` is `exposition`.
fn shown_of(exposition: &str) -> (Exporter, support::Scrape) {
    let server = Server::recorded(OLD, Stage::Busy);
    server.answer("/metrics", Answer::exposition(exposition));
    let exporter = Exporter::watching(&server).start();
    let scrape = exporter.after_polls(2);
    (exporter, scrape)
}

#[test]
fn one_line_of_metrics_that_is_not_understood_costs_that_line() {
    let known = recordings::metrics(OLD, Stage::Busy);
    for line in [
        "llamacpp:prompt_tokens_seconds 1.#INF",
        "llamacpp:prompt_tokens_seconds -nan(ind)",
        "llamacpp:n_decode_total",
        "# TYPE",
        "llamacpp:of_tomorrow{a=\"b 1",
    ] {
        for exposition in [
            format!("{line}\n{known}"),
            format!("{known}{line}\n").replace('\n', "\r\n"),
        ] {
            let (exporter, scrape) = shown_of(&exposition);
            assert_eq!(scrape.errors(), 0, "{line}: {}", exporter.output());
            let calls = scrape.value("llamacpp_decode_calls_total");
            assert_eq!(calls, Some(2.0), "{line}: {scrape:?}");
            let said = exporter.logged(&["not understood"]).len();
            assert_eq!(said, usize::from(!line.starts_with('#')), "{line}");
        }
    }
    // What is written as C does on Windows is a number.
    let (exporter, scrape) = shown_of(&recordings::with_values(
        &known,
        &[("prompt_tokens_total", "1.5e+006")],
    ));
    let tokens = scrape.value("llamacpp_prompt_tokens_total");
    assert_eq!(tokens, Some(1.5e6), "{scrape:?}");
    assert!(exporter.logged(&["not understood"]).is_empty());
}

#[test]
fn samples_of_several_models_are_never_shown_as_those_of_one() {
    let of = |model: &str, calls: u32| {
        let known = recordings::metrics(OLD, Stage::Busy);
        let known = recordings::with_values(&known, &[("n_decode_total", &calls.to_string())]);
        let mut labelled = String::new();
        for line in known.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.split_once(' ').unwrap();
            labelled += &format!("{name}{{model=\"{model}\"}} {value}\n");
        }
        labelled
    };
    let own = recordings::models(OLD)["data"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for (exposition, calls) in [
        (of("other", 7) + &of(&own, 3), Some(3.0)),
        (of(&own, 3) + &of("other", 7), Some(3.0)),
        (of("other", 7), None),
        (of("other", 7) + &of("another", 8), None),
        (of(&own, 3) + &of(&own, 4), None),
    ] {
        let (exporter, scrape) = shown_of(&exposition);
        assert!(scrape.up(), "{scrape:?}");
        assert_eq!(
            scrape.value("llamacpp_decode_calls_total"),
            calls,
            "{exposition}"
        );
        let refused = scrape.errors_of("/metrics").contains_key("parse");
        assert_eq!(refused, calls.is_none(), "{scrape:?}");
        let said = exporter.logged(&["/metrics", "reason=parse"]).len();
        assert_eq!(said, usize::from(calls.is_none()), "{}", exporter.output());
    }
}

#[test]
fn two_base_urls_on_one_host_and_port_are_told_apart() {
    let server = Server::start();
    for path in ["/a", "/b"] {
        for (endpoint, file) in [
            ("/props", "props.json"),
            ("/v1/models", "models.json"),
            ("/slots", "slots-busy.json"),
        ] {
            let answer = Answer::json(recordings::file(OLD, file));
            server.answer(&format!("{path}{endpoint}"), answer);
        }
        let ok = Answer::json(r#"{"status":"ok"}"#);
        server.answer(&format!("{path}/health"), ok);
        let metrics = Answer::exposition(recordings::metrics(OLD, Stage::Busy));
        server.answer(&format!("{path}/metrics"), metrics);
    }
    let other = Server::recorded(OLD, Stage::Busy);
    let second = server.url() + "/b";
    let arguments = ["--base-url", &second, "--base-url", &other.url()];
    let exporter = Exporter::of(&(server.url() + "/a"))
        .arguments(&arguments)
        .start();
    // A series that stands twice fails every scrape.
    let scrape = exporter.until("all are up", |scrape| {
        let up = scrape.all("llamacpp_up");
        up.len() == 3 && up.iter().all(|sample| sample.value == 1.0)
    });
    let address = server.authority();
    for label in [
        &format!("{address}/a"),
        &format!("{address}/b"),
        &other.authority(),
    ] {
        let labels: &[(&str, &str)] = &[("server", label)];
        let slots = scrape.get("llamacpp_slots", labels);
        assert_eq!(slots, Some(2.0), "{label}: {scrape:?}");
    }
}

#[test]
fn what_an_answer_names_twice_is_shown_once() {
    let server = router(&[]);
    let model = |value: &str| json!({"id": "m", "status": {"value": value, "args": []}});
    let models = json!({"data": [model("loaded"), model("unloaded"), model("loaded")]});
    server.answer("/models", Answer::json(models.to_string()));
    let slot =
        |id: u32| json!({"id": id, "n_ctx": 8, "is_processing": false, "n_prompt_tokens": 5});
    let slots = json!([slot(0), slot(0), slot(1)]);
    server.answer("/slots", Answer::json(slots.to_string()));
    let exporter = Exporter::watching(&server).start();
    // A series that stands twice fails every scrape.
    let scrape = exporter.after_polls(3);
    assert_eq!(scrape.status(), Some("idle"), "{scrape:?}");
    assert_eq!(scrape.all("llamacpp_context_tokens").len(), 2, "{scrape:?}");
}
