//! Parse the settings, run the command.

use std::env;
use std::process::ExitCode;

use llamacpp_exporter::app;
use llamacpp_exporter::process::{build_info, log, os};
use llamacpp_exporter::settings::{self, Command};

fn main() -> ExitCode {
    if let Err(error) = os::hide_memory() {
        // Nothing depends on it.
        log::warn(
            "a core of this process may hold its keys",
            &[("reason", &error)],
        );
    }
    let (command, settings) =
        match settings::parse(env::args_os().skip(1).collect(), |name| env::var_os(name)) {
            Ok(parsed) => parsed,
            Err(error) => return app::fail(2, &error),
        };
    log::set_level(settings.log_level);
    match command {
        Command::Help => app::print(&settings::help(), true),
        Command::Version => app::print(&build_info::version_text(), true),
        Command::Healthcheck => app::healthcheck(&settings),
        Command::Check => app::check(&settings),
        Command::Serve => app::serve(&settings),
    }
}
