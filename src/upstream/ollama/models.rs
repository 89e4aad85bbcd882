//! The models that Ollama lists, and the llama-servers that run them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::bounds::lenient::{count, object, text};
use crate::readings::{LocalServer, ModelFacts};
use crate::upstream::api::units;

/// One model of `/api/ps` or `/api/tags`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ListedModel {
    #[serde(deserialize_with = "text")]
    name: Option<String>,
    /// Bytes: in `/api/tags` those of its files, in `/api/ps` those of memory.
    #[serde(deserialize_with = "count")]
    size: Option<f64>,
    /// Where it runs, if that is in the cloud.
    #[serde(deserialize_with = "text")]
    remote_host: Option<String>,
    /// The context size of one request in tokens, of a loaded model.
    #[serde(deserialize_with = "count")]
    context_length: Option<f64>,
    #[serde(deserialize_with = "object")]
    details: Option<ModelDetails>,
}

/// `details` of a [`ListedModel`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ModelDetails {
    #[serde(deserialize_with = "text")]
    family: Option<String>,
    #[serde(deserialize_with = "text")]
    parameter_size: Option<String>,
    #[serde(deserialize_with = "text")]
    quantization_level: Option<String>,
    /// The context size that it was trained with.
    #[serde(deserialize_with = "count")]
    context_length: Option<f64>,
}

impl ListedModel {
    /// The name and facts of a loaded model, as `/api/ps` lists it.
    pub fn loaded(self) -> Option<(String, ModelFacts)> {
        let (name, facts) = self.facts()?;
        Some((
            name,
            ModelFacts {
                size: None,
                ..facts
            },
        ))
    }

    /// The name and facts of a model on this machine, as `/api/tags` lists it.
    pub fn stored(self) -> Option<(String, ModelFacts)> {
        let is_local = self.remote_host.is_none();
        self.facts().filter(|_| is_local)
    }

    fn facts(self) -> Option<(String, ModelFacts)> {
        let positive = |value: Option<f64>| value.filter(|value| *value > 0.0);
        let details = self.details.unwrap_or_default();
        let facts = ModelFacts {
            size: self.size,
            parameters: details
                .parameter_size
                .as_deref()
                .and_then(units::parameters),
            quantization: details.quantization_level,
            architecture: details.family,
            max_context_size: positive(self.context_length),
            training_context: positive(details.context_length),
            ..ModelFacts::default()
        };
        Some((self.name?, facts))
    }
}

/// Completes the `facts` that a model's llama-server reports with those that Ollama lists. The
/// words are Ollama's, so that labels stay the same when the model is unloaded.
pub fn complete<'a>(facts: &mut ModelFacts, listed: impl Iterator<Item = &'a ModelFacts>) {
    for listed in listed {
        facts.size = facts.size.or(listed.size);
        facts.parameters = facts.parameters.or(listed.parameters);
        facts.max_context_size = facts.max_context_size.or(listed.max_context_size);
        facts.training_context = facts.training_context.or(listed.training_context);
        for (fact, listed) in [
            (&mut facts.quantization, &listed.quantization),
            (&mut facts.architecture, &listed.architecture),
        ] {
            *fact = listed.clone().or(fact.take());
        }
    }
    facts.is_description_pending = false;
}

/// The llama-server of each of the models `names`, as far as it is certain.
pub fn children<'a>(
    names: &'a [String],
    loaded: &BTreeMap<String, ModelFacts>,
    servers: &'a [LocalServer],
) -> Vec<(&'a str, &'a LocalServer)> {
    let servers = servers.iter().filter(|server| server.is_of_ollama());
    let servers: Vec<&LocalServer> = servers.collect();
    let children = names.iter().filter_map(|name| {
        let is_loaded = loaded.contains_key(name);
        let named: Vec<_> = servers
            .iter()
            .copied()
            .filter(|server| match is_loaded {
                true => server.stored_names.contains(name),
                // While it loads. Of several names of one file, `/api/ps` has the one in use.
                false => server.stored_names == [name.as_str()],
            })
            .collect();
        let is_only = is_loaded && loaded.len() == 1 && named.is_empty();
        let child = match servers.as_slice() {
            // Ollama's store cannot be read, but there is nothing to confuse.
            [only] if is_only && only.stored_names.is_empty() => Some(*only),
            _ => newest_of_one_parent(&named),
        };
        child.map(|child| (name.as_str(), child))
    });
    children.collect()
}

/// The newest process: the older one of two with one parent is ending. Processes of several
/// parents are of several Ollamas.
fn newest_of_one_parent<'a>(servers: &[&'a LocalServer]) -> Option<&'a LocalServer> {
    let parent = |server: &LocalServer| server.ancestors.first().copied();
    let first = servers.first()?;
    let is_sibling = |server: &&LocalServer| parent(server) == parent(first);
    let are_siblings = servers.iter().all(is_sibling);
    let newest = servers.iter().copied().max_by_key(|server| server.started);
    newest.filter(|_| are_siblings)
}
