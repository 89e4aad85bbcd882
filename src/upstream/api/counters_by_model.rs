//! Assigns the samples of one `/metrics` to models: a proxy may serve those of several servers as
//! one text.

use std::collections::BTreeMap;
use std::io::Read;

use crate::bounds;
use crate::readings::counters::{ACCEPTED_BY_POSITION, CounterFamily, FamilyType};
use crate::readings::llama_server_family::{PREFIX, SampleText};
use crate::readings::{Counters, LlamaServerFamily};
use crate::upstream::api::exposition_reader::{self, Line, Sample};

/// The labels that name the model of a sample, with Docker Model Runner and with proxies. The
/// first that is present counts.
const MODEL_LABELS: [&str; 3] = ["model", "model_name", "model_id"];

/// The most models whose samples are read.
const MOST_MODELS: usize = 1000;
/// The most families of a model that are kept as text, and samples of a family. llama-server has 15
/// families, one of them with several samples.
const MOST_FAMILIES: usize = 64;
const MOST_SAMPLES: usize = 64;
/// The most bytes of text that are kept of all models.
const MOST_TEXT: usize = 256 << 10;
/// The longest text of a value: a number of six digits has 12 bytes.
const LONGEST_VALUE: usize = 32;

/// The used samples of one `/metrics`, by model.
#[derive(Clone, Debug, Default)]
pub struct CountersByModel {
    /// By the model's label, `None` without one, and the label `mode`.
    models: BTreeMap<ModelLabels, ModelSamples>,
    /// The families of each model as text, without their HELP and TYPE.
    families: BTreeMap<ModelLabels, BTreeMap<String, Vec<SampleText>>>,
    /// HELP and TYPE of each family.
    headers: BTreeMap<String, Header>,
    /// Bytes of text that are kept.
    text_bytes: usize,
    /// Whether any of llama.cpp's families is present.
    has_llama_cpp: bool,
    /// The program whose metrics these are, as its `…_build_info` says. llama-server has none.
    program: Option<String>,
    /// Lines that were skipped because they are not samples.
    pub skipped_lines: u64,
}

type ModelLabels = (Option<String>, Option<String>);

#[derive(Clone, Debug, Default)]
struct Header {
    help: String,
    family_type: Option<FamilyType>,
}

/// The samples of one model.
#[derive(Clone, Debug, Default)]
struct ModelSamples {
    counters: Counters,
    /// The families that were read.
    families: Vec<&'static str>,
    /// A family with several samples, of which the right one is unknown.
    ambiguous: Option<&'static str>,
}

impl CountersByModel {
    /// Reads an exposition: the samples of llama.cpp for which `is_wanted` is true. With
    /// `keeps_text`, all of their families are kept as text, too.
    ///
    /// # Errors
    /// The text is not an exposition, is cut short, or could not be read.
    pub fn read(
        text: impl Read,
        keeps_text: bool,
        is_wanted: impl Fn(&Sample) -> bool,
    ) -> Result<CountersByModel, String> {
        let mut read = CountersByModel::default();
        read.skipped_lines = exposition_reader::read(text, |line| {
            let sample = &match line {
                Line::Sample(sample) => sample,
                Line::Comment(comment) if keeps_text => return read.take_header(comment),
                Line::Comment(_) => return,
            };
            let Some(name) = sample.name.strip_prefix(PREFIX) else {
                read.take_program(sample.name);
                return;
            };
            read.has_llama_cpp = true;
            let mut families = Counters::FAMILIES.iter();
            let family = families.find(|family| family.name == name);
            if !is_wanted(sample) {
                return;
            }
            if keeps_text {
                read.keep_text(sample);
            }
            if (family.is_some() || name == ACCEPTED_BY_POSITION)
                && let Some(model) = read.model(sample)
            {
                match family {
                    Some(family) => model.add(family, sample.value),
                    None => model.add_position(sample),
                }
            }
        })?;
        Ok(read)
    }

    /// Takes the name of the program from that of a sample.
    fn take_program(&mut self, name: &str) {
        let program = name.strip_suffix("_build_info");
        // The Go runtime's says nothing about the program.
        if let Some(program) = program.filter(|program| *program != "go") {
            self.program = Some(bounds::cut(program).to_owned());
        }
    }

    /// Takes a line ` HELP name text` or ` TYPE name type`.
    fn take_header(&mut self, comment: &str) {
        let mut words = comment.trim_start().splitn(3, ' ');
        let (Some(keyword), Some(name), Some(rest)) = (words.next(), words.next(), words.next())
        else {
            return;
        };
        let is_known = self.headers.contains_key(name);
        if !name.starts_with(PREFIX)
            || name.len() > bounds::MAX_TEXT_BYTES
            || (!is_known && self.headers.len() >= MOST_FAMILIES)
        {
            return;
        }
        let header = self.headers.entry(name.to_owned()).or_default();
        match (keyword, rest.trim()) {
            ("HELP", help) => bounds::cut(&unescaped(help)).clone_into(&mut header.help),
            ("TYPE", "counter") => header.family_type = Some(FamilyType::Counter),
            ("TYPE", "gauge") => header.family_type = Some(FamilyType::Gauge),
            _ => {}
        }
    }

    /// Keeps a sample as text.
    fn keep_text(&mut self, sample: &Sample) {
        // Names that begin with two underscores are Prometheus's own: with `__name__` in it, it would
        // take no sample of the whole scrape.
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && !name.starts_with("__")
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let own = sample.labels.iter().filter(|(name, value)| {
            !MODEL_LABELS.contains(name) && !["mode", "server"].contains(name) && !value.is_empty()
        });
        let mut labels: Vec<_> = own
            .map(|(name, value)| ((*name).to_owned(), bounds::cut(value).to_owned()))
            .collect();
        labels.sort();
        labels.dedup_by(|a, b| a.0 == b.0);
        let bytes = labels
            .iter()
            .map(|(name, value)| name.len().saturating_add(value.len()))
            .fold(sample.text.len(), usize::saturating_add);
        if sample.text.len() > LONGEST_VALUE
            || sample.name.len() > bounds::MAX_TEXT_BYTES
            || !labels.iter().all(|(name, _)| is_name(name))
        {
            return;
        }
        let key = model_labels(sample);
        if self.families.len() >= MOST_MODELS && !self.families.contains_key(&key) {
            return;
        }
        let families = self.families.entry(key).or_default();
        if families.len() >= MOST_FAMILIES && !families.contains_key(sample.name) {
            return;
        }
        let samples = families.entry(sample.name.to_owned()).or_default();
        let bytes = bytes.saturating_add(sample.name.len());
        let bytes = self.text_bytes.saturating_add(bytes);
        if samples.len() < MOST_SAMPLES
            && samples.iter().all(|other| other.labels != labels)
            && bytes <= MOST_TEXT
        {
            self.text_bytes = bytes;
            samples.push(SampleText {
                labels,
                value: sample.text.to_owned(),
            });
        }
    }

    /// The counters of one model, with all of its families as text.
    fn remove(&mut self, key: &ModelLabels) -> Result<Counters, String> {
        let samples = self.models.remove(key).unwrap_or_default();
        let mut counters = samples.counters()?;
        let families = self.families.remove(key).unwrap_or_default();
        let families = families.into_iter().map(|(name, mut samples)| {
            let header = self.headers.get(&name).cloned().unwrap_or_default();
            samples.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
            LlamaServerFamily {
                name,
                help: header.help,
                family_type: header.family_type,
                samples,
            }
        });
        counters.families = families.collect();
        Ok(counters)
    }

    /// The model that `sample` is about; `None` if there are too many.
    fn model(&mut self, sample: &Sample) -> Option<&mut ModelSamples> {
        let key = model_labels(sample);
        let has_room = self.models.len() < MOST_MODELS || self.models.contains_key(&key);
        has_room.then(|| self.models.entry(key).or_default())
    }

    /// The counters of a server with one model; `names` are its possible names.
    ///
    /// # Errors
    /// None of llama.cpp's families is present, or the samples are about other models, or about
    /// several that the labels do not distinguish.
    pub fn of_server(mut self, names: &[&str]) -> Result<Counters, String> {
        // The exporter can serve llama-server's families, too.
        let is_other = |program: &&str| !self.has_llama_cpp || *program == "llamacpp_exporter";
        if let Some(program) = self.program.as_deref().filter(is_other) {
            return Err(format!("has metrics of {program}, not of llama-server"));
        }
        let is_own =
            |(model, _): &ModelLabels| model.as_deref().is_none_or(|model| names.contains(&model));
        let (own, others): (Vec<_>, Vec<_>) = self.models.keys().cloned().partition(is_own);
        let key = match (&own[..], &others[..]) {
            ([], []) if self.has_llama_cpp => return Ok(Counters::default()),
            ([], []) => return Err("has no llamacpp: metric".to_owned()),
            ([key], _) if key.0.is_some() || others.is_empty() => key,
            // If no name is known, any name is accepted.
            ([], [key]) if names.is_empty() => key,
            _ => {
                let labels = own.iter().chain(&others);
                let labels = labels.map(|(model, _)| model.as_deref().unwrap_or_default());
                return Err(format!(
                    "has samples of the models {:?}, not only of {}: they are not used",
                    labels.take(5).collect::<Vec<_>>(),
                    names.first().unwrap_or(&"one"),
                ));
            }
        };
        let key = key.clone();
        self.remove(&key)
    }

    /// The counters of each model and mode that has a label; `None` if its samples are ambiguous.
    pub fn by_label(mut self) -> impl Iterator<Item = (String, Option<String>, Option<Counters>)> {
        let keys: Vec<_> = self.models.keys().cloned().collect();
        keys.into_iter().filter_map(move |key| {
            let counters = self.remove(&key).ok();
            Some((key.0?, key.1, counters))
        })
    }
}

/// The labels of the model that `sample` is about.
fn model_labels(sample: &Sample) -> ModelLabels {
    // In Prometheus' data model an empty label is no label.
    let label = |name| sample.label(name).filter(|value| !value.is_empty());
    let cut = |value: Option<&str>| Some(bounds::cut(value?).to_owned());
    let model = MODEL_LABELS.into_iter().find_map(label);
    (cut(model), cut(label("mode")))
}

/// The text of a HELP line, in which a newline is `\\n` and a backslash is doubled.
fn unescaped(text: &str) -> String {
    let mut chars = text.chars();
    let mut unescaped = String::new();
    while let Some(c) = chars.next() {
        unescaped.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                other => other.unwrap_or('\\'),
            },
            c => c,
        });
    }
    unescaped
}

impl ModelSamples {
    fn add(&mut self, family: &CounterFamily, value: f64) {
        if self.families.contains(&family.name) {
            self.ambiguous = Some(family.name);
        }
        self.families.push(family.name);
        *(family.field)(&mut self.counters) = Some(value).filter(|value| (family.is_valid)(*value));
    }

    fn add_position(&mut self, sample: &Sample) {
        let position = sample.label("position");
        if position.is_some_and(|position| self.counters.add_position(position, sample.value)) {
            self.ambiguous = Some(ACCEPTED_BY_POSITION);
        }
    }

    fn counters(self) -> Result<Counters, String> {
        match self.ambiguous {
            None => Ok(self.counters),
            Some(family) => Err(format!(
                "has several samples of {PREFIX}{family} for one model: it is unknown which one \
                 is meant"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_unknown() {
        let mut counters = of_server(
            "llamacpp:n_decode_total NaN\nllamacpp:prompt_tokens_total -1\n\
             llamacpp:n_tokens_max 0.5\nllamacpp:tokens_predicted_total 5\n\
             llamacpp:requests_processing 4294967295\n",
            &[],
        )
        .unwrap();
        let expected = Counters {
            generated_tokens: Some(5.0),
            ..Counters::default()
        };
        counters.families = expected.families.clone();
        assert_eq!(counters, expected);
    }

    #[test]
    fn every_family_is_kept_as_text() {
        let text = "# HELP llamacpp:a_total A \\\\ of\\ntwo\n# TYPE llamacpp:a_total counter\n\
                    llamacpp:a_total{model=\"m\",server=\"x\",position=\"1\"} 1.23457e+06\n\
                    llamacpp:a_total{position=\"0\",model=\"m\"} 7\n\
                    llamacpp:a_total{position=\"0\",model=\"m\"} 8\n\
                    llamacpp:b{model=\"m\",9=\"x\"} 1\n\
                    llamacpp:d{model=\"m\",__name__=\"up\"} 1\nother:c{model=\"m\"} 2\n\
                    llamacpp:n_decode_total{model=\"m\"} 3\n";
        let counters = of_server(text, &["m"]).unwrap();
        let names = counters.families.iter().map(|family| &family.name);
        assert!(names.eq(["llamacpp:a_total", "llamacpp:n_decode_total"]));
        let family = &counters.families[0];
        assert_eq!(family.help, "A \\ of\ntwo");
        assert_eq!(family.family_type, Some(FamilyType::Counter));
        let samples = family.samples.iter();
        let samples: Vec<_> = samples
            .map(|sample| (sample.labels[0].1.as_str(), sample.value.as_str()))
            .collect();
        assert_eq!(samples, [("0", "7"), ("1", "1.23457e+06")]);
        // Between two reads, only counters are known.
        assert_eq!(counters.without_gauges().families.len(), 1);
    }

    #[test]
    fn the_text_that_is_kept_is_limited() {
        let mut text = String::new();
        for model in 0..200 {
            for family in 0..100 {
                text += &format!(
                    "llamacpp:f{family}{{model=\"m{model}\",a=\"{}\"}} 1\n",
                    "x".repeat(400)
                );
            }
        }
        text += &(0..3000)
            .map(|model| generated(&format!("{{model=\"n{model}\",a=\"x\"}}"), 4))
            .collect::<String>();
        let read = CountersByModel::read(text.as_bytes(), true, |_| true).unwrap();
        assert_eq!(read.families.len(), MOST_MODELS);
        let families = || read.families.values();
        assert!(families().all(|families| families.len() <= MOST_FAMILIES));
        let labels = families().flat_map(BTreeMap::values).flatten();
        let bytes: usize = labels.map(|sample| sample.labels[0].1.len()).sum();
        assert!(bytes <= MOST_TEXT, "{bytes}");
    }

    #[test]
    fn accepted_draft_tokens_are_read_by_position() {
        let accepted = |position: &str, tokens: &str| {
            format!("llamacpp:{ACCEPTED_BY_POSITION}{{position=\"{position}\"}} {tokens}\n")
        };
        let drafts = "llamacpp:spec_decode_num_drafts_total 9\n".to_owned();
        let (first, second) = (accepted("0", "7"), accepted("1", "4"));
        let counters = of_server(&(drafts.clone() + &first + &second), &[]).unwrap();
        let positions = BTreeMap::from([(0, 7.0), (1, 4.0)]);
        assert_eq!(counters.draft_tokens_accepted_by_position, positions);
        assert_eq!(counters.drafts, Some(9.0));
        // Impossible ones are left out, and so is what no real server has.
        for (position, tokens) in [
            ("1", "-4"),
            ("1", "NaN"),
            ("64", "4"),
            ("-1", "4"),
            ("", "4"),
        ] {
            let text = drafts.clone() + &first + &accepted(position, tokens);
            let counters = of_server(&text, &[]).unwrap();
            let positions = counters.draft_tokens_accepted_by_position;
            assert_eq!(positions, BTreeMap::from([(0, 7.0)]), "{position} {tokens}");
        }
        // Nothing tells which one is meant.
        assert!(of_server(&(drafts + &first + &first), &[]).is_err());
    }

    #[test]
    fn the_metrics_of_another_program_are_an_error() {
        assert!(of_server("node_load1 0.5\n", &[]).is_err());
    }

    fn of_server(text: &str, names: &[&str]) -> Result<Counters, String> {
        CountersByModel::read(text.as_bytes(), true, |_| true)?.of_server(names)
    }

    /// One sample of the tokens generated, with these labels.
    fn generated(labels: &str, tokens: u32) -> String {
        format!("llamacpp:tokens_predicted_total{labels} {tokens}\n")
    }

    #[test]
    fn the_label_distinguishes_the_samples_of_several_models() {
        let (a, b) = (generated("{model=\"a\"}", 1), generated("{model=\"b\"}", 2));
        let bare = generated("", 3);
        let unknown_family = "llamacpp:of_tomorrow{model=\"b\",position=\"0\"} 1\n".to_owned();
        let many: String = (0..3000)
            .map(|number| generated(&format!("{{model=\"m{number}\"}}"), 4))
            .collect();
        for (text, names, tokens) in [
            (bare.clone(), &[][..], Some(3.0)),
            (bare.clone(), &["a"], Some(3.0)),
            (a.clone(), &[], Some(1.0)),
            (a.clone(), &["b", "a"], Some(1.0)),
            (a.clone() + &b, &["b"], Some(2.0)),
            (a.clone() + &b + &bare, &["a"], None),
            (b.clone() + &many, &["b"], Some(2.0)),
            // Samples of another model are not used.
            (a.clone(), &["b"], None),
            (a.clone() + &b, &["c"], None),
            (a.clone() + &b, &["a", "b"], None),
            (a.clone() + &b, &[], None),
            (bare.clone() + &b, &["a"], None),
            (bare.clone() + &unknown_family, &["a"], Some(3.0)),
            // Nor are several samples that cannot be distinguished.
            (bare.clone() + &bare, &["a"], None),
            (
                generated("{server=\"x\"}", 1) + &generated("{server=\"y\"}", 2),
                &["a"],
                None,
            ),
            (a.clone() + &a, &["a"], None),
            // Other spellings of the label, and none.
            (
                a.replace("model", "model_name") + &b.replace("model", "model_name"),
                &["b"],
                Some(2.0),
            ),
            (a.replace("model", "model_id"), &["b"], None),
            (generated("{model=\"\"}", 4), &["a"], Some(4.0)),
            (many, &["a"], None),
        ] {
            let read = of_server(&text, names).map(|counters| counters.generated_tokens);
            assert_eq!(
                read.clone().ok().flatten(),
                tokens,
                "{text:.500} {names:?}: {read:?}"
            );
        }
    }
}
