//! The routes, and their responses.

use std::io;

use tiny_http::{Header, Request, Response, Server};

use crate::metrics::exposition;
use crate::web::status_page::PageView;

/// The content that is served. Requests are handled one by one, so a slow method delays every
/// client.
pub trait Site {
    /// The exposition, for `/metrics`.
    fn metrics(&self) -> String;
    /// The status page, as HTML, for `/`.
    fn page(&self, view: PageView) -> String;
    /// The headers of the status page.
    fn page_headers(&self, view: PageView) -> Vec<(&'static str, String)>;
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
                let response = route(site, request.url());
                if let Err(error) = respond(request, response) {
                    return error;
                }
            }
            Err(error) => return error,
        }
    }
}

/// The line of `/healthz` and `/readyz` in a good state. It tells the exporter from other servers,
/// which answer 200 to `/healthz` or to any path.
pub const GOOD: &str = "ok: llamacpp-exporter";

const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

struct RouteResponse {
    status: u16,
    content_type: &'static str,
    /// Headers besides the type.
    headers: Vec<(&'static str, String)>,
    body: String,
}

/// The part of a request's target that decides the response: only the status page has a query.
pub fn used_part(target: &str) -> &str {
    match target.split_once('?') {
        Some((path, _)) if path != "/" => path,
        _ => target,
    }
}

fn route(site: &dyn Site, target: &str) -> RouteResponse {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let view = PageView::from_query(query);
    let (status, content_type, body) = match path {
        "/" => (200, HTML, site.page(view)),
        "/metrics" => (200, exposition::CONTENT_TYPE, site.metrics()),
        "/healthz" => state(site.health()),
        "/readyz" => state(site.ready()),
        _ => (404, TEXT, "not found: try /metrics\n".to_owned()),
    };
    let headers = match path {
        "/" => site.page_headers(view),
        _ => Vec::new(),
    };
    RouteResponse {
        status,
        content_type,
        headers,
        body,
    }
}

fn state(state: Result<(), String>) -> (u16, &'static str, String) {
    match state {
        Ok(()) => (200, TEXT, format!("{GOOD}\n")),
        Err(reason) => (503, TEXT, reason + "\n"),
    }
}

fn respond(request: Request, response: RouteResponse) -> io::Result<()> {
    let header = |name: &str, value: &str| {
        Header::from_bytes(name, value).map_err(|()| io::Error::other("a header is not ASCII"))
    };
    let mut http_response = Response::from_data(response.body)
        .with_status_code(response.status)
        .with_header(header("Content-Type", response.content_type)?)
        // The workers read a response by its Content-Length.
        .with_chunked_threshold(usize::MAX);
    for (name, value) in &response.headers {
        http_response.add_header(header(name, value)?);
    }
    request.respond(http_response)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Result<(), String>);

    impl Site for Fixed {
        fn metrics(&self) -> String {
            "up 1\n".into()
        }
        fn page(&self, view: PageView) -> String {
            format!("<p>{}", view.refreshes)
        }
        fn page_headers(&self, _: PageView) -> Vec<(&'static str, String)> {
            vec![("X-A", "b".to_owned())]
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
        assert_eq!(get(Ok(()), "/"), (200, HTML, "<p>true".to_owned()));
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
    fn the_status_page_has_headers_and_is_shown_as_the_reader_chose() {
        assert_eq!(get(Ok(()), "/?a=b&refresh=off").2, "<p>false");
        let headers = |target| route(&Fixed(Ok(())), target).headers.len();
        assert_eq!((headers("/"), headers("/metrics")), (1, 0));
    }

    #[test]
    fn health_and_readiness_report_the_reason() {
        for path in ["/healthz", "/readyz"] {
            assert_eq!(get(Ok(()), path), (200, TEXT, format!("{GOOD}\n")));
            let (status, _, body) = get(Err("no poll for 60 s".into()), path);
            assert_eq!((status, body.as_str()), (503, "no poll for 60 s\n"));
        }
    }
}
