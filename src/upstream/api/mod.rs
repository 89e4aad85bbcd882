//! The documents of an upstream's endpoints as types, and the readers of its lists and expositions.
//!
//! `/slots` and `/stats` are in [`crate::readings`]: they go on to the counters as they are. The
//! documents of one kind of server only are in its file.

pub mod counters_by_model;
pub mod exposition_reader;
mod health;
pub mod list;
mod models;
mod props;

use serde::de::DeserializeOwned;

use crate::readings::Stats;
pub use health::Health;
pub use models::{ModelEntry, ModelMeta, RouterStatus};
pub use props::{GenerationSettings, Props};

/// A document that is told from other JSON objects by its content.
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
