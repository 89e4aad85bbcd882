//! `GET /health` (`tools/server/server-http.cpp`).

use serde::Deserialize;

use crate::bounds::lenient::{count, text};
use crate::upstream::api::Recognizable;

/// `GET /health`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Health {
    /// `ok`; in ik_llama.cpp `no slot available` while every slot is busy.
    #[serde(deserialize_with = "text")]
    pub status: Option<String>,
    /// Idle slots; in ik_llama.cpp, and in llama.cpp before September 2024.
    #[serde(deserialize_with = "count")]
    pub slots_idle: Option<f64>,
}

impl Recognizable for Health {
    const UNLIKE: &str = "llama-server has no such `status`";

    fn is_recognizable(&self) -> bool {
        matches!(self.status.as_deref(), Some("ok" | "no slot available"))
    }
}
