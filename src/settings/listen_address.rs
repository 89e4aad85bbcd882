//! The address at which the exporter serves.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::process::os;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// `:9100`: every address of the machine, IPv6 and IPv4.
    Any(u16),
    /// `127.0.0.1:9100`, `[::1]:9100`.
    Ip(SocketAddr),
    /// `localhost:9100`: all addresses of the name, resolved when the exporter starts to listen.
    Name(String, u16),
    /// `unix:/run/x.sock`: a Unix socket, by its absolute path.
    Unix(PathBuf),
}

impl ListenAddress {
    /// The addresses to which this machine connects to reach a server that listens here, in order:
    /// the loopback addresses in place of every address.
    pub fn destinations(&self) -> Vec<ListenAddress> {
        let v6 = |port| Self::Ip((Ipv6Addr::LOCALHOST, port).into());
        let v4 = |port| Self::Ip((Ipv4Addr::LOCALHOST, port).into());
        match self {
            Self::Any(port) => vec![v6(*port), v4(*port)],
            Self::Ip(address) => match address.ip() {
                IpAddr::V6(Ipv6Addr::UNSPECIFIED) => vec![v6(address.port()), v4(address.port())],
                IpAddr::V4(Ipv4Addr::UNSPECIFIED) => vec![v4(address.port())],
                _ => vec![self.clone()],
            },
            Self::Name(..) | Self::Unix(_) => vec![self.clone()],
        }
    }
}

impl Default for ListenAddress {
    /// Any free port of every address; a placeholder until [`parse`](super::parse) applies the
    /// default of the table.
    fn default() -> ListenAddress {
        ListenAddress::Any(0)
    }
}

const FORMS: &str = "expected :PORT (every address), IP:PORT, [IPV6]:PORT, NAME:PORT or unix:/PATH, \
     like :9100, 127.0.0.1:9100, [::1]:9100, localhost:9100 or unix:/run/exporter.sock";

impl ListenAddress {
    /// The URL for a client on this machine, without a path, if it listens on `port`; `None` for a
    /// Unix socket.
    pub fn url(&self, port: u16) -> Option<String> {
        let host = match self {
            Self::Unix(_) => return None,
            Self::Name(name, _) => name.clone(),
            Self::Ip(address) if !address.ip().is_unspecified() => {
                return Some(format!("http://{}", SocketAddr::new(address.ip(), port)));
            }
            Self::Any(_) | Self::Ip(_) => "localhost".to_owned(),
        };
        Some(format!("http://{host}:{port}"))
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path).map(Self::Unix);
        }
        let (host, port) = text.rsplit_once(':').ok_or(FORMS)?;
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(FORMS.to_owned()); // `parse` accepts a sign.
        }
        let port = port.parse().map_err(|_| FORMS)?;
        if host.is_empty() {
            return Ok(Self::Any(port));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        // A name contains a letter; 1.2.3 and 300.1.1.1 are invalid addresses.
        if host.bytes().all(of_a_name) && host.bytes().any(|byte| byte.is_ascii_alphabetic()) {
            return Ok(Self::Name(host.to_owned(), port));
        }
        Err(FORMS.to_owned())
    }
}

fn unix_path(path: &str) -> Result<PathBuf, String> {
    if !path.starts_with('/') {
        // A relative path depends on the working directory of the process.
        return Err(
            "expected an absolute path after unix:, like unix:/run/exporter.sock".to_owned(),
        );
    }
    os::check_socket_path(path)?;
    Ok(PathBuf::from(path))
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(port) => write!(out, ":{port}"),
            Self::Ip(address) => write!(out, "{address}"),
            Self::Name(name, port) => write!(out, "{name}:{port}"),
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_url_for_this_machine() {
        for (address, url) in [
            (":9100", Some("http://localhost:1")),
            ("0.0.0.0:9100", Some("http://localhost:1")),
            ("[::]:9100", Some("http://localhost:1")),
            ("10.0.0.7:9100", Some("http://10.0.0.7:1")),
            ("[::1]:9100", Some("http://[::1]:1")),
            ("host:9100", Some("http://host:1")),
            ("unix:/run/x.sock", None),
        ] {
            let address: ListenAddress = address.parse().unwrap();
            assert_eq!(address.url(1).as_deref(), url);
        }
    }

    #[test]
    fn addresses_are_displayed_as_they_were_given() {
        let ip = |text: &str| ListenAddress::Ip(text.parse().unwrap());
        let name = |name: &str, port| ListenAddress::Name(name.into(), port);
        for (text, address) in [
            (":9100", ListenAddress::Any(9100)),
            (":0", ListenAddress::Any(0)),
            ("127.0.0.1:9100", ip("127.0.0.1:9100")),
            ("0.0.0.0:65535", ip("0.0.0.0:65535")),
            ("[::1]:9100", ip("[::1]:9100")),
            ("[::]:9100", ip("[::]:9100")),
            ("localhost:9100", name("localhost", 9100)),
            ("my-host.example_1:80", name("my-host.example_1", 80)),
            (
                "unix:/run/x.sock",
                ListenAddress::Unix("/run/x.sock".into()),
            ),
            ("unix:/a:1/b c", ListenAddress::Unix("/a:1/b c".into())),
        ] {
            assert_eq!(text.parse(), Ok(address.clone()), "{text}");
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn an_invalid_address_lists_the_accepted_forms() {
        for text in [
            "",
            ":",
            "9100",
            ":65536",
            ":-1",
            ":+1",
            ":9100x",
            "localhost",
            "localhost:",
            "127.0.0.1",
            "127.0.0.256:9100",
            "1.2.3:9100",
            "::1:9100",
            "[::1]",
            "[::g]:9100",
            "http://localhost:9100",
            "a b:9100",
            "*:9100",
        ] {
            let error = text.parse::<ListenAddress>().unwrap_err();
            assert!(error.contains("expected :PORT"), "{text}: {error}");
        }
    }

    #[test]
    fn invalid_socket_paths_have_their_own_errors() {
        let error = |text: &str| text.parse::<ListenAddress>().unwrap_err();
        assert!(error("unix:").contains("absolute path"));
        assert!(error("unix:run/x.sock").contains("absolute path"));
        assert!(error(&format!("unix:/{}", "x".repeat(200))).contains("too long"));
    }
}
