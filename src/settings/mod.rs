//! What the user says: flags, variables and defaults, from one table.
//!
//! A flag wins over its variable, which wins over the default. [`TABLE`] drives
//! parsing and `--help`, and the README's reference is tested against it.

mod api_key;
mod base_url;
mod duration;
mod log_file;

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bounds::{self, BoundedDuration};
use crate::process::log::Level;
pub use crate::settings::api_key::ApiKeys;
pub use crate::settings::base_url::BaseUrl;
pub use crate::settings::log_file::LogFile;
use crate::web::listener::Address;
use crate::web::worker::AllowedHost;

/// The model name that is shown while neither the user nor the server has given one.
pub const DEFAULT_MODEL: &str = "ai/llama3.2:1B-Q8_0";

/// Everything that can be set, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What to watch: at least one.
    pub base_urls: Vec<BaseUrl>,
    /// The `model` label of a server that holds one model; `None`: what the server says.
    pub model: Option<String>,
    /// Where to serve.
    pub addr: Address,
    /// The names that may be asked for; none: any.
    pub allowed_hosts: Vec<AllowedHost>,
    /// Time between the starts of two polls; above zero.
    pub interval: Duration,
    /// Deadline of one HTTP request, name resolution and body included; above zero.
    pub timeout: Duration,
    /// The keys of the upstreams.
    pub api_keys: ApiKeys,
    /// The roots to trust for `https` in place of the built-in ones.
    pub ca: Option<CaFile>,
    /// After how long without work the server falls asleep, if the user said so.
    pub sleep_idle: Option<BoundedDuration>,
    /// The file that holds the number of the server's process.
    pub pid_file: Option<PathBuf>,
    /// Where the machine's `/proc` is.
    pub procfs: PathBuf,
    /// Where the machine's `/sys` is.
    pub sysfs: PathBuf,
    /// Whether the GPUs of this machine are left alone.
    pub no_gpu: bool,
    /// Logs of llama-server to follow; none of them for the same base URL as another.
    pub log_files: Vec<LogFile>,
    /// Whether Docker Model Runner's records of requests are read.
    pub request_records: bool,
    /// Time between two probes; `None`: there are none.
    pub probe_interval: Option<Duration>,
    /// How much is logged.
    pub log_level: Level,
}

impl Settings {
    /// The label `server` of `base`: its host and port, and the rest of the URL where another
    /// base URL has the same.
    pub fn server_label(&self, base: &BaseUrl) -> String {
        let others = || self.base_urls.iter().filter(|other| *other != base);
        let label = base.server();
        if others().all(|other| other.server() != label) {
            return label;
        }
        let with_path = base.server_and_path();
        if others().all(|other| other.server_and_path() != with_path) {
            return with_path;
        }
        base.as_given()
    }

    /// The log of the server at `base`.
    pub fn log_file_of(&self, base: &BaseUrl) -> Option<&Path> {
        let mut files = self.log_files.iter();
        files
            .find(|file| file.is_of(base))
            .map(|file| file.path.as_path())
    }

    /// The key that the server at `base` is sent. None goes to what is no base URL.
    pub fn api_key_of(&self, base: &BaseUrl) -> Option<&Secret> {
        self.api_keys.of(base, &self.base_urls)
    }

    /// The base URLs that a key or password goes to for others on the way to read: `http`, and
    /// not on this machine.
    pub fn exposed(&self) -> impl Iterator<Item = &BaseUrl> {
        self.base_urls.iter().filter(|base| {
            let has_secret = base.userinfo().is_some() || self.api_key_of(base).is_some();
            has_secret && !base.is_https() && !base.is_loopback()
        })
    }
}

/// What the program was called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Poll and serve until told to stop.
    Serve,
    /// Poll once, print the report, exit.
    Check,
    /// Ask the running exporter whether it is well.
    Healthcheck,
    /// Print how to call the program.
    Help,
    /// Print what this program is.
    Version,
}

/// A file of roots to trust.
#[derive(Clone, Debug)]
pub struct CaFile {
    /// Where it lies.
    pub path: String,
    /// What it holds: PEM text, not looked at yet.
    pub pem: Vec<u8>,
}

/// A text that never shows itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`, which must be usable as an HTTP header's value.
    ///
    /// # Errors
    /// Says what is wrong with the text, without showing it.
    pub fn new(text: &str) -> Result<Secret, String> {
        let text = text.trim();
        if text.is_empty() {
            Err("holds no key".to_owned())
        } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Err("the key must be one line of printable ASCII without spaces".to_owned())
        } else {
            Ok(Secret(text.to_owned()))
        }
    }

    /// The text itself, for the one header that it belongs into.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// One setting: a row of [`TABLE`].
pub struct Row {
    /// The flag; empty for what has a variable only.
    pub flag: &'static str,
    /// Another name of the flag; empty: none.
    pub alias: &'static str,
    /// What the flag takes, as `--help` names it.
    pub argument: &'static str,
    /// Variables that set it, the strongest first.
    pub variables: &'static [&'static str],
    /// The value in force when nothing is set; empty: none.
    pub default: &'static str,
    /// What it means, in one line.
    pub help: &'static str,
    /// May be given several times (and, in a variable, separated by commas).
    repeatable: bool,
    /// Its value must not be repeated in an error: it may be a secret, or one in the wrong place.
    secret: bool,
    /// An empty value counts as not set, also on the command line.
    may_be_empty: bool,
    set: fn(&mut Draft, &str) -> Result<(), String>,
}

/// What most rows have in common.
const ROW: Row = Row {
    flag: "",
    alias: "",
    argument: "",
    variables: &[],
    default: "",
    help: "",
    repeatable: false,
    secret: false,
    may_be_empty: false,
    set: |_, _| Ok(()),
};

/// What cannot be set, but told: flags without a value.
const COMMANDS: &[(&str, Command, &str)] = &[
    (
        "--check",
        Command::Check,
        "poll once, print the report, exit (1 when nothing answered)",
    ),
    (
        "--healthcheck",
        Command::Healthcheck,
        "ask the running exporter's /healthz, exit 0 or 1: for an image that has no shell",
    ),
    ("--help", Command::Help, "print this help"),
    (
        "--version",
        Command::Version,
        "print version, revision, target and features",
    ),
];

/// Every setting, in the order of `--help`.
pub const TABLE: &[Row] = &[
    Row {
        flag: "--base-url",
        argument: "URL",
        variables: &["LLAMACPP_BASE_URL"],
        default: "http://model-runner.docker.internal/engines/llama.cpp/v1",
        help: "what to watch: a llama-server, a router, Docker Model Runner or llama-swap, with or without /v1; several: given again, or separated by commas",
        repeatable: true,
        set: |draft, text| {
            draft.base_urls.push(text.parse()?);
            Ok(())
        },
        ..ROW
    },
    Row {
        flag: "--model",
        argument: "NAME",
        variables: &["LLAMACPP_MODEL", "LLM_MODEL_NAME"],
        help: "the model label for a server that holds one model; without it, what the server \
               calls its model, and while it has not said, ai/llama3.2:1B-Q8_0",
        may_be_empty: true,
        set: |draft, text| assign(&mut draft.model, Ok(text.to_owned())),
        ..ROW
    },
    Row {
        flag: "--addr",
        argument: "ADDR",
        variables: &["LLAMACPP_EXPORTER_ADDR"],
        default: ":9100",
        help: "where to serve: :9100 (every address), 127.0.0.1:9100, [::1]:9100 or unix:/run/x.sock",
        set: |draft, text| {
            assign(
                &mut draft.addr,
                text.parse::<Address>().map_err(|e| e.to_string()),
            )
        },
        ..ROW
    },
    Row {
        flag: "--allowed-hosts",
        argument: "NAME",
        variables: &["LLAMACPP_ALLOWED_HOSTS"],
        help: "answer only requests whose Host is this name, localhost or an address, so that no web \
               page can read the metrics by DNS rebinding; several: given again, or separated by \
               commas; without it, any",
        repeatable: true,
        set: |draft, text| {
            draft.allowed_hosts.push(text.parse()?);
            Ok(())
        },
        ..ROW
    },
    Row {
        flag: "--interval",
        alias: "--scrape-interval",
        argument: "D",
        variables: &["LLAMACPP_SCRAPE_INTERVAL"],
        default: "5s",
        help: "time between polls",
        set: |draft, text| assign(&mut draft.interval, duration::parse(text)),
        ..ROW
    },
    Row {
        flag: "--timeout",
        alias: "--client-timeout",
        argument: "D",
        variables: &["LLAMACPP_CLIENT_TIMEOUT"],
        default: "3s",
        help: "deadline of one HTTP request to the upstream",
        set: |draft, text| assign(&mut draft.timeout, duration::parse(text)),
        ..ROW
    },
    Row {
        flag: "--api-key-file",
        argument: "F",
        variables: &["LLAMACPP_API_KEY_FILE"],
        help: "file with the API key of the upstream; with several base URLs, URL=F for one of them, \
               and a plain F for those with neither a key nor a user of their own",
        repeatable: true,
        secret: true,
        set: |draft, text| draft.api_keys.take_file(text),
        ..ROW
    },
    Row {
        variables: &["LLAMACPP_API_KEY"],
        help: "the key itself, as a plain F would hold it; a file, where given, wins",
        secret: true,
        set: |draft, text| draft.api_keys.take_key(text),
        ..ROW
    },
    Row {
        flag: "--ca-file",
        argument: "F",
        variables: &["LLAMACPP_CA_FILE"],
        help: "PEM roots to trust for https upstreams; without it, the built-in roots",
        set: |draft, text| {
            if cfg!(feature = "tls") {
                assign(
                    &mut draft.ca,
                    read(text).map(|pem| CaFile {
                        path: text.to_owned(),
                        pem,
                    }),
                )
            } else {
                Err("this program was built without the feature `tls`".to_owned())
            }
        },
        ..ROW
    },
    Row {
        flag: "--sleep-idle-seconds",
        argument: "D",
        variables: &["LLAMACPP_SLEEP_IDLE_SECONDS"],
        help: "what llama-server was given as --sleep-idle-seconds: builds before b10566 take a \
               poll for work, and need it to be left alone long enough to fall asleep",
        set: |draft, text| assign(&mut draft.sleep_idle, duration::parse(text)),
        ..ROW
    },
    Row {
        flag: "--pid-file",
        argument: "F",
        variables: &["LLAMACPP_PID_FILE"],
        help: "file with the process number of the llama-server, on this machine; without it, the \
               process is found by the port that it listens on",
        set: |draft, text| assign(&mut draft.pid_file, Ok(text.into())),
        ..ROW
    },
    Row {
        flag: "--procfs",
        argument: "DIR",
        variables: &["LLAMACPP_PROCFS"],
        default: "/proc",
        help: "where /proc is: in a container, where the machine's own is mounted",
        set: |draft, text| assign(&mut draft.procfs, Ok(text.into())),
        ..ROW
    },
    Row {
        flag: "--sysfs",
        argument: "DIR",
        variables: &["LLAMACPP_SYSFS"],
        default: "/sys",
        help: "where /sys is, likewise",
        set: |draft, text| assign(&mut draft.sysfs, Ok(text.into())),
        ..ROW
    },
    Row {
        flag: "--no-gpu",
        variables: &["LLAMACPP_NO_GPU"],
        help: "Read no GPU: neither run nvidia-smi nor look at AMD's and Intel's GPUs",
        set: |draft, text| assign(&mut draft.no_gpu, switch(text)),
        ..ROW
    },
    Row {
        flag: "--log-file",
        argument: "F",
        variables: &["LLAMACPP_LOG_FILE"],
        help: "the file that llama-server --log-file writes, or - for its log on the standard \
               input: latencies of every request; with several base URLs, URL=F for each",
        repeatable: true,
        set: |draft, text| {
            draft.log_files.push(text.parse()?);
            Ok(())
        },
        ..ROW
    },
    Row {
        flag: "--no-request-records",
        variables: &["LLAMACPP_NO_REQUEST_RECORDS"],
        help: "do not read Docker Model Runner's records of the last requests",
        set: |draft, text| assign(&mut draft.no_request_records, switch(text)),
        ..ROW
    },
    Row {
        flag: "--probe-interval",
        argument: "D",
        variables: &["LLAMACPP_PROBE_INTERVAL"],
        help: "send a completion of one token so often and time its first token; never to a model \
               that is not loaded, is asleep, or had no other request since the last probe",
        set: |draft, text| assign(&mut draft.probe_interval, duration::parse(text)),
        ..ROW
    },
    Row {
        flag: "--log-level",
        argument: "L",
        variables: &["LLAMACPP_LOG_LEVEL"],
        default: "info",
        help: "error, warn, info or debug",
        set: |draft, text| assign(&mut draft.log_level, text.parse()),
        ..ROW
    },
];

/// Settings on their way, before every default is in.
#[derive(Default)]
struct Draft {
    base_urls: Vec<BaseUrl>,
    model: Option<String>,
    addr: Option<Address>,
    allowed_hosts: Vec<AllowedHost>,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    api_keys: ApiKeys,
    ca: Option<CaFile>,
    sleep_idle: Option<Duration>,
    pid_file: Option<PathBuf>,
    procfs: Option<PathBuf>,
    sysfs: Option<PathBuf>,
    no_gpu: Option<bool>,
    log_files: Vec<LogFile>,
    no_request_records: Option<bool>,
    probe_interval: Option<Duration>,
    log_level: Option<Level>,
}

fn assign<T>(place: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *place = Some(value?);
    Ok(())
}

fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("use true or false".to_owned()),
    }
}

/// The most bytes that a file named by a setting may hold.
const FILE_LIMIT: u64 = 1 << 20;

fn read(path: &str) -> Result<Vec<u8>, String> {
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

/// Reads the command line (without the program's name) and the variables that `variable` knows.
///
/// # Errors
/// One line that names the flag or variable, its value and what would be accepted.
pub fn parse(
    arguments: Vec<OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<(Command, Settings), String> {
    let arguments = arguments.into_iter().filter(|text| !is_empty(text));
    let mut arguments = pico_args::Arguments::from_vec(arguments.collect());
    let mut command = Command::Serve;
    for (flag, wanted, _) in COMMANDS {
        // The later rows, --help and --version, win over the earlier ones.
        if arguments.contains(*flag) {
            command = *wanted;
        }
    }
    if arguments.contains("-h") {
        command = Command::Help;
    }
    if matches!(command, Command::Help | Command::Version) {
        return Ok((command, finish(Draft::default())?));
    }

    let mut draft = Draft::default();
    for row in TABLE {
        let given = if row.flag.is_empty() {
            Vec::new()
        } else if row.argument.is_empty() {
            let given = arguments.contains(row.flag);
            given.then(|| "true".to_owned()).into_iter().collect()
        } else {
            flag_values(&mut arguments, row)?
        };
        if !given.is_empty() {
            for value in &given {
                apply_all(row, &mut draft, row.flag, value)?;
            }
            continue;
        }
        let set = row.variables.iter().find_map(|name| {
            // An empty variable is what `NAME=` in a compose file means: not set.
            let value = variable(name).filter(|value| !value.is_empty())?;
            Some((*name, value))
        });
        if let Some((name, value)) = set {
            let value = value
                .into_string()
                .map_err(|_| format!("{name}: is not valid UTF-8"))?;
            apply_all(row, &mut draft, name, &value)?;
        }
    }
    if let Some(unknown) = arguments.finish().first() {
        return Err(unknown_argument(&unknown.to_string_lossy()));
    }
    Ok((command, finish(draft)?))
}

/// Whether this is `--flag=` of a flag that may be empty, which `pico_args` refuses.
fn is_empty(argument: &OsString) -> bool {
    let flag = argument.to_str().and_then(|text| text.strip_suffix('='));
    let mut rows = TABLE.iter();
    flag.is_some_and(|flag| rows.any(|row| row.may_be_empty && row.flag == flag))
}

/// What is said of an argument that belongs to no flag. It may be a secret that was meant for one,
/// so nothing is repeated but what looks like a flag or a URL.
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
        return format!("{url:?}: {HELP}; a URL belongs behind --base-url");
    }
    format!("(not shown): {HELP}; each value belongs behind a flag")
}

/// Longer than any flag.
const LONGEST_FLAG: usize = 40;

/// The flag that `text` was probably meant to be.
fn similar_flag(text: &str) -> Option<&'static str> {
    let settings = TABLE.iter().flat_map(|row| [row.flag, row.alias]);
    let commands = COMMANDS.iter().map(|(flag, ..)| *flag);
    let flags = settings.chain(commands).filter(|flag| !flag.is_empty());
    flags
        .map(|flag| {
            // A beginning is as near as a slip of one key.
            let is_beginning = text.len() > "--".len() && flag.starts_with(text);
            let distance = if is_beginning { 1 } else { edits(text, flag) };
            (distance, flag)
        })
        .filter(|(distance, _)| *distance <= 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, flag)| flag)
}

/// How many letters must be changed, added or taken away to make `a` into `b`.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (above, x) in a.bytes().enumerate() {
        let mut diagonal = above;
        let mut left = above.saturating_add(1);
        row[0] = left;
        for (y, cell) in b.bytes().zip(&mut row[1..]) {
            let changed = diagonal.saturating_add(usize::from(x != y));
            diagonal = *cell;
            left = changed.min(diagonal.min(left).saturating_add(1));
            *cell = left;
        }
    }
    row[b.len()]
}

fn flag_values(arguments: &mut pico_args::Arguments, row: &Row) -> Result<Vec<String>, String> {
    let mut values = Vec::new();
    for flag in [row.flag, row.alias] {
        if flag.is_empty() {
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

/// Applies a value, or the several that are separated by commas.
fn apply_all(row: &Row, draft: &mut Draft, name: &str, value: &str) -> Result<(), String> {
    if !row.repeatable {
        return apply(row, draft, name, value, value);
    }
    let parts = value.split(',').map(str::trim);
    let mut parts = parts.filter(|part| !part.is_empty()).peekable();
    if parts.peek().is_none() {
        // Nothing named is not the same as nothing said: that may mean anything, as for a Host.
        return Err(format!("{name}: is empty"));
    }
    for part in parts {
        // A comma may be one of a password: then it is all of one value, up to its `@`.
        let shown = if value.contains('@') { value } else { part };
        apply(row, draft, name, part, shown)?;
    }
    Ok(())
}

/// Applies one value; an error tells `shown`, as far as that is no secret.
fn apply(row: &Row, draft: &mut Draft, name: &str, value: &str, shown: &str) -> Result<(), String> {
    (row.set)(draft, value).map_err(|why| {
        if row.secret {
            format!("{name} (value not shown): {why}")
        } else {
            format!("{name} {:?}: {why}", BaseUrl::without_secrets(shown))
        }
    })
}

fn finish(mut draft: Draft) -> Result<Settings, String> {
    let defaults = Draft::default();
    let mut defaults = TABLE
        .iter()
        .filter(|row| !row.default.is_empty())
        .try_fold(defaults, |mut defaults, row| {
            apply_all(row, &mut defaults, row.flag, row.default)?;
            Ok::<_, String>(defaults)
        })?;
    if draft.base_urls.is_empty() {
        draft.base_urls = std::mem::take(&mut defaults.base_urls);
    }
    for (index, url) in draft.base_urls.iter().enumerate() {
        if url.as_given().len() > bounds::MAX_TEXT_BYTES {
            return Err("--base-url: is longer than 512 bytes".to_owned());
        }
        // A user and a password do not make it another server.
        let same = |other: &BaseUrl| other.as_given() == url.as_given();
        if draft.base_urls[..index].iter().any(same) {
            return Err(format!("--base-url {:?}: given twice", url.to_string()));
        }
    }
    draft.api_keys.check(&draft.base_urls)?;
    log_file::check(&draft.log_files, &draft.base_urls)?;
    if let (Some(file), [_, _, ..]) = (&draft.pid_file, &draft.base_urls[..]) {
        return Err(format!(
            "--pid-file {:?}: it names one process; use it with one --base-url",
            file.display().to_string()
        ));
    }
    let missing = |flag| format!("{flag}: has no value");
    Ok(Settings {
        base_urls: draft.base_urls,
        model: draft.model,
        addr: draft
            .addr
            .or(defaults.addr)
            .ok_or_else(|| missing("--addr"))?,
        allowed_hosts: draft.allowed_hosts,
        interval: draft
            .interval
            .or(defaults.interval)
            .ok_or_else(|| missing("--interval"))?,
        timeout: draft
            .timeout
            .or(defaults.timeout)
            .ok_or_else(|| missing("--timeout"))?,
        api_keys: draft.api_keys,
        ca: draft.ca,
        sleep_idle: draft.sleep_idle.map(BoundedDuration::from),
        pid_file: draft.pid_file,
        procfs: draft
            .procfs
            .or(defaults.procfs)
            .ok_or_else(|| missing("--procfs"))?,
        sysfs: draft
            .sysfs
            .or(defaults.sysfs)
            .ok_or_else(|| missing("--sysfs"))?,
        log_files: draft.log_files,
        no_gpu: draft.no_gpu == Some(true),
        request_records: draft.no_request_records != Some(true),
        probe_interval: draft.probe_interval,
        log_level: draft
            .log_level
            .or(defaults.log_level)
            .unwrap_or(Level::Info),
    })
}

/// The text of `--help`.
pub fn help() -> String {
    let mut text = String::from(
        "Watches a llama.cpp server and serves what it sees as Prometheus metrics.\n\n\
         Usage: llamacpp-exporter [FLAG VALUE]…\n\n",
    );
    for row in TABLE {
        if row.flag.is_empty() {
            text.push_str(&format!("  {}\n", row.variables.join(", ")));
        } else {
            text.push_str(format!("  {} {}", row.flag, row.argument).trim_end());
            if !row.alias.is_empty() {
                text.push_str(&format!(", also {}", row.alias));
            }
            text.push('\n');
        }
        for line in wrap(row.help, 70) {
            text.push_str(&format!("        {line}\n"));
        }
        if !row.flag.is_empty() {
            text.push_str(&format!(
                "        [variable: {}]\n",
                row.variables.join(", then ")
            ));
        }
        if !row.default.is_empty() {
            text.push_str(&format!("        [default: {}]\n", row.default));
        }
    }
    for (flag, _, meaning) in COMMANDS {
        text.push_str(&format!("  {flag}\n"));
        for line in wrap(meaning, 70) {
            text.push_str(&format!("        {line}\n"));
        }
    }
    text.push_str(
        "\nDurations: 5s, 500ms, 1m30s, 1.5s, or a number of seconds.\n\
         Exit status: 0 success, 1 it could not run, 2 it was called wrongly.\n",
    );
    text
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let longer = lines.last().map(|line| format!("{line} {word}"));
        match (lines.last_mut(), longer) {
            (Some(line), Some(longer)) if longer.chars().count() <= width => *line = longer,
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The settings as the README shows them: a Markdown table.
pub fn reference() -> String {
    let mut text =
        String::from("| flag | variable | default | meaning |\n| --- | --- | --- | --- |\n");
    let code = |text: &str| {
        if text.is_empty() {
            String::new()
        } else {
            format!("`{text}`")
        }
    };
    for row in TABLE {
        let flag = if row.flag.is_empty() {
            String::new()
        } else {
            format!("{} {}", row.flag, row.argument)
                .trim_end()
                .to_owned()
        };
        let mut flag = code(&flag);
        if !row.alias.is_empty() {
            flag.push_str(&format!(", also {}", code(row.alias)));
        }
        let variables: Vec<_> = row.variables.iter().map(|name| code(name)).collect();
        text.push_str(&format!(
            "| {flag} | {} | {} | {} |\n",
            variables.join(", then "),
            code(row.default),
            row.help
        ));
    }
    for (flag, _, meaning) in COMMANDS {
        text.push_str(&format!("| {} | | | {meaning} |\n", code(flag)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_flag_wins_over_its_variable_and_that_over_the_default() {
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
    fn an_error_names_what_was_set_and_never_a_secret() {
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
    fn a_flag_is_given_once_and_known() {
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
    fn two_names_of_a_flag_are_one_flag() {
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
    fn an_empty_model_is_not_set() {
        let variable = [("LLAMACPP_MODEL", "ai/a")];
        assert_eq!(parse_with(&["--model", ""], &[]).unwrap().model, None);
        assert_eq!(parse_with(&["--model="], &[]).unwrap().model, None);
        let settings = parse_with(&["--model", ""], &variable).unwrap();
        assert_eq!(settings.model.as_deref(), Some("ai/a"));
        assert!(parse_with(&["--interval", ""], &[]).is_err());
    }

    #[test]
    fn an_empty_list_is_refused() {
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
    fn a_mistyped_flag_is_answered_with_the_one_that_was_meant() {
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
    fn edits_are_counted_letter_by_letter() {
        for (a, b, count) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "abc", 0),
            ("abc", "axc", 1),
            ("abc", "abxc", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edits(a, b), count, "{a} {b}");
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
    fn a_pid_file_is_of_one_server() {
        let one = ["--pid-file", "/run/a.pid", "--base-url", "http://a:1"];
        assert!(parse_with(&one, &[]).unwrap().pid_file.is_some());
        let two = [&one[..], &["--base-url", "http://b:1"]].concat();
        let error = parse_with(&two, &[]).unwrap_err();
        assert!(error.starts_with("--pid-file \"/run/a.pid\": "), "{error}");
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        let secret = Secret::new(" hush\n").unwrap();
        assert_eq!(secret.reveal(), "hush");
        assert!(!format!("{secret:?}").contains("hush"));
    }

    #[test]
    fn the_readme_holds_the_reference() {
        let readme = include_str!("../../README.md");
        assert!(
            readme.contains(&reference()),
            "put this into README.md:\n{}",
            reference()
        );
    }
}
