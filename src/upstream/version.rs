//! The version document that Docker Model Runner and llama-swap serve.

use serde::Deserialize;

use crate::bounds::lenient::text;
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::exchange::Exchange;
use crate::upstream::server_url::ServerUrl;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct VersionDocument {
    #[serde(deserialize_with = "text")]
    version: Option<String>,
}

/// The `version` in the document at `endpoint`, if it is served.
pub fn read_version(
    exchange: &mut Exchange,
    url: &ServerUrl,
    endpoint: Endpoint,
) -> Option<String> {
    let version = exchange.get_optional(endpoint, &url.of(endpoint), |answer| {
        answer
            .object()
            .map(|document: VersionDocument| document.version)
    });
    version.ok()?
}
