//! `--log-file` with a pipe, the standard input, a device, and one file for each of several servers.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use crate::support::exporter::{program, run};
use crate::support::recordings::{Stage, file};
use crate::support::{Answer, Exporter, Scrape, Server};

const BUILD: &str = "b10068";
/// In the log of that build.
const FINISHED: f64 = 2.0;
const COUNT: &str = "llamacpp_request_duration_seconds_count";

/// A server without `--metrics`: its counters do not reject requests of the log.
fn server() -> Server {
    let server = Server::recorded(BUILD, Stage::Idle);
    server.answer(
        "/metrics",
        Answer::error(501, "This server does not support metrics endpoint."),
    );
    server
}

fn log() -> Vec<u8> {
    file(BUILD, "log.txt")
}

fn watching(servers: &[&Server]) -> Command {
    let mut command = program();
    command.args(["--addr", "127.0.0.1:0", "--interval", "50ms"]);
    for server in servers {
        command.args(["--base-url", &server.url()]);
    }
    command
}

/// Finished requests that were counted; of one server, where there are several.
fn count(scrape: &Scrape, server: Option<&Server>) -> Option<f64> {
    let server = server.map(Server::authority);
    let all = scrape.all(COUNT);
    let mut of_server = all
        .iter()
        .filter(|sample| server.is_none() || sample.labels.get("server") == server.as_ref());
    of_server.next().map(|sample| sample.value)
}

fn wait_for_count(exporter: &Exporter, wanted: f64) {
    exporter.until("the requests are counted", |scrape| {
        count(scrape, None) == Some(wanted)
    });
}

#[test]
fn the_standard_input_is_read_until_it_ends() {
    let server = server();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut command = watching(&[&server]);
    command
        .args(["--log-file", "-"])
        .stdin(Stdio::from(OwnedFd::from(theirs)));
    let mut exporter = Exporter::spawn(command);
    wait_for_count(&exporter, 0.0);
    ours.write_all(&log()).unwrap();
    wait_for_count(&exporter, FINISHED);
    drop(ours);
    exporter.wait_for_log(&["on standard input has ended"]);
    let scrape = exporter.after_polls(3);
    assert!(exporter.is_alive());
    assert_eq!(count(&scrape, None), Some(FINISHED));
}

#[test]
fn a_pipe_is_read_while_it_is_written_and_reopened() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    run(Command::new("mkfifo").arg(&pipe)).assert_code(0);
    let server = server();
    let mut command = watching(&[&server]);
    command.arg("--log-file").arg(&pipe);
    let exporter = Exporter::spawn(command);
    for writer in 1..=2 {
        let mut pipe = fs::File::options().write(true).open(&pipe).unwrap();
        pipe.write_all(&log()).unwrap();
        // Though this writer still has it open.
        wait_for_count(&exporter, FINISHED * f64::from(writer));
    }
}

#[test]
fn each_of_several_servers_has_its_own_log() {
    let folder = tempfile::tempdir().unwrap();
    let servers = [server(), server()];
    let mut command = watching(&[&servers[0], &servers[1]]);
    let path = |number: usize| folder.path().join(number.to_string());
    for (number, server) in servers.iter().enumerate() {
        fs::write(path(number), "").unwrap();
        let log_file = format!("{}/v1={}", server.url(), path(number).display());
        command.args(["--log-file", &log_file]);
    }
    let exporter = Exporter::spawn(command);
    let both = |counts: [f64; 2]| {
        exporter.until("the requests of both are counted", |scrape| {
            [0, 1].map(|number| count(scrape, Some(&servers[number]))) == counts.map(Some)
        });
    };
    both([0.0, 0.0]);
    fs::write(path(1), log()).unwrap();
    both([0.0, FINISHED]);
    fs::write(path(0), [log(), log()].concat()).unwrap();
    both([2.0 * FINISHED, FINISHED]);
}

/// Of the two requests in the log, the recorded counters include the first.
#[test]
fn requests_beyond_the_counters_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    fs::write(&path, "").unwrap();
    let server = Server::recorded(BUILD, Stage::Idle);
    let mut command = watching(&[&server]);
    command.arg("--log-file").arg(&path);
    let exporter = Exporter::spawn(command);
    wait_for_count(&exporter, 0.0);
    let rejected = |scrape: &Scrape, reason: &str| {
        let all = scrape.all("llamacpp_log_lines_rejected_total");
        let of_reason = all.iter().find(|sample| sample.labels["reason"] == reason);
        of_reason.unwrap().value
    };
    for reason in ["format", "time", "slot", "duration", "source", "counters"] {
        assert_eq!(rejected(&exporter.scrape(), reason), 0.0, "{reason}");
    }
    fs::write(&path, log()).unwrap();
    server.replay(BUILD, Stage::After);
    wait_for_count(&exporter, 1.0);
    exporter.until("the other is rejected", |scrape| {
        rejected(scrape, "counters") == 1.0
    });
    let scrape = exporter.scrape();
    assert_eq!(count(&scrape, None), Some(1.0));
    let sum = scrape.all("llamacpp_request_generated_tokens_sum")[0].value;
    assert_eq!(sum, 120.0);
    exporter.wait_for_log(&["log lines were rejected"]);
}

#[test]
fn a_link_to_a_device_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    let server = server();
    let mut command = watching(&[&server]);
    command.arg("--log-file").arg(&path);
    let exporter = Exporter::spawn(command);
    exporter.wait_for_log(&[
        "cannot read the log file",
        "it is a device, not a regular file",
    ]);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    wait_for_count(&exporter, 0.0);
}
