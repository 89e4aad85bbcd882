//! Whose the samples of one `/metrics` are, where it has those of several models.

use std::collections::BTreeMap;
use std::io::Read;

use crate::bounds;
use crate::readings::Counters;
use crate::readings::counters::CounterFamily;
use crate::upstream::api::exposition_reader::{self, Sample};

/// What llama.cpp's own families begin with.
const PREFIX: &str = "llamacpp:";

/// The labels that say which model a sample is of: those of Docker Model Runner and of proxies
/// that put the texts of several servers together. The first that there is counts.
const MODEL_LABELS: [&str; 3] = ["model", "model_name", "model_id"];

/// The models of which one text may tell.
const MOST_LABELLED: usize = 1000;

/// The samples of an upstream's `/metrics` that are used, by the model that they are of.
#[derive(Clone, Debug, Default)]
pub struct CountersByModel {
    /// By the model's label (no label: `None`) and the label `mode`.
    counters: BTreeMap<(Option<String>, Option<String>), Labelled>,
    /// Whether any of llama.cpp's families is there.
    is_llama_cpps: bool,
    /// Lines that are no sample, and were passed over.
    pub skipped_lines: u64,
}

/// The samples of one model.
#[derive(Clone, Debug, Default)]
struct Labelled {
    counters: Counters,
    /// The families that a sample was taken from.
    families: Vec<&'static str>,
    /// A family that has several samples: which of them is meant is not known.
    ambiguous: Option<&'static str>,
}

impl CountersByModel {
    /// Reads an exposition; of the samples with `llamacpp:` in their name, those that `wanted` says.
    ///
    /// # Errors
    /// It is no exposition, or is cut short; or reading it failed.
    pub fn read(
        text: impl Read,
        wanted: impl Fn(&Sample) -> bool,
    ) -> Result<CountersByModel, String> {
        let mut read = CountersByModel::default();
        read.skipped_lines = exposition_reader::read(text, |sample| {
            let Some(name) = sample.name.strip_prefix(PREFIX) else {
                return;
            };
            read.is_llama_cpps = true;
            if let Some(family) = Counters::FAMILIES.iter().find(|family| family.name == name)
                && wanted(sample)
            {
                // In Prometheus' data model an empty label is no label.
                let label = |name| sample.label(name).filter(|value| !value.is_empty());
                let cut = |value: Option<&str>| Some(bounds::cut(value?).to_owned());
                let key = (
                    cut(MODEL_LABELS.into_iter().find_map(label)),
                    cut(label("mode")),
                );
                if read.counters.len() < MOST_LABELLED || read.counters.contains_key(&key) {
                    read.counters
                        .entry(key)
                        .or_default()
                        .take(family, sample.value);
                }
            }
        })?;
        Ok(read)
    }

    /// The counters of a server of one model, which it calls by any of `names`.
    ///
    /// # Errors
    /// None of llama.cpp's families is there; or whose the samples are cannot be told: they are
    /// of other models, or of several that the text does not tell apart.
    pub fn of_server(mut self, names: &[&str]) -> Result<Counters, String> {
        let is_this = |(model, _): &(Option<String>, Option<String>)| {
            model.as_deref().is_none_or(|model| names.contains(&model))
        };
        let (own, others): (Vec<_>, Vec<_>) = self.counters.keys().cloned().partition(is_this);
        match (&own[..], &others[..]) {
            ([], []) if self.is_llama_cpps => Ok(Counters::default()),
            ([], []) => Err("holds no llamacpp: metric".to_owned()),
            ([key], _) if key.0.is_some() || others.is_empty() => {
                self.counters.remove(key).unwrap_or_default().told()
            }
            // Without a name there is nothing that it could contradict.
            ([], [key]) if names.is_empty() => self.counters.remove(key).unwrap_or_default().told(),
            _ => {
                let labels = own.iter().chain(&others).map(|(model, _)| model.as_deref());
                let labels: Vec<_> = labels.map(|l| l.unwrap_or_default()).take(5).collect();
                Err(format!(
                    "holds samples of the models {labels:?}, and not of {} alone: they are not used",
                    names.first().unwrap_or(&"one"),
                ))
            }
        }
    }

    /// The counters of each model and mode that has a label; `None` where it cannot be told
    /// whose they are.
    pub fn by_label(self) -> impl Iterator<Item = (String, Option<String>, Option<Counters>)> {
        let told = |((model, mode), labelled): ((Option<String>, _), Labelled)| {
            Some((model?, mode, labelled.told().ok()))
        };
        self.counters.into_iter().filter_map(told)
    }
}

impl Labelled {
    fn take(&mut self, family: &CounterFamily, value: f64) {
        if self.families.contains(&family.name) {
            self.ambiguous = Some(family.name);
        }
        self.families.push(family.name);
        *(family.field)(&mut self.counters) = Some(value).filter(|value| (family.is_valid)(*value));
    }

    fn told(self) -> Result<Counters, String> {
        match self.ambiguous {
            None => Ok(self.counters),
            Some(family) => Err(format!(
                "holds several samples of {PREFIX}{family} for one model: whose they are cannot \
                 be told"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_no_counts_are_not_known() {
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
    fn another_programs_metrics_are_not_llama_cpps() {
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
    fn samples_of_several_models_are_told_apart_by_their_label() {
        let (a, b) = (generated("{model=\"a\"}", 1), generated("{model=\"b\"}", 2));
        let bare = generated("", 3);
        let of_tomorrow = "llamacpp:of_tomorrow{model=\"b\",position=\"0\"} 1\n".to_owned();
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
            // Another model's number is not shown under this one's name.
            (a.clone(), &["b"], None),
            (a.clone() + &b, &["c"], None),
            (a.clone() + &b, &["a", "b"], None),
            (a.clone() + &b, &[], None),
            (bare.clone() + &b, &["a"], None),
            (bare.clone() + &of_tomorrow, &["a"], Some(3.0)),
            // Nor one of several that nothing tells apart.
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
            let told = of_server(&text, names).map(|counters| counters.generated_tokens);
            assert_eq!(
                told.clone().ok().flatten(),
                tokens,
                "{text:.500} {names:?}: {told:?}"
            );
        }
    }
}
