//! Advice for a base URL that is down.

use crate::process::container::Container;
use crate::settings::BaseUrl;
use crate::snapshot::Reason;
use crate::upstream::address_advice::on_address;
use crate::upstream::http::request_error::{RequestError, RequestErrorKind};
use crate::upstream::reading::Reading;

/// Why a base URL is down, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Advice {
    /// The reason, as one word.
    pub reason: &'static str,
    /// What to do, as a sentence.
    pub text: String,
    /// The failed request that decided, as an index of the reading's failures.
    pub failure: Option<usize>,
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
    /// The advice for `base`, whose `reading` is not up. The exporter runs in `container`.
    pub fn on(base: &BaseUrl, reading: &Reading, container: Option<Container>) -> Advice {
        // A request of an earlier poll that still waits does not fail again.
        let late = RequestError::new(Reason::Timeout, "no answer yet");
        let late = reading.requests.timed_out.then_some((None, &late));
        let errors = || {
            let failures = reading.requests.failures.iter().enumerate();
            failures
                .map(|(index, failed)| (Some(index), &failed.error))
                .chain(late)
        };
        // The most specific error decides.
        let decisive = errors()
            .find(|(_, error)| error.reason == Reason::Unauthorized)
            .or_else(|| errors().find(|(_, error)| error.kind == RequestErrorKind::BadGateway))
            .or_else(|| errors().next());
        if let Some(product) = &reading.product {
            return Advice {
                reason: "not_llama_cpp",
                text: format!(
                    "{} answers, not llama.cpp: {}",
                    product.name, product.advice
                ),
                failure: None,
            };
        }
        let (failure, error) = decisive.map_or((None, None), |(at, error)| (at, Some(error)));
        Advice {
            reason: error.map_or(Reason::Status, |error| error.reason).label(),
            text: advice_on_url(base).unwrap_or_else(|| match error {
                Some(error) => on_address(base, error.kind, container)
                    .unwrap_or_else(|| advice_on_error(base, error)),
                None => NOT_LLAMA_CPP.to_owned(),
            }),
            failure,
        }
    }
}

const NOT_LLAMA_CPP: &str = "a server answers, but not as llama.cpp does: check --base-url";

/// Advice that depends only on the base URL.
fn advice_on_url(base: &BaseUrl) -> Option<String> {
    let url = base.as_given();
    let endpoint = ENDPOINTS.iter().find(|end| url.ends_with(*end))?;
    Some(format!(
        "--base-url ends in {endpoint}: give the server's address only, such as http://host:8080"
    ))
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
        (_, Reason::Connect) => "check that the server is running and that --base-url is right",
        (_, Reason::Status | Reason::Parse | Reason::TooLarge) => NOT_LLAMA_CPP,
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
        Advice::on(&base.parse().unwrap(), &reading, None)
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
        let advice = Advice::on(&"http://h:11434".parse().unwrap(), &reading, None);
        assert_eq!(advice.reason, "not_llama_cpp");
        assert!(
            advice
                .text
                .starts_with("Ollama behind a proxy answers, not llama.cpp: ")
        );
    }
}
