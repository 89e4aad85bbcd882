//! Flags and environment variables that do not exist, and what the user probably meant.

use crate::settings::table::{COMMANDS, Row, TABLE};

/// What the exporter's own environment variables begin with.
const PREFIX: &str = "LLAMACPP_";
/// The most letters that differ between a name and what was meant.
const MAX_EDITS: usize = 2;

/// An environment variable that no setting reads, though its name suggests one.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownVariable {
    /// Its name.
    pub name: String,
    /// The variable that the user probably meant.
    pub similar: Option<&'static str>,
}

/// The `variables` (name, value) that look like settings and are none.
pub fn unknown_variables(
    variables: impl Iterator<Item = (String, String)>,
) -> Vec<UnknownVariable> {
    let known = || TABLE.iter().flat_map(|row| row.variables);
    let variables = variables.filter(|(name, value)| {
        !value.is_empty() && !is_of_kubernetes(name, value) && known().all(|known| known != name)
    });
    let unknown = variables.filter_map(|(name, _)| {
        let similar = similar_variable(&name);
        let looks_like_one = name.starts_with(PREFIX) || similar.is_some();
        looks_like_one.then_some(UnknownVariable { name, similar })
    });
    let mut unknown: Vec<_> = unknown.collect();
    unknown.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    unknown
}

/// Whether Kubernetes or Docker sets this variable in every container, for a service or link named
/// `llamacpp…`.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    let is_of_port = |scheme: &str| value.starts_with(scheme);
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_PORT_")
        || ["tcp://", "udp://", "sctp://"].into_iter().any(is_of_port)
}

/// The variable that the user probably meant by `name`: one of similar spelling, one named like
/// its flag, or one that ends so.
fn similar_variable(name: &str) -> Option<&'static str> {
    let ours = |row: &'static Row| {
        row.variables
            .iter()
            .filter(|known| known.starts_with(PREFIX))
    };
    let candidates = TABLE.iter().flat_map(|row| {
        ours(row).flat_map(|known| {
            let flag = row.flag.trim_start_matches('-').to_ascii_uppercase();
            let like_flag = format!("{PREFIX}{}", flag.replace('-', "_"));
            [(known.to_string(), *known), (like_flag, *known)]
        })
    });
    let by_spelling = candidates
        .map(|(spelling, known)| (edits(name, &spelling), known))
        .filter(|(distance, _)| *distance <= MAX_EDITS)
        .min_by_key(|(distance, _)| *distance);
    let by_end = || {
        let end = name.strip_prefix(PREFIX).filter(|end| end.len() > 2)?;
        let mut known = TABLE.iter().flat_map(ours);
        known.find(|known| known.ends_with(end))
    };
    by_spelling
        .map(|(_, known)| known)
        .or_else(|| by_end().copied())
}

/// The flag that the user probably meant by `text`.
pub(super) fn similar_flag(text: &str) -> Option<&'static str> {
    let settings = TABLE.iter().flat_map(|row| [row.flag, row.alias]);
    let commands = COMMANDS.iter().map(|(flag, ..)| *flag);
    let flags = settings.chain(commands).filter(|flag| !flag.is_empty());
    flags
        .map(|flag| {
            // A prefix counts as one edit.
            let is_beginning = text.len() > "--".len() && flag.starts_with(text);
            let distance = if is_beginning { 1 } else { edits(text, flag) };
            (distance, flag)
        })
        .filter(|(distance, _)| *distance <= MAX_EDITS)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, flag)| flag)
}

/// The edit distance (Levenshtein) of `a` and `b`.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (above, x) in a.bytes().enumerate() {
        let mut diagonal = above;
        let mut left = above.saturating_add(1);
        row[0] = left;
        for (y, cell) in b.bytes().zip(&mut row[1..]) {
            let changed = diagonal.saturating_add(usize::from(x != y));
            diagonal = *cell;
            left = changed.min(diagonal.min(left).saturating_add(1));
            *cell = left;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted_letter_by_letter() {
        for (a, b, count) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "abc", 0),
            ("abc", "axc", 1),
            ("abc", "abxc", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edits(a, b), count, "{a} {b}");
        }
    }

    fn unknown(variables: &[(&str, &str)]) -> Vec<UnknownVariable> {
        let owned = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        unknown_variables(owned)
    }

    #[test]
    fn a_mistyped_variable_gets_a_suggestion() {
        for (typed, meant) in [
            ("LLAMACPP_BASEURL", Some("LLAMACPP_BASE_URL")),
            ("LLAMA_CPP_BASE_URL", Some("LLAMACPP_BASE_URL")),
            ("LLAMACPP_URL", Some("LLAMACPP_BASE_URL")),
            ("LLAMACPP_INTERVAL", Some("LLAMACPP_SCRAPE_INTERVAL")),
            ("LLAMACPP_TIMEOUT", Some("LLAMACPP_CLIENT_TIMEOUT")),
            ("LLAMACPP_ADDR", Some("LLAMACPP_EXPORTER_ADDR")),
            ("LLAMACPP_SOMETHING", None),
        ] {
            let [found] = &unknown(&[(typed, "x")])[..] else {
                panic!("{typed}");
            };
            assert_eq!((found.name.as_str(), found.similar), (typed, meant));
        }
    }

    #[test]
    fn variables_of_others_are_no_settings() {
        let others = [
            ("LLAMACPP_BASE_URL", "http://h:1"),
            ("LLAMACPP_BASEURL", ""),
            ("LLM_MODEL", "ai/a"),
            ("LLAMA_ARG_PORT", "8080"),
            ("PATH", "/bin"),
            ("LLAMACPP_SERVICE_HOST", "10.0.0.1"),
            ("LLAMACPP_EXPORTER_SERVICE_PORT_METRICS", "9100"),
            ("LLAMACPP_PORT", "tcp://10.0.0.1:8080"),
            ("LLAMACPP_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ];
        assert_eq!(unknown(&others), []);
    }
}
