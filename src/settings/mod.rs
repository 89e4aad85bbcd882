//! What the user sets: flags, environment variables and defaults, from one table.
//!
//! A flag wins over its variable, which wins over the default: see [`table`] for the rows and
//! [`command_line`] for how they are read.

mod allowed_hosts;
mod api_key;
mod base_url;
mod command_line;
mod duration;
mod listen_address;
mod log_file;
mod secret;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::allowed_hosts::AllowedHosts;
pub use self::api_key::ApiKeys;
pub use self::base_url::BaseUrl;
pub use self::command_line::parse;
pub use self::listen_address::ListenAddress;
pub use self::log_file::LogFile;
pub use self::secret::Secret;
pub use self::table::{help, reference};
use crate::bounds::{self, BoundedDuration};
use crate::process::log::Level;

/// The model name that is exported while neither the user nor the server has given one.
pub const DEFAULT_MODEL: &str = "ai/llama3.2:1B-Q8_0";

/// Everything that can be set. [`parse`] gives checked ones.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What to watch: at least one.
    pub base_urls: Vec<BaseUrl>,
    /// The label `model` of a server that holds one model; `None`: what the server says.
    pub model: Option<String>,
    /// Where to serve.
    pub addr: ListenAddress,
    /// The names that may stand in a request's `Host`.
    pub allowed_hosts: AllowedHosts,
    /// Time between the starts of two polls; above zero.
    pub interval: Duration,
    /// Time-out of one HTTP request, name resolution and body included; above zero.
    pub timeout: Duration,
    /// The keys of the upstreams.
    pub api_keys: ApiKeys,
    /// The roots to trust for `https` in place of the built-in ones.
    pub ca: Option<CaFile>,
    /// How long a server is idle before it sleeps, if the user gave it.
    pub sleep_idle: Option<BoundedDuration>,
    /// The file that holds the PID of the server.
    pub pid_file: Option<PathBuf>,
    /// Where the machine's `/proc` is.
    pub procfs: PathBuf,
    /// Where the machine's `/sys` is.
    pub sysfs: PathBuf,
    /// Whether no GPU is read.
    pub no_gpu: bool,
    /// Logs of llama-server; at most one for each base URL.
    pub log_files: Vec<LogFile>,
    /// Whether Docker Model Runner's records of requests are not read.
    pub no_request_records: bool,
    /// Time between two probes; `None`: no probes.
    pub probe_interval: Option<Duration>,
    /// What is logged.
    pub log_level: Level,
}

/// A file of roots to trust.
#[derive(Clone, Debug)]
pub struct CaFile {
    /// Its path, as the user gave it.
    pub path: String,
    /// Its content: PEM text, not parsed yet.
    pub pem: Vec<u8>,
}

/// What the program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Poll and serve until a signal.
    Serve,
    /// Poll once, print the report, exit.
    Check,
    /// Ask the running exporter for its health, exit.
    Healthcheck,
    /// Print the flags, exit.
    Help,
    /// Print version, revision, target and features, exit.
    Version,
}

impl Settings {
    /// The label `server` of `base`: its host and port, and the rest of the URL where another
    /// base URL has the same.
    pub fn server_label(&self, base: &BaseUrl) -> String {
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

    /// The log of the server at `base`.
    pub fn log_file_of(&self, base: &BaseUrl) -> Option<&Path> {
        let mut files = self.log_files.iter();
        let file = files.find(|file| file.is_of(base))?;
        Some(&file.path)
    }

    /// The key that the server at `base` is sent. An address that is no base URL gets none.
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

    /// Whether the settings fit together.
    fn check(&self) -> Result<(), String> {
        for (index, url) in self.base_urls.iter().enumerate() {
            if url.as_given().len() > bounds::MAX_TEXT_BYTES {
                return Err("--base-url: is longer than 512 bytes".to_owned());
            }
            // A user and a password do not make it another server.
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
