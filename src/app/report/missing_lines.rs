//! The missing metrics, for people: each remedy once, with the metrics that it brings.

use std::collections::BTreeSet;

use crate::app::report::style::{Lines, Tone};
use crate::app::report::{CheckReport, MissingReport, ServerReport};

/// How the remedy of a reason begins for which there is none: the heading says so.
const NOTHING_TO_DO: &str = "nothing to do";
/// The most servers or models that are named as those that lack a metric.
const MOST_NAMES: usize = 3;

/// A missing metric, and the server that it is missing of; without one, it is of this machine.
type MissingOf<'a> = (Option<&'a ServerReport>, &'a MissingReport);

/// Writes all missing metrics, what can be done first.
pub fn write(lines: &mut Lines, report: &CheckReport) {
    let mut groups: Vec<Vec<MissingOf>> = Vec::new();
    for of in all(report) {
        let is_alike =
            |group: &&mut Vec<MissingOf>| group.iter().any(|(_, one)| one.remedy == of.1.remedy);
        match groups.iter_mut().find(is_alike) {
            Some(group) => group.push(of),
            None => groups.push(vec![of]),
        }
    }
    let is_fixable = |group: &Vec<MissingOf>| group.iter().any(|(_, one)| one.is_fixable);
    let (fixable, others): (Vec<_>, Vec<_>) = groups.into_iter().partition(is_fixable);
    for (title, tone, groups) in [
        ("missing metrics, and what to do:", Tone::Attention, fixable),
        ("missing metrics, and nothing to do:", Tone::Plain, others),
    ] {
        if !groups.is_empty() {
            lines.line(0, 2, &[(Tone::Heading, title)]);
        }
        for group in groups {
            write_group(lines, &group, tone, report);
        }
        lines.end_part();
    }
}

/// Writes the reasons, the remedy and the metrics of one remedy.
fn write_group(lines: &mut Lines, group: &[MissingOf], tone: Tone, report: &CheckReport) {
    let reasons: BTreeSet<&str> = group.iter().map(|(_, one)| one.why.as_str()).collect();
    let reasons = reasons.into_iter().collect::<Vec<_>>().join("; ");
    lines.line(
        2,
        4,
        &[
            (Tone::Plain, &reasons),
            (Tone::Minor, &where_of(group, report)),
        ],
    );
    let remedy = group.first().map_or("", |(_, one)| one.remedy.as_str());
    let remedy = remedy.strip_prefix(NOTHING_TO_DO).unwrap_or(remedy);
    let remedy = remedy.trim_start_matches([',', ';', ' ']);
    if !remedy.is_empty() {
        lines.line(4, 6, &[(Tone::Plain, "→ "), (tone, remedy)]);
    }
    let metrics: BTreeSet<&str> = group.iter().map(|(_, one)| one.metric).collect();
    let names = metrics.into_iter().collect::<Vec<_>>().join(", ");
    lines.line(4, 4, &[(Tone::Minor, &names)]);
}

/// All missing metrics of the machine and of the servers that are up: a server that is down lacks
/// everything.
fn all(report: &CheckReport) -> impl Iterator<Item = MissingOf<'_>> {
    let up = report.servers.iter().filter(|server| server.up);
    let of_servers =
        up.flat_map(|server| server.missing.iter().map(move |one| (Some(server), one)));
    of_servers.chain(report.machine.missing.iter().map(|one| (None, one)))
}

/// Which servers and models lack these metrics, unless all do.
fn where_of(group: &[MissingOf], report: &CheckReport) -> String {
    let servers: BTreeSet<&str> = group
        .iter()
        .filter_map(|(server, _)| Some((*server)?.server.as_str()))
        .collect();
    let up = report.servers.iter().filter(|server| server.up);
    let at = match servers.is_empty() || servers.len() == up.clone().count() {
        true => String::new(),
        false => format!(" (at {})", first_of(&servers, "servers")),
    };
    let models: BTreeSet<&str> = group
        .iter()
        .flat_map(|(_, one)| one.models.iter().map(String::as_str))
        .collect();
    let of_servers = up.filter(|server| servers.contains(server.server.as_str()));
    let all: BTreeSet<&str> = of_servers
        .flat_map(|server| server.models.iter().map(|model| model.model.as_str()))
        .collect();
    match models.is_empty() || all.is_subset(&models) {
        true => at,
        false => format!("{at} (of {})", first_of(&models, "models")),
    }
}

/// The first names, and how many more there are.
fn first_of(names: &BTreeSet<&str>, what: &str) -> String {
    let first: Vec<&str> = names.iter().copied().take(MOST_NAMES).collect();
    let first = first.join(", ");
    match names.len().saturating_sub(MOST_NAMES) {
        0 => first,
        more => format!("{first} and {more} more {what}"),
    }
}

impl ServerReport {
    /// Whether a note only says what stands among the missing metrics of a server that is up.
    pub fn is_said_below(&self, note: &str) -> bool {
        let is_same = |missing: &MissingReport| {
            let rest = note.strip_prefix(missing.why.as_str());
            rest.and_then(|rest| rest.strip_prefix(": ")) == Some(&missing.remedy)
        };
        self.up && self.missing.iter().any(is_same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::report::{ModelReport, Style};

    fn missing(metric: &'static str, models: &[&str], remedy: &str) -> MissingReport {
        MissingReport {
            metric,
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            reason: "id",
            why: format!("no {remedy}"),
            remedy: remedy.to_owned(),
            is_fixable: !remedy.starts_with("nothing"),
        }
    }

    fn server(name: &str, models: &[&str], missing: Vec<MissingReport>) -> ServerReport {
        let models = models.iter().map(|model| ModelReport {
            model: (*model).to_owned(),
            ..ModelReport::default()
        });
        ServerReport {
            server: name.to_owned(),
            up: true,
            models: models.collect(),
            missing,
            ..ServerReport::default()
        }
    }

    #[test]
    fn each_remedy_stands_once_and_what_can_be_done_comes_first() {
        let waiting = || missing("llamacpp_c", &["m"], "nothing to do");
        let a = vec![
            waiting(),
            missing("llamacpp_b", &["m"], "switch"),
            missing("llamacpp_a", &["m"], "switch"),
        ];
        let b = vec![waiting(), missing("llamacpp_b", &["many-1"], "load")];
        let mut report = CheckReport {
            servers: vec![
                server("a:1", &["m"], a),
                server("b:1", &["many-1", "many-2"], b),
            ],
            ..CheckReport::default()
        };
        report.machine.missing = vec![missing("llamacpp_gpu", &[], "load")];
        let mut lines = Lines::new(Style::default());
        write(&mut lines, &report);
        let expected = "missing metrics, and what to do:\n\
            \x20 no switch (at a:1)\n    → switch\n    llamacpp_a, llamacpp_b\n\
            \x20 no load (at b:1) (of many-1)\n    → load\n    llamacpp_b, llamacpp_gpu\n\n\
            missing metrics, and nothing to do:\n\
            \x20 no nothing to do (of m)\n    llamacpp_c\n\n";
        assert_eq!(lines.into_text(), expected);
    }

    #[test]
    fn the_first_names_are_listed() {
        let names = ["a", "b", "c", "d", "e"].into();
        assert_eq!(first_of(&names, "models"), "a, b, c and 2 more models");
    }
}
