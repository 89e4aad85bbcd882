//! A server that does not answer while its process is there.
//!
//! The scripted server runs in this process. `--pid-file` names a process of the test's choice as
//! the one that holds the model.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use tempfile::NamedTempFile;

use crate::support::exporter::{program, run};
use crate::support::exposition::Sample;
use crate::support::{Answer, Exporter, Scrape, Server, assert_contains, file_with};
use crate::{ENDPOINTS, HEALTH, assert_healthy, server};

const OF_PROCESS: [&str; 6] = [
    "llamacpp_memory_usage_bytes",
    "llamacpp_total_memory_bytes",
    "llamacpp_cpu_utilization_percent",
    "llamacpp_thread_count",
    "llamacpp_process_cpu_seconds_total",
    "llamacpp_process_start_time_seconds",
];
const STILL_READ: &str = "memory and CPU are still read";
const NO_LONGER_READ: &str = "memory and CPU of the server's process are no longer read";

/// A process that waits until its end, and a PID file that names it.
struct Process {
    child: Child,
    pid_file: NamedTempFile,
}

impl Process {
    fn start() -> Process {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid_file = file_with(&child.id().to_string());
        Process { child, pid_file }
    }

    fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

fn exporter(server: &Server, process: &Process) -> Exporter {
    let pid_file = process.pid_file.path().to_str().unwrap();
    let exporter = Exporter::watching(server).timeout("300ms");
    let arguments = ["--procfs", "/proc", "--pid-file", pid_file, "--no-gpu"];
    exporter.args(arguments).start()
}

/// The families about the model.
fn of_model(scrape: &Scrape) -> BTreeSet<&str> {
    let of_model = |sample: &&Sample| sample.labels.contains_key("model");
    let samples = scrape.samples.iter().filter(of_model);
    samples.map(|sample| sample.name.as_str()).collect()
}

/// Has the server answer nothing from now on.
fn hang(server: &Server) {
    for path in ENDPOINTS {
        server.answer(path, Answer::never());
    }
}

fn assert_only_process_values(exporter: &Exporter) {
    let scrape = exporter.until("down, with a CPU utilization", |scrape| {
        scrape.down() && scrape.has("llamacpp_cpu_utilization_percent")
    });
    assert_eq!(of_model(&scrape), OF_PROCESS.into(), "{scrape:?}");
    assert!(!scrape.has("llamacpp_server_info"), "{scrape:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn the_values_of_the_process_stay_while_the_server_does_not_answer() {
    let server = server();
    let process = Process::start();
    let exporter = exporter(&server, &process);
    let before = exporter.after_polls(2);
    assert_healthy(&before);
    assert!(of_model(&before).is_superset(&OF_PROCESS.into()));
    let labels = |scrape: &Scrape| scrape.all(OF_PROCESS[0])[0].labels.clone();
    let healthy = ENDPOINTS.map(|path| server.answer_of(path));
    hang(&server);
    assert_only_process_values(&exporter);
    // While the first requests still wait, no other is sent.
    let scrape = exporter.after_polls(10);
    assert_only_process_values(&exporter);
    assert_eq!(labels(&scrape), labels(&before), "the series goes on");
    assert!(scrape.errors_of(HEALTH)["timeout"] >= 1, "{scrape:?}");
    let alive = format!("its process {} is alive: {STILL_READ}", process.child.id());
    exporter.assert_logged(1, &[&alive]);
    for (path, answer) in ENDPOINTS.into_iter().zip(healthy) {
        server.answer(path, answer);
    }
    exporter.until("up", |scrape| !scrape.down());
    let after = exporter.after_polls(2);
    assert_healthy(&after);
    assert_eq!(labels(&after), labels(&before));
    exporter.assert_logged(1, &[STILL_READ]);
    exporter.assert_logged(0, &[NO_LONGER_READ]);
    exporter.assert_logged(1, &["found the server process"]);
}

#[cfg(target_os = "linux")]
#[test]
fn nothing_stays_once_the_process_has_ended() {
    let server = server();
    let mut process = Process::start();
    let exporter = exporter(&server, &process);
    assert_healthy(&exporter.after_polls(2));
    hang(&server);
    assert_only_process_values(&exporter);
    process.end();
    let scrape = exporter.after_polls(2);
    assert!(scrape.down() && of_model(&scrape).is_empty(), "{scrape:?}");
    exporter.assert_logged(1, &[NO_LONGER_READ]);
}

#[cfg(target_os = "linux")]
#[test]
fn nothing_stays_where_the_pid_file_names_another_process() {
    let server = server();
    let process = Process::start();
    let exporter = exporter(&server, &process);
    assert_healthy(&exporter.after_polls(2));
    hang(&server);
    assert_only_process_values(&exporter);
    let another = std::process::id().to_string();
    process.pid_file.as_file().set_len(0).unwrap();
    process
        .pid_file
        .reopen()
        .unwrap()
        .write_all(another.as_bytes())
        .unwrap();
    let scrape = exporter.after_polls(2);
    assert!(scrape.down() && of_model(&scrape).is_empty(), "{scrape:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn nothing_stays_of_a_server_that_is_known_not_to_be_there() {
    let refused = |server: &Server| server.stop();
    let other = |server: &Server| {
        let page = Answer::json("Ollama is running");
        server.answer_everything(page);
    };
    let bad_gateway = |server: &Server| {
        server.answer_everything(Answer::error(502, "Bad Gateway"));
    };
    for gone in [&refused as &dyn Fn(&Server), &other, &bad_gateway] {
        let server = server();
        let process = Process::start();
        let exporter = exporter(&server, &process);
        assert_healthy(&exporter.after_polls(2));
        gone(&server);
        exporter.until("down", Scrape::down);
        let scrape = exporter.after_polls(1);
        assert!(of_model(&scrape).is_empty(), "{scrape:?}");
        exporter.assert_logged(0, &[STILL_READ]);
    }
}

#[test]
fn nothing_stays_where_no_process_is_seen() {
    let server = server();
    let exporter = Exporter::watching(&server).timeout("300ms").start();
    assert_healthy(&exporter.after_polls(2));
    hang(&server);
    exporter.until("down", Scrape::down);
    let scrape = exporter.after_polls(2);
    assert!(of_model(&scrape).is_empty(), "{scrape:?}");
    exporter.assert_logged(0, &[STILL_READ]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_report_has_the_process_of_a_server_that_does_not_answer() {
    let server = server();
    let process = Process::start();
    hang(&server);
    let mut check = program();
    check.args(["--base-url", &server.url(), "--check", "--no-gpu"]);
    check.args([
        "--timeout",
        "300ms",
        "--interval",
        "100ms",
        "--procfs",
        "/proc",
    ]);
    check.arg("--pid-file").arg(process.pid_file.path());
    let report = run(&mut check);
    report.assert_code(1);
    let alive = format!(
        "the server does not answer; its process {} is alive",
        process.child.id()
    );
    assert_contains(
        &report.stdout,
        &["down", "does not respond in time", &alive],
    );
}
