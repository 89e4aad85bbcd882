//! Reads a scrape as strictly as Prometheus does: what it would reject is an error.

use std::collections::BTreeSet;
use std::fmt;

/// The types that the text format has.
const TYPES: [&str; 5] = ["counter", "gauge", "histogram", "summary", "untyped"];

/// A scrape that Prometheus accepts.
#[derive(Debug, Default)]
pub struct CheckedScrape<'a> {
    /// Its families, in the order of the text.
    pub families: Vec<CheckedFamily<'a>>,
    /// The number of its samples.
    pub samples: usize,
}

/// One family of a scrape.
#[derive(Debug)]
pub struct CheckedFamily<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type, as `# TYPE` has it.
    pub metric_type: &'a str,
    /// Its samples.
    pub samples: Vec<CheckedSample<'a>>,
}

/// One sample of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedSample<'a> {
    /// Its name, with the suffix of a histogram.
    pub name: &'a str,
    /// Its labels in the order of the text, unescaped.
    pub labels: Vec<(&'a str, String)>,
    /// Its value, which may be NaN or infinite.
    pub value: f64,
}

/// What Prometheus would reject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LintError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: &'static str,
}

impl fmt::Display for LintError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

impl CheckedSample<'_> {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        let labelled = self.labels.iter().find(|(label, _)| *label == name);
        labelled.map(|(_, value)| value.as_str())
    }
}

impl<'a> CheckedScrape<'a> {
    /// Reads a scrape in the text format, version 0.0.4.
    ///
    /// # Errors
    /// The first line that Prometheus would reject, or whose sample it would drop.
    pub fn parse(text: &'a str) -> Result<CheckedScrape<'a>, LintError> {
        let mut scrape = CheckedScrape::default();
        let mut series = BTreeSet::new();
        for (index, line) in text.split_inclusive('\n').enumerate() {
            let error = |why| LintError {
                line: index.saturating_add(1),
                why,
            };
            let line = line.strip_suffix('\n');
            let line = line.ok_or(error("the last line does not end"))?;
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                scrape.families.push(family(rest).map_err(error)?);
            } else if !line.is_empty() && !line.starts_with('#') {
                let sample = sample(line).map_err(error)?;
                let mut labels = sample.labels.clone();
                labels.sort_unstable();
                if !series.insert((sample.name, labels)) {
                    return Err(error("the same series has a sample already"));
                }
                scrape.push(sample);
            }
        }
        Ok(scrape)
    }

    fn push(&mut self, sample: CheckedSample<'a>) {
        self.samples = self.samples.saturating_add(1);
        let is_of = |family: &CheckedFamily| match sample.name.strip_prefix(family.name) {
            Some("") => true,
            Some("_bucket" | "_sum" | "_count") => family.metric_type == "histogram",
            _ => false,
        };
        match self.families.last_mut() {
            Some(family) if is_of(family) => family.samples.push(sample),
            _ => self.families.push(CheckedFamily {
                name: sample.name,
                metric_type: "untyped",
                samples: vec![sample],
            }),
        }
    }
}

/// The family of what follows `# TYPE `.
fn family(rest: &str) -> Result<CheckedFamily<'_>, &'static str> {
    let (name, metric_type) = rest.split_once(' ').ok_or("a TYPE without a type")?;
    if !TYPES.contains(&metric_type) {
        return Err("an unknown type");
    }
    if !is_name(name, true) {
        return Err("an invalid metric name");
    }
    Ok(CheckedFamily {
        name,
        metric_type,
        samples: Vec::new(),
    })
}

fn sample(line: &str) -> Result<CheckedSample<'_>, &'static str> {
    let end = line.find(['{', ' ']).ok_or("a sample without a value")?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name, true) {
        return Err("an invalid metric name");
    }
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = read_labels(inside, &mut labels)?;
    }
    let mut numbers = rest.split_ascii_whitespace();
    let value = numbers.next().ok_or("a sample without a value")?;
    let value = number(value).ok_or("an invalid value")?;
    let time = numbers.next();
    if time.is_some_and(|time| time.parse::<i64>().is_err()) || numbers.next().is_some() {
        return Err("an invalid timestamp");
    }
    Ok(CheckedSample {
        name,
        labels,
        value,
    })
}

/// Reads labels up to the closing brace; returns what follows it.
fn read_labels<'a>(
    mut rest: &'a str,
    labels: &mut Vec<(&'a str, String)>,
) -> Result<&'a str, &'static str> {
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(after);
        }
        let (name, after) = rest.split_once("=\"").ok_or("an invalid label")?;
        if !is_name(name, false) {
            return Err("an invalid label name");
        }
        if labels.iter().any(|(known, _)| *known == name) {
            return Err("a label is given twice");
        }
        let (value, after) = read_quoted(after)?;
        labels.push((name, value));
        rest = match after.strip_prefix(',') {
            Some(after) => after,
            None if after.starts_with('}') => after,
            None => return Err("no comma between two labels"),
        };
    }
}

/// Reads a label's value up to the closing quote; returns what follows it.
fn read_quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, text.get(at.saturating_add(1)..).unwrap_or_default())),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, c @ ('"' | '\\'))) => c,
                _ => return Err("an invalid escape in a label's value"),
            }),
            c => value.push(c),
        }
    }
    Err("a label's value without an end")
}

/// A value as Go reads it: Rust accepts the same, `infinity` and signs of NaN apart.
fn number(text: &str) -> Option<f64> {
    let is_of_number = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    text.bytes().all(is_of_number).then(|| text.parse().ok())?
}

/// Whether this is a name of a metric, or else of a label.
fn is_name(name: &str, is_metric: bool) -> bool {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_' || is_metric && c == ':';
    name.starts_with(is_first) && name.chars().all(|c| is_first(c) || c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_is_read_by_family() {
        let text = "# HELP a_total A \\\\ b.\n# TYPE a_total counter\na_total{m=\"x\\\"\\\\\\n}, \",n=\"\"} 1e3\n\
            # TYPE h histogram\nh_bucket{le=\"+Inf\"} 2\nh_sum 0.5\nh_count 2\nalone{} NaN 1700000000000\n";
        let scrape = CheckedScrape::parse(text).unwrap();
        let families: Vec<_> = scrape
            .families
            .iter()
            .map(|family| (family.name, family.metric_type, family.samples.len()))
            .collect();
        assert_eq!(
            families,
            [
                ("a_total", "counter", 1),
                ("h", "histogram", 3),
                ("alone", "untyped", 1)
            ]
        );
        let first = &scrape.families[0].samples[0];
        assert_eq!(first.label("m"), Some("x\"\\\n}, "));
        assert_eq!((first.value, first.label("n")), (1000.0, Some("")));
        assert_eq!(scrape.samples, 5);
    }

    /// `tests/deployment/test_check.py` gives them to a real Prometheus.
    #[test]
    fn what_prometheus_rejects_is_an_error() {
        for (text, line, why) in [
            ("a 1", 1, "the last line does not end"),
            ("a 1\n\n2a 1\n", 3, "an invalid metric name"),
            ("a\n", 1, "a sample without a value"),
            ("a \n", 1, "a sample without a value"),
            ("a one\n", 1, "an invalid value"),
            ("a 1 soon\n", 1, "an invalid timestamp"),
            ("a 1 2 3\n", 1, "an invalid timestamp"),
            ("a{1b=\"\"} 1\n", 1, "an invalid label name"),
            ("a{b=\"\",b=\"\"} 1\n", 1, "a label is given twice"),
            ("a{b=1} 1\n", 1, "an invalid label"),
            ("a{b=\"x} 1\n", 1, "a label's value without an end"),
            (
                "a{b=\"\\x\"} 1\n",
                1,
                "an invalid escape in a label's value",
            ),
            ("a{b=\"\"c=\"\"} 1\n", 1, "no comma between two labels"),
            ("# TYPE a number\na 1\n", 1, "an unknown type"),
            ("# TYPE a\n", 1, "a TYPE without a type"),
        ] {
            let error = CheckedScrape::parse(text).unwrap_err();
            assert_eq!((error.line, error.why), (line, why), "{text:?}");
        }
    }

    #[test]
    fn a_series_must_not_come_twice() {
        let error =
            CheckedScrape::parse("a{b=\"1\",c=\"2\"} 1\na{c=\"2\",b=\"1\"} 2\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 2: the same series has a sample already"
        );
    }
}
