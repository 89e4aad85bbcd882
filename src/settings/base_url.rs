//! The base URL of an upstream.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::process::os;

/// An `http` or `https` URL without query and fragment, or a Unix socket with a path below it.
///
/// Its `Display` and `Debug` output omits the userinfo, which may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct BaseUrl {
    https: bool,
    /// `user:password`, percent-decoded.
    userinfo: Option<String>,
    address: ServerAddress,
    /// Empty, or begins with a slash and ends without one.
    path: String,
}

/// Where the server of a base URL listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    /// A TCP port.
    Host {
        /// A name, an IPv4 address, or an IPv6 address in brackets.
        host: String,
        /// `None`: the scheme's default port.
        port: Option<u16>,
    },
    /// A Unix socket, by its absolute path.
    Unix(PathBuf),
}

const FORMS: &str = "use http://host:8080 or https://host:8080, with or without a path such as /v1, or \
                     unix:/path/to/socket, with a path such as :/v1 after it; in a user or password, \
                     write / as %2F, @ as %40, # as %23 and a comma as %2C";

/// The host in requests to a Unix socket.
const UNIX_HOST: &str = "localhost";

impl BaseUrl {
    /// A Unix socket whose server has its endpoints below `path`: empty, or like `/llm`.
    pub fn of_socket(socket: PathBuf, path: &str) -> BaseUrl {
        BaseUrl {
            https: false,
            userinfo: None,
            address: ServerAddress::Unix(socket),
            path: path.trim_end_matches('/').to_owned(),
        }
    }

    /// The URL as given, without a trailing slash and the userinfo.
    pub fn as_given(&self) -> String {
        match &self.address {
            ServerAddress::Host { .. } => self.for_requests(),
            ServerAddress::Unix(_) => self.server_and_path(),
        }
    }

    /// The URL as in requests. For a Unix socket, it names [`UNIX_HOST`] instead.
    pub fn for_requests(&self) -> String {
        format!("{}{}", self.origin(), self.path)
    }

    /// The URL of requests without a trailing `/v1`: llama-server's own endpoints are below it.
    pub fn root(&self) -> String {
        format!("{}{}", self.origin(), self.root_path())
    }

    fn root_path(&self) -> &str {
        self.path.strip_suffix("/v1").unwrap_or(&self.path)
    }

    /// The URL up to `/engines`: the root of Docker Model Runner.
    pub fn before_engines(&self) -> String {
        match self.path.find("/engines") {
            Some(engines) => format!("{}{}", self.origin(), &self.path[..engines]),
            None => self.root(),
        }
    }

    /// Whether the server is on the machine that the exporter runs on: its host is a loopback
    /// address or name, or it has a Unix socket.
    pub fn is_loopback(&self) -> bool {
        let ServerAddress::Host { host, .. } = &self.address else {
            return true;
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let address = bare.parse::<std::net::IpAddr>();
        let name = host.trim_end_matches('.');
        name == "localhost"
            || name.ends_with(".localhost")
            || address.is_ok_and(|address| address.is_loopback())
    }

    /// The label `server`: `host:port`, with the scheme's port if the URL has none, or
    /// `unix:/path`.
    pub fn server(&self) -> String {
        match &self.address {
            ServerAddress::Host { host, .. } => format!("{host}:{}", self.port()),
            ServerAddress::Unix(socket) => format!("unix:{}", socket.display()),
        }
    }

    /// [`server`](BaseUrl::server) with the path of the URL.
    pub fn server_and_path(&self) -> String {
        let before = match &self.address {
            ServerAddress::Unix(_) if !self.path.is_empty() => ":",
            _ => "",
        };
        format!("{}{before}{}", self.server(), self.path)
    }

    /// Where the server listens.
    pub fn address(&self) -> &ServerAddress {
        &self.address
    }

    /// The server's Unix socket, if it has one.
    pub fn socket(&self) -> Option<&Path> {
        match &self.address {
            ServerAddress::Unix(socket) => Some(socket),
            ServerAddress::Host { .. } => None,
        }
    }

    /// The port; the scheme's default port if the URL has none.
    pub fn port(&self) -> u16 {
        let default = if self.https { 443 } else { 80 };
        match self.address {
            ServerAddress::Host { port, .. } => port.unwrap_or(default),
            ServerAddress::Unix(_) => default,
        }
    }

    /// Whether both name the same server. The userinfo, a trailing `/v1` and an explicit default
    /// port make no difference.
    pub fn is_same_server(&self, other: &BaseUrl) -> bool {
        self.https == other.https
            && self.server() == other.server()
            && self.root_path() == other.root_path()
    }

    /// The URL with only its scheme, host and port.
    #[must_use]
    pub fn bare(&self) -> BaseUrl {
        BaseUrl {
            userinfo: None,
            path: String::new(),
            ..self.clone()
        }
    }

    /// `user:password`, for basic authentication.
    pub fn userinfo(&self) -> Option<&str> {
        self.userinfo.as_deref()
    }

    /// Whether the scheme is `https`.
    pub fn is_https(&self) -> bool {
        self.https
    }

    fn origin(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        match &self.address {
            ServerAddress::Host { host, port } => {
                let port = port.map(|port| format!(":{port}")).unwrap_or_default();
                format!("{scheme}://{host}{port}")
            }
            ServerAddress::Unix(_) => format!("{scheme}://{UNIX_HOST}"),
        }
    }

    /// `text` without possible secrets: without user and password before an `@`, and without
    /// everything after a `?` or `#`. Safe to print, even if `text` is not a URL.
    pub fn without_secrets(text: &str) -> String {
        let (before, text) = text.rsplit_once('@').unwrap_or(("", text));
        let scheme = match before.split_once("://") {
            Some((scheme, _)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                format!("{scheme}://")
            }
            _ => String::new(),
        };
        let end = text.find(['?', '#']).unwrap_or(text.len());
        format!("{scheme}{}", &text[..end])
    }
}

/// Splits `URL=REST`. Without a URL, all of `text` is the rest.
///
/// # Errors
/// The text before the `=` looks like a URL, and is not a valid base URL.
pub fn split(text: &str) -> Result<(Option<BaseUrl>, &str), String> {
    let mut parts = text.match_indices('=').map(|(at, _)| text.split_at(at));
    let is_url = |url: &str| url.contains("://") || url.starts_with(UNIX_SCHEME);
    let Some((first, _)) = parts.clone().next().filter(|(url, _)| is_url(url)) else {
        return Ok((None, text));
    };
    // A password may contain `=` too: the text before that is not a valid URL.
    let split = parts.find_map(|(url, rest)| Some((url.parse().ok()?, rest.get(1..)?)));
    match split {
        Some((url, rest)) => Ok((Some(url), rest)),
        None => Err(first.parse::<BaseUrl>().err().unwrap_or_default()),
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_given())
    }
}

impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BaseUrl({self})")
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<BaseUrl, String> {
        if let Some(rest) = text.strip_prefix(UNIX_SCHEME) {
            return unix_url(rest);
        }
        let (scheme, rest) = text.split_once("://").ok_or(FORMS)?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" if cfg!(feature = "tls") => true,
            "https" => {
                return Err(
                    "this program was built without the feature `tls`: use http://, \
                            or a build that has it"
                        .to_owned(),
                );
            }
            _ => return Err(FORMS.to_owned()),
        };
        if !rest.bytes().all(|byte| byte.is_ascii_graphic())
            || rest.contains(['?', '#', '\\', '"', '<', '>'])
        {
            return Err(FORMS.to_owned());
        }
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        if path.contains('@') {
            // The slash may be part of a password, which would be printed as a path.
            return Err(FORMS.to_owned());
        }
        let (userinfo, host_port) = match authority.rsplit_once('@') {
            Some((userinfo, host_port)) => {
                (Some(percent_decoded(userinfo).ok_or(FORMS)?), host_port)
            }
            None => (None, authority),
        };
        let (host, port) = split_port(host_port).ok_or(FORMS)?;
        Ok(BaseUrl {
            https,
            userinfo,
            address: ServerAddress::Host {
                host: host.to_ascii_lowercase(),
                port,
            },
            path: path.trim_end_matches('/').to_owned(),
        })
    }
}

/// What a base URL of a Unix socket begins with.
const UNIX_SCHEME: &str = "unix:";

/// Parses what follows [`UNIX_SCHEME`]: `/path/x.sock`, `///path/x.sock` or `/path/x.sock:/prefix`.
fn unix_url(rest: &str) -> Result<BaseUrl, String> {
    let socket = rest.strip_prefix("//").unwrap_or(rest);
    let (socket, path) = match socket.find(":/") {
        Some(colon) => (&socket[..colon], &socket[colon.saturating_add(1)..]),
        None => (socket, ""),
    };
    if !socket.starts_with('/') || socket.ends_with('/') {
        // A relative path depends on the working directory of the process.
        return Err("use an absolute path after unix:, like unix:/run/llama.sock".to_owned());
    }
    os::check_socket_path(socket)?;
    let is_path = |path: &str| {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !b"?#\\\"<>@".contains(&byte);
        path.bytes().all(allowed)
    };
    if socket.chars().any(char::is_control) || !is_path(path) {
        return Err(FORMS.to_owned());
    }
    Ok(BaseUrl::of_socket(PathBuf::from(socket), path))
}

fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        // The colons of an IPv6 address are inside its brackets.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let bare = match host.strip_prefix('[') {
        Some(inner) => {
            inner
                .strip_suffix(']')?
                .parse::<std::net::Ipv6Addr>()
                .ok()?;
            true
        }
        None => host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)),
    };
    if host.is_empty() || !bare {
        return None;
    }
    match port {
        None => Some((host, None)),
        Some(port) => match port.parse() {
            Ok(0) | Err(_) => None,
            Ok(port) => Some((host, Some(port))),
        },
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            let digits = std::str::from_utf8(&digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
