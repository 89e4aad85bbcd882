//! Parses the settings and runs the command.

use std::env;
use std::ffi::OsString;
use std::fmt::Display;
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
    if matches!(command, Command::Serve | Command::Check) {
        warn_of_unknown_variables();
    }
    match command {
        Command::Help => Ok(app::print(&settings::help(), true)),
        Command::Version => Ok(app::print(&build_info::version_text(), true)),
        Command::Healthcheck => app::healthcheck(&settings),
        Command::Check => app::check(&settings),
        Command::Serve => app::serve(&settings),
    }
}

/// A misspelled variable would go unnoticed: the default applies.
fn warn_of_unknown_variables() {
    let as_text = |(name, value): (OsString, OsString)| {
        Some((
            name.into_string().ok()?,
            value.to_string_lossy().into_owned(),
        ))
    };
    for unknown in settings::unknown_variables(env::vars_os().filter_map(as_text)) {
        let mut pairs: Vec<(&str, &dyn Display)> = vec![("variable", &unknown.name)];
        pairs.extend(
            unknown
                .similar
                .as_ref()
                .map(|similar| ("did_you_mean", similar as _)),
        );
        log::warn(
            "an environment variable is unknown and has no effect",
            &pairs,
        );
    }
}
