//! `--healthcheck`: asks the `/healthz` of a running exporter.

use crate::called;
use crate::support::exporter::program;
use crate::support::recordings::{NEW, Stage};
use crate::support::{Answer, Exporter, Server};

#[track_caller]
fn assert_healthcheck(address: &str, code: i32) {
    called(&["--healthcheck", "--addr", address], &[]).assert_code(code);
}

#[test]
fn a_running_exporter_is_healthy_whether_its_server_is_up_or_down() {
    for server in [Server::recorded(NEW, Stage::Busy), Server::stopped()] {
        assert_healthy_while_it_runs(Exporter::watching(&server).start());
    }
}

fn assert_healthy_while_it_runs(exporter: Exporter) {
    exporter.after_polls(1);
    let (address, port) = (exporter.address.clone(), exporter.socket_address().port());
    assert_healthcheck(&address, 0);
    let variables = [("LLAMACPP_EXPORTER_ADDR", address.as_str())];
    called(&["--healthcheck"], &variables).assert_code(0);
    // As in the image: every address, of which one is asked.
    assert_healthcheck(&format!(":{port}"), 0);
    assert_healthcheck(&format!("localhost:{port}"), 0);
    drop(exporter);
    assert_healthcheck(&address, 1);
}

#[test]
fn healthcheck_connects_to_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", folder.path().join("x.sock").display());
    let mut command = program();
    command.args(["--base-url", &Server::stopped().url(), "--addr", &address]);
    let exporter = Exporter::spawn(command);
    assert_healthcheck(&address, 0);
    drop(exporter);
    assert_healthcheck(&address, 1);
}

#[test]
fn an_exporter_that_does_not_answer_200_is_unhealthy() {
    let unhealthy = Server::start();
    let late = Answer::new(503, "text/plain", "the poll thread is late");
    unhealthy.answer("/healthz", late);
    let silent = Server::start();
    silent.answer("/healthz", Answer::never());
    for server in [Server::stopped(), unhealthy, silent] {
        let address = server.authority();
        let output = called(
            &["--healthcheck", "--addr", &address, "--timeout", "500ms"],
            &[],
        );
        output.assert_code(1);
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    }
}

#[test]
fn another_server_that_answers_200_is_not_the_exporter() {
    let other = Server::start();
    other.answer("/healthz", Answer::new(200, "text/plain", "ok\n"));
    let output = called(&["--healthcheck", "--addr", &other.authority()], &[]);
    output.assert_code(1);
    assert!(
        output.stderr.contains("another program answers there"),
        "{}",
        output.stderr
    );
}
