//! The endpoints that identify a llama-server: `/health` and `/props`.

use crate::upstream::api::{Health, Props};
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::exchange::{Exchange, RequestOutcome};
use crate::upstream::http::response::HttpResponse;
use crate::upstream::server_url::ServerUrl;

/// `GET /health`.
pub const HEALTH: Endpoint = Endpoint::new("/health", 64 << 10);
/// `GET /props`. The chat template in it can be tens of KB.
pub const PROPS: Endpoint = Endpoint::new("/props", 4 << 20);

/// Reads `/health`.
pub fn read_health(exchange: &mut Exchange, url: &str) -> RequestOutcome<Health> {
    exchange.get(HEALTH, url, HttpResponse::recognized)
}

/// Reads `/props`.
pub fn read_props(exchange: &mut Exchange, url: &ServerUrl) -> RequestOutcome<Props> {
    exchange.get(PROPS, &url.of(PROPS), HttpResponse::recognized)
}
