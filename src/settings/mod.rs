//! Settings: flags, environment variables and defaults, from one table.
//!
//! A flag overrides its variable, which overrides the default. [`table`] has the rows, and
//! [`command_line`] reads them.

mod allowed_hosts;
mod api_key;
mod base_url;
mod command_line;
mod duration;
mod listen_address;
mod log_file;
mod secret;
pub mod table;
mod unknown_names;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::allowed_hosts::AllowedHosts;
pub use self::api_key::ApiKeys;
pub use self::base_url::{BaseUrl, ServerAddress};
pub use self::command_line::parse;
pub use self::listen_address::ListenAddress;
pub use self::log_file::LogFile;
pub use self::secret::Secret;
pub use self::table::{help, reference};
pub use self::unknown_names::{UnknownVariable, unknown_variables};
use crate::bounds::{self, BoundedDuration};
use crate::process::log::Level;

/// The model name that is exported until the user or the server gives one.
pub const DEFAULT_MODEL: &str = "ai/llama3.2:1B-Q8_0";

/// All settings. [`parse`] returns checked ones.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The servers to watch: at least one, unless servers are discovered.
    pub base_urls: Vec<BaseUrl>,
    /// Whether to discover the llama.cpp servers of this machine.
    pub discover: bool,
    /// The label `server` of the only base URL, if that is the address of a discovered server.
    pub discovered: Option<String>,
    /// The label `model` of a server that holds one model; `None`: the server's own name for it.
    pub model: Option<String>,
    /// The address to serve at.
    pub addr: ListenAddress,
    /// The names that are allowed in a request's `Host`.
    pub allowed_hosts: AllowedHosts,
    /// Time between the starts of two polls; above zero.
    pub interval: Duration,
    /// Time-out of one HTTP request, name resolution and body included; above zero.
    pub timeout: Duration,
    /// The keys of the upstreams.
    pub api_keys: ApiKeys,
    /// The root certificates to trust for `https` instead of the built-in ones.
    pub ca: Option<CaFile>,
    /// How long a server is idle before it sleeps, if set by the user.
    pub sleep_idle: Option<BoundedDuration>,
    /// The file that holds the PID of the server.
    pub pid_file: Option<PathBuf>,
    /// The path of the machine's `/proc`.
    pub procfs: PathBuf,
    /// The path of the machine's `/sys`.
    pub sysfs: PathBuf,
    /// Exports llama-server's own families, too.
    pub llama_server_metrics: bool,
    /// Disables reading of GPUs.
    pub no_gpu: bool,
    /// Logs of llama-server, at most one for each base URL.
    pub log_files: Vec<LogFile>,
    /// Disables reading of Docker Model Runner's request records.
    pub no_request_records: bool,
    /// Reads a log over HTTP up to its end, and does not wait for more lines.
    pub reads_logs_once: bool,
    /// Time between two probes; `None`: no probes.
    pub probe_interval: Option<Duration>,
    /// The Prometheus that scrapes the exporter.
    pub prometheus_url: Option<BaseUrl>,
    /// Prints the report of `--check` as JSON.
    pub json: bool,
    /// The level of the exporter's own log.
    pub log_level: Level,
}

/// A file of root certificates to trust.
#[derive(Clone, Debug)]
pub struct CaFile {
    /// Its path, as the user gave it.
    pub path: String,
    /// Its content: PEM text, not parsed yet.
    pub pem: Vec<u8>,
}

/// A command of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Poll and serve until a signal arrives.
    Serve,
    /// Poll twice, print the report, exit.
    Check,
    /// Request the health of the running exporter, exit.
    Healthcheck,
    /// Print the flags, exit.
    Help,
    /// Print version, revision, target and features, exit.
    Version,
}

impl Settings {
    /// The label `server` of `base`: its host and port. If another base URL has the same, its path
    /// too; if that is the same as well, the whole URL.
    pub fn server_label(&self, base: &BaseUrl) -> String {
        if let Some(label) = &self.discovered {
            return label.clone();
        }
        let is_unique = |label: fn(&BaseUrl) -> String| {
            let mut others = self.base_urls.iter().filter(|other| *other != base);
            others.all(|other| label(other) != label(base))
        };
        if is_unique(BaseUrl::server) {
            base.server()
        } else if is_unique(BaseUrl::server_and_path) {
            base.server_and_path()
        } else {
            base.as_given()
        }
    }

    /// The settings for one discovered server at `base`, with the label `server` and its own key.
    /// What was given for base URLs does not apply to it.
    #[must_use]
    pub fn of_discovered(
        &self,
        base: BaseUrl,
        label: String,
        model: Option<String>,
        key: Option<Secret>,
    ) -> Settings {
        Settings {
            base_urls: vec![base],
            discovered: Some(label),
            model,
            api_keys: ApiKeys::only(key),
            log_files: Vec::new(),
            pid_file: None,
            probe_interval: None,
            ..self.clone()
        }
    }

    /// The log of the server at `base`.
    pub fn log_file_of(&self, base: &BaseUrl) -> Option<&Path> {
        let mut files = self.log_files.iter();
        let file = files.find(|file| file.is_of(base))?;
        Some(&file.path)
    }

    /// The key that is sent to the server at `base`; `None` for an address that is no base URL.
    pub fn api_key_of(&self, base: &BaseUrl) -> Option<&Secret> {
        self.api_keys.of(base, &self.base_urls)
    }

    /// The base URLs to which a key or password is sent unencrypted: `http` to another machine.
    pub fn exposed(&self) -> impl Iterator<Item = &BaseUrl> {
        self.base_urls.iter().filter(|base| {
            let has_secret = base.userinfo().is_some() || self.api_key_of(base).is_some();
            has_secret && !base.is_https() && !base.is_loopback()
        })
    }

    /// Checks that the settings are consistent with each other.
    fn check(&self) -> Result<(), String> {
        for (index, url) in self.base_urls.iter().enumerate() {
            if url.as_given().len() > bounds::MAX_TEXT_BYTES {
                return Err("--base-url: is longer than 512 bytes".to_owned());
            }
            // Two URLs that differ only in user and password name the same server.
            let is_same = |other: &BaseUrl| other.as_given() == url.as_given();
            if self.base_urls[..index].iter().any(is_same) {
                return Err(format!("--base-url {:?}: given twice", url.to_string()));
            }
        }
        self.api_keys.check(&self.base_urls)?;
        log_file::check(&self.log_files, &self.base_urls)?;
        match &self.pid_file {
            Some(file) if self.base_urls.len() > 1 => Err(format!(
                "--pid-file {:?}: it names one process; use it with one --base-url",
                file.display().to_string()
            )),
            _ => Ok(()),
        }
    }
}
