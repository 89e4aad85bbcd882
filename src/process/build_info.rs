//! Which build of the exporter this is.

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from, or `unknown`.
pub const REVISION: &str = env!("EXPORTER_REVISION");
/// The target triple it was built for.
const TARGET: &str = env!("EXPORTER_TARGET");

/// What `--version` prints.
pub fn version_text() -> String {
    let features = if cfg!(feature = "tls") { "tls" } else { "none" };
    format!(
        "llamacpp-exporter {VERSION}\nrevision: {REVISION}\ntarget: {TARGET}\nfeatures: {features}\n"
    )
}
