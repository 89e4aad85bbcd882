//! The program as it is called: flags, environment variables, `--check`, `--healthcheck`, exit
//! codes, and what it writes to its log.

mod check;
mod credentials;
mod healthcheck;
mod log_output;
mod settings;
mod shutdown;
#[path = "../support/mod.rs"]
mod support;
use std::io::Write;
use support::exporter::{Ended, program, run};

fn called(arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
    run(program().args(arguments).envs(variables.iter().copied()))
}

fn file_with(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

const KEY: &str = "sk-7Yq-do-not-tell";
