//! The servers of the page: what is watched, its state, and its models.

use std::time::Instant;

use crate::metrics::value;
use crate::readings::ModelStatus;
use crate::snapshot::{Model, Snapshot};
use crate::units::{self, Unit};
use crate::web::status_page::StatusPage;
use crate::web::status_page::html::Html;

/// The most bytes of all servers.
const SERVERS_BYTES: usize = 14 << 10;
/// The most bytes of the tables of models.
const TABLE_BYTES: usize = 7 << 10;
/// The most bytes of an error's text.
const ERROR_BYTES: usize = 400;

/// A state in a word, with the colour of its kind.
pub fn write_state(out: &mut Html, state: &str, is_good: Option<bool>) {
    out.raw(match is_good {
        Some(true) => "<span class=\"state good\">",
        Some(false) => "<span class=\"state bad\">",
        None => "<span class=\"state\">",
    });
    out.text(state).raw("</span>");
}

/// The state of a server in a word, and whether it is good.
pub fn state_of(server: &Snapshot) -> (&'static str, Option<bool>) {
    match server.up {
        Some(true) => ("up", Some(true)),
        Some(false) => ("down", Some(false)),
        None => ("waiting for the first poll", None),
    }
}

/// Writes the title of the page and all servers.
pub fn write(out: &mut Html, page: &StatusPage) {
    let bytes = TABLE_BYTES.checked_div(page.servers.len()).unwrap_or(0);
    match page.servers {
        [] => write_none(out, page),
        [server] => {
            out.raw("<section class=\"server\"><h1><span class=\"of\">llama.cpp at</span> ");
            out.name(&server.server).raw("</h1>\n");
            write_server(out, page, server, TABLE_BYTES);
            out.raw("</section>\n");
        }
        servers => {
            let up = servers
                .iter()
                .filter(|server| server.up == Some(true))
                .count();
            out.raw("<h1>")
                .text(&servers.len().to_string())
                .raw(" servers, ");
            out.text(&up.to_string()).raw(" up</h1>\n");
            let left_out = out.items(servers, SERVERS_BYTES, |out, server| {
                out.raw("<section class=\"server\"><h2>")
                    .name(&server.server)
                    .raw("</h2>\n");
                write_server(out, page, server, bytes.max(600));
                out.raw("</section>\n");
            });
            write_more(out, left_out, "servers");
        }
    }
}

fn write_none(out: &mut Html, page: &StatusPage) {
    out.raw("<section class=\"server\"><h1>No server yet</h1>\n<div class=\"box\"><p>The exporter looks for llama.cpp servers on this machine every ");
    out.text(&units::duration(page.interval.as_secs_f64()));
    out.raw(" and has found none. Start one, and it appears here: <code>llama-server -m model.gguf --metrics</code></p>\
             <p>Is one running? <code>llamacpp-exporter --discover --check</code> says why it is not shown. \
             A server on another machine needs <code>--base-url http://host:8080</code>.</p></div></section>\n");
}

/// Writes how many were left out, if any.
pub fn write_more(out: &mut Html, left_out: usize, what: &'static str) {
    if left_out > 0 {
        out.raw("<p class=\"more\">and ")
            .text(&left_out.to_string())
            .raw(" more ")
            .raw(what)
            .raw("</p>\n");
    }
}

fn write_server(out: &mut Html, page: &StatusPage, server: &Snapshot, table_bytes: usize) {
    out.raw("<p class=\"facts\">");
    let (state, is_good) = state_of(server);
    write_state(out, state, is_good);
    if let Some(since) = server.since {
        out.raw(" <span>for ")
            .text(&age(page.now, since))
            .raw("</span>");
    }
    if let Some(info) = &server.info {
        out.raw(" <span>").text(info.kind.label());
        if let Some(version) = &info.version {
            out.raw(" ").name(version);
        }
        out.raw("</span>");
    }
    if server.up.is_some() {
        out.raw(" <span>last poll took ");
        out.text(&units::duration(server.polls.duration.as_secs_f64()))
            .raw("</span>");
    }
    out.raw("</p>\n");
    if let Some(down) = &server.down {
        out.raw("<div class=\"box bad\"><p><b>Why:</b> ")
            .text_of(&down.why(), ERROR_BYTES);
        out.raw("</p><p><b>What to do:</b> ")
            .text_of(down.remedy(), ERROR_BYTES)
            .raw("</p></div>\n");
    }
    if server.models.len() > 1 {
        write_table(out, &server.models, table_bytes);
    }
}

/// Writes the models of a server: those in memory as a table, the names of the others.
fn write_table(out: &mut Html, all: &[Model], bytes: usize) {
    let (mut loaded, others): (Vec<_>, Vec<_>) = all.iter().partition(|model| model.is_loaded());
    loaded.sort_by_key(|model| !is_running(model));
    out.raw("<p class=\"facts\">")
        .text(&all.len().to_string())
        .raw(" models, ");
    out.text(&loaded.len().to_string()).raw(" in memory</p>\n");
    if !loaded.is_empty() {
        out.raw("<table class=\"models\"><caption>Models in memory</caption><thead><tr>\
                 <th scope=\"col\">Model</th><th scope=\"col\">Status</th>\
                 <th scope=\"col\" class=\"n\">Tokens/s</th><th scope=\"col\" class=\"n\">Requests</th>\
                 <th scope=\"col\" class=\"n w\">Memory</th></tr></thead><tbody>\n");
        let left_out = out.items(loaded, bytes, write_row);
        out.raw("</tbody></table>\n");
        write_more(out, left_out, "models in memory");
    }
    if !others.is_empty() {
        out.raw("<p class=\"hint\">Not in memory: ");
        let left_out = out.items(
            others.iter().enumerate(),
            bytes / 4,
            |out, (index, model)| {
                out.raw(if index > 0 { ", " } else { "" }).name(&model.name);
                if model.status != Some(ModelStatus::Unloaded) {
                    let status = model.status.map_or("unknown", ModelStatus::label);
                    out.raw(" (").text(status).raw(")");
                }
            },
        );
        if left_out > 0 {
            out.raw(" and ").text(&left_out.to_string()).raw(" more");
        }
        out.raw("</p>\n");
    }
}

fn write_row(out: &mut Html, model: &Model) {
    out.raw("<tr><th scope=\"row\">").name(&model.name);
    if let Some(mode) = &model.mode {
        out.raw(" <small>").text(mode).raw("</small>");
    }
    out.raw("</th><td>");
    write_status(out, model);
    let numbers = [
        (
            "llamacpp_tokens_per_second",
            Unit::Number,
            "</td><td class=\"n\">",
        ),
        (
            "llamacpp_requests_processing",
            Unit::Number,
            "</td><td class=\"n\">",
        ),
        (
            "llamacpp_memory_usage_bytes",
            Unit::Bytes,
            "</td><td class=\"n w\">",
        ),
    ];
    for (name, unit, cell) in numbers {
        out.raw(cell);
        let value = value::of_model(name, model).map(|value| unit.text(value));
        out.text(value.as_deref().unwrap_or("–"));
    }
    out.raw("</td></tr>\n");
}

fn is_running(model: &Model) -> bool {
    model.status == Some(ModelStatus::Running)
}

/// Writes the status of a model.
pub fn write_status(out: &mut Html, model: &Model) {
    use ModelStatus::{Failed, Idle, Running};
    let is_good = match model.status {
        Some(Running | Idle) => Some(true),
        Some(Failed) => Some(false),
        _ => None,
    };
    write_state(
        out,
        model.status.map_or("unknown", ModelStatus::label),
        is_good,
    );
}

/// How long ago that was.
pub fn age(now: Instant, then: Instant) -> String {
    units::age(now.saturating_duration_since(then).as_secs_f64())
}
