//! Advice for a base URL that is down.

use crate::settings::BaseUrl;
use crate::snapshot::Reason;
use crate::upstream::http::request_error::{RequestError, RequestErrorKind};
use crate::upstream::reading::Reading;

/// Why a base URL is down, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Advice {
    /// The reason, as one word.
    pub reason: &'static str,
    /// What to do, as a sentence.
    pub text: String,
}

/// Paths of llama-server that users copy into a base URL.
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
    /// The advice for `base`, whose `reading` is not up.
    pub fn on(base: &BaseUrl, reading: &Reading) -> Advice {
        // A request of an earlier poll that still waits does not fail again.
        let late = RequestError::new(Reason::Timeout, "no answer yet");
        let late = reading.requests.timed_out.then_some(&late);
        let errors = || {
            let failures = reading.requests.failures.iter();
            failures.map(|failed| &failed.error).chain(late)
        };
        // The most specific error decides.
        let error = errors()
            .find(|error| error.reason == Reason::Unauthorized)
            .or_else(|| errors().find(|error| error.kind == RequestErrorKind::BadGateway))
            .or_else(|| errors().next());
        if let Some(product) = &reading.product {
            return Advice {
                reason: "not_llama_cpp",
                text: format!(
                    "{} answers, not llama.cpp: {}",
                    product.name, product.advice
                ),
            };
        }
        Advice {
            reason: error.map_or(Reason::Status, |error| error.reason).label(),
            text: advice_on_url(base).unwrap_or_else(|| match error {
                Some(error) => advice_on_error(base, error),
                None => "a server answers, but not as llama.cpp does: check --base-url".to_owned(),
            }),
        }
    }
}

/// Advice that depends only on the base URL.
fn advice_on_url(base: &BaseUrl) -> Option<String> {
    let url = base.as_given();
    if let Some(endpoint) = ENDPOINTS.iter().find(|end| url.ends_with(*end)) {
        return Some(format!(
            "--base-url ends in {endpoint}: give the server's address only, such as http://host:8080"
        ));
    }
    url.contains("model-runner.docker.internal").then(|| {
        "check that Docker Model Runner is enabled. From a host: docker desktop enable model-runner \
         --tcp 12434 (Docker Engine has TCP enabled), --base-url http://localhost:12434; from a \
         container on Docker Engine: --base-url http://172.17.0.1:12434; for a llama-server: \
         --base-url http://host:8080"
            .to_owned()
    })
}

fn advice_on_error(base: &BaseUrl, error: &RequestError) -> String {
    let detail = &error.detail;
    let text = match (error.kind, error.reason) {
        (RequestErrorKind::WrongScheme | RequestErrorKind::Tls, _) | (_, Reason::Unauthorized) => {
            detail
        }
        (RequestErrorKind::BadGateway, _) => {
            return format!(
                "a proxy answers ({detail}): the server behind it is down or cannot be reached"
            );
        }
        (_, Reason::Timeout) if base.is_https() => {
            "the server does not respond in time: if it does not speak TLS, use http:// in \
             --base-url; otherwise it hangs, or all of its HTTP threads are busy (llama-server \
             --threads-http)"
        }
        (_, Reason::Timeout) => {
            "the server does not respond in time: it hangs, or all of its HTTP threads are busy \
             (llama-server --threads-http)"
        }
        (RequestErrorKind::NotHttp, _) if base.socket().is_some() => {
            "the server at the socket does not speak HTTP; TLS over a Unix socket is not supported"
        }
        // The detail says what to do.
        (_, Reason::Connect) if base.socket().is_some() => detail,
        (RequestErrorKind::NotHttp, _) if !base.is_https() => {
            "the server does not speak HTTP: if it speaks TLS, use https:// in --base-url"
        }
        _ => "check that the server is running and that --base-url is right; retrying",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::http::request_log::{FailedRequest, RequestTarget};
    use crate::upstream::products::Product;

    fn on(base: &str, failures: Vec<RequestError>) -> Advice {
        let target = RequestTarget {
            endpoint: "/health",
            model: None,
        };
        let failed = |error| FailedRequest {
            target: target.clone(),
            error,
            duration: None,
            is_pending: false,
        };
        let mut reading = Reading::default();
        reading.requests.failures = failures.into_iter().map(failed).collect();
        Advice::on(&base.parse().unwrap(), &reading)
    }

    #[test]
    fn the_most_specific_error_decides() {
        let parse = || RequestError::new(Reason::Parse, "is not JSON");
        let refused = || RequestError::new(Reason::Unauthorized, "the server requires an API key");
        let by_proxy = || {
            let kind = RequestErrorKind::BadGateway;
            RequestError::new(Reason::Status, "HTTP status 502").of_kind(kind)
        };
        let advice = on("http://h:1", vec![parse(), by_proxy()]);
        assert_eq!(advice.reason, "status");
        assert!(advice.text.contains("a proxy answers (HTTP status 502)"));
        let advice = on("http://h:1", vec![parse(), by_proxy(), refused()]);
        assert_eq!(advice.reason, "unauthorized");
        assert_eq!(advice.text, "the server requires an API key");
        assert_eq!(on("http://h:1", vec![parse()]).reason, "parse");
        assert_eq!(on("http://h:1", vec![]).reason, "status");
    }

    #[test]
    fn a_base_url_that_ends_in_an_endpoint_should_be_shortened() {
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
    fn the_wrong_scheme_should_be_replaced() {
        let of_kind = |kind, text: &str| RequestError::new(Reason::Connect, text).of_kind(kind);
        let cut = || {
            of_kind(
                RequestErrorKind::NotHttp,
                "Connection reset by peer (os error 104)",
            )
        };
        let wrong = || of_kind(RequestErrorKind::WrongScheme, "use the other");
        let late =
            || RequestError::new(Reason::Timeout, "no complete response within the time-out");
        assert!(on("http://h:1", vec![cut()]).text.contains("use https://"));
        assert!(!on("https://h:1", vec![cut()]).text.contains("https://"));
        assert_eq!(on("http://h:1", vec![wrong()]).text, "use the other");
        assert_eq!(on("https://h:1", vec![wrong()]).text, "use the other");
        assert!(on("https://h:1", vec![late()]).text.contains("use http://"));
        assert!(!on("http://h:1", vec![late()]).text.contains("http://"));
    }

    #[test]
    fn another_product_takes_precedence_over_errors() {
        let reading = Reading {
            product: Product::of_root_page("Ollama is running"),
            ..Reading::default()
        };
        let advice = Advice::on(&"http://h:11434".parse().unwrap(), &reading);
        assert_eq!(advice.reason, "not_llama_cpp");
        assert!(
            advice
                .text
                .starts_with("Ollama behind a proxy answers, not llama.cpp: ")
        );
    }
}
