//! The table of metrics, and the text format in which they are served. Knows no I/O.

pub mod catalogue;
pub mod exposition;
pub mod lint;
pub mod need;
pub mod overview;
mod text_format;
pub mod value;
