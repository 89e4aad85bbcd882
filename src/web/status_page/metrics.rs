//! The metrics of the page: every metric of the catalogue, present with its value, or absent with
//! the reason and what to do.

use std::collections::BTreeSet;

use crate::metrics::catalogue::Family;
use crate::metrics::overview::{FamilyState, Overview, Remedy, Subject};
use crate::units;
use crate::web::status_page::StatusPage;
use crate::web::status_page::html::Html;
use crate::web::status_page::servers::write_more;

/// The most bytes of both lists.
const ABSENT_BYTES: usize = 9 << 10;
const PRESENT_BYTES: usize = 14 << 10;
/// The most bytes of a reason or remedy.
const REASON_BYTES: usize = 300;
/// The most reasons of one remedy.
const MOST_REASONS: usize = 4;
/// The most subjects that are named.
const MOST_SUBJECTS: usize = 3;

/// Writes both lists.
pub fn write(out: &mut Html, page: &StatusPage) {
    let overview = page.overview;
    let present = overview
        .families
        .iter()
        .filter(|state| state.series.count > 0);
    let count = present.clone().count();
    out.raw("<section><h2>Metrics</h2>\n<p>");
    out.text(&count.to_string())
        .raw(" of ")
        .text(&overview.families.len().to_string());
    out.raw(" metrics have a value. All of them: <a href=\"metrics\">/metrics</a></p>\n");
    write_absent(out, overview);
    write_present(out, page, present);
    out.raw("</section>\n");
}

fn write_absent(out: &mut Html, overview: &Overview) {
    let remedies = overview.remedies();
    if remedies.is_empty() {
        return;
    }
    out.raw("<h3 id=\"absent\">Absent, and what to do</h3>\n<ul class=\"absent\">\n");
    let left_out = out.items(&remedies, ABSENT_BYTES, |out, remedy| {
        write_remedy(out, overview, remedy);
    });
    out.raw("</ul>\n");
    write_more(out, left_out, "reasons: see llamacpp-exporter --check");
}

fn write_remedy(out: &mut Html, overview: &Overview, remedy: &Remedy) {
    out.raw(match remedy.is_fixable {
        true => "<li class=\"fix\"><p class=\"do\">",
        false => "<li><p class=\"do\">",
    });
    out.text_of(&capitalized(remedy.text), REASON_BYTES)
        .raw("</p><p class=\"why\">");
    let whys: BTreeSet<String> = remedy.reasons.iter().map(|missing| missing.why()).collect();
    for (index, why) in whys.iter().take(MOST_REASONS).enumerate() {
        out.raw(if index > 0 { "; " } else { "" })
            .text_of(why, REASON_BYTES);
    }
    write_subjects(out, overview, remedy);
    out.raw("</p><p class=\"names\">");
    for family in &remedy.families {
        out.raw("<code>").text(family.name).raw("</code> ");
    }
    out.raw("</p></li>\n");
}

/// Writes where metrics are absent, if there are several places.
fn write_subjects(out: &mut Html, overview: &Overview, remedy: &Remedy) {
    if overview.subjects.len() <= 3 {
        return;
    }
    let subjects = remedy
        .subjects
        .iter()
        .filter_map(|index| overview.subjects.get(*index));
    out.raw(" (");
    for (index, subject) in subjects.take(MOST_SUBJECTS).enumerate() {
        out.raw(if index > 0 { ", " } else { "" });
        match subject {
            Subject::Model(_, (name, _)) => out.name(name),
            Subject::Server(server) => out.name(server),
            Subject::Machine => out.raw("this machine"),
        };
    }
    let more = remedy.subjects.len().saturating_sub(MOST_SUBJECTS);
    if more > 0 {
        out.raw(" and ").text(&more.to_string()).raw(" more");
    }
    out.raw(")");
}

fn write_present<'a>(
    out: &mut Html,
    page: &StatusPage,
    present: impl Iterator<Item = &'a FamilyState>,
) {
    out.raw("<h3>Present</h3>\n<table class=\"present\"><caption>Metrics with a value</caption>\
             <thead><tr><th scope=\"col\">Metric</th><th scope=\"col\" class=\"n\">Value</th></tr></thead><tbody>\n");
    // The plots of many models need the space.
    let has_meaning = page.history.models.len() <= 2;
    let left_out = out.items(present, PRESENT_BYTES, |out, state| {
        out.raw("<tr><th scope=\"row\"><code>")
            .text(state.family.name)
            .raw("</code>");
        if has_meaning {
            out.raw(" <span>")
                .text(meaning(state.family))
                .raw("</span>");
        }
        out.raw("</th><td class=\"n\">");
        match state.series.first {
            Some(value) if state.series.count == 1 => out.text(&units::number(value)),
            _ => out
                .text(&units::number(state.series.count as f64))
                .raw(" <small>series</small>"),
        };
        out.raw("</td></tr>\n");
    });
    out.raw("</tbody></table>\n");
    write_more(out, left_out, "metrics: see /metrics");
}

/// The part of a metric's help that says what it is.
fn meaning(family: &Family) -> &'static str {
    let help = family.help.trim_start_matches("Always 1; ");
    let end = help.find([';', ':']).unwrap_or(help.len());
    let help = help.get(..end).unwrap_or(help);
    let sentence = help.find(". ").and_then(|end| help.get(..end));
    sentence.unwrap_or(help).trim_end_matches('.')
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}
