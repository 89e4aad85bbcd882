//! Types for the documents of an upstream's endpoints, and readers for its lists and expositions.
//!
//! `/slots` and `/stats` are in [`crate::readings`], because the counters use them unchanged. The
//! documents that only one kind of server has are in its file.

pub mod counters_by_model;
pub mod exposition_reader;
mod health;
pub mod list;
mod models;
mod props;
pub mod units;

use serde::de::DeserializeOwned;

use crate::readings::Stats;
pub use health::Health;
pub use models::{ModelEntry, ModelMeta, RouterStatus};
pub use props::{GenerationSettings, Props};

/// A document that can be distinguished from other JSON objects by its content.
pub trait Recognizable: DeserializeOwned {
    /// Why another object is not this document.
    const UNLIKE: &str;

    /// Whether it is this document.
    fn is_recognizable(&self) -> bool;
}

impl Recognizable for Stats {
    const UNLIKE: &str = "it has no section of /stats";

    fn is_recognizable(&self) -> bool {
        self.has_any_section()
    }
}
