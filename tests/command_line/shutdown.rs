//! The end of the process by a signal.

use crate::support::recordings::{NEW, Stage};
use crate::support::{Answer, ENDLESS, Exporter, Server, eventually};

#[cfg(unix)]
#[test]
fn a_signal_during_a_poll_exits_with_status_0() {
    for signal in ["TERM", "INT"] {
        // It is in the middle of a poll, which would go on for longer than this test waits.
        let server = Server::recorded(NEW, Stage::Busy);
        server.answer("/props", Answer::never());
        let exporter = Exporter::watching(&server).timeout(ENDLESS).start();
        eventually("it asks", || server.count("/props") == 1);
        let ended = exporter.signal(signal);
        assert_eq!(ended.code(), Some(0), "SIG{signal}");
    }
}
