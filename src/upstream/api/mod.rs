//! What llama-server answers, as far as it is used.

pub mod counters_by_model;
pub mod exposition_reader;
pub mod list;

use serde::Deserialize;

use crate::bounds::lenient::{count, flag, object, text, texts};

/// `GET /health` (`tools/server/server-http.cpp`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Health {
    /// `ok` where all is well; in ik_llama.cpp `no slot available` where every slot is at work.
    #[serde(deserialize_with = "text")]
    pub status: Option<String>,
    /// Slots that have nothing to do; in ik_llama.cpp, and in llama.cpp before September 2024.
    #[serde(deserialize_with = "count")]
    pub slots_idle: Option<f64>,
}

impl Health {
    /// Whether this is what llama-server answers, and not any JSON object.
    pub fn is_recognizable(&self) -> bool {
        matches!(self.status.as_deref(), Some("ok" | "no slot available"))
    }
}

/// `GET /props` (`tools/server/server-context.cpp`).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Props {
    /// `b11434-abc`; `b0-unknown` where the builder did not say.
    #[serde(deserialize_with = "text")]
    pub build_info: Option<String>,
    /// What the server calls its model.
    #[serde(deserialize_with = "text")]
    pub model_alias: Option<String>,
    /// The model's file, as on the server's command line.
    #[serde(deserialize_with = "text")]
    pub model_path: Option<String>,
    /// `Q4_K - Medium`; from b10068.
    #[serde(deserialize_with = "text")]
    pub model_ftype: Option<String>,
    /// `router` in router mode.
    #[serde(deserialize_with = "text")]
    pub role: Option<String>,
    /// Slots there are.
    #[serde(deserialize_with = "count")]
    pub total_slots: Option<f64>,
    /// Whether the model is put away; from b7551.
    #[serde(deserialize_with = "flag")]
    pub is_sleeping: Option<bool>,
    /// Holds the context size.
    #[serde(deserialize_with = "object")]
    pub default_generation_settings: Option<GenerationSettings>,
}

/// `default_generation_settings` of [`Props`].
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GenerationSettings {
    /// Tokens that fit one slot.
    #[serde(deserialize_with = "count")]
    pub n_ctx: Option<f64>,
}

impl Props {
    /// Whether this is an answer of llama-server at all, and not any JSON object.
    pub fn is_recognizable(&self) -> bool {
        self.total_slots.is_some()
            || self.default_generation_settings.is_some()
            || self.build_info.is_some()
            || self.role.is_some()
    }

    /// Whether it is the answer of a router.
    pub fn is_router(&self) -> bool {
        self.role.as_deref() == Some("router")
    }

    /// The number of the build, where `build_info` tells a believable one.
    ///
    /// Builders without the repository at hand leave `b0-unknown` or `b1-…`.
    pub fn build(&self) -> Option<u32> {
        let digits = self.build_info.as_deref()?.strip_prefix('b')?;
        let digits = digits.split('-').next()?;
        digits.parse().ok().filter(|build| *build > 1)
    }
}

/// One model of `GET /v1/models` (also `/models`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ModelEntry {
    /// The alias, or the model's file.
    #[serde(deserialize_with = "text")]
    pub id: Option<String>,
    /// `llamacpp`; other products name themselves or a company.
    #[serde(deserialize_with = "text")]
    pub owned_by: Option<String>,
    /// Facts of the model; null while it loads.
    #[serde(deserialize_with = "object")]
    pub meta: Option<ModelMeta>,
    /// The state of the model, in router mode only.
    #[serde(deserialize_with = "object")]
    pub status: Option<RouterStatus>,
}

/// `status` of a [`ModelEntry`] (`tools/server/server-models.cpp`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RouterStatus {
    /// `unloaded`, `loading`, `loaded`, `sleeping`, `downloading`.
    #[serde(deserialize_with = "text")]
    pub value: Option<String>,
    /// Whether the child ended by an error.
    #[serde(deserialize_with = "flag")]
    pub failed: Option<bool>,
    /// The child's command line.
    #[serde(deserialize_with = "texts")]
    pub args: Vec<String>,
}

/// `meta` of a [`ModelEntry`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ModelMeta {
    /// Parameters.
    #[serde(deserialize_with = "count")]
    pub n_params: Option<f64>,
    /// Bytes of weights.
    #[serde(deserialize_with = "count")]
    pub size: Option<f64>,
    /// `Q4_K - Medium`; from b9873.
    #[serde(deserialize_with = "text")]
    pub ftype: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_told_only_by_a_believable_number() {
        for (info, build) in [
            ("b11434-abc", Some(11434)),
            ("b7376", Some(7376)),
            ("b0-unknown", None),
            ("b1-deadbee", None),
            ("v1.2", None),
        ] {
            let props = Props {
                build_info: Some(info.to_owned()),
                ..Props::default()
            };
            assert_eq!(props.build(), build, "{info}");
        }
    }
}
