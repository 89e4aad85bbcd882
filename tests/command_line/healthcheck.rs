//! `--healthcheck`: asks the `/healthz` of a running exporter.

use crate::called;
use crate::support::exporter::program;
use crate::support::recordings::{NEW, Stage};
use crate::support::{Answer, Exporter, Server, eventually};

#[test]
fn a_running_exporter_is_healthy() {
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
fn an_exporter_whose_server_is_down_is_healthy() {
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
fn a_unix_socket_is_asked() {
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
    eventually("the exporter is healthy", || {
        let ended = called(&["--healthcheck", "--addr", &address], &[]);
        ended.status.success()
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_exporter_that_does_not_answer_200_is_unhealthy() {
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
