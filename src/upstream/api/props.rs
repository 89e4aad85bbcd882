//! `GET /props` (`tools/server/server-context.cpp`).

use serde::Deserialize;

use crate::bounds::lenient::{count, flag, object, text};
use crate::upstream::api::Recognizable;

/// `GET /props`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Props {
    /// `b11434-abc`; `b0-unknown` if the builder did not set it.
    #[serde(deserialize_with = "text")]
    pub build_info: Option<String>,
    /// The server's name for its model.
    #[serde(deserialize_with = "text")]
    pub model_alias: Option<String>,
    /// The model file, as on the server's command line.
    #[serde(deserialize_with = "text")]
    pub model_path: Option<String>,
    /// `Q4_K - Medium`; from b10068.
    #[serde(deserialize_with = "text")]
    pub model_ftype: Option<String>,
    /// `router` in router mode.
    #[serde(deserialize_with = "text")]
    pub role: Option<String>,
    /// Number of slots.
    #[serde(deserialize_with = "count")]
    pub total_slots: Option<f64>,
    /// Whether the server sleeps and has unloaded its model; from b7551.
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
    /// Context size of one slot, in tokens.
    #[serde(deserialize_with = "count")]
    pub n_ctx: Option<f64>,
}

impl Recognizable for Props {
    const UNLIKE: &str = "it has no property of llama-server";

    fn is_recognizable(&self) -> bool {
        self.total_slots.is_some()
            || self.default_generation_settings.is_some()
            || self.build_info.is_some()
            || self.role.is_some()
    }
}

impl Props {
    /// Whether the server is a router.
    pub fn is_router(&self) -> bool {
        self.role.as_deref() == Some("router")
    }

    /// The build number in `build_info`; `None` for `b0-unknown` and `b1-…`, from builds outside of
    /// the repository.
    pub fn build(&self) -> Option<u32> {
        let digits = self.build_info.as_deref()?.strip_prefix('b')?;
        let digits = digits.split('-').next()?;
        digits.parse().ok().filter(|build| *build > 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_real_build_number_is_read() {
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
