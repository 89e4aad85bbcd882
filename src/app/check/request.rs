//! Single requests to the exporter and to Prometheus, with the limits of every request.

use crate::settings::{BaseUrl, Settings};
use crate::snapshot::Reason;
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::http::client::Client;
use crate::upstream::http::request_error::RequestError;
use crate::upstream::http::response::HttpResponse;

/// Gets `path` below `base`, whose body has at most `limit` bytes. Returns a response with any
/// status.
///
/// # Errors
/// No response.
pub fn get(
    base: &BaseUrl,
    path: &str,
    limit: u64,
    settings: &Settings,
) -> Result<HttpResponse, RequestError> {
    let client = Client::new(AllowedAddresses::Any, base, settings);
    let client = client.map_err(|error| RequestError::new(Reason::Connect, error))?;
    let url = format!("{}{path}", base.for_requests());
    client.get(&url, limit, settings.timeout)
}

/// The state of an address that gave no response.
pub fn state_of(error: &RequestError) -> &'static str {
    match error.reason {
        Reason::Connect => "none",
        Reason::Timeout => "unreachable",
        _ => "other",
    }
}
