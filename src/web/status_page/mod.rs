//! The status page: one HTML document of bounded size, without scripts and without other files.

mod html;
mod metrics;
mod models;
mod plot;
mod servers;
mod sources;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::history::{HistoryView, POINT_SECONDS, POINTS};
use crate::metrics::overview::Overview;
use crate::snapshot::{Gpu, OwnMetrics, Snapshot, Source};
use crate::units;
use crate::web::status_page::html::Html;

/// The most bytes of the page.
pub const MAX_BYTES: usize = 64 << 10;
/// Its style sheet, and the hash of it by which browsers accept it.
const STYLE: &str = include_str!("style.css");
const STYLE_HASH: &str = "sha256-Rgn7fkTURKv5V4EybAY8Rfca2ib9Fd2ryIRSVWDmO7k=";
/// How often the page refreshes itself, at most and at least, in seconds.
const REFRESH_SECONDS: (u64, u64) = (5, 60);

/// The points of the plots in the first three minutes.
const FEW_POINTS: usize = 36;

/// What the page shows.
pub struct StatusPage<'a> {
    /// The servers that are watched.
    pub servers: &'a [Arc<Snapshot>],
    /// The GPUs of this machine.
    pub gpus: &'a [Gpu],
    /// The last 15 minutes.
    pub history: &'a HistoryView,
    /// Which metrics there are, and why others are not.
    pub overview: &'a Overview,
    /// The sources of this machine.
    pub machine: &'a [Source],
    /// The exporter.
    pub own: &'a OwnMetrics,
    /// The time between two polls.
    pub interval: Duration,
    /// The time, and the same in seconds since 1970.
    pub now: Instant,
    /// See `now`.
    pub unix_now: Option<f64>,
}

impl StatusPage<'_> {
    /// How many points of the history are plotted: three minutes while there are no more.
    fn points(&self) -> usize {
        match self.history.now < FEW_POINTS as f64 * POINT_SECONDS {
            true => FEW_POINTS,
            false => POINTS,
        }
    }
}

/// What a reader has chosen, in the query of the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageView {
    /// Whether the page refreshes itself.
    pub refreshes: bool,
}

impl PageView {
    /// The choice in a query; what is unknown is ignored.
    pub fn from_query(query: &str) -> PageView {
        PageView {
            refreshes: !query.split('&').any(|part| part == "refresh=off"),
        }
    }
}

/// The headers of the page besides its type.
///
/// The refresh is a header, as an element would be the same to browsers, and an error to tools that
/// check whether readers can stop it; they can. It names the URL without its fragment, with which
/// browsers would not load the page again.
pub fn headers(view: PageView, interval: Duration) -> Vec<(&'static str, String)> {
    let policy = format!(
        "default-src 'none'; style-src '{STYLE_HASH}'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    let mut headers = vec![
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff".to_owned()),
        ("Referrer-Policy", "no-referrer".to_owned()),
        ("Cache-Control", "no-store".to_owned()),
    ];
    if view.refreshes {
        let seconds = interval
            .as_secs()
            .clamp(REFRESH_SECONDS.0, REFRESH_SECONDS.1);
        headers.push(("Refresh", format!("{seconds}; url=./")));
    }
    headers
}

/// Renders the page. The plots get the bytes that the rest leaves.
pub fn render(page: &StatusPage, view: PageView) -> String {
    let (mut before, mut after, mut plots) = (Html::default(), Html::default(), Html::default());
    write_head(&mut before, page);
    write_top(&mut before, page, view);
    before.raw("<main>\n");
    servers::write(&mut before, page);
    sources::write(&mut after, page);
    metrics::write(&mut after, page);
    after.raw("</main>\n");
    write_footer(&mut after, page);
    after.raw("</body></html>\n");
    let rest = before.len().saturating_add(after.len());
    models::write_plots(&mut plots, page, MAX_BYTES.saturating_sub(rest));
    before.part(&plots).part(&after);
    before.finish()
}

fn write_head(out: &mut Html, page: &StatusPage) {
    out.raw(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>",
    );
    let down = page
        .servers
        .iter()
        .filter(|server| server.up == Some(false))
        .count();
    match page.servers {
        [] => out.raw("no server"),
        [server] => out
            .text(servers::state_of(server).0)
            .raw(": ")
            .text(&server.server),
        all => {
            let up = all.len().saturating_sub(down).to_string();
            out.text(&up)
                .raw(" of ")
                .text(&all.len().to_string())
                .raw(" up")
        }
    };
    out.raw(" – llamacpp-exporter</title>\n<link rel=\"icon\" href=\"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Ccircle cx='8' cy='8' r='7' fill='%23");
    out.raw(match (page.servers.is_empty(), down) {
        (true, _) => "808890",
        (false, 0) => "18864b",
        (false, _) => "c4320a",
    });
    out.raw("'/%3E%3C/svg%3E\">\n<style>")
        .raw(STYLE)
        .raw("</style></head>\n<body>\n");
}

fn write_top(out: &mut Html, page: &StatusPage, view: PageView) {
    out.raw("<header><p><b>llamacpp-exporter</b> ")
        .text(page.own.version)
        .raw("</p>\n<nav aria-label=\"Pages\">");
    out.raw("<a href=\"metrics\">/metrics</a> <a href=\"healthz\">/healthz</a> <a href=\"readyz\">/readyz</a> ");
    out.raw(match view.refreshes {
        true => "<a class=\"refresh\" href=\"./?refresh=off\">Pause refresh</a>",
        false => "<a class=\"refresh\" href=\"./\">Resume refresh</a>",
    });
    out.raw("</nav></header>\n");
}

fn write_footer(out: &mut Html, page: &StatusPage) {
    let own = page.own;
    out.raw("<footer><p>llamacpp-exporter ")
        .text(own.version)
        .raw(", revision ")
        .text(own.revision);
    if let (Some(start), Some(now)) = (own.start_time, page.unix_now) {
        out.raw(", up for ").text(&units::age(now - start));
    }
    if let Some(bytes) = own.resident_bytes {
        out.raw(", ").text(&units::bytes(bytes)).raw(" of memory");
    }
    out.raw(", polls every ")
        .text(&units::duration(page.interval.as_secs_f64()))
        .raw("</p></footer>\n");
}

#[cfg(test)]
mod tests;
