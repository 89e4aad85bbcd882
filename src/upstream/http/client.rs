//! An HTTP client with limits: one deadline for a whole request, a size limit for every body, and
//! no redirects.
//!
//! The requests of one poll share a connection, which is closed afterwards: between polls it would
//! occupy one of the server's few HTTP threads (cpp-httplib uses one for each open connection).

use std::path::Path;
use std::time::Duration;

use ureq::config::AutoHeaderValue;
use ureq::http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use ureq::unversioned::transport::Connector;
use ureq::{Agent, RequestBuilder};

use crate::settings::{BaseUrl, Settings};
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::http::request_error::RequestError;
use crate::upstream::http::resolver::TimedResolver;
use crate::upstream::http::response::HttpResponse;
use crate::upstream::http::transport::{LastConnection, SocketConnector};

/// Sends requests to one upstream, one at a time.
pub struct Client {
    agent: Agent,
    timeout: Duration,
    /// The connection of the last request.
    pub connection: LastConnection,
    credentials: Vec<(HeaderName, HeaderValue)>,
}

impl Client {
    /// A client for the upstream at `base`, with the time-out, API key and root certificates of
    /// `settings`. It connects only to `allowed` addresses.
    ///
    /// # Errors
    /// `--ca-file` holds no certificate, or a header cannot hold the API key.
    pub fn new(
        allowed: AllowedAddresses,
        base: &BaseUrl,
        settings: &Settings,
    ) -> Result<Client, String> {
        let connection = LastConnection::default();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Ignore proxies that environment variables set.
            .proxy(None)
            // llama.cpp issue 29104: a server stopped working when a client requested compression.
            .accept_encoding(AutoHeaderValue::None)
            .user_agent(concat!("llamacpp-exporter/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(16 * 1024)
            .input_buffer_size(32 * 1024)
            .output_buffer_size(4 * 1024)
            .max_idle_connections(1)
            .max_idle_connections_per_host(1);
        let sockets = SocketConnector {
            unix_socket: base.socket().map(Path::to_path_buf),
            last: connection.clone(),
        };
        #[cfg(feature = "tls")]
        let (config, connector) = (
            config.tls_config(crate::upstream::http::tls::config(settings)?),
            sockets.chain(ureq::unversioned::transport::RustlsConnector::default()),
        );
        #[cfg(not(feature = "tls"))]
        let connector = ().chain(sockets);
        let resolver = TimedResolver::new(allowed, base.socket().is_some());
        Ok(Client {
            agent: Agent::with_parts(config.build(), connector, resolver),
            timeout: settings.timeout,
            connection,
            credentials: credentials(base, settings)?,
        })
    }

    /// Gets `url`. Returns a response with any status. Its body has at most `limit` bytes. The
    /// request ends within `time`, and within the client's time-out.
    ///
    /// # Errors
    /// [`Reason::Connect`](crate::snapshot::Reason::Connect) or
    /// [`Reason::Timeout`](crate::snapshot::Reason::Timeout): no response, or a late one.
    pub fn get(&self, url: &str, limit: u64, time: Duration) -> Result<HttpResponse, RequestError> {
        let request = self.prepare(self.agent.get(url), Some(time));
        HttpResponse::new(
            request.call().map_err(|error| RequestError::from(&error))?,
            limit,
        )
    }

    /// Posts `json` to `url`. Returns the response as soon as it begins. Otherwise like
    /// [`Client::get`].
    pub fn post(&self, url: &str, json: &str, limit: u64) -> Result<HttpResponse, RequestError> {
        let request = self.prepare(self.agent.post(url), Some(Duration::MAX));
        let request = request.content_type("application/json");
        HttpResponse::new(
            request
                .send(json)
                .map_err(|error| RequestError::from(&error))?,
            limit,
        )
    }

    /// Gets `url`, whose response may begin late, pause for any time, and never end. Only
    /// connecting has a time-out. [`LastConnection::end`] ends it from another thread.
    ///
    /// # Errors
    /// No response, or another status than 200.
    pub fn get_endless(&self, url: &str) -> Result<HttpResponse, RequestError> {
        let request = self.prepare(self.agent.get(url), None);
        self.connection.expect_silence();
        let response = request.call().map_err(|error| RequestError::from(&error))?;
        HttpResponse::new(response, u64::MAX)?.successful()
    }

    /// A request that ends within `time` and the client's time-out, or never.
    fn prepare<Body>(
        &self,
        request: RequestBuilder<Body>,
        time: Option<Duration>,
    ) -> RequestBuilder<Body> {
        self.connection.reset();
        let request = request
            .config()
            .timeout_global(time.map(|time| time.min(self.timeout)))
            .timeout_resolve(Some(self.timeout))
            .timeout_connect(Some(self.timeout))
            .build();
        let with_header =
            |request: RequestBuilder<Body>, (name, value)| request.header(name, value);
        self.credentials
            .iter()
            .map(|(name, value)| (name, value))
            .fold(request, with_header)
    }
}

/// The headers with the user and password of `base`, and with its API key. A proxy may require the
/// former, and the llama-server behind it the latter: it reads the key from `X-Api-Key` if the
/// proxy removes `Authorization`.
fn credentials(
    base: &BaseUrl,
    settings: &Settings,
) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
    let user = base
        .userinfo()
        .map(|user| format!("Basic {}", base64(user.as_bytes())));
    let key = settings.api_key_of(base).map(|key| match &user {
        None => (AUTHORIZATION, format!("Bearer {}", key.reveal())),
        Some(_) => (API_KEY, key.reveal().to_owned()),
    });
    let headers = user
        .map(|user| (AUTHORIZATION, user))
        .into_iter()
        .chain(key);
    let secret = |(name, value): (HeaderName, String)| {
        let mut value = HeaderValue::try_from(value).map_err(|error| error.to_string())?;
        // Hidden in debug output of a request.
        value.set_sensitive(true);
        Ok((name, value))
    };
    headers.map(secret).collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = bytes.chunks(3).flat_map(|chunk| {
        let byte = |at| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digits = [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift) as usize & 63]);
        let used = chunk.len().saturating_add(1);
        let padded = digits.into_iter().take(used).chain([b'='; 2]);
        padded.take(4).map(char::from)
    });
    digits.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads() {
        assert_eq!(base64(b"martin:secret"), "bWFydGluOnNlY3JldA==");
        assert_eq!(base64(b"abc"), "YWJj");
        assert_eq!(base64(b"ab"), "YWI=");
        assert_eq!(base64(b""), "");
    }
}
