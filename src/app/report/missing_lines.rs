//! The missing metrics, for people: each remedy once, with the metrics that it brings.

use std::collections::BTreeSet;

use crate::app::report::MissingReport;
use crate::app::report::style::{Lines, Tone};

/// How the remedy of a reason begins that goes away by itself, or for which nothing can be done.
const NOTHING_TO_DO: &str = "nothing to do";
/// The most models that are named as those that lack a metric.
const MOST_MODELS: usize = 3;

/// Writes the missing metrics of one server of so many models, what can be done first.
pub fn write(lines: &mut Lines, indent: usize, missing: &[MissingReport], models: usize) {
    let mut groups: Vec<(&MissingReport, Vec<&MissingReport>)> = Vec::new();
    for one in missing {
        let is_alike =
            |first: &MissingReport| (first.reason, &first.remedy) == (one.reason, &one.remedy);
        match groups.iter_mut().find(|(first, _)| is_alike(first)) {
            Some((_, group)) => group.push(one),
            None => groups.push((one, vec![one])),
        }
    }
    groups.sort_by_key(|(first, _)| first.remedy.starts_with(NOTHING_TO_DO));
    if groups.is_empty() {
        return;
    }
    lines.line(indent, indent, &[(Tone::Plain, "missing:")]);
    let (inner, deep) = (indent.saturating_add(2), indent.saturating_add(4));
    for (first, group) in groups {
        let has_remedy = !first.remedy.starts_with(NOTHING_TO_DO);
        let tone = if has_remedy {
            Tone::Attention
        } else {
            Tone::Minor
        };
        let why = format!("{}: ", first.why);
        lines.line(inner, deep, &[(Tone::Plain, &why), (tone, &first.remedy)]);
        let metrics: BTreeSet<&str> = group.iter().map(|one| one.metric).collect();
        let of_models = of_models(&group, models);
        let names = metrics.into_iter().collect::<Vec<_>>().join(", ") + &of_models;
        lines.line(deep, deep, &[(Tone::Minor, &names)]);
    }
}

/// Which of the server's models lack these metrics, unless all do.
fn of_models(group: &[&MissingReport], all: usize) -> String {
    let names: BTreeSet<&String> = group.iter().flat_map(|one| &one.models).collect();
    if names.is_empty() || names.len() == all {
        return String::new();
    }
    let first = names.iter().take(MOST_MODELS).map(|name| name.as_str());
    let first = first.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MOST_MODELS) {
        0 => format!(" (of {first})"),
        more => format!(" (of {first} and {more} more models)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::report::Style;

    fn missing(
        metric: &'static str,
        models: &[&str],
        reason: &'static str,
        remedy: &str,
    ) -> MissingReport {
        MissingReport {
            metric,
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            reason,
            why: format!("why {reason}"),
            remedy: remedy.to_owned(),
        }
    }

    #[test]
    fn each_remedy_stands_once_and_what_can_be_done_comes_first() {
        let all = [
            missing("llamacpp_c", &["m"], "idle", "nothing to do, wait"),
            missing("llamacpp_b", &["m"], "off", "switch it on"),
            missing("llamacpp_a", &["m"], "off", "switch it on"),
        ];
        let mut lines = Lines::new(Style::default());
        write(&mut lines, 2, &all, 1);
        let expected = "  missing:\n    why off: switch it on\n      llamacpp_a, llamacpp_b\n    \
            why idle: nothing to do, wait\n      llamacpp_c\n";
        assert_eq!(lines.into_text(), expected);
    }

    #[test]
    fn models_are_named_if_others_have_the_metric() {
        let of = |count: usize| {
            let names: Vec<_> = (0..count).map(|number| format!("m{number}")).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            of_models(&[&missing("llamacpp_a", &names, "off", "do")], 20)
        };
        assert_eq!((of(0), of(20)), (String::new(), String::new()));
        assert_eq!(of(2), " (of m0, m1)");
        assert_eq!(of(5), " (of m0, m1, m2 and 2 more models)");
    }
}
