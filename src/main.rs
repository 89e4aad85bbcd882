//! Parses the settings and runs the command.

use std::env;
use std::process::ExitCode;

use llamacpp_exporter::app::{self, Fatal};
use llamacpp_exporter::process::{build_info, log, os};
use llamacpp_exporter::settings::{self, Command};

fn main() -> ExitCode {
    run().unwrap_or_else(|fatal| {
        log::error(&fatal.message, &[]);
        ExitCode::from(fatal.exit_code)
    })
}

fn run() -> Result<ExitCode, Fatal> {
    if let Err(error) = os::hide_memory() {
        // The exporter works without it.
        log::warn(
            "a core dump of this process may contain its keys",
            &[("reason", &error)],
        );
    }
    let arguments = env::args_os().skip(1).collect();
    let (command, settings) =
        settings::parse(arguments, |name| env::var_os(name)).map_err(Fatal::usage)?;
    log::set_level(settings.log_level);
    match command {
        Command::Help => Ok(app::print(&settings::help(), true)),
        Command::Version => Ok(app::print(&build_info::version_text(), true)),
        Command::Healthcheck => app::healthcheck(&settings),
        Command::Check => app::check(&settings),
        Command::Serve => app::serve(&settings),
    }
}
