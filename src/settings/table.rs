//! The table of settings. Parsing, `--help` and the README's reference follow from it.

use std::fs;

use crate::settings::{CaFile, Command, Settings, duration};

/// One setting: a row of [`TABLE`].
pub struct Row {
    /// The flag; empty if only a variable sets it.
    pub flag: &'static str,
    /// A second name of the flag; empty: none.
    pub alias: &'static str,
    /// The name of the flag's value in `--help`; empty: the flag takes no value.
    pub argument: &'static str,
    /// Environment variables that set it, in order of precedence.
    pub variables: &'static [&'static str],
    /// The default value; empty: none.
    pub default: &'static str,
    /// Whether the default applies, once all that was given is set.
    pub default_applies: fn(&Settings) -> bool,
    /// Its meaning: the text in `--help` and README.
    pub help: &'static str,
    /// Whether it takes several values: repeated, or separated by commas.
    pub repeatable: bool,
    /// Whether errors must not quote its value, which may be a secret.
    pub secret: bool,
    /// Whether an empty value on the command line counts as unset.
    pub may_be_empty: bool,
    /// Parses and sets a value; an error lists the accepted forms.
    pub set: fn(&mut Settings, &str) -> Result<(), String>,
}

/// The defaults of a row's fields.
const ROW: Row = Row {
    flag: "",
    alias: "",
    argument: "",
    variables: &[],
    default: "",
    default_applies: |_| true,
    help: "",
    repeatable: false,
    secret: false,
    may_be_empty: false,
    set: |_, _| Ok(()),
};

/// Flags that select a command.
pub const COMMANDS: &[(&str, Command, &str)] = &[
    (
        "--check",
        Command::Check,
        "Poll twice, print a report of what is known and what is missing and why, exit with 1 unless \
         every server answered and accepted the key",
    ),
    (
        "--healthcheck",
        Command::Healthcheck,
        "Request the running exporter's /healthz, exit with 0 or 1; for images without a shell",
    ),
    ("--help", Command::Help, "Print this help"),
    (
        "--version",
        Command::Version,
        "Print version, revision, target and features",
    ),
];

/// Every setting, in the order of `--help`.
pub const TABLE: &[Row] = &[
    Row {
        flag: "--base-url",
        argument: "URL",
        variables: &["LLAMACPP_BASE_URL"],
        default: "http://model-runner.docker.internal/engines/llama.cpp/v1",
        default_applies: |settings| !settings.discover,
        help: "Base URL of the server to watch: llama-server, its router, Docker Model Runner, \
               llama-swap or Ollama, with or without /v1, or unix:/path/to/socket; for several, \
               repeat it or separate by commas",
        repeatable: true,
        set: |settings, text| push(&mut settings.base_urls, text.parse()),
        ..ROW
    },
    Row {
        flag: "--discover",
        variables: &["LLAMACPP_DISCOVER"],
        help: "Find the llama.cpp servers among the processes of this machine and watch them, beside \
               the base URLs that are given; the default base URL is not watched then",
        set: |settings, text| assign(&mut settings.discover, switch(text).and_then(only_on_linux)),
        ..ROW
    },
    Row {
        flag: "--model",
        argument: "NAME",
        variables: &["LLAMACPP_MODEL", "LLM_MODEL_NAME"],
        help: "Label model of a server that holds one model; by default the name that the server \
               gives, or ai/llama3.2:1B-Q8_0 if it gives none",
        may_be_empty: true,
        set: |settings, text| assign(&mut settings.model, Ok(Some(text.to_owned()))),
        ..ROW
    },
    Row {
        flag: "--addr",
        argument: "ADDR",
        variables: &["LLAMACPP_EXPORTER_ADDR"],
        default: ":9100",
        help: "Address to serve at: :9100 (every address), 127.0.0.1:9100, [::1]:9100 or \
               unix:/run/x.sock",
        set: |settings, text| assign(&mut settings.addr, text.parse()),
        ..ROW
    },
    Row {
        flag: "--allowed-hosts",
        argument: "NAME",
        variables: &["LLAMACPP_ALLOWED_HOSTS"],
        help: "Answer only requests whose Host is this name, localhost or an IP address, so that \
               no web page can read the metrics by DNS rebinding; for several, repeat it or \
               separate by commas; by default any Host is answered",
        repeatable: true,
        set: |settings, text| settings.allowed_hosts.add(text),
        ..ROW
    },
    Row {
        flag: "--interval",
        alias: "--scrape-interval",
        argument: "D",
        variables: &["LLAMACPP_SCRAPE_INTERVAL"],
        default: "5s",
        help: "Poll interval",
        set: |settings, text| assign(&mut settings.interval, duration::parse(text)),
        ..ROW
    },
    Row {
        flag: "--timeout",
        alias: "--client-timeout",
        argument: "D",
        variables: &["LLAMACPP_CLIENT_TIMEOUT"],
        default: "3s",
        help: "Time-out of one HTTP request to the server",
        set: |settings, text| assign(&mut settings.timeout, duration::parse(text)),
        ..ROW
    },
    Row {
        flag: "--api-key-file",
        argument: "F",
        variables: &["LLAMACPP_API_KEY_FILE"],
        help: "File with the server's API key; with several base URLs, URL=F for one of them, and F \
               alone for those without a key or user of their own",
        repeatable: true,
        secret: true,
        set: |settings, text| settings.api_keys.take_file(text),
        ..ROW
    },
    Row {
        variables: &["LLAMACPP_API_KEY"],
        help: "The API key itself; ignored if a file is given",
        secret: true,
        set: |settings, text| settings.api_keys.take_key(text),
        ..ROW
    },
    Row {
        flag: "--ca-file",
        argument: "F",
        variables: &["LLAMACPP_CA_FILE"],
        help: "PEM file of the root certificates to trust for https; by default the built-in roots",
        set: set_ca_file,
        ..ROW
    },
    Row {
        flag: "--sleep-idle-seconds",
        argument: "D",
        variables: &["LLAMACPP_SLEEP_IDLE_SECONDS"],
        help: "Value of llama-server's own --sleep-idle-seconds: before b10566 a poll resets the \
               server's idle timer, and the exporter stops polling a server that is about to sleep",
        set: |settings, text| {
            let idle = duration::parse(text)?;
            assign(&mut settings.sleep_idle, Ok(Some(idle.into())))
        },
        ..ROW
    },
    Row {
        flag: "--pid-file",
        argument: "F",
        variables: &["LLAMACPP_PID_FILE"],
        help: "File with the PID of the llama-server on this machine; by default the process is found \
               by the port that it listens on",
        set: |settings, text| assign(&mut settings.pid_file, Ok(Some(text.into()))),
        ..ROW
    },
    Row {
        flag: "--procfs",
        argument: "DIR",
        variables: &["LLAMACPP_PROCFS"],
        default: "/proc",
        help: "Directory of the machine's /proc; in a container, where that is mounted",
        set: |settings, text| assign(&mut settings.procfs, Ok(text.into())),
        ..ROW
    },
    Row {
        flag: "--sysfs",
        argument: "DIR",
        variables: &["LLAMACPP_SYSFS"],
        default: "/sys",
        help: "Directory of the machine's /sys; in a container, where that is mounted",
        set: |settings, text| assign(&mut settings.sysfs, Ok(text.into())),
        ..ROW
    },
    Row {
        flag: "--llama-server-metrics",
        variables: &["LLAMACPP_LLAMA_SERVER_METRICS"],
        help: "Also export llama-server's own metrics under their own names (llamacpp:*), with the \
               labels server and model, and llamacpp:kv_cache_usage_ratio",
        set: |settings, text| assign(&mut settings.llama_server_metrics, switch(text)),
        ..ROW
    },
    Row {
        flag: "--no-gpu",
        variables: &["LLAMACPP_NO_GPU"],
        help: "Read no GPUs: do not run nvidia-smi, and ignore AMD's and Intel's GPUs",
        set: |settings, text| assign(&mut settings.no_gpu, switch(text)),
        ..ROW
    },
    Row {
        flag: "--log-file",
        argument: "F",
        variables: &["LLAMACPP_LOG_FILE"],
        help: "Read llama-server's log (the file of its own --log-file, or - for standard input) for \
               the latencies of every request; with several base URLs, URL=F for each",
        repeatable: true,
        set: |settings, text| push(&mut settings.log_files, text.parse()),
        ..ROW
    },
    Row {
        flag: "--no-request-records",
        variables: &["LLAMACPP_NO_REQUEST_RECORDS"],
        help: "Do not count requests from what Docker Model Runner and llama-swap serve: logs, records, activity",
        set: |settings, text| assign(&mut settings.no_request_records, switch(text)),
        ..ROW
    },
    Row {
        flag: "--probe-interval",
        argument: "D",
        variables: &["LLAMACPP_PROBE_INTERVAL"],
        help: "Send a one-token completion at this interval and time its first token; never to a \
               model that is not loaded, is asleep, or had no other request since the last probe",
        set: |settings, text| {
            let interval = duration::parse(text)?;
            assign(&mut settings.probe_interval, Ok(Some(interval)))
        },
        ..ROW
    },
    Row {
        flag: "--prometheus-url",
        argument: "URL",
        variables: &["LLAMACPP_PROMETHEUS_URL"],
        help: "The Prometheus that --check asks whether it scrapes the exporter; by default \
               http://localhost:9090 and http://localhost:9091 are tried",
        set: |settings, text| {
            let url = text.parse()?;
            assign(&mut settings.prometheus_url, Ok(Some(url)))
        },
        ..ROW
    },
    Row {
        flag: "--json",
        help: "With --check: print the report as JSON",
        set: |settings, text| assign(&mut settings.json, switch(text)),
        ..ROW
    },
    Row {
        flag: "--log-level",
        argument: "L",
        variables: &["LLAMACPP_LOG_LEVEL"],
        default: "info",
        help: "Level of the exporter's own log: error, warn, info or debug",
        set: |settings, text| assign(&mut settings.log_level, text.parse()),
        ..ROW
    },
];

fn assign<T>(place: &mut T, value: Result<T, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

fn push<T>(list: &mut Vec<T>, value: Result<T, String>) -> Result<(), String> {
    list.push(value?);
    Ok(())
}

fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("use true or false".to_owned()),
    }
}

/// Refuses to switch on what other systems do not have.
fn only_on_linux(is_on: bool) -> Result<bool, String> {
    match is_on && !cfg!(target_os = "linux") {
        true => Err("it works on Linux only: name the servers with --base-url".to_owned()),
        false => Ok(is_on),
    }
}

fn set_ca_file(settings: &mut Settings, text: &str) -> Result<(), String> {
    if cfg!(not(feature = "tls")) {
        return Err("this program was built without the feature `tls`".to_owned());
    }
    settings.ca = Some(CaFile {
        path: text.to_owned(),
        pem: read_file(text)?,
    });
    Ok(())
}

/// The most bytes of a file that a setting names.
const FILE_LIMIT: u64 = 1 << 20;

/// Reads a file that a setting names.
pub(super) fn read_file(path: &str) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err("is larger than 1 MiB".to_owned());
    }
    Ok(bytes)
}

/// The text of `--help`.
pub fn help() -> String {
    let mut text = String::from(
        "Prometheus exporter for llama.cpp servers.\n\n\
         Usage: llamacpp-exporter [FLAG VALUE]…\n\n",
    );
    for row in TABLE {
        let variables = row.variables.join(", then ");
        let alias = match row.alias {
            "" => String::new(),
            alias => format!(", also {alias}"),
        };
        let name = match row.flag {
            "" => &variables,
            flag => &format!("{} {}", flag, row.argument),
        };
        text += &format!("  {}{alias}\n", name.trim_end());
        text += &indented(row.help);
        if !row.flag.is_empty() && !row.variables.is_empty() {
            text += &format!("        [variable: {variables}]\n");
        }
        if !row.default.is_empty() {
            text += &format!("        [default: {}]\n", row.default);
        }
    }
    for (flag, _, meaning) in COMMANDS {
        text += &format!("  {flag}\n{}", indented(meaning));
    }
    text += "\nDurations: 5s, 500ms, 1m30s, 1.5s, or a number of seconds.\n\
             Exit status: 0 success, 1 error at run time, 2 usage error.\n";
    text
}

/// `text` in lines of at most 70 characters, indented.
fn indented(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let longer = lines.last().map(|line| format!("{line} {word}"));
        match (lines.last_mut(), longer) {
            (Some(line), Some(longer)) if longer.chars().count() <= 70 => *line = longer,
            _ => lines.push(word.to_owned()),
        }
    }
    lines
        .iter()
        .map(|line| format!("        {line}\n"))
        .collect()
}

/// The settings as the README shows them: a Markdown table.
pub fn reference() -> String {
    let code = |text: &str| match text.trim_end() {
        "" => String::new(),
        text => format!("`{text}`"),
    };
    let mut text =
        String::from("| flag | variable | default | meaning |\n| --- | --- | --- | --- |\n");
    for row in TABLE {
        let mut flag = code(&format!("{} {}", row.flag, row.argument));
        if !row.alias.is_empty() {
            flag += &format!(", also {}", code(row.alias));
        }
        let variables: Vec<_> = row.variables.iter().map(|name| code(name)).collect();
        let variables = variables.join(", then ");
        text += &format!(
            "| {flag} | {variables} | {} | {} |\n",
            code(row.default),
            row.help
        );
    }
    for (flag, _, meaning) in COMMANDS {
        text += &format!("| {} | | | {meaning} |\n", code(flag));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_holds_the_reference() {
        let readme = include_str!("../../README.md");
        let reference = reference();
        assert!(
            readme.contains(&reference),
            "put this into README.md:\n{reference}"
        );
    }
}
