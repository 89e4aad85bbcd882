//! The sources of the page: where values come from, their state and age, and the last error.

use crate::snapshot::{Source, SourceState};
use crate::units;
use crate::web::status_page::StatusPage;
use crate::web::status_page::html::Html;
use crate::web::status_page::servers::{age, write_more, write_state};

/// The most bytes of the table.
const TABLE_BYTES: usize = 7 << 10;
/// The most bytes of an error's text.
const ERROR_BYTES: usize = 240;

/// Writes the table of sources.
pub fn write(out: &mut Html, page: &StatusPage) {
    let of_servers = page.servers.iter().flat_map(|server| {
        let name = (page.servers.len() > 1).then_some(server.server.as_str());
        server.sources.iter().map(move |source| (name, source))
    });
    let of_machine = page.machine.iter().map(|source| (None, source));
    let mut all: Vec<_> = of_servers.chain(of_machine).collect();
    if all.is_empty() {
        return;
    }
    // What needs a look first, if not all can be shown.
    all.sort_by_key(|(_, source)| match source.state() {
        SourceState::Failed | SourceState::Refused => 0,
        _ => 1,
    });
    out.raw("<section><h2>Sources</h2>\n<table class=\"sources\"><caption>Where the values come from</caption>\
             <thead><tr><th scope=\"col\">Source</th><th scope=\"col\">State</th>\
             <th scope=\"col\" class=\"n\">Last read</th></tr></thead><tbody>\n");
    let left_out = out.items(all, TABLE_BYTES, |out, (server, source)| {
        write_row(out, page, server, source);
    });
    out.raw("</tbody></table>\n");
    write_more(out, left_out, "sources");
    out.raw("</section>\n");
}

fn write_row(out: &mut Html, page: &StatusPage, server: Option<&str>, source: &Source) {
    out.raw("<tr><th scope=\"row\">").text(source.kind.label());
    let name = source.kind.name();
    if !name.is_empty() {
        out.raw(" <code>").name(&name).raw("</code>");
    }
    if let Some(model) = &source.model {
        out.raw(" <small>of ").name(model).raw("</small>");
    }
    if let Some(server) = server {
        out.raw(" <small>at ").name(server).raw("</small>");
    }
    let why = match (&source.error, source.absence) {
        (Some(error), _) => Some(&**error),
        (None, Some(absence)) => Some(absence.why()),
        (None, None) => None,
    };
    if let Some(why) = why {
        out.raw("<p class=\"why\">")
            .text_of(why, ERROR_BYTES)
            .raw("</p>");
    }
    out.raw("</th><td>");
    let state = source.state();
    let is_good = match state {
        SourceState::Read => Some(true),
        SourceState::Failed | SourceState::Refused => Some(false),
        _ => None,
    };
    write_state(out, &state.label().replace('_', " "), is_good);
    out.raw("</td><td class=\"n\">");
    match source.read_at {
        Some(at) => {
            out.text(&age(page.now, at)).raw(" ago");
        }
        None => {
            out.raw("–");
        }
    }
    if let Some(duration) = source.duration {
        out.raw(" <small>took ")
            .text(&units::duration(duration.as_secs_f64()))
            .raw("</small>");
    }
    out.raw("</td></tr>\n");
}
