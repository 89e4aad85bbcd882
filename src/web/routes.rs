//! The routes, and their responses.

use std::io;

use tiny_http::{Header, Request, Response, Server};

use crate::metrics::exposition;

/// The content that is served. Requests are handled one by one, so a slow method delays every
/// client.
pub trait Site {
    /// The exposition, for `/metrics`.
    fn metrics(&self) -> String;
    /// The status page, as HTML, for `/`.
    fn page(&self) -> String;
    /// Whether the exporter is healthy, for `/healthz`.
    ///
    /// # Errors
    /// The reason, in one line.
    fn health(&self) -> Result<(), String>;
    /// Whether the first polls have ended, for `/readyz`.
    ///
    /// # Errors
    /// The reason, in one line.
    fn ready(&self) -> Result<(), String>;
}

/// Responds to requests until the server fails; returns the error.
pub fn run(server: &Server, site: &dyn Site) -> io::Error {
    loop {
        match server.recv() {
            Ok(request) => {
                let page = route(site, request.url());
                if let Err(error) = respond(request, page) {
                    return error;
                }
            }
            Err(error) => return error,
        }
    }
}

const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

struct Page {
    status: u16,
    content_type: &'static str,
    body: String,
}

fn route(site: &dyn Site, target: &str) -> Page {
    let path = target.split('?').next().unwrap_or(target);
    let (status, content_type, body) = match path {
        "/" => (200, HTML, site.page()),
        "/metrics" => (200, exposition::CONTENT_TYPE, site.metrics()),
        "/healthz" => state(site.health()),
        "/readyz" => state(site.ready()),
        _ => (404, TEXT, "not found: try /metrics\n".to_owned()),
    };
    Page {
        status,
        content_type,
        body,
    }
}

fn state(state: Result<(), String>) -> (u16, &'static str, String) {
    match state {
        Ok(()) => (200, TEXT, "ok\n".to_owned()),
        Err(reason) => (503, TEXT, reason + "\n"),
    }
}

fn respond(request: Request, page: Page) -> io::Result<()> {
    let content_type = Header::from_bytes("Content-Type", page.content_type)
        .map_err(|()| io::Error::other("the content type is not ASCII"))?;
    let response = Response::from_data(page.body)
        .with_status_code(page.status)
        .with_header(content_type)
        // The workers read a response by its Content-Length.
        .with_chunked_threshold(usize::MAX);
    request.respond(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Result<(), String>);

    impl Site for Fixed {
        fn metrics(&self) -> String {
            "up 1\n".into()
        }
        fn page(&self) -> String {
            "<p>".into()
        }
        fn health(&self) -> Result<(), String> {
            self.0.clone()
        }
        fn ready(&self) -> Result<(), String> {
            self.0.clone()
        }
    }

    fn get(state: Result<(), String>, target: &str) -> (u16, &'static str, String) {
        let page = route(&Fixed(state), target);
        (page.status, page.content_type, page.body)
    }

    #[test]
    fn each_path_has_its_page() {
        assert_eq!(
            get(Ok(()), "/metrics"),
            (200, exposition::CONTENT_TYPE, "up 1\n".to_owned())
        );
        assert_eq!(get(Ok(()), "/"), (200, HTML, "<p>".to_owned()));
        for path in ["/metric", "/metrics/", "//", "/METRICS", "/healthz/x"] {
            assert_eq!(get(Ok(()), path).0, 404, "{path}");
        }
    }

    #[test]
    fn a_query_is_ignored() {
        assert_eq!(get(Ok(()), "/metrics?name[]=a").0, 200);
        assert_eq!(get(Ok(()), "/?").0, 200);
        assert_eq!(get(Ok(()), "/?/metrics").1, HTML);
    }

    #[test]
    fn health_and_readiness_report_the_reason() {
        for path in ["/healthz", "/readyz"] {
            assert_eq!(get(Ok(()), path), (200, TEXT, "ok\n".to_owned()));
            let (status, _, body) = get(Err("no poll for 60 s".into()), path);
            assert_eq!((status, body.as_str()), (503, "no poll for 60 s\n"));
        }
    }
}
