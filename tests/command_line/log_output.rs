//! The lines on stderr, and that control characters from outside are escaped there and in reports.

use crate::called;
use crate::support::recordings::{self, OLD, Stage};
use crate::support::{Answer, Exporter, Server, assert_contains};

#[test]
fn the_log_level_filters_the_log() {
    let server = Server::recorded(OLD, Stage::Busy);
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(2);
    exporter.assert_logged(0, &["DEBUG"]);
    let url = Server::stopped().url();
    let check = ["--check", "--interval", "100ms", "--base-url", &url];
    // The report has it all.
    assert_eq!(called(&check, &[]).stderr, "");
    let debug = [&check[..], &["--log-level", "debug"]].concat();
    assert_contains(&called(&debug, &[]).stderr, &["DEBUG", "WARN"]);
}

#[test]
fn under_systemd_a_line_begins_with_its_priority() {
    let nobody = Server::stopped();
    let exporter = Exporter::watching(&nobody)
        .env("JOURNAL_STREAM", "8:1")
        .start();
    exporter.wait_for_log(&["reason=connect"]);
    for line in exporter.log_lines() {
        assert!(!starts_with_time(&line), "{line}");
        let priority = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
        let level = priority.and_then(|(level, _)| level.parse::<u8>().ok());
        assert!(level.is_some_and(|level| level < 8), "{line}");
    }
}

/// Whether it starts with a time as `2026-11-26T13:57:41.042Z`.
fn starts_with_time(line: &str) -> bool {
    let form = "0000-00-00T00:00:00.000Z ";
    let mut pairs = line.chars().zip(form.chars());
    line.len() > form.len()
        && pairs.all(|(c, of_form)| match of_form {
            '0' => c.is_ascii_digit(),
            of_form => c == of_form,
        })
}

#[test]
fn a_line_begins_with_the_time_and_the_level() {
    let exporter = Exporter::watching(&Server::stopped()).start();
    exporter.wait_for_log(&["reason=connect"]);
    for line in exporter.log_lines() {
        assert!(starts_with_time(&line), "{line}");
        let level = line.split_whitespace().nth(1);
        assert!(matches!(level, Some("INFO" | "WARN")), "{line}");
    }
}

/// What a terminal takes for a command, or turns the text around with.
const CONTROLS: [&str; 9] = [
    "\u{1b}[2J",
    "\u{7}",
    "\r",
    "\u{7f}",
    "\u{9b}2J",
    "\u{202e}",
    "\u{2066}",
    "\u{200f}",
    "\u{61c}",
];

/// A server that puts control characters and lines of its own wherever a text can stand.
fn server_of_control_characters() -> Server {
    let hostile = format!("x\nhttp://forged: up\n<3>forged\n{}", CONTROLS.concat());
    let server = Server::recorded(OLD, Stage::Busy);
    let mut props = recordings::props(OLD);
    for key in ["model_alias", "build_info", "model_path"] {
        props[key] = serde_json::json!(hostile);
    }
    server.answer_json("/props", props);
    server.answer("/slots", Answer::error(500, &hostile));
    server.answer("/stats", Answer::error(401, &hostile));
    server
}

fn assert_escaped(where_: &str, text: &str) {
    for control in CONTROLS {
        let first = control.chars().next().unwrap();
        assert!(!text.contains(first), "{first:?} in {where_}:\n{text:?}");
    }
    let forged = |line: &str| {
        line.trim_start().starts_with("http://forged") || line.starts_with("<3>forged")
    };
    assert!(!text.lines().any(forged), "{where_}:\n{text}");
}

#[test]
fn reports_and_logs_escape_control_characters() {
    let server = server_of_control_characters();
    let url = server.url();
    let check = [
        "--check",
        "--interval",
        "100ms",
        "--base-url",
        &url,
        "--log-level",
        "debug",
    ];
    let ended = called(&check, &[]);
    ended.assert_code(0);
    assert_contains(&ended.stdout, &["\\u{202e}"]);
    assert_escaped("the report", &ended.stdout);
    assert_escaped("the report's log", &ended.stderr);
    for journal in [&[][..], &[("JOURNAL_STREAM", "8:1")]] {
        let start = Exporter::watching(&server).args(&["--log-level", "debug"]);
        let start = journal
            .iter()
            .fold(start, |start, (name, value)| start.env(name, value));
        let exporter = start.start();
        exporter.after_polls(2);
        assert_escaped("the log", &exporter.output());
    }
}

#[test]
fn a_name_with_line_breaks_stays_on_one_log_line() {
    let server = Server::recorded(OLD, Stage::Busy);
    let mut props = recordings::props(OLD);
    props["model_alias"] = serde_json::json!("m\nERROR forged endpoint=/slots\u{1b}[2J");
    props["build_info"] = serde_json::json!("b1\nERROR forged too");
    server.answer_json("/props", props);
    let exporter = Exporter::watching(&server)
        .args(&["--log-level", "debug"])
        .start();
    exporter.after_polls(2);
    for line in exporter.log_lines() {
        assert!(!line.starts_with("ERROR forged"), "{line}");
        assert!(!line.contains('\u{1b}'), "{line:?}");
    }
}
