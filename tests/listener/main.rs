//! The listener from outside: its clients, its addresses, and attacks on it.

mod addresses;
mod attacks;
mod http;
#[cfg(target_os = "linux")]
mod local_users;
mod other_user;
#[path = "../support/mod.rs"]
mod support;

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use support::Exporter;
use support::exporter::program;

/// A base URL on which nothing listens.
const NO_SERVER: &str = "http://[::1]:1";

/// Attacks and measurements would disturb each other.
fn sequential() -> MutexGuard<'static, ()> {
    static SEQUENTIAL: Mutex<()> = Mutex::new(());
    SEQUENTIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

fn exporter_at(address: &str) -> Command {
    let mut command = program();
    command.args(["--addr", address, "--base-url", NO_SERVER]);
    command
}

fn start() -> Exporter {
    Exporter::spawn(exporter_at("127.0.0.1:0"))
}

/// Starts a command that runs the exporter.
fn start_command(mut command: Command) -> Exporter {
    command.args(["--addr", "127.0.0.1:0", "--base-url", NO_SERVER]);
    Exporter::spawn(command)
}
