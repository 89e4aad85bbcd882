//! The base URL of an upstream.

use std::fmt;
use std::str::FromStr;

/// An `http` or `https` URL without query and fragment.
///
/// Its `Display` and `Debug` output omits the userinfo, which may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct BaseUrl {
    https: bool,
    /// `user:password`, percent-decoded.
    userinfo: Option<String>,
    host: String,
    port: Option<u16>,
    /// Empty, or begins with a slash and ends without one.
    path: String,
}

const FORMS: &str = "use http://host:8080 or https://host:8080, with or without a path such as /v1; in a user or \
                     password, write / as %2F, @ as %40, # as %23 and a comma as %2C";

impl BaseUrl {
    /// The URL as given, without a trailing slash and the userinfo.
    pub fn as_given(&self) -> String {
        format!("{}{}", self.origin(), self.path)
    }

    /// The URL without a trailing `/v1`: llama-server's own endpoints are below it.
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

    /// Whether the host is a loopback address or name: the machine that the exporter runs on.
    pub fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        let address = bare.parse::<std::net::IpAddr>();
        let name = self.host.trim_end_matches('.');
        name == "localhost"
            || name.ends_with(".localhost")
            || address.is_ok_and(|address| address.is_loopback())
    }

    /// `host:port`, with the scheme's port if the URL has none: the label `server`.
    pub fn server(&self) -> String {
        format!("{}:{}", self.host, self.port())
    }

    /// [`server`](BaseUrl::server) with the path of the URL.
    pub fn server_and_path(&self) -> String {
        format!("{}{}", self.server(), self.path)
    }

    /// The host: a name, an IPv4 address, or an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; the scheme's default port if the URL has none.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(if self.https { 443 } else { 80 })
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
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{}{port}", self.host)
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
/// The text before the `=` contains `://`, and is not a valid base URL.
pub fn split(text: &str) -> Result<(Option<BaseUrl>, &str), String> {
    let mut parts = text.match_indices('=').map(|(at, _)| text.split_at(at));
    let Some((first, _)) = parts.clone().next().filter(|(url, _)| url.contains("://")) else {
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
            host: host.to_ascii_lowercase(),
            port,
            path: path.trim_end_matches('/').to_owned(),
        })
    }
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
mod tests {
    use super::*;

    #[test]
    fn a_url_is_split_into_its_parts() {
        for (text, given, root, server) in [
            ("http://h:8080", "http://h:8080", "http://h:8080", "h:8080"),
            ("http://h:8080/", "http://h:8080", "http://h:8080", "h:8080"),
            ("http://h/v1/", "http://h/v1", "http://h", "h:80"),
            (
                "HTTP://Host/llm/v1",
                "http://host/llm/v1",
                "http://host/llm",
                "host:80",
            ),
            (
                "http://[::1]:9/v1",
                "http://[::1]:9/v1",
                "http://[::1]:9",
                "[::1]:9",
            ),
            (
                "http://m/engines/llama.cpp/v1",
                "http://m/engines/llama.cpp/v1",
                "http://m/engines/llama.cpp",
                "m:80",
            ),
        ] {
            let url: BaseUrl = text.parse().unwrap();
            assert_eq!(url.as_given(), given, "{text}");
            assert_eq!(url.root(), root, "{text}");
            assert_eq!(url.server(), server, "{text}");
        }
    }

    #[test]
    fn the_root_of_a_model_runner_is_the_url_before_engines() {
        for (text, root) in [
            ("http://m/engines/llama.cpp/v1", "http://m"),
            ("http://m/engines/v1/", "http://m"),
            ("http://h/llm/engines/v1", "http://h/llm"),
            ("http://localhost:12434", "http://localhost:12434"),
            ("http://localhost:12434/v1", "http://localhost:12434"),
        ] {
            assert_eq!(
                text.parse::<BaseUrl>().unwrap().before_engines(),
                root,
                "{text}"
            );
        }
    }

    #[test]
    fn different_spellings_of_a_url_name_the_same_server() {
        let url = |text: &str| text.parse::<BaseUrl>().unwrap();
        for (a, b, same) in [
            ("http://h", "HTTP://me:pw@H:80/v1/", true),
            ("http://h/a/v1", "http://h:80/a/", true),
            ("http://h", "http://h:8080", false),
            ("http://h/a", "http://h/A", false),
        ] {
            assert_eq!(url(a).is_same_server(&url(b)), same, "{a} {b}");
        }
        #[cfg(feature = "tls")]
        {
            assert!(url("https://h").is_same_server(&url("https://h:443")));
            assert!(!url("https://h:80").is_same_server(&url("http://h")));
        }
    }

    #[test]
    fn loopback_hosts_are_recognized() {
        for (text, here) in [
            ("http://localhost:1", true),
            ("http://127.0.0.2", true),
            ("http://[::1]", true),
            ("http://a.localhost.:1", true),
            ("http://h", false),
            ("http://localhost.example", false),
        ] {
            assert_eq!(
                text.parse::<BaseUrl>().unwrap().is_loopback(),
                here,
                "{text}"
            );
        }
    }

    #[test]
    fn userinfo_is_kept_and_not_printed() {
        let url: BaseUrl = "http://me:p%40ss@h:1/v1".parse().unwrap();
        assert_eq!(url.userinfo(), Some("me:p@ss"));
        assert_eq!(
            format!("{url} {url:?}"),
            "http://h:1/v1 BaseUrl(http://h:1/v1)"
        );
        for (text, printed) in [
            ("ftp://me:pw@h", "ftp://h"),
            ("http://me:p#w@h:1/v1", "http://h:1/v1"),
            ("http://me:p@w,x@h:1", "http://h:1"),
            ("me:p//w@h:1", "h:1"),
            ("me:p://w@h:1", "h:1"),
            ("me:pw@h:1", "h:1"),
            ("http://h/?key=pw", "http://h/"),
            ("http://h/#pw", "http://h/"),
            ("http://h:1", "http://h:1"),
        ] {
            assert_eq!(BaseUrl::without_secrets(text), printed, "{text}");
        }
    }

    #[test]
    fn a_url_is_split_at_the_first_equals_sign_outside_of_its_password() {
        for (text, url, rest) in [
            ("http://h:1/v1=/run/a=b", Some("http://h:1/v1"), "/run/a=b"),
            ("http://me:p=w==@h:1=f@g", Some("http://h:1"), "f@g"),
            ("/run/a=http://h", None, "/run/a=http://h"),
            ("file", None, "file"),
        ] {
            let (base, found) = split(text).unwrap();
            assert_eq!(base.map(|base| base.as_given()).as_deref(), url, "{text}");
            assert_eq!(found, rest, "{text}");
        }
        for text in ["http://h/?a=b=f", "unix://s=f", "http://h:0=f"] {
            assert!(split(text).is_err(), "{text}");
        }
    }

    #[test]
    fn invalid_urls_are_rejected() {
        for text in [
            "",
            "h:8080",
            "ftp://h",
            "http://",
            "http:///v1",
            "http://h:0",
            "http://h:99999",
            "http://h:x",
            "http://h/?q=1",
            "http://h/#f",
            "http://h h",
            "http://[::1",
            "http://[zz]",
            "http://a b@h",
            "http://h\n",
            "http://%zz@h",
            "http://me:80/w@h",
            "http://me:p/w@h",
        ] {
            assert!(text.parse::<BaseUrl>().is_err(), "{text:?}");
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn https_needs_the_feature() {
        assert!("https://h".parse::<BaseUrl>().unwrap_err().contains("tls"));
    }
}
