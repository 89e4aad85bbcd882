//! `GET /v1/models` and, in router mode, `GET /models`: a list of models under `data`.

use serde::Deserialize;

use crate::bounds::lenient::{count, flag, object, text, texts};

/// One model of the list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ModelEntry {
    /// The alias, or the path of the model file.
    #[serde(deserialize_with = "text")]
    pub id: Option<String>,
    /// `llamacpp`; other products send their own name, or that of a company.
    #[serde(deserialize_with = "text")]
    pub owned_by: Option<String>,
    /// Facts of the model; null while it loads.
    #[serde(deserialize_with = "object")]
    pub meta: Option<ModelMeta>,
    /// The status of the model; in router mode only.
    #[serde(deserialize_with = "object")]
    pub status: Option<RouterStatus>,
}

/// `status` of a [`ModelEntry`] (`tools/server/server-models.cpp`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RouterStatus {
    /// `unloaded`, `loading`, `loaded`, `sleeping` or `downloading`.
    #[serde(deserialize_with = "text")]
    pub value: Option<String>,
    /// Whether the model's server ended with an error.
    #[serde(deserialize_with = "flag")]
    pub failed: Option<bool>,
    /// The command line of the model's server.
    #[serde(deserialize_with = "texts")]
    pub args: Vec<String>,
}

/// `meta` of a [`ModelEntry`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ModelMeta {
    /// Number of parameters.
    #[serde(deserialize_with = "count")]
    pub n_params: Option<f64>,
    /// The context size that it was trained with, in tokens.
    #[serde(deserialize_with = "count")]
    pub n_ctx_train: Option<f64>,
    /// Size of the weights in bytes.
    #[serde(deserialize_with = "count")]
    pub size: Option<f64>,
    /// `Q4_K - Medium`; from b9873.
    #[serde(deserialize_with = "text")]
    pub ftype: Option<String>,
}
