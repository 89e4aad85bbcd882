//! Tells the program which revision and target it was built from.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=REVISION");
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/logs/HEAD");
    // An image is built without the repository: its builder hands the revision in.
    let revision = env::var("REVISION")
        .ok()
        .filter(|revision| !revision.is_empty())
        .or_else(git_revision)
        .unwrap_or_else(|| "unknown".to_owned());
    let target = env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=EXPORTER_REVISION={revision}");
    println!("cargo::rustc-env=EXPORTER_TARGET={target}");
}

fn git_revision() -> Option<String> {
    let output = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()?;
    let revision = String::from_utf8(output.stdout).ok()?;
    let revision = revision.trim();
    (output.status.success() && !revision.is_empty()).then(|| revision.to_owned())
}
