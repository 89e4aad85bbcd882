//! What to do about a base URL that is down, for people.

use crate::settings::BaseUrl;
use crate::snapshot::Reason;
use crate::upstream::http::client::{NO_HTTP, SPEAKS_NO_TLS, SPEAKS_TLS};
use crate::upstream::reading::Reading;

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
        let failures = || reading.failures.iter().map(|failed| &failed.error);
        // What says most of why it is down comes first.
        let first = failures()
            .find(|failure| failure.reason == Reason::Unauthorized)
            .or_else(|| failures().find(|failure| failure.is_bad_gateway))
            .or_else(|| failures().next());
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
            Reason::Status if failure.is_bad_gateway => advice(&format!(
                "a proxy answers there ({}), and the server behind it is down or cannot be reached",
                failure.detail
            )),
            #[cfg(feature = "tls")]
            Reason::Connect
                if failure
                    .detail
                    .starts_with(crate::upstream::http::tls::PREFIX) =>
            {
                advice(
                    failure
                        .detail
                        .trim_start_matches(crate::upstream::http::tls::PREFIX),
                )
            }
            _ if !base.is_https() && is_no_http(&failure.detail) => advice(
                "what listens there does not answer in HTTP: if it speaks TLS, use https:// in \
                 --base-url",
            ),
            _ => advice(
                "is the server running, and is --base-url right? It is asked again at every interval",
            ),
        }
    }
}

/// Whether what listens ended the connection, or answered something that is no HTTP.
fn is_no_http(detail: &str) -> bool {
    let said = ["disconnected", "reset", NO_HTTP];
    said.iter().any(|said| detail.contains(said))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::http::client::RequestError;
    use crate::upstream::products::Product;
    use crate::upstream::reading::{FailedRequest, Target};

    fn on(base: &str, failures: Vec<RequestError>) -> Advice {
        let target = Target {
            endpoint: "/health",
            model: None,
        };
        let failed = |error| FailedRequest {
            target: target.clone(),
            error,
            is_pending: false,
        };
        let reading = Reading {
            failures: failures.into_iter().map(failed).collect(),
            ..Reading::default()
        };
        Advice::on(&base.parse().unwrap(), &reading)
    }

    fn by_proxy() -> RequestError {
        RequestError {
            is_bad_gateway: true,
            ..RequestError::new(Reason::Status, "HTTP status 502")
        }
    }

    #[test]
    fn the_failure_that_says_most_is_told() {
        let parse = || RequestError::new(Reason::Parse, "is no JSON");
        let refused = || RequestError::new(Reason::Unauthorized, "the server wants an API key");
        let advice = on("http://h:1", vec![parse(), by_proxy()]);
        assert_eq!(advice.reason, "status");
        assert!(
            advice
                .text
                .contains("a proxy answers there (HTTP status 502)")
        );
        let advice = on("http://h:1", vec![parse(), by_proxy(), refused()]);
        assert_eq!(advice.reason, "unauthorized");
        assert_eq!(advice.text, "the server wants an API key");
        assert_eq!(on("http://h:1", vec![parse()]).reason, "parse");
        assert_eq!(on("http://h:1", vec![]).reason, "status");
    }

    #[test]
    fn a_base_url_that_ends_in_an_endpoint_is_told() {
        for url in [
            "http://h:1/metrics",
            "http://h:1/metrics/",
            "http://h:1/v1/models",
            "http://h:1/v1/chat/completions",
        ] {
            let advice = on(url, vec![]);
            assert!(
                advice.text.contains("--base-url ends in /"),
                "{url}: {advice:?}"
            );
        }
        assert!(!on("http://h:1/v1", vec![]).text.contains("ends in"));
    }

    #[test]
    fn the_wrong_scheme_is_told() {
        let cut = || RequestError::new(Reason::Connect, "Connection reset by peer (os error 104)");
        let speaks = |what| RequestError::new(Reason::Connect, what);
        let late = || RequestError::new(Reason::Timeout, "no whole answer within the time-out");
        assert!(on("http://h:1", vec![cut()]).text.contains("use https://"));
        assert!(!on("https://h:1", vec![cut()]).text.contains("https://"));
        assert_eq!(on("http://h:1", vec![speaks(SPEAKS_TLS)]).text, SPEAKS_TLS);
        assert_eq!(
            on("https://h:1", vec![speaks(SPEAKS_NO_TLS)]).text,
            SPEAKS_NO_TLS
        );
        assert!(on("https://h:1", vec![late()]).text.contains("use http://"));
        assert!(!on("http://h:1", vec![late()]).text.contains("http://"));
    }

    #[test]
    fn another_product_is_told_before_anything_else() {
        let reading = Reading {
            product: Product::of_root_page("Ollama is running"),
            ..Reading::default()
        };
        let advice = Advice::on(&"http://h:11434".parse().unwrap(), &reading);
        assert_eq!(advice.reason, "not_llama_cpp");
        assert!(
            advice
                .text
                .starts_with("Ollama answers, and not llama.cpp: ")
        );
    }
}
