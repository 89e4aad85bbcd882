//! A strict reader of the Prometheus text format, so that every scrape of every test checks the
//! whole exposition.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
    /// The value as it was written.
    pub text: String,
}

/// One read of `/metrics`.
#[derive(Clone)]
pub struct Scrape {
    pub text: String,
    pub samples: Vec<Sample>,
    /// The type of each family, in the order of the text.
    pub families: Vec<(String, String)>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Scrape {
    /// Reads the text, and panics at any fault: a family in two parts, a series twice, a sample
    /// before its `# TYPE`, and any value that no family of ours can have (not a number, infinite,
    /// negative).
    pub fn parse(text: &str) -> Scrape {
        let mut scrape = Scrape {
            text: text.to_owned(),
            samples: vec![],
            families: vec![],
        };
        let mut help = None;
        let mut series = BTreeSet::new();
        assert!(text.ends_with('\n'), "the last line has no end: {text:?}");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (family, words) = rest.split_once(' ').expect(line);
                assert!(!words.trim().is_empty(), "no help: {line}");
                help = Some(family.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (family, kind) = rest.split_once(' ').expect(line);
                assert_eq!(
                    help.take().as_deref(),
                    Some(family),
                    "TYPE without HELP: {line}"
                );
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(is_name(family), "{line}");
                assert!(
                    !scrape.families.iter().any(|(known, _)| known == family),
                    "twice: {line}"
                );
                assert_eq!(
                    kind == "counter",
                    family.ends_with("_total"),
                    "counters, and only they, end in _total: {line}"
                );
                scrape.families.push((family.to_owned(), kind.to_owned()));
            } else {
                let sample = Sample::parse(line).unwrap_or_else(|| panic!("not a sample: {line}"));
                let (family, kind) = scrape.families.last().expect("a sample without a family");
                let suffix = sample.name.strip_prefix(family.as_str());
                assert!(
                    match kind.as_str() {
                        "histogram" => matches!(suffix, Some("_bucket" | "_sum" | "_count")),
                        _ => suffix == Some(""),
                    },
                    "{line} in the family {family}"
                );
                // Of all that is measured only a temperature may be below zero.
                let least = if sample.name.ends_with("_celsius") {
                    -273.15
                } else {
                    0.0
                };
                assert!(
                    sample.value.is_finite() && sample.value >= least,
                    "no such value: {line}"
                );
                let key = (sample.name.clone(), sample.labels.clone());
                assert!(series.insert(key), "the same series twice: {line}");
                scrape.samples.push(sample);
            }
        }
        for (family, kind) in &scrape.families {
            let samples = scrape
                .samples
                .iter()
                .filter(|sample| sample.name.starts_with(family));
            assert!(samples.count() > 0, "a family without a series: {family}");
            if kind == "histogram" {
                scrape.check_histogram(family);
            }
        }
        scrape
    }

    fn check_histogram(&self, family: &str) {
        let mut groups: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
        for bucket in self.all(&format!("{family}_bucket")) {
            let mut labels = bucket.labels.clone();
            let bound = labels.remove("le").expect("a bucket without a bound");
            let bound: f64 = bound.parse().unwrap();
            groups
                .entry(labels)
                .or_default()
                .push((bound, bucket.value));
        }
        for (labels, buckets) in groups {
            assert!(
                buckets.is_sorted(),
                "{family}: buckets must rise: {buckets:?}"
            );
            let labels: Vec<_> = labels
                .iter()
                .map(|(n, v)| (n.as_str(), v.as_str()))
                .collect();
            let count = self.get(&format!("{family}_count"), &labels);
            assert_eq!(
                buckets.last().copied(),
                count.map(|count| (f64::INFINITY, count))
            );
            assert!(self.get(&format!("{family}_sum"), &labels).is_some());
        }
    }

    /// Every sample of that name.
    pub fn all(&self, name: &str) -> Vec<&Sample> {
        self.samples
            .iter()
            .filter(|sample| sample.name == name)
            .collect()
    }

    /// The value of the one sample of that name with, among others, these labels.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.sample(name, labels).map(|sample| sample.value)
    }

    pub fn sample(&self, name: &str, labels: &[(&str, &str)]) -> Option<&Sample> {
        let wanted = |sample: &&&Sample| {
            labels
                .iter()
                .all(|(label, value)| sample.labels.get(*label).map(String::as_str) == Some(value))
        };
        let all = self.all(name);
        let found: Vec<_> = all.iter().filter(wanted).collect();
        assert!(
            found.len() < 2,
            "{name} {labels:?} is not one series: {found:?}"
        );
        found.first().map(|sample| **sample)
    }

    /// The value of the one sample of that name.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.get(name, &[])
    }

    pub fn has(&self, family: &str) -> bool {
        self.families.iter().any(|(known, _)| known == family)
    }

    /// A label of the one sample of that name.
    pub fn label(&self, name: &str, label: &str) -> Option<&str> {
        self.sample(name, &[])?
            .labels
            .get(label)
            .map(String::as_str)
    }

    #[track_caller]
    pub fn assert_up(&self) {
        assert!(self.up(), "{self:?}");
    }

    #[track_caller]
    pub fn assert_status(&self, status: &str) {
        assert_eq!(self.status(), Some(status), "{self:?}");
    }

    /// Asserts how many requests to the server have failed.
    #[track_caller]
    pub fn assert_errors(&self, count: u64) {
        assert_eq!(self.errors(), count, "{self:?}");
    }

    /// Asserts the value of the one sample of that name.
    #[track_caller]
    pub fn assert_value(&self, name: &str, value: f64) {
        assert_eq!(self.value(name), Some(value), "{name} in\n{self:?}");
    }

    #[track_caller]
    pub fn assert_values(&self, expected: &[(&str, f64)]) {
        for (name, value) in expected {
            self.assert_value(name, *value);
        }
    }

    /// Asserts that none of these families is there.
    #[track_caller]
    pub fn assert_absent(&self, families: &[&str]) {
        for family in families {
            assert!(!self.has(family), "{family} in\n{self:?}");
        }
    }

    /// The state of the one model; there must be exactly one.
    pub fn status(&self) -> Option<&str> {
        let states = self.all("llamacpp_status");
        let on: Vec<_> = states.iter().filter(|state| state.value == 1.0).collect();
        assert_eq!(
            on.len(),
            usize::from(!states.is_empty()),
            "not one state: {states:?}"
        );
        on.first().map(|state| state.labels["status"].as_str())
    }

    /// The last poll got an answer.
    pub fn up(&self) -> bool {
        self.value("llamacpp_up") == Some(1.0)
    }

    /// The last poll got none. (Before the first poll has ended a server is neither up nor down.)
    pub fn down(&self) -> bool {
        self.value("llamacpp_up") == Some(0.0)
    }

    pub fn polls(&self) -> u64 {
        self.value("llamacpp_exporter_polls_total").unwrap_or(0.0) as u64
    }

    /// Failed requests to `endpoint`, by reason.
    pub fn errors_of(&self, endpoint: &str) -> BTreeMap<String, u64> {
        self.all("llamacpp_exporter_poll_errors_total")
            .into_iter()
            .filter(|sample| sample.labels["endpoint"] == endpoint && sample.value > 0.0)
            .map(|sample| (sample.labels["reason"].clone(), sample.value as u64))
            .collect()
    }

    /// Failed requests in all.
    pub fn errors(&self) -> u64 {
        let errors = self.all("llamacpp_exporter_poll_errors_total");
        errors.iter().map(|sample| sample.value as u64).sum()
    }
}

impl Sample {
    /// `name value` or `name{label="value",…} value`; we write no timestamps.
    fn parse(line: &str) -> Option<Sample> {
        let end = line.find(['{', ' '])?;
        let name = line[..end].to_owned();
        let mut labels = BTreeMap::new();
        let mut rest = &line[end..];
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                let (label, after) = rest.split_once("=\"")?;
                let (value, after) = unescape(after)?;
                if !is_name(label) || labels.insert(label.to_owned(), value).is_some() {
                    return None;
                }
                if let Some(after) = after.strip_prefix('}') {
                    rest = after;
                    break;
                }
                rest = after.strip_prefix(',')?;
            }
        }
        let text = rest.strip_prefix(' ')?.to_owned();
        let value = text.parse().ok()?;
        is_name(&name).then_some(Sample {
            name,
            labels,
            value,
            text,
        })
    }
}

/// A label's value up to its closing quote, and what follows the quote.
fn unescape(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                '\\' => '\\',
                '"' => '"',
                'n' => '\n',
                _ => return None,
            }),
            other => value.push(other),
        }
    }
    None
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || character == '_')
}
