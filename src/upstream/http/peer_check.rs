//! Checks that a connection reached the process that it is meant for.

use std::fmt;
use std::sync::Arc;

/// Whether a new connection, over which nothing was sent yet, reached the process that it is meant
/// for. The argument is the PID of the process that listens on a Unix socket; `None` for TCP.
#[derive(Clone)]
pub struct PeerCheck(pub Arc<dyn Fn(Option<u32>) -> bool + Send + Sync>);

impl fmt::Debug for PeerCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerCheck")
    }
}
