//! The program as it is called: flags, environment variables, `--check`, `--healthcheck`, exit
//! codes, and what it writes to its log.

mod check;
mod check_document;
mod credentials;
mod first_start;
mod healthcheck;
mod log_output;
#[cfg(target_os = "linux")]
mod service_manager;
mod settings;
mod shutdown;
#[path = "../support/mod.rs"]
mod support;
use support::exporter::{Output, program, run};

fn called(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    run(program().args(arguments).envs(variables.iter().copied()))
}

const KEY: &str = "sk-7Yq-do-not-tell";
