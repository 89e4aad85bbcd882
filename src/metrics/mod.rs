//! The table of metrics, and the text format in which they are served.

pub mod catalogue;
pub mod exposition;
