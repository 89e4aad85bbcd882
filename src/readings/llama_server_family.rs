//! The families of a llama-server's `/metrics` as text, for those who read them under their own
//! names.

use crate::readings::counters::FamilyType;

/// The prefix of llama.cpp's own families.
pub const PREFIX: &str = "llamacpp:";

/// A family of a llama-server's `/metrics`, as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LlamaServerFamily {
    /// Its name, with the prefix.
    pub name: String,
    /// The text of its HELP line, escaped as it was.
    pub help: String,
    /// Its type; `None` if the text does not say.
    pub family_type: Option<FamilyType>,
    /// Its samples, no two with the same labels.
    pub samples: Vec<SampleText>,
}

/// One sample of a [`LlamaServerFamily`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SampleText {
    /// Its labels, but those that name its server, model and mode.
    pub labels: Vec<(String, String)>,
    /// Its value.
    pub value: String,
}
