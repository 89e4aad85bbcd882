//! How the program is called: flags, variables and what they win over, errors that help, secrets
//! that stay secret, and the two commands that end by themselves.

mod support;

use std::io::Write;
use std::net::TcpListener;
use support::exporter::{Ended, program, run};
use support::recordings::{self, NEW, OLD, Stage};
use support::{Answer, ENDLESS, Exporter, Server};

const VARIABLES: [&str; 10] = [
    "LLAMACPP_BASE_URL",
    "LLAMACPP_MODEL",
    "LLM_MODEL_NAME",
    "LLAMACPP_EXPORTER_ADDR",
    "LLAMACPP_SCRAPE_INTERVAL",
    "LLAMACPP_CLIENT_TIMEOUT",
    "LLAMACPP_API_KEY_FILE",
    "LLAMACPP_API_KEY",
    "LLAMACPP_CA_FILE",
    "LLAMACPP_LOG_LEVEL",
];

fn called(arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
    run(program().args(arguments).envs(variables.iter().copied()))
}

fn file_with(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

// Help and version.

#[test]
fn help_names_every_flag_variable_and_default() {
    for flag in ["--help", "-h"] {
        let ended = called(&[flag], &[]);
        assert_eq!(ended.status.code(), Some(0));
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
fn version_prints_what_a_bug_report_needs() {
    let ended = called(&["--version"], &[]);
    assert_eq!(ended.status.code(), Some(0));
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
fn the_variables_do_not_matter_to_help_and_version() {
    for flag in ["--help", "--version"] {
        let ended = called(&[flag], &[("LLAMACPP_SCRAPE_INTERVAL", "never")]);
        assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    }
}

// What cannot be used.

/// Asserts that the start was refused in one line with all of these words.
fn assert_refused(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
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
fn a_value_that_cannot_be_used_is_refused_with_the_forms_that_can() {
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
fn what_is_not_a_flag_is_refused() {
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
fn what_is_not_utf8_is_refused() {
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
fn a_key_file_that_holds_no_key_is_refused() {
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
fn a_key_file_that_cannot_be_read_is_refused() {
    for path in ["/does/not/exist", "/", "http://localhost:1=/does/not/exist"] {
        let words = ["cannot be read", "path of a file"];
        let flag = [&["--api-key-file"], &words[..]].concat();
        assert_refused(&called(&["--api-key-file", path], &[]), &flag);
        let variable = [&["LLAMACPP_API_KEY_FILE"], &words[..]].concat();
        assert_refused(&called(&[], &[("LLAMACPP_API_KEY_FILE", path)]), &variable);
    }
}

#[test]
fn a_key_of_what_is_not_watched_is_refused() {
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
fn without_the_feature_an_https_url_is_refused() {
    let words = ["--base-url", "https://localhost:1", "tls", "http://"];
    assert_refused(&called(&["--base-url", "https://localhost:1"], &[]), &words);
}

#[test]
fn an_empty_variable_is_not_set() {
    let server = Server::recorded(NEW, Stage::Busy);
    let mut start = Exporter::watching(&server);
    for variable in VARIABLES {
        start = start.variable(variable, "");
    }
    assert!(start.start().after_polls(1).up());
}

// What wins.

#[test]
fn a_flag_wins_over_its_variable() {
    let (by_flag, by_variable) = (Server::recorded(OLD, Stage::Busy), Server::start());
    let exporter = Exporter::watching(&by_flag)
        .variable("LLAMACPP_BASE_URL", &by_variable.url())
        .variable("LLAMACPP_SCRAPE_INTERVAL", "1h")
        .variable("LLAMACPP_EXPORTER_ADDR", "127.0.0.1:1")
        .variable("LLAMACPP_MODEL", "of-the-variable")
        .arguments(&["--model", "of-the-flag"])
        .start();
    let scrape = exporter.after_polls(2);
    assert!(scrape.up());
    assert_eq!(scrape.label("llamacpp_slots", "model"), Some("of-the-flag"));
    assert!(by_variable.requests().is_empty());
}

#[test]
fn a_variable_wins_over_the_default() {
    let server = Server::recorded(OLD, Stage::Busy);
    let mut command = program();
    command
        .env("LLAMACPP_BASE_URL", server.url())
        .env("LLAMACPP_EXPORTER_ADDR", "127.0.0.1:0")
        .env("LLAMACPP_SCRAPE_INTERVAL", "100ms")
        .env("LLAMACPP_CLIENT_TIMEOUT", "1")
        .env("LLAMACPP_LOG_LEVEL", "debug");
    let exporter = Exporter::start(command);
    // At the default interval of five seconds these would take longer than the test waits.
    let scrape = exporter.after_polls(20);
    assert!(scrape.up(), "{scrape:?}");
    assert!(!exporter.logged(&["DEBUG"]).is_empty());
}

#[test]
fn the_log_tells_as_much_as_it_was_told_to() {
    let server = Server::recorded(OLD, Stage::Busy);
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(2);
    assert!(
        exporter.logged(&["DEBUG"]).is_empty(),
        "{}",
        exporter.output()
    );
    let quiet = [
        "--check",
        "--log-level",
        "error",
        "--base-url",
        &Server::nobody().url(),
    ];
    assert_eq!(called(&quiet, &[]).stderr, "");
}

#[test]
fn the_model_is_called_what_the_user_says_else_what_the_server_says() {
    let server = Server::recorded(OLD, Stage::Busy);
    let label = |variables: &[(&str, &str)]| {
        let start = Exporter::watching(&server);
        let start = variables
            .iter()
            .fold(start, |start, (name, value)| start.variable(name, value));
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
fn a_model_whose_server_has_not_named_it_yet_has_the_default_name() {
    let server = Server::start();
    for path in ["/health", "/props", "/v1/models", "/metrics", "/slots"] {
        server.answer(path, Answer::error(503, "Loading model"));
    }
    let exporter = Exporter::watching(&server).start();
    let scrape = exporter.after_polls(1);
    let labels = [("model", "ai/llama3.2:1B-Q8_0"), ("status", "loading")];
    assert_eq!(
        scrape.get("llamacpp_status", &labels),
        Some(1.0),
        "{scrape:?}"
    );
}

// The key.

#[test]
fn the_key_comes_from_a_file_or_a_variable() {
    let of_the_flag = file_with("sk-of-the-flag\n");
    let of_the_variable = file_with("  sk-of-the-file  \n");
    let flag = ["--api-key-file", of_the_flag.path().to_str().unwrap()];
    let file = (
        "LLAMACPP_API_KEY_FILE",
        of_the_variable.path().to_str().unwrap(),
    );
    let key = ("LLAMACPP_API_KEY", "sk-of-the-variable");
    for (arguments, variables, sent) in [
        (&flag[..0], vec![key], "Bearer sk-of-the-variable"),
        (&flag[..0], vec![file], "Bearer sk-of-the-file"),
        (&flag[..0], vec![file, key], "Bearer sk-of-the-file"),
        (&flag[..], vec![file, key], "Bearer sk-of-the-flag"),
    ] {
        let server = Server::recorded(NEW, Stage::Busy);
        let start = Exporter::watching(&server).arguments(arguments);
        let start = variables
            .iter()
            .fold(start, |start, (name, value)| start.variable(name, value));
        start.start().after_polls(1);
        for path in ["/props", "/metrics", "/slots"] {
            assert_eq!(
                server.requests_to(path)[0].header("Authorization"),
                Some(sent)
            );
        }
    }
}

/// What was sent to `/props` in these headers: `Authorization` and `X-Api-Key`.
fn credentials(server: &Server) -> [Option<String>; 2] {
    let asked = server.requests_to("/props");
    let asked = asked.last().expect("it is asked");
    ["Authorization", "X-Api-Key"].map(|name| asked.header(name).map(str::to_owned))
}

#[test]
fn each_upstream_is_sent_its_own_key_and_no_other() {
    let [own, plain, user, both] = [(); 4].map(|()| Server::recorded(NEW, Stage::Busy));
    let (key, of_one) = (file_with("sk-plain"), file_with("sk-own"));
    let (key, of_one) = (key.path().display(), of_one.path().display());
    let urls = [
        own.url(),
        plain.url(),
        format!("http://me:pw@{}", user.authority()),
        format!("http://me:pw@{}/v1", both.authority()),
    ];
    let arguments = [
        &format!("{}={of_one}", own.url()),
        &key.to_string(),
        &format!("{}={of_one}", both.url()),
    ];
    let basic = Some("Basic bWU6cHc=".to_owned());
    let bearer = |key: &str| Some(format!("Bearer {key}"));
    let flags = arguments.map(|text| ["--api-key-file", text]).concat();
    let exporter = Exporter::of(&urls.join(",")).arguments(&flags);
    let variable = arguments.map(String::as_str).join(",");
    let by_variable = Exporter::of(&urls.join(",")).variable("LLAMACPP_API_KEY_FILE", &variable);
    for exporter in [exporter, by_variable] {
        let servers = [&own, &plain, &user, &both];
        let before = servers.map(|server| server.count("/props"));
        let _exporter = exporter.start();
        support::eventually("all are asked", || {
            let mut counts = servers.iter().zip(before);
            counts.all(|(server, before)| server.count("/props") > before)
        });
        assert_eq!(credentials(&own), [bearer("sk-own"), None]);
        assert_eq!(credentials(&plain), [bearer("sk-plain"), None]);
        assert_eq!(credentials(&user), [basic.clone(), None]);
        assert_eq!(
            credentials(&both),
            [basic.clone(), Some("sk-own".to_owned())]
        );
    }
}

/// A proxy with basic authentication before a llama-server with a key: both reach their readers.
#[test]
fn the_user_of_a_url_and_a_key_are_both_sent() {
    let key = file_with(KEY);
    let path = key.path().to_str().unwrap();
    let server = Server::recorded(NEW, Stage::Busy);
    Exporter::of(&format!("http://me:pw@{}", server.authority()))
        .arguments(&["--api-key-file", path])
        .start()
        .after_polls(1);
    let sent = [Some("Basic bWU6cHc=".to_owned()), Some(KEY.to_owned())];
    assert_eq!(credentials(&server), sent);
}

#[test]
fn a_secret_that_others_on_the_way_can_read_is_warned_of_once() {
    let key = file_with(KEY);
    let path = key.path().to_str().unwrap();
    let far = "http://192.0.2.1:1";
    let called = |url: &str| {
        called(
            &[
                "--check",
                "--base-url",
                url,
                "--api-key-file",
                path,
                "--timeout",
                "100ms",
            ],
            &[],
        )
    };
    let warnings = |ended: &Ended| {
        let mut lines = ended.stderr.lines().map(str::to_owned).collect::<Vec<_>>();
        lines.retain(|line| line.contains("WARN") && line.contains("sent over http"));
        lines
    };
    let lines = warnings(&called(far));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(far), "{lines:?}");
    assert!(warnings(&called(&Server::nobody().url())).is_empty());
}

const KEY: &str = "sk-7Yq-do-not-tell";
const PASSWORD: &str = "s3cret-of-the-proxy";

/// A server that throws the key back at whoever asks.
fn indiscreet() -> Server {
    let server = Server::recorded(NEW, Stage::Busy);
    let message = format!("Invalid API Key: {KEY} of user {PASSWORD}");
    let location = format!("http://user:{PASSWORD}@elsewhere.invalid/?key={KEY}");
    server.answer("/metrics", Answer::error(401, &message));
    server.answer(
        "/props",
        Answer::new(302, "text/html", "").header("Location", &location),
    );
    let slots = serde_json::json!([{"id": 0, "is_processing": message}]);
    server.answer("/slots", Answer::json(slots.to_string()));
    server.answer("/stats", Answer::error(500, &message));
    server
}

fn assert_tells_nothing(where_: &str, text: &str) {
    for secret in [KEY, PASSWORD, "c2stN1lxLWRvLW5vdC10ZWxs"] {
        assert!(!text.contains(secret), "{secret} in {where_}:\n{text}");
    }
}

#[test]
fn secrets_appear_in_no_log_metric_page_or_report() {
    let key_file = file_with(KEY);
    let servers = [
        Server::recorded(NEW, Stage::Busy),
        indiscreet(),
        Server::nobody(),
    ];
    for server in servers {
        let url = format!("http://user:{PASSWORD}@{}/v1", server.authority());
        let exporter = Exporter::of(&url)
            .arguments(&["--log-level", "debug"])
            .variable("LLAMACPP_API_KEY_FILE", key_file.path().to_str().unwrap())
            .start();
        exporter.after_polls(2);
        for path in ["/metrics", "/", "/healthz", "/readyz", "/nothing"] {
            let response = exporter.get(path);
            assert_tells_nothing(path, &(response.head + &response.body));
        }
        assert_tells_nothing("the log", &exporter.output());

        let check = called(
            &[
                "--check",
                "--base-url",
                &url,
                "--log-level",
                "debug",
                "--timeout",
                "1s",
            ],
            &[("LLAMACPP_API_KEY", KEY)],
        );
        assert_tells_nothing("the report", &(check.stdout + &check.stderr));
    }
}

#[test]
fn secrets_appear_in_no_error() {
    let bad_key = format!("{KEY}\nand more");
    for ended in [
        called(&[], &[("LLAMACPP_API_KEY", &bad_key)]),
        called(
            &[
                "--api-key-file",
                file_with(&bad_key).path().to_str().unwrap(),
            ],
            &[],
        ),
        called(&["--base-url", &format!("ftp://user:{PASSWORD}@host")], &[]),
        called(
            &["--base-url", &format!("http://user:{PASSWORD}@host:99999")],
            &[],
        ),
        called(&["--base-url", &format!("user:{PASSWORD}@host:8080")], &[]),
        called(
            &["--base-url", &format!("http:/user:{PASSWORD}@host:8080")],
            &[],
        ),
        called(&[&format!("http://user:{PASSWORD}@host")], &[]),
        called(
            &[],
            &[("LLAMACPP_BASE_URL", &format!("https//user:{PASSWORD}@host"))],
        ),
        called(&["--api-key", KEY], &[]),
        called(&[&format!("--api-key={KEY}")], &[]),
        called(&["--api-key-file", KEY], &[]),
        called(
            &["--api-key-file", &format!("http://localhost:1={KEY}")],
            &[],
        ),
        called(&[], &[("LLAMACPP_API_KEY_FILE", KEY)]),
        called(&[KEY], &[]),
        called(&[KEY, "--bogus"], &[]),
        called(&[&format!("-{KEY}")], &[]),
        called(&[&format!("http://host/?key={KEY}")], &[]),
        called(&["--base-url", &format!("http://host/?key={KEY}")], &[]),
        called(&["--base-url", &format!("http://host/#{KEY}")], &[]),
        // What must be percent-encoded in a password, and was not.
        called(
            &["--base-url", &format!("http://user:{PASSWORD},x@host")],
            &[],
        ),
        called(
            &["--base-url", &format!("http://user:x,{PASSWORD}@host")],
            &[],
        ),
        called(
            &["--base-url", &format!("http://user:{PASSWORD}#x@host")],
            &[],
        ),
        called(
            &["--base-url", &format!("http://user:x#{PASSWORD}@host")],
            &[],
        ),
        called(
            &["--base-url", &format!("http://user:1/{PASSWORD}@host")],
            &[],
        ),
        called(
            &["--base-url", &format!("http://user:1?{PASSWORD}@host")],
            &[],
        ),
        called(
            &["--base-url", &format!("http://user:{PASSWORD}@x@ho st")],
            &[],
        ),
        called(
            &["--log-file", &format!("http://user:{PASSWORD}#x@host=/x")],
            &[],
        ),
        called(
            &[],
            &[(
                "LLAMACPP_BASE_URL",
                &format!("http://a:1,http://u:{PASSWORD},x@b"),
            )],
        ),
    ] {
        assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
        assert_tells_nothing("the error", &ended.stderr);
    }
}

#[test]
fn userinfo_in_the_url_is_basic_authentication() {
    let server = Server::recorded(NEW, Stage::Busy);
    let exporter = Exporter::of(&format!("http://me:p%40ss@{}", server.authority())).start();
    exporter.after_polls(1);
    // me:p@ss
    assert_eq!(
        server.requests()[0].header("Authorization"),
        Some("Basic bWU6cEBzcw==")
    );
}

// The address to serve at.

#[test]
fn an_address_in_use_ends_the_start_with_status_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = called(
        &["--addr", &address, "--base-url", "http://127.0.0.1:9"],
        &[],
    );
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    let told = ended
        .stderr
        .lines()
        .filter(|line| line.contains(&address))
        .count();
    assert!(told >= 1, "{}", ended.stderr);
}

#[test]
fn a_socket_that_cannot_be_made_ends_the_start_with_status_1() {
    let address = "unix:/does/not/exist/x.sock";
    let ended = called(
        &["--addr", address, "--base-url", "http://127.0.0.1:9"],
        &[],
    );
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("/does/not/exist/x.sock"),
        "{}",
        ended.stderr
    );
}

// The health check.

#[test]
fn healthcheck_asks_the_running_exporter() {
    let server = Server::recorded(NEW, Stage::Busy);
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(1);
    let address = exporter.address.to_string();
    let well = called(&["--healthcheck", "--addr", &address], &[]);
    assert_eq!(
        well.status.code(),
        Some(0),
        "{}{}",
        well.stdout,
        well.stderr
    );
    let well = called(&["--healthcheck"], &[("LLAMACPP_EXPORTER_ADDR", &address)]);
    assert_eq!(
        well.status.code(),
        Some(0),
        "{}{}",
        well.stdout,
        well.stderr
    );
    // Given as in the image: every address, of which one is asked.
    let port = format!(":{}", exporter.address.port());
    let well = called(&["--healthcheck", "--addr", &port], &[]);
    assert_eq!(
        well.status.code(),
        Some(0),
        "{}{}",
        well.stdout,
        well.stderr
    );
}

#[test]
fn healthcheck_does_not_mind_that_the_upstream_is_down() {
    let exporter = Exporter::watching(&Server::nobody()).start();
    exporter.after_polls(1);
    let ended = called(
        &["--healthcheck", "--addr", &exporter.address.to_string()],
        &[],
    );
    assert_eq!(
        ended.status.code(),
        Some(0),
        "{}{}",
        ended.stdout,
        ended.stderr
    );
}

#[test]
fn healthcheck_over_a_unix_socket() {
    let server = Server::recorded(NEW, Stage::Busy);
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", folder.path().join("x.sock").display());
    let mut child = program()
        .args([
            "--base-url",
            &server.url(),
            "--interval",
            "100ms",
            "--addr",
            &address,
        ])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    support::eventually("the exporter is healthy", || {
        let ended = called(&["--healthcheck", "--addr", &address], &[]);
        ended.status.success()
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn healthcheck_fails_where_nobody_answers_well() {
    let nobody = Server::nobody().authority();
    let unwell = Server::start();
    unwell.answer(
        "/healthz",
        Answer::new(503, "text/plain", "the poll thread is late"),
    );
    let silent = Server::start();
    silent.answer("/healthz", Answer::never());
    for address in [nobody, unwell.authority(), silent.authority()] {
        let ended = called(
            &["--healthcheck", "--addr", &address, "--timeout", "500ms"],
            &[],
        );
        assert_eq!(ended.status.code(), Some(1), "{address}");
        assert_eq!(
            ended.stderr.lines().count(),
            1,
            "it says why: {}",
            ended.stderr
        );
    }
}

// The report.

#[test]
fn check_reports_what_a_server_can_tell() {
    let server = Server::recorded(NEW, Stage::After);
    let ended = called(&["--check", "--base-url", &server.url()], &[]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    for word in [
        server.url().as_str(),
        "llama-server",
        "/models/gemma-3-270m-it-Q4_K_M.gguf",
        "idle",
        "llamacpp_generated_tokens_total",
        "120",
        "llamacpp_prompt_tokens_total",
        "122",
        "llamacpp_model_parameters",
    ] {
        assert!(
            ended.stdout.contains(word),
            "{word} is not in\n{}",
            ended.stdout
        );
    }
    // It polls once, and serves nothing.
    assert_eq!(server.count("/health"), 1);
    assert_eq!(server.count("/metrics"), 1);
}

#[test]
fn check_says_what_is_switched_off_and_how_to_switch_it_on() {
    let server = Server::recorded(NEW, Stage::After);
    server.answer(
        "/metrics",
        Answer::error(501, "This server does not support metrics endpoint."),
    );
    let ended = called(&["--check", "--base-url", &server.url()], &[]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("--metrics"), "{}", ended.stdout);

    let server = Server::recorded(NEW, Stage::After);
    server.answer(
        "/slots",
        Answer::error(501, "This server does not support slots endpoint."),
    );
    let ended = called(&["--check", "--base-url", &server.url()], &[]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("--slots"), "{}", ended.stdout);
}

#[test]
fn check_says_that_a_key_is_missing() {
    let server = Server::recorded(NEW, Stage::After);
    for path in ["/props", "/metrics", "/slots"] {
        server.answer(path, Answer::error(401, "Invalid API Key"));
    }
    let ended = called(&["--check", "--base-url", &server.url()], &[]);
    assert_eq!(
        ended.status.code(),
        Some(0),
        "it answered: {}",
        ended.stderr
    );
    assert!(
        ended.stdout.contains("LLAMACPP_API_KEY"),
        "{}",
        ended.stdout
    );
}

#[test]
fn check_fails_when_nothing_answers() {
    let nobody = Server::nobody();
    let ended = called(&["--check", "--base-url", &nobody.url()], &[]);
    assert_eq!(ended.status.code(), Some(1));
    let report = ended.stdout + &ended.stderr;
    assert!(report.contains(&nobody.url()), "{report}");
    assert!(report.contains("refused"), "it says why: {report}");
}

#[test]
fn check_ends_though_the_server_does_not_answer_everything() {
    for path in ["/metrics", "/slots", "/props"] {
        let server = Server::recorded(NEW, Stage::Busy);
        server.answer(path, Answer::never());
        let ended = called(
            &["--check", "--base-url", &server.url(), "--timeout", "300ms"],
            &[],
        );
        assert_eq!(server.count(path), 1, "{path}: it is not asked again");
        assert_eq!(ended.status.code(), Some(0), "{path}: {}", ended.stderr);
    }
}

#[test]
fn check_does_not_need_the_address_to_serve_at() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let server = Server::recorded(NEW, Stage::After);
    let ended = called(
        &["--check", "--base-url", &server.url(), "--addr", &address],
        &[],
    );
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}

// The process.

#[test]
fn under_systemd_a_line_begins_with_its_priority() {
    let nobody = Server::nobody();
    let exporter = Exporter::watching(&nobody)
        .variable("JOURNAL_STREAM", "8:1")
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
    let exporter = Exporter::watching(&Server::nobody()).start();
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
fn garbling() -> Server {
    let hostile = format!("x\nhttp://forged: up\n<3>forged\n{}", CONTROLS.concat());
    let server = Server::recorded(OLD, Stage::Busy);
    let mut props = recordings::props(OLD);
    for key in ["model_alias", "build_info", "model_path"] {
        props[key] = serde_json::json!(hostile);
    }
    server.answer("/props", Answer::json(props.to_string()));
    server.answer("/slots", Answer::error(500, &hostile));
    server.answer("/stats", Answer::error(401, &hostile));
    server
}

fn assert_shows_plain(where_: &str, text: &str) {
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
fn a_report_and_a_log_show_control_characters_by_their_numbers() {
    let server = garbling();
    let ended = called(&["--check", "--base-url", &server.url()], &[]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("\\u{202e}"), "{}", ended.stdout);
    assert_shows_plain("the report", &ended.stdout);
    assert_shows_plain("the report's log", &ended.stderr);

    for journal in [&[][..], &[("JOURNAL_STREAM", "8:1")]] {
        let start = Exporter::watching(&server).arguments(&["--log-level", "debug"]);
        let start = journal
            .iter()
            .fold(start, |start, (name, value)| start.variable(name, value));
        let exporter = start.start();
        exporter.after_polls(2);
        assert_shows_plain("the log", &exporter.output());
    }
}

#[test]
fn a_log_line_is_one_line_whatever_the_server_sends() {
    let server = Server::recorded(OLD, Stage::Busy);
    let mut props = recordings::props(OLD);
    props["model_alias"] = serde_json::json!("m\nERROR forged endpoint=/slots\u{1b}[2J");
    props["build_info"] = serde_json::json!("b1\nERROR forged too");
    server.answer("/props", Answer::json(props.to_string()));
    let exporter = Exporter::watching(&server)
        .arguments(&["--log-level", "debug"])
        .start();
    exporter.after_polls(2);
    for line in exporter.log_lines() {
        assert!(!line.starts_with("ERROR forged"), "{line}");
        assert!(!line.contains('\u{1b}'), "{line:?}");
    }
}

#[cfg(unix)]
#[test]
fn the_signals_that_end_it_end_it_at_once_with_status_0() {
    for signal in ["TERM", "INT"] {
        // It is in the middle of a poll, which would go on for longer than this test waits.
        let server = Server::recorded(NEW, Stage::Busy);
        server.answer("/props", Answer::never());
        let exporter = Exporter::watching(&server).timeout(ENDLESS).start();
        support::eventually("it asks", || server.count("/props") == 1);
        let ended = exporter.signal(signal);
        assert_eq!(ended.code(), Some(0), "SIG{signal}");
    }
}
