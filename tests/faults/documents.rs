//! Well-formed answers with unusual content: numbers, names, slots, lines of the exposition.

use serde_json::{Value, json};

use crate::support::recordings::{self, MIDDLE, OLD, Stage, with_values};
use crate::support::{Answer, Exporter, Scrape, Server, for_each};
use crate::{
    METRICS, MODELS, Monitored, PROPS, SLOTS, assert_healthy, scrape_without_errors, server,
};

#[test]
fn a_value_that_is_not_a_number_is_absent() {
    let nonsense = [
        "NaN", "nan", "-nan", "+Inf", "-Inf", "inf", "1e999", "1e300", "-1", "-1e300",
    ];
    for_each(nonsense, |nonsense| {
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
        let scrape = scrape_without_errors(&server);
        scrape.assert_absent(&[
            "llamacpp_prompt_tokens_total",
            "llamacpp_generated_tokens_total",
            "llamacpp_decode_calls_total",
            "llamacpp_max_sequence_tokens",
            "llamacpp_requests_deferred",
            "llamacpp_tokens_per_second",
            "llamacpp_batch_size",
        ]);
        // The other metrics are unaffected.
        scrape.assert_values(&[
            ("llamacpp_prompt_seconds_total", 0.37),
            ("llamacpp_requests_processing", 1.0),
        ]);
        scrape.assert_status("running");
    });
}

#[test]
fn counters_above_a_million_are_read_from_six_digits() {
    let server = server();
    let exposition = with_values(
        &recordings::metrics(OLD, Stage::Busy),
        &[
            ("tokens_predicted_total", "1.23457e+06"),
            ("n_decode_total", "9.87654e+12"),
        ],
    );
    server.answer(METRICS, Answer::exposition(exposition));
    let scrape = scrape_without_errors(&server);
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
fn negative_and_huge_numbers_in_json_are_not_exported() {
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
    for_each(nonsense, |value| {
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
        let monitored = Monitored::watching(&server);
        // Every scrape is checked for what is not a number, infinite or negative.
        let scrape = monitored.exporter.after_polls(3);
        scrape.assert_up();
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
        monitored.assert_recovered();
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
    for_each(names, |name| {
        let server = server();
        let mut props = recordings::props(OLD);
        props["model_alias"] = json!(name);
        server.answer_json(PROPS, props);
        let mut models = recordings::models(OLD);
        models["data"][0]["id"] = json!(name);
        server.answer_json(MODELS, models);
        let scrape = scrape_without_errors(&server);
        let label = scrape
            .label("llamacpp_generated_tokens_total", "model")
            .unwrap();
        if name == long {
            assert!(long.starts_with(label.trim_end_matches('…')), "{label}");
        } else {
            assert_eq!(label, name);
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
    server.answer_json(PROPS, props);
    server.answer_json(SLOTS, Value::from(slots));
    let scrape = scrape_without_errors(&server);
    scrape.assert_values(&[
        ("llamacpp_slots", 10_000.0),
        ("llamacpp_slots_busy", 10_000.0),
        ("llamacpp_generated_tokens_total", 20_000.0),
        ("llamacpp_context_size_tokens", 9_999.0),
    ]);
    // One series a slot would be too many.
    scrape.assert_absent(&["llamacpp_context_tokens"]);
}

#[test]
fn slots_have_series_of_their_own_up_to_sixty_four() {
    for (count, shown_slots) in [(64, 64), (65, 0)] {
        let server = Server::recorded(MIDDLE, Stage::Busy);
        let slots: Vec<Value> = (0..count)
            .map(|id| {
                json!({"id": id, "n_ctx": 2048, "is_processing": true,
                "n_prompt_tokens": 100 + id, "next_token": [{"n_decoded": 1}]})
            })
            .collect();
        server.answer_json(SLOTS, Value::from(slots));
        let scrape = scrape_without_errors(&server);
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
    assert_healthy(&scrape_without_errors(&server));
}

#[test]
fn both_shapes_of_next_token_are_read() {
    for next_token in [json!([{"n_decoded": 5}]), json!({"n_decoded": 5})] {
        let server = server();
        let slots = json!([{"id": 0, "n_ctx": 2048, "is_processing": true, "id_task": 1,
            "next_token": next_token}]);
        server.answer_json(SLOTS, slots);
        let scrape = scrape_without_errors(&server);
        scrape.assert_value("llamacpp_generated_tokens_total", 5.0);
    }
}

#[test]
fn expositions_may_have_comments_labels_timestamps_and_unknown_metrics() {
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
    assert_healthy(&scrape_without_errors(&server));
}

/// What is shown of a recorded server whose `/metrics` is `exposition`.
fn scrape_of_exposition(exposition: &str) -> (Exporter, Scrape) {
    let server = Server::recorded(OLD, Stage::Busy);
    server.answer("/metrics", Answer::exposition(exposition));
    let exporter = Exporter::watching(&server).start();
    let scrape = exporter.after_polls(2);
    (exporter, scrape)
}

#[test]
fn an_invalid_line_of_metrics_is_skipped() {
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
            let (exporter, scrape) = scrape_of_exposition(&exposition);
            assert_eq!(scrape.errors(), 0, "{line}: {}", exporter.output());
            let calls = scrape.value("llamacpp_decode_calls_total");
            assert_eq!(calls, Some(2.0), "{line}: {scrape:?}");
            let lines = exporter.logged(&["cannot be parsed"]).len();
            assert_eq!(lines, usize::from(!line.starts_with('#')), "{line}");
        }
    }
    // What is written as C does on Windows is a number.
    let (exporter, scrape) = scrape_of_exposition(&recordings::with_values(
        &known,
        &[("prompt_tokens_total", "1.5e+006")],
    ));
    let tokens = scrape.value("llamacpp_prompt_tokens_total");
    assert_eq!(tokens, Some(1.5e6), "{scrape:?}");
    exporter.assert_logged(0, &["cannot be parsed"]);
}

#[test]
fn samples_of_several_models_are_not_mixed() {
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
        let (exporter, scrape) = scrape_of_exposition(&exposition);
        scrape.assert_up();
        assert_eq!(
            scrape.value("llamacpp_decode_calls_total"),
            calls,
            "{exposition}"
        );
        let refused = scrape.errors_of("/metrics").contains_key("parse");
        assert_eq!(refused, calls.is_none(), "{scrape:?}");
        let lines = exporter.logged(&["/metrics", "reason=parse"]).len();
        assert_eq!(lines, usize::from(calls.is_none()), "{}", exporter.output());
    }
}
