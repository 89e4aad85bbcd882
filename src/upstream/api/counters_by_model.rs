//! Assigns the samples of one `/metrics` to models: a proxy may serve those of several servers as
//! one text.

use std::collections::BTreeMap;
use std::io::Read;

use crate::bounds;
use crate::readings::Counters;
use crate::readings::counters::{ACCEPTED_BY_POSITION, CounterFamily};
use crate::upstream::api::exposition_reader::{self, Sample};

/// The prefix of llama.cpp's own families.
const PREFIX: &str = "llamacpp:";

/// The labels that name the model of a sample, with Docker Model Runner and with proxies. The
/// first that is present counts.
const MODEL_LABELS: [&str; 3] = ["model", "model_name", "model_id"];

/// The most models whose samples are read.
const MOST_MODELS: usize = 1000;

/// The used samples of one `/metrics`, by model.
#[derive(Clone, Debug, Default)]
pub struct CountersByModel {
    /// By the model's label, `None` without one, and the label `mode`.
    models: BTreeMap<ModelLabels, ModelSamples>,
    /// Whether any of llama.cpp's families is present.
    has_llama_cpp: bool,
    /// Lines that were skipped because they are not samples.
    pub skipped_lines: u64,
}

type ModelLabels = (Option<String>, Option<String>);

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
    /// Reads an exposition: the samples of llama.cpp for which `is_wanted` is true.
    ///
    /// # Errors
    /// The text is not an exposition, is cut short, or could not be read.
    pub fn read(
        text: impl Read,
        is_wanted: impl Fn(&Sample) -> bool,
    ) -> Result<CountersByModel, String> {
        let mut read = CountersByModel::default();
        read.skipped_lines = exposition_reader::read(text, |sample| {
            let Some(name) = sample.name.strip_prefix(PREFIX) else {
                return;
            };
            read.has_llama_cpp = true;
            let mut families = Counters::FAMILIES.iter();
            let family = families.find(|family| family.name == name);
            if (family.is_some() || name == ACCEPTED_BY_POSITION)
                && is_wanted(sample)
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

    /// The model that `sample` is about; `None` if there are too many.
    fn model(&mut self, sample: &Sample) -> Option<&mut ModelSamples> {
        // In Prometheus' data model an empty label is no label.
        let label = |name| sample.label(name).filter(|value| !value.is_empty());
        let cut = |value: Option<&str>| Some(bounds::cut(value?).to_owned());
        let model = MODEL_LABELS.into_iter().find_map(label);
        let key = (cut(model), cut(label("mode")));
        let has_room = self.models.len() < MOST_MODELS || self.models.contains_key(&key);
        has_room.then(|| self.models.entry(key).or_default())
    }

    /// The counters of a server with one model; `names` are its possible names.
    ///
    /// # Errors
    /// None of llama.cpp's families is present, or the samples are about other models, or about
    /// several that the labels do not distinguish.
    pub fn of_server(mut self, names: &[&str]) -> Result<Counters, String> {
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
        self.models.remove(key).unwrap_or_default().counters()
    }

    /// The counters of each model and mode that has a label; `None` if its samples are ambiguous.
    pub fn by_label(self) -> impl Iterator<Item = (String, Option<String>, Option<Counters>)> {
        let models = self.models.into_iter();
        models.filter_map(|((model, mode), samples)| Some((model?, mode, samples.counters().ok())))
    }
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
        let counters = of_server(
            "llamacpp:n_decode_total NaN\nllamacpp:prompt_tokens_total -1\n\
             llamacpp:n_tokens_max 0.5\nllamacpp:tokens_predicted_total 5\n",
            &[],
        )
        .unwrap();
        let expected = Counters {
            generated_tokens: Some(5.0),
            ..Counters::default()
        };
        assert_eq!(counters, expected);
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
        CountersByModel::read(text.as_bytes(), |_| true)?.of_server(names)
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
