//! What to do about a base URL that is down, for people.

use super::client::{Failure, SPEAKS_NO_TLS, SPEAKS_TLS};
use super::reading::Reading;
use crate::settings::BaseUrl;
use crate::snapshot::Reason;

/// Why a base URL is down, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Advice {
    /// In one word.
    pub reason: &'static str,
    /// In a sentence.
    pub text: String,
}

/// The paths of llama-server that people copy into a base URL.
const ENDPOINTS: [&str; 7] = [
    "/metrics",
    "/health",
    "/props",
    "/slots",
    "/models",
    "/completions",
    "/completion",
];

impl Advice {
    /// What to do about `base`, of which `reading` is not up.
    pub fn on(base: &BaseUrl, reading: &Reading) -> Advice {
        let mut failures = reading.failures.iter().map(|failed| &failed.failure);
        let is_refusal = |failure: &&Failure| failure.reason == Reason::Unauthorized;
        let first = failures.clone().find(is_refusal).or(failures.next());
        let advice = |text: &str| Advice {
            reason: first.map_or("status", |failure| failure.reason.label()),
            text: text.to_owned(),
        };
        if let Some(product) = &reading.product {
            return Advice {
                reason: "not_llama_cpp",
                text: format!(
                    "{} answers, and not llama.cpp: {}",
                    product.name, product.advice
                ),
            };
        }
        let url = base.as_given();
        if let Some(endpoint) = ENDPOINTS.iter().find(|end| url.ends_with(*end)) {
            return advice(&format!(
                "--base-url ends in {endpoint}: give the address of the server alone, such as \
                 http://host:8080"
            ));
        }
        if url.contains("model-runner.docker.internal") {
            return advice(
                "is Docker Model Runner enabled? From a host: docker desktop enable model-runner \
                 --tcp 12434 (on Docker Engine TCP is on), --base-url http://localhost:12434; from a \
                 container on Docker Engine: --base-url http://172.17.0.1:12434; for a llama-server: \
                 --base-url http://host:8080",
            );
        }
        let Some(failure) = first else {
            return advice(
                "something answers there, but not as llama.cpp does: is --base-url right?",
            );
        };
        if let Some(tls) = [SPEAKS_TLS, SPEAKS_NO_TLS]
            .iter()
            .find(|said| failure.detail.contains(*said))
        {
            return advice(tls);
        }
        match failure.reason {
            Reason::Unauthorized => advice(&failure.detail),
            Reason::Timeout if base.is_https() => advice(
                "it does not answer in time: if it speaks no TLS, use http:// in --base-url; else it \
                 hangs, or all of its HTTP threads are taken (llama-server --threads-http)",
            ),
            Reason::Timeout => advice(
                "it does not answer in time: it hangs, or all of its HTTP threads are taken \
                 (llama-server --threads-http)",
            ),
            Reason::Status => advice(
                "what answers there is no llama-server, or a proxy whose server is down: see \
                 the failed requests",
            ),
            Reason::Connect if !base.is_https() && is_cut(&failure.detail) => advice(
                "what listens there ends the connection without an answer: if it speaks TLS, use \
                 https:// in --base-url",
            ),
            _ => advice(
                "is the server running, and is --base-url right? It is asked again at every interval",
            ),
        }
    }
}

/// Whether a connection came about and was ended by the other side.
fn is_cut(detail: &str) -> bool {
    let said = detail.to_ascii_lowercase();
    said.contains("disconnected") || said.contains("reset")
}
