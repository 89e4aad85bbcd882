//! Flags and environment variables: which are accepted, which are refused, and which take precedence.

use std::net::TcpListener;

use crate::support::exporter::{Output, program, run};
use crate::support::recordings::{NEW, OLD, Stage};
use crate::support::{Answer, Exporter, Server, assert_contains, file_with};
use crate::{KEY, called};

const VARIABLES: [&str; 11] = [
    "LLAMACPP_BASE_URL",
    "LLAMACPP_MODEL",
    "LLM_MODEL_NAME",
    "LLAMACPP_EXPORTER_ADDR",
    "LLAMACPP_SCRAPE_INTERVAL",
    "LLAMACPP_CLIENT_TIMEOUT",
    "LLAMACPP_API_KEY_FILE",
    "LLAMACPP_API_KEY",
    "LLAMACPP_CA_FILE",
    "LLAMACPP_PROMETHEUS_URL",
    "LLAMACPP_LOG_LEVEL",
];

#[test]
fn help_names_every_flag_variable_and_default() {
    for flag in ["--help", "-h"] {
        let ended = called(&[flag], &[]);
        ended.assert_code(0);
        assert_eq!(ended.stderr, "");
        for word in VARIABLES.iter().chain(&[
            "--base-url",
            "--model",
            "--addr",
            "--interval",
            "--timeout",
            "--api-key-file",
            "--ca-file",
            "--log-level",
            "--check",
            "--json",
            "--healthcheck",
            "--help",
            "--version",
            "http://model-runner.docker.internal/engines/llama.cpp/v1",
            "ai/llama3.2:1B-Q8_0",
            ":9100",
            "5s",
            "3s",
            "info",
        ]) {
            assert!(
                ended.stdout.contains(word),
                "{word} is not in\n{}",
                ended.stdout
            );
        }
        let widest = ended.stdout.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "a line of {widest:?} characters");
    }
}

#[test]
fn version_prints_revision_target_and_features() {
    let ended = called(&["--version"], &[]);
    ended.assert_code(0);
    assert_eq!(ended.stderr, "");
    let mut lines = ended.stdout.lines();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        lines.next(),
        Some(format!("llamacpp-exporter {version}").as_str())
    );
    let rest = lines.collect::<Vec<_>>().join("\n");
    for word in ["revision", "target", "features", std::env::consts::ARCH] {
        assert!(rest.contains(word), "{word} is not in\n{}", ended.stdout);
    }
    assert_eq!(rest.contains("tls"), cfg!(feature = "tls"), "{rest}");
}

#[test]
fn help_and_version_ignore_the_environment() {
    for flag in ["--help", "--version"] {
        let ended = called(&[flag], &[("LLAMACPP_SCRAPE_INTERVAL", "never")]);
        ended.assert_code(0);
    }
}

/// Asserts that the start was refused in one line with all of these words.
fn assert_refused(ended: &Output, words: &[&str]) {
    ended.assert_code(2);
    assert_eq!(ended.stdout, "");
    assert_eq!(
        ended.stderr.lines().count(),
        1,
        "one line: {}",
        ended.stderr
    );
    for word in words {
        assert!(
            ended.stderr.contains(word),
            "{word:?} is not in: {}",
            ended.stderr
        );
    }
}

#[test]
fn an_invalid_value_is_refused_with_the_accepted_forms() {
    let missing = "/does/not/exist";
    let durations = ["5s", "500ms", "1m30s"];
    let settings: [(&str, &str, &[&str], &[&str]); 7] = [
        (
            "--interval",
            "LLAMACPP_SCRAPE_INTERVAL",
            &[
                "0", "0s", "0ms", "-1s", "-5", "soon", "5x", "5 s", "inf", "NaN", "1e400",
            ],
            &durations,
        ),
        (
            "--timeout",
            "LLAMACPP_CLIENT_TIMEOUT",
            &["0", "-3s", "three"],
            &durations,
        ),
        (
            "--base-url",
            "LLAMACPP_BASE_URL",
            &[
                "ftp://host",
                "localhost:8080",
                "http://",
                "http://:80",
                "http://h:99999",
                "http://a b",
            ],
            &["http://"],
        ),
        (
            "--addr",
            "LLAMACPP_EXPORTER_ADDR",
            &[":99999", ":-1", "1.2.3.4.5:80", "[::1", "http://h:9100"],
            &[":9100", "127.0.0.1:9100", "[::1]:9100", "unix:/"],
        ),
        (
            "--addr",
            "LLAMACPP_EXPORTER_ADDR",
            &["unix:", "unix:x.sock"],
            &["unix:/"],
        ),
        (
            "--log-level",
            "LLAMACPP_LOG_LEVEL",
            &["loud", "7"],
            &["error", "warn", "info", "debug"],
        ),
        ("--ca-file", "LLAMACPP_CA_FILE", &[missing, "/"], &[]),
    ];
    for (flag, variable, values, forms) in settings {
        for value in values {
            let named = [&[flag, value], forms].concat();
            assert_refused(&called(&[flag, value], &[]), &named);
            assert_refused(&called(&[&format!("{flag}={value}")], &[]), &named);
            let named = [&[variable, value], forms].concat();
            assert_refused(&called(&[], &[(variable, value)]), &named);
        }
    }
}

#[test]
fn an_unknown_flag_is_refused() {
    assert_refused(&called(&["--bogus"], &[]), &["--bogus", "--help"]);
    assert_refused(
        &called(&["--intervall", "5s"], &[]),
        &["--intervall", "did you mean --interval?"],
    );
    assert_refused(
        &called(&["http://localhost:8080"], &[]),
        &["http://localhost:8080"],
    );
    assert_refused(&called(&["--api-key", "sk-secret"], &[]), &["--api-key"]);
    assert_refused(&called(&["-x"], &[]), &["-x"]);
}

#[test]
fn a_flag_without_its_value_is_refused() {
    for flag in [
        "--base-url",
        "--addr",
        "--interval",
        "--log-level",
        "--api-key-file",
    ] {
        assert_refused(&called(&[flag], &[]), &[flag]);
    }
}

#[test]
fn a_flag_given_twice_is_refused() {
    assert_refused(
        &called(&["--interval", "5s", "--interval", "7s"], &[]),
        &["--interval"],
    );
}

#[cfg(unix)]
#[test]
fn a_value_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let bytes = std::ffi::OsStr::from_bytes(b"http://h\xff");
    assert_refused(
        &run(program().arg("--base-url").arg(bytes)),
        &["--base-url"],
    );
    assert_refused(
        &run(program().env("LLAMACPP_BASE_URL", bytes)),
        &["LLAMACPP_BASE_URL"],
    );
}

#[test]
fn a_key_file_without_a_key_is_refused() {
    for text in ["", "\n", "two\nlines"] {
        let file = file_with(text);
        let path = file.path().to_str().unwrap();
        assert_refused(
            &called(&["--api-key-file", path], &[]),
            &["--api-key-file", "path of a file"],
        );
    }
}

#[test]
fn an_unreadable_key_file_is_refused() {
    for path in ["/does/not/exist", "/", "http://localhost:1=/does/not/exist"] {
        let words = ["cannot be read", "path of a file"];
        let flag = [&["--api-key-file"], &words[..]].concat();
        assert_refused(&called(&["--api-key-file", path], &[]), &flag);
        let variable = [&["LLAMACPP_API_KEY_FILE"], &words[..]].concat();
        assert_refused(&called(&[], &[("LLAMACPP_API_KEY_FILE", path)]), &variable);
    }
}

#[test]
fn a_key_for_an_unknown_base_url_is_refused() {
    let key = file_with(KEY);
    let of_another = format!("http://another:1={}", key.path().display());
    assert_refused(
        &called(&["--api-key-file", &of_another], &[]),
        &["--api-key-file", "http://another:1", "--base-url"],
    );
}

#[cfg(feature = "tls")]
#[test]
fn a_ca_file_without_a_certificate_is_refused() {
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for text in ["", "not a certificate", broken] {
        let file = file_with(text);
        let path = file.path().to_str().unwrap();
        let arguments = ["--ca-file", path, "--base-url", "https://localhost:1"];
        assert_refused(&called(&arguments, &[]), &["--ca-file", path, "PEM"]);
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn without_the_tls_feature_an_https_url_is_refused() {
    let words = ["--base-url", "https://localhost:1", "tls", "http://"];
    assert_refused(&called(&["--base-url", "https://localhost:1"], &[]), &words);
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let server = Server::recorded(NEW, Stage::Busy);
    let mut start = Exporter::watching(&server);
    for variable in VARIABLES {
        start = start.env(variable, "");
    }
    assert!(start.start().after_polls(1).up());
}

#[test]
fn a_flag_overrides_its_variable() {
    let (by_flag, by_variable) = (Server::recorded(OLD, Stage::Busy), Server::start());
    let exporter = Exporter::watching(&by_flag)
        .env("LLAMACPP_BASE_URL", by_variable.url())
        .env("LLAMACPP_SCRAPE_INTERVAL", "1h")
        .env("LLAMACPP_EXPORTER_ADDR", "127.0.0.1:1")
        .env("LLAMACPP_MODEL", "of-the-variable")
        .args(&["--model", "of-the-flag"])
        .start();
    let scrape = exporter.after_polls(2);
    assert!(scrape.up());
    assert_eq!(scrape.label("llamacpp_slots", "model"), Some("of-the-flag"));
    assert!(by_variable.requests().is_empty());
}

#[test]
fn a_variable_overrides_the_default() {
    let server = Server::recorded(OLD, Stage::Busy);
    let mut command = program();
    command
        .env("LLAMACPP_BASE_URL", server.url())
        .env("LLAMACPP_EXPORTER_ADDR", "127.0.0.1:0")
        .env("LLAMACPP_SCRAPE_INTERVAL", "100ms")
        .env("LLAMACPP_CLIENT_TIMEOUT", "1")
        .env("LLAMACPP_LOG_LEVEL", "debug");
    let exporter = Exporter::spawn(command);
    // At the default interval of five seconds these would take longer than the test waits.
    let scrape = exporter.after_polls(20);
    scrape.assert_up();
    assert!(!exporter.logged(&["DEBUG"]).is_empty());
}

#[test]
fn the_model_name_comes_from_the_user_else_from_the_server() {
    let server = Server::recorded(OLD, Stage::Busy);
    let label = |variables: &[(&str, &str)]| {
        let start = Exporter::watching(&server);
        let start = variables
            .iter()
            .fold(start, |start, (name, value)| start.env(name, value));
        let scrape = start.start().after_polls(1);
        scrape.label("llamacpp_slots", "model").map(str::to_owned)
    };
    let runner = ("LLM_MODEL_NAME", "ai/of-the-runner");
    let own = ("LLAMACPP_MODEL", "ai/of-the-user");
    assert_eq!(label(&[]).as_deref(), Some("gemma.gguf"));
    assert_eq!(label(&[runner]).as_deref(), Some("ai/of-the-runner"));
    assert_eq!(label(&[runner, own]).as_deref(), Some("ai/of-the-user"));
}

#[test]
fn a_model_that_its_server_never_names_has_the_default_name() {
    let server = Server::start();
    server.answer("/health", Answer::json(r#"{"status":"ok"}"#));
    server.answer("/props", Answer::json(r#"{"total_slots":1}"#));
    let slots = r#"[{"id":0,"n_ctx":1024,"is_processing":false}]"#;
    server.answer("/slots", Answer::json(slots));
    let exporter = Exporter::watching(&server).start();
    let scrape = exporter.after_polls(1);
    let labels = [("model", "ai/llama3.2:1B-Q8_0"), ("status", "idle")];
    assert_eq!(
        scrape.get("llamacpp_status", &labels),
        Some(1.0),
        "{scrape:?}"
    );
}

#[test]
fn an_address_in_use_exits_with_status_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = called(
        &["--addr", &address, "--base-url", "http://127.0.0.1:9"],
        &[],
    );
    ended.assert_code(1);
    let lines = ended
        .stderr
        .lines()
        .filter(|line| line.contains(&address))
        .count();
    assert!(lines >= 1, "{}", ended.stderr);
}

#[test]
fn a_socket_that_cannot_be_created_exits_with_status_1() {
    let address = "unix:/does/not/exist/x.sock";
    let ended = called(
        &["--addr", address, "--base-url", "http://127.0.0.1:9"],
        &[],
    );
    ended.assert_code(1);
    assert_contains(&ended.stderr, &["/does/not/exist/x.sock"]);
}
