//! API keys, and users and passwords in base URLs: which server they are sent to, and that they
//! appear in no output.

use crate::support::exporter::Output;
use crate::support::recordings::{NEW, Stage};
use crate::support::{Answer, Exporter, Server, file_with, wait_until};
use crate::{KEY, called};

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
        let start = Exporter::watching(&server).args(arguments);
        let start = variables
            .iter()
            .fold(start, |start, (name, value)| start.env(name, value));
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
fn each_server_is_sent_only_its_own_key() {
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
    let exporter = Exporter::with_url(&urls.join(",")).args(&flags);
    let variable = arguments.map(String::as_str).join(",");
    let by_variable = Exporter::with_url(&urls.join(",")).env("LLAMACPP_API_KEY_FILE", &variable);
    for exporter in [exporter, by_variable] {
        let servers = [&own, &plain, &user, &both];
        let before = servers.map(|server| server.count("/props"));
        let _exporter = exporter.start();
        wait_until("all are asked", || {
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
    Exporter::with_url(&format!("http://me:pw@{}", server.authority()))
        .args(&["--api-key-file", path])
        .start()
        .after_polls(1);
    let sent = [Some("Basic bWU6cHc=".to_owned()), Some(KEY.to_owned())];
    assert_eq!(credentials(&server), sent);
}

#[test]
fn userinfo_in_the_url_is_basic_authentication() {
    let server = Server::recorded(NEW, Stage::Busy);
    let exporter = Exporter::with_url(&format!("http://me:p%40ss@{}", server.authority())).start();
    exporter.after_polls(1);
    // me:p@ss
    assert_eq!(
        server.requests()[0].header("Authorization"),
        Some("Basic bWU6cEBzcw==")
    );
}

#[test]
fn a_secret_sent_over_plain_http_is_warned_of_once() {
    let key = file_with(KEY);
    let path = key.path().to_str().unwrap();
    let far = "http://192.0.2.1:1";
    let called = |url: &str| {
        called(
            &[
                "--check",
                "--interval",
                "100ms",
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
    let warnings = |ended: &Output| {
        let mut lines = ended.stdout.lines().map(str::to_owned).collect::<Vec<_>>();
        lines.retain(|line| line.contains("note") && line.contains("sent over http"));
        lines
    };
    let lines = warnings(&called(far));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(far), "{lines:?}");
    assert!(warnings(&called(&Server::stopped().url())).is_empty());
}

const PASSWORD: &str = "s3cret-of-the-proxy";

/// A server that throws the key back at whoever asks.
fn echoing_server() -> Server {
    let server = Server::recorded(NEW, Stage::Busy);
    let message = format!("Invalid API Key: {KEY} of user {PASSWORD}");
    let location = format!("http://user:{PASSWORD}@elsewhere.invalid/?key={KEY}");
    server.answer("/metrics", Answer::error(401, &message));
    server.answer(
        "/props",
        Answer::new(302, "text/html", "").header("Location", &location),
    );
    let slots = serde_json::json!([{"id": 0, "is_processing": message}]);
    server.answer_json("/slots", slots);
    server.answer("/stats", Answer::error(500, &message));
    server
}

fn assert_no_secret(where_: &str, text: &str) {
    for secret in [KEY, PASSWORD, "c2stN1lxLWRvLW5vdC10ZWxs"] {
        assert!(!text.contains(secret), "{secret} in {where_}:\n{text}");
    }
}

#[test]
fn secrets_appear_in_no_log_metric_page_or_report() {
    let key_file = file_with(KEY);
    let servers = [
        Server::recorded(NEW, Stage::Busy),
        echoing_server(),
        Server::stopped(),
    ];
    for server in servers {
        let url = format!("http://user:{PASSWORD}@{}/v1", server.authority());
        let exporter = Exporter::with_url(&url)
            .args(&["--log-level", "debug"])
            .env("LLAMACPP_API_KEY_FILE", key_file.path().to_str().unwrap())
            .start();
        exporter.after_polls(2);
        for path in ["/metrics", "/", "/healthz", "/readyz", "/nothing"] {
            let response = exporter.get(path);
            assert_no_secret(path, &(response.head + &response.body));
        }
        assert_no_secret("the log", &exporter.output());
        let check = called(
            &[
                "--check",
                "--interval",
                "100ms",
                "--base-url",
                &url,
                "--log-level",
                "debug",
                "--timeout",
                "1s",
            ],
            &[("LLAMACPP_API_KEY", KEY)],
        );
        assert_no_secret("the report", &(check.stdout + &check.stderr));
    }
}

#[test]
fn secrets_appear_in_no_error() {
    let bad_key = format!("{KEY}\nand more");
    let bad_key_file = file_with(&bad_key);
    let bad_key_file = bad_key_file.path().to_str().unwrap();
    let mut outputs = vec![
        called(&[], &[("LLAMACPP_API_KEY", &bad_key)]),
        called(&["--api-key-file", bad_key_file], &[]),
        called(
            &["--base-url", &format!("http://user:{PASSWORD}@x@ho st")],
            &[],
        ),
    ];
    for arguments in [
        "--base-url ftp://user:PASSWORD@host",
        "--base-url http://user:PASSWORD@host:99999",
        "--base-url user:PASSWORD@host:8080",
        "--base-url http:/user:PASSWORD@host:8080",
        "http://user:PASSWORD@host",
        "--api-key KEY",
        "--api-key=KEY",
        "--api-key-file KEY",
        "--api-key-file http://localhost:1=KEY",
        "KEY",
        "KEY --bogus",
        "-KEY",
        "http://host/?key=KEY",
        "--base-url http://host/?key=KEY",
        "--base-url http://host/#KEY",
        // Characters in a password that were not percent-encoded.
        "--base-url http://user:PASSWORD,x@host",
        "--base-url http://user:x,PASSWORD@host",
        "--base-url http://user:PASSWORD#x@host",
        "--base-url http://user:x#PASSWORD@host",
        "--base-url http://user:1/PASSWORD@host",
        "--base-url http://user:1?PASSWORD@host",
        "--log-file http://user:PASSWORD#x@host=/x",
    ] {
        let arguments = arguments.replace("PASSWORD", PASSWORD).replace("KEY", KEY);
        outputs.push(called(&arguments.split(' ').collect::<Vec<_>>(), &[]));
    }
    for (variable, value) in [
        ("LLAMACPP_BASE_URL", "https//user:PASSWORD@host"),
        ("LLAMACPP_BASE_URL", "http://a:1,http://u:PASSWORD,x@b"),
        ("LLAMACPP_API_KEY_FILE", "KEY"),
    ] {
        let value = value.replace("PASSWORD", PASSWORD).replace("KEY", KEY);
        outputs.push(called(&[], &[(variable, &value)]));
    }
    for output in outputs {
        output.assert_code(2);
        assert_no_secret("the error", &output.stderr);
    }
}
