//! Parses the command line and the environment variables by the [table](super::table) of settings.

use std::ffi::OsString;

use crate::settings::table::{COMMANDS, Row, TABLE};
use crate::settings::unknown_names::similar_flag;
use crate::settings::{BaseUrl, Command, Settings};

/// Parses the command line (without the program's name) and the environment variables.
///
/// # Errors
/// One line with the flag or variable, its value and the accepted forms.
pub fn parse(
    arguments: Vec<OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<(Command, Settings), String> {
    let arguments = arguments.into_iter().filter(|text| !is_empty(text));
    let mut arguments = pico_args::Arguments::from_vec(arguments.collect());
    let mut command = Command::Serve;
    for (flag, wanted, _) in COMMANDS {
        // Later rows, --help and --version, take precedence over earlier ones.
        if arguments.contains(*flag) {
            command = *wanted;
        }
    }
    if arguments.contains("-h") {
        command = Command::Help;
    }
    let mut settings = Settings::default();
    if matches!(command, Command::Help | Command::Version) {
        return Ok((command, settings));
    }
    let mut unset = Vec::new();
    for row in TABLE {
        let given = flag_values(&mut arguments, row)?;
        for value in &given {
            apply_all(row, &mut settings, row.flag, value)?;
        }
        if given.is_empty() && !apply_variable(row, &mut settings, &variable)? {
            unset.push(row);
        }
    }
    for row in unset {
        if !row.default.is_empty() && (row.default_applies)(&settings) {
            apply_all(row, &mut settings, row.flag, row.default)?;
        }
    }
    if let Some(unknown) = arguments.finish().first() {
        return Err(unknown_argument(&unknown.to_string_lossy()));
    }
    if settings.json && command != Command::Check {
        return Err("--json: use it with --check".to_owned());
    }
    settings.check()?;
    Ok((command, settings))
}

/// Applies the first variable of `row` that is set. Returns whether there is one.
fn apply_variable(
    row: &Row,
    settings: &mut Settings,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<bool, String> {
    for name in row.variables {
        // An empty variable counts as unset: compose files set variables with `NAME=`.
        if let Some(value) = variable(name).filter(|value| !value.is_empty()) {
            let value = value
                .into_string()
                .map_err(|_| format!("{name}: is not valid UTF-8"))?;
            return apply_all(row, settings, name, &value).map(|()| true);
        }
    }
    Ok(false)
}

/// The values of the flag of `row` on the command line.
fn flag_values(arguments: &mut pico_args::Arguments, row: &Row) -> Result<Vec<String>, String> {
    let mut values = Vec::new();
    let names = [row.flag, row.alias].into_iter();
    for flag in names.filter(|flag| !flag.is_empty()) {
        if row.argument.is_empty() {
            values.extend(arguments.contains(flag).then(|| "true".to_owned()));
            continue;
        }
        let given: Vec<String> = arguments
            .values_from_str(flag)
            .map_err(|error| format!("{flag} {}: {error}; {}", row.argument, row.help))?;
        values.extend(given);
    }
    if values.len() > 1 && !row.repeatable {
        return Err(format!(
            "{}: given {} times; give it once",
            row.flag,
            values.len()
        ));
    }
    values.retain(|value| !(value.is_empty() && row.may_be_empty));
    Ok(values)
}

/// Applies a value, or several that are separated by commas.
fn apply_all(row: &Row, settings: &mut Settings, name: &str, value: &str) -> Result<(), String> {
    if !row.repeatable {
        return apply(row, settings, name, value, value);
    }
    let parts = value.split(',').map(str::trim);
    let mut parts = parts.filter(|part| !part.is_empty()).peekable();
    if parts.peek().is_none() {
        // An empty list is not the same as no list, which for --allowed-hosts allows any Host.
        return Err(format!("{name}: is empty"));
    }
    for part in parts {
        // The comma may be part of a password: then the whole text may be one value.
        let quoted = if value.contains('@') { value } else { part };
        apply(row, settings, name, part, quoted)?;
    }
    Ok(())
}

/// Applies one value. An error quotes `quoted`, without secrets.
fn apply(
    row: &Row,
    settings: &mut Settings,
    name: &str,
    value: &str,
    quoted: &str,
) -> Result<(), String> {
    (row.set)(settings, value).map_err(|why| {
        if row.secret {
            format!("{name} (value not shown): {why}")
        } else {
            format!("{name} {:?}: {why}", BaseUrl::without_secrets(quoted))
        }
    })
}

/// Whether this is `--flag=` of a flag that may be empty, which `pico_args` rejects.
fn is_empty(argument: &OsString) -> bool {
    let flag = argument.to_str().and_then(|text| text.strip_suffix('='));
    let mut rows = TABLE.iter();
    flag.is_some_and(|flag| rows.any(|row| row.may_be_empty && row.flag == flag))
}

/// The error for an argument that belongs to no flag. It may be a misplaced secret, so only text
/// that looks like a flag or a URL is quoted.
fn unknown_argument(text: &str) -> String {
    const HELP: &str = "unknown argument; see llamacpp-exporter --help";
    let flag = text.split('=').next().unwrap_or_default();
    let is_of_flag = |byte: u8| byte.is_ascii_lowercase() || b"-_".contains(&byte);
    if flag.starts_with('-') && flag.len() <= LONGEST_FLAG && flag.bytes().all(is_of_flag) {
        return match similar_flag(flag) {
            Some(similar) => format!("{flag}: unknown flag; did you mean {similar}?"),
            None => format!("{flag}: {HELP}"),
        };
    }
    if text.contains("://") {
        let url = BaseUrl::without_secrets(text);
        return format!("{url:?}: {HELP}; to give a URL, write --base-url URL");
    }
    format!("(not shown): {HELP}; write a flag before each value")
}

/// Longer than any flag.
const LONGEST_FLAG: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn parse_with(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Settings, String> {
        let arguments = arguments.iter().map(OsString::from).collect();
        let variable = |name: &str| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| OsString::from(value))
        };
        parse(arguments, variable).map(|(_, settings)| settings)
    }

    #[test]
    fn the_defaults_are_those_of_the_table() {
        let settings = parse_with(&[], &[]).unwrap();
        assert_eq!(
            settings.base_urls[0].to_string(),
            "http://model-runner.docker.internal/engines/llama.cpp/v1"
        );
        assert_eq!(settings.interval, Duration::from_secs(5));
        assert_eq!(settings.timeout, Duration::from_secs(3));
        assert_eq!(settings.addr.to_string(), ":9100");
        assert!(settings.model.is_none() && settings.api_key_of(&settings.base_urls[0]).is_none());
    }

    #[test]
    fn a_flag_overrides_its_variable_and_that_the_default() {
        let variables = [
            ("LLAMACPP_SCRAPE_INTERVAL", "7s"),
            ("LLAMACPP_CLIENT_TIMEOUT", "1.5"),
        ];
        let settings = parse_with(&["--interval", "2"], &variables).unwrap();
        assert_eq!(settings.interval, Duration::from_secs(2));
        assert_eq!(settings.timeout, Duration::from_millis(1500));
    }

    #[test]
    fn the_model_comes_from_the_exporters_variable_before_the_runners() {
        let both = [("LLM_MODEL_NAME", "ai/b"), ("LLAMACPP_MODEL", "ai/a")];
        assert_eq!(
            parse_with(&[], &both).unwrap().model.as_deref(),
            Some("ai/a")
        );
        assert_eq!(
            parse_with(&[], &both[..1]).unwrap().model.as_deref(),
            Some("ai/b")
        );
        assert_eq!(
            parse_with(&[], &[("LLAMACPP_MODEL", "")]).unwrap().model,
            None
        );
    }

    #[test]
    fn an_error_quotes_the_value_but_no_secret() {
        let error = parse_with(&["--interval", "0s"], &[]).unwrap_err();
        assert!(error.starts_with("--interval \"0s\": "), "{error}");
        let error = parse_with(&[], &[("LLAMACPP_CLIENT_TIMEOUT", "soon")]).unwrap_err();
        assert!(
            error.starts_with("LLAMACPP_CLIENT_TIMEOUT \"soon\": "),
            "{error}"
        );
        let error = parse_with(&[], &[("LLAMACPP_API_KEY", "sec\nret")]).unwrap_err();
        assert!(
            error.starts_with("LLAMACPP_API_KEY") && !error.contains("sec"),
            "{error}"
        );
        let error = parse_with(&["--base-url", "ftp://me:hidden@x"], &[]).unwrap_err();
        assert!(
            error.contains("--base-url") && !error.contains("hidden"),
            "{error}"
        );
    }

    #[test]
    fn repeated_and_unknown_flags_are_errors() {
        let twice = ["--addr", ":1", "--addr", ":2"];
        assert!(
            parse_with(&twice, &[])
                .unwrap_err()
                .contains("given 2 times")
        );
        assert!(
            parse_with(&["--bogus"], &[])
                .unwrap_err()
                .contains("--bogus")
        );
        assert!(parse_with(&["--addr"], &[]).unwrap_err().contains("--addr"));
    }

    #[test]
    fn an_alias_counts_as_the_same_flag() {
        let settings = parse_with(&["--scrape-interval", "2", "--client-timeout=1"], &[]).unwrap();
        assert_eq!(settings.interval, Duration::from_secs(2));
        assert_eq!(settings.timeout, Duration::from_secs(1));
        let both = ["--scrape-interval", "2", "--interval", "2"];
        assert!(
            parse_with(&both, &[])
                .unwrap_err()
                .contains("given 2 times")
        );
    }

    #[test]
    fn an_empty_model_counts_as_unset() {
        let variable = [("LLAMACPP_MODEL", "ai/a")];
        assert_eq!(parse_with(&["--model", ""], &[]).unwrap().model, None);
        assert_eq!(parse_with(&["--model="], &[]).unwrap().model, None);
        let settings = parse_with(&["--model", ""], &variable).unwrap();
        assert_eq!(settings.model.as_deref(), Some("ai/a"));
        assert!(parse_with(&["--interval", ""], &[]).is_err());
    }

    #[test]
    fn an_empty_list_is_rejected() {
        // `--allowed-hosts "$HOSTS"` with nothing in it must not mean any Host.
        for row in TABLE.iter().filter(|row| row.repeatable) {
            for value in ["", " ", ", ,"] {
                let error = parse_with(&[row.flag, value], &[]).unwrap_err();
                assert_eq!(error, format!("{}: is empty", row.flag));
            }
            let variable = row.variables[0];
            assert!(parse_with(&[], &[(variable, ",")]).is_err());
            assert!(parse_with(&[], &[(variable, "")]).is_ok());
        }
    }

    #[test]
    fn a_mistyped_flag_gets_a_suggestion() {
        for (typed, meant) in [
            ("--intervall", "--interval"),
            ("--base_url", "--base-url"),
            ("--baseurl=http://h:1", "--base-url"),
            ("--clienttimeout", "--client-timeout"),
            ("--api-key", "--api-key-file"),
            ("--healtcheck", "--healthcheck"),
            ("-help", "--help"),
        ] {
            let error = parse_with(&[typed], &[]).unwrap_err();
            assert!(
                error.ends_with(&format!("did you mean {meant}?")),
                "{error}"
            );
        }
        for typed in ["--bogus", "-x", "--", "-"] {
            let error = parse_with(&[typed], &[]).unwrap_err();
            assert!(!error.contains("did you mean"), "{typed}: {error}");
        }
    }

    #[test]
    fn a_secret_over_http_to_another_host_is_exposed() {
        let exposed = |arguments: &[&str]| {
            let settings = parse_with(arguments, &[("LLAMACPP_API_KEY", "k")]).unwrap();
            settings.exposed().map(BaseUrl::server).collect::<Vec<_>>()
        };
        assert_eq!(exposed(&["--base-url", "http://h:1"]), ["h:1"]);
        assert!(exposed(&["--base-url", "http://localhost:1"]).is_empty());
        assert!(exposed(&["--base-url", "http://[::1]:1,http://127.0.0.1:2"]).is_empty());
        if cfg!(feature = "tls") {
            assert!(exposed(&["--base-url", "https://h:1"]).is_empty());
        }
        let password = parse_with(&["--base-url", "http://me:pw@h:1"], &[]).unwrap();
        assert_eq!(password.exposed().count(), 1);
        let none = parse_with(&["--base-url", "http://h:1"], &[]).unwrap();
        assert_eq!(none.exposed().count(), 0);
    }

    #[test]
    fn servers_are_told_apart_by_as_much_of_the_url_as_it_takes() {
        let urls = [
            "http://h:80/a",
            "http://h/b/v1",
            "http://other/a",
            "https://i:443",
            "http://i:443",
        ];
        let arguments = urls.map(|url| ["--base-url", url]).concat();
        let settings = parse_with(&arguments, &[]).unwrap();
        let urls = settings.base_urls.iter();
        let labels: Vec<_> = urls.map(|url| settings.server_label(url)).collect();
        assert_eq!(
            labels,
            [
                "h:80/a",
                "h:80/b/v1",
                "other:80",
                "https://i:443",
                "http://i:443"
            ]
        );
        let twice = [
            "--base-url",
            "http://a@h/v1/",
            "--base-url",
            "http://b@h/v1",
        ];
        assert!(parse_with(&twice, &[]).is_err());
        let long = format!("http://h/{}", "a".repeat(512));
        assert!(parse_with(&["--base-url", &long], &[]).is_err());
    }

    #[test]
    fn a_pid_file_needs_a_single_base_url() {
        let one = ["--pid-file", "/run/a.pid", "--base-url", "http://a:1"];
        assert!(parse_with(&one, &[]).unwrap().pid_file.is_some());
        let two = [&one[..], &["--base-url", "http://b:1"]].concat();
        let error = parse_with(&two, &[]).unwrap_err();
        assert!(error.starts_with("--pid-file \"/run/a.pid\": "), "{error}");
    }
}
