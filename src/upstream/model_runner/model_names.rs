//! The names of Docker Model Runner's models, each of which has many spellings.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// The fewest digits of an ID that identify a model: the length that users and tools copy.
const MIN_DIGITS: usize = 12;

/// Names and IDs in the spelling of requests.
#[derive(Debug)]
pub struct Spellings {
    names: BTreeSet<String>,
    ids: BTreeSet<String>,
}

impl Spellings {
    /// From these spellings of names and IDs.
    pub fn of(spelled: &[&str]) -> Spellings {
        let ids = spelled.iter().filter_map(|name| digest(name));
        Spellings {
            names: spelled.iter().map(|name| canonical(name)).collect(),
            ids: ids.map(str::to_owned).collect(),
        }
    }

    /// Whether one of them matches the model with this ID and these [canonical] names.
    pub fn matches(&self, id: &str, names: &[String]) -> bool {
        let id = bare(id);
        let is_spelled = |length: usize| id.get(..length).is_some_and(|id| self.ids.contains(id));
        names.iter().any(|name| self.names.contains(name))
            || (MIN_DIGITS..=id.len()).any(is_spelled)
    }
}

/// The indices of models in a list, by name and by ID.
#[derive(Debug, Default)]
pub struct NameIndex {
    names: BTreeMap<String, usize>,
    ids: BTreeMap<String, usize>,
}

impl NameIndex {
    /// The index of a list of models with these IDs and [canonical] names.
    pub fn new<'a>(models: impl IntoIterator<Item = (&'a str, &'a [String])>) -> NameIndex {
        let mut index = NameIndex::default();
        for (position, (id, names)) in models.into_iter().enumerate() {
            index.ids.entry(bare(id).to_owned()).or_insert(position);
            for name in names {
                index.names.entry(name.clone()).or_insert(position);
            }
        }
        index
    }

    /// The index of the model with the name or ID `spelled`.
    pub fn find(&self, spelled: &str) -> Option<usize> {
        let by_id = || {
            let digits = digest(spelled)?;
            let from = (Bound::Included(digits), Bound::Unbounded);
            let (id, position) = self.ids.range::<str, _>(from).next()?;
            id.starts_with(digits).then_some(*position)
        };
        let by_name = self.names.get(&canonical(spelled)).copied();
        by_name.or_else(by_id)
    }
}

/// The digits of an ID, if there are enough of them to identify a model.
pub fn digest(id: &str) -> Option<&str> {
    Some(bare(id)).filter(|digits| digits.len() >= MIN_DIGITS)
}

/// An ID without `sha256:`.
fn bare(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

/// `name` as Docker Model Runner resolves it: `gemma3` is `docker.io/ai/gemma3:latest`. Only the
/// tag is case-sensitive.
pub fn canonical(name: &str) -> String {
    let (name, tag) = match name.rsplit_once(':') {
        // A slash after the colon means that it precedes a registry's port.
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (name, ""),
    };
    let name = name.to_ascii_lowercase();
    let (registry, name) = match name.split_once('/') {
        Some(("docker.io" | "index.docker.io", name)) => ("", name),
        Some(("hf.co", name)) => ("huggingface.co/", name),
        _ => ("", name.as_str()),
    };
    let is_bare = registry.is_empty() && !name.contains('/');
    let namespace = if is_bare { "ai/" } else { "" };
    let tag = if tag.is_empty() { "latest" } else { tag };
    format!("{registry}{namespace}{name}:{tag}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:0123456789abcdef0123";

    #[test]
    fn a_model_is_found_by_every_name_and_by_enough_of_its_id() {
        let names = [vec![canonical("other")], vec![canonical("gemma3:Q4")]];
        let models = [("sha256:ffff456789abcdef", &names[0]), (ID, &names[1])];
        let index = NameIndex::new(models.map(|(id, names)| (id, names.as_slice())));
        for (spelled, position) in [
            ("docker.io/ai/Gemma3:Q4", Some(1)),
            ("other", Some(0)),
            (ID, Some(1)),
            ("0123456789ab", Some(1)),
            ("sha256:0123456789abc", Some(1)),
            ("0123456789a", None),
            ("0123456789ac", None),
            ("gemma3:q4", None),
            ("", None),
        ] {
            assert_eq!(index.find(spelled), position, "{spelled}");
            let matches = Spellings::of(&[spelled]).matches(ID, &names[1]);
            assert_eq!(matches, position == Some(1), "{spelled}");
        }
    }

    #[test]
    fn a_model_without_an_id_matches_only_by_name() {
        let index = NameIndex::new([("", [].as_slice())]);
        assert_eq!(index.find("0123456789ab"), None);
        assert!(!Spellings::of(&["", "0123456789ab"]).matches("", &[]));
        assert_eq!(digest("sha256:"), None);
    }

    #[test]
    fn every_spelling_has_the_same_canonical_name() {
        for name in [
            "gemma3",
            "ai/gemma3",
            "gemma3:latest",
            "ai/gemma3:latest",
            "docker.io/ai/gemma3:latest",
            "docker.io/gemma3",
            "index.docker.io/ai/gemma3",
            "AI/Gemma3",
            "gemma3:",
        ] {
            assert_eq!(canonical(name), "ai/gemma3:latest", "{name}");
        }
        for name in ["hf.co/a/B:Q4", "huggingface.co/A/b:Q4"] {
            assert_eq!(canonical(name), "huggingface.co/a/b:Q4", "{name}");
        }
        assert_ne!(canonical("gemma3:Q4"), canonical("gemma3:q4"));
        assert_eq!(canonical("reg.io:5000/a/b"), "reg.io:5000/a/b:latest");
        assert_eq!(canonical("reg.io:5000/a/b:v1"), "reg.io:5000/a/b:v1");
    }
}
