//! The known values of one base URL besides its models: the server's kind and version, and the
//! polls.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bounds::label_enum::label_enum;
use crate::readings::ServerKind;

/// The server at a base URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// The kind of server.
    pub kind: ServerKind,
    /// Its version, as it reports it (llama-server: `build_info` of `/props`).
    pub version: Option<String>,
    /// Whether the version may become known later in this life of the server.
    pub is_version_pending: bool,
}

/// How the polling of one base URL went so far.
#[derive(Clone, Debug, Default)]
pub struct Polls {
    /// Polls that have ended.
    pub total: u64,
    /// The duration of the last one.
    pub duration: Duration,
    /// When the last successful one ended, in seconds since 1970.
    pub last_success: Option<f64>,
    /// Requests that failed, by endpoint and reason.
    pub errors: BTreeMap<(&'static str, Reason), u64>,
}

/// A request of the last poll that failed.
#[derive(Clone, Debug)]
pub struct PollFailure {
    /// The path that was requested.
    pub endpoint: &'static str,
    /// The model whose server received the request, if the base URL has several.
    pub model: Option<String>,
    /// The kind of failure.
    pub reason: Reason,
    /// What happened and what to do, for the user.
    pub detail: String,
}

label_enum! {
    /// Why a request failed, as the label `reason` spells it.
    pub enum Reason {
        /// No connection, or one that broke before the response was complete.
        Connect = "connect",
        /// No complete response within the deadline.
        Timeout = "timeout",
        /// An HTTP status other than success.
        Status = "status",
        /// More bytes or items than any real server sends.
        TooLarge = "too_large",
        /// A response that is not what this endpoint serves.
        Parse = "parse",
        /// The server requires an API key, and got none or a wrong one.
        Unauthorized = "unauthorized",
    }
}
