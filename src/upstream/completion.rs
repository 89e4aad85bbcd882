//! Sends a one-token completion to a loaded model, and measures the time to its first token. Does
//! not decide when to send one.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::readings::Completion;
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::Reason;
use crate::upstream::api::{ModelEntry, Props, RouterStatus};
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::http::client::Client;
use crate::upstream::http::request_error::RequestError;
use crate::upstream::http::response::HttpResponse;

/// How long the completion may take on a busy server: the longest bucket of the histogram.
/// llama-server keeps one whose client has gone in its queue until a slot is free.
const TIMEOUT: Duration = Duration::from_secs(600);
/// The most bytes of a response; a stream of one token has about a thousand.
const COMPLETION_LIMIT: u64 = 1 << 20;
const PROPS_LIMIT: u64 = 4 << 20;
const MODELS_LIMIT: u64 = 16 << 20;

/// Sends completions to one base URL.
pub struct CompletionClient {
    client: Client,
    root: String,
    /// How long any other request may take.
    timeout: Duration,
}

impl CompletionClient {
    /// A client for the server at `base`.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn new(base: &BaseUrl, settings: &Settings) -> Result<CompletionClient, String> {
        let long = Settings {
            timeout: TIMEOUT,
            ..settings.clone()
        };
        Ok(CompletionClient {
            client: Client::new(AllowedAddresses::Any, base, &long)?,
            root: base.root(),
            timeout: settings.timeout,
        })
    }

    /// Generates one token with a server's only model, or with a model of a router; calls
    /// `before_sending` unless it fails before that. `None`: the model is no longer loaded, and no
    /// completion was sent.
    ///
    /// # Errors
    /// A request failed, or the response has no token.
    pub fn one_token(
        &self,
        router_model: Option<&str>,
        before_sending: &dyn Fn(),
    ) -> Result<Option<Completion>, RequestError> {
        let result = match self.is_loaded(router_model) {
            Ok(true) => {
                before_sending();
                self.send(router_model).map(Some)
            }
            Ok(false) => Ok(None),
            Err(failure) => Err(failure),
        };
        self.client.connection.close();
        result
    }

    /// Whether the model is loaded and awake. Reads only what does not wake it.
    fn is_loaded(&self, router_model: Option<&str>) -> Result<bool, RequestError> {
        let Some(model) = router_model else {
            let props = self.get("/props", PROPS_LIMIT)?.json::<Props>()?;
            return Ok(props.is_sleeping != Some(true));
        };
        let mut is_loaded = false;
        let models = self.get("/models", MODELS_LIMIT)?;
        models.for_each_in("data", |entry: ModelEntry| {
            is_loaded |= entry.id.as_deref() == Some(model)
                && entry.status.as_ref().is_some_and(RouterStatus::is_loaded);
        })?;
        Ok(is_loaded)
    }

    fn get(&self, path: &str, limit: u64) -> Result<HttpResponse, RequestError> {
        let url = format!("{}{path}", self.root);
        self.client
            .get(&url, limit, self.timeout)
            .and_then(HttpResponse::successful)
    }

    fn send(&self, router_model: Option<&str>) -> Result<Completion, RequestError> {
        let mut request = serde_json::json!({
            "prompt": "Hello", "max_tokens": 1, "stream": true, "temperature": 0, "cache_prompt": false,
        });
        let mut url = format!("{}/v1/completions", self.root);
        if let Some(model) = router_model {
            request["model"] = model.into();
            url.push_str("?autoload=false");
        }
        let sent = Instant::now();
        let response = self
            .client
            .post(&url, &request.to_string(), COMPLETION_LIMIT)?;
        let mut first_token = None;
        let mut timings = None;
        let mut failed = false;
        response.successful()?.stream(|body| {
            for line in BufReader::new(body).lines() {
                let line = line.map_err(|error| error.to_string())?;
                let since = sent.elapsed();
                // An error after the start of the stream; older builds write it as a field
                // `error:`.
                failed |= line.starts_with("error: ");
                // The end of the stream, [DONE], is not JSON.
                let event = line
                    .strip_prefix("data: ")
                    .map(serde_json::from_str::<Chunk>);
                if let Some(Ok(chunk)) = event {
                    failed |= chunk.error.is_some();
                    first_token = first_token.or(Some(since));
                    timings = chunk.timings.or(timings);
                }
            }
            Ok(())
        })?;
        if failed {
            return Err(RequestError::new(
                Reason::Status,
                "the stream reports an error",
            ));
        }
        let first_token = first_token
            .ok_or_else(|| RequestError::new(Reason::Parse, "the stream has no token"))?;
        let (prompt_tokens, generated_tokens) =
            timings.map_or((0, 1), |timings| (timings.prompt_n, timings.predicted_n));
        Ok(Completion {
            first_token,
            prompt_tokens,
            generated_tokens,
            prompt_ms: timings.and_then(|timings| timings.prompt_ms),
        })
    }
}

#[derive(Deserialize)]
struct Chunk {
    timings: Option<ChunkTimings>,
    error: Option<IgnoredAny>,
}

#[derive(Clone, Copy, Deserialize)]
struct ChunkTimings {
    prompt_n: u64,
    prompt_ms: Option<f64>,
    predicted_n: u64,
}
