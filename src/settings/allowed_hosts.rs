//! The names that are allowed in the `Host` header of a request.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Names that clients may use in `Host`, in lower case; empty: any.
#[derive(Clone, Debug, Default)]
pub struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// Allows one more name.
    ///
    /// # Errors
    /// `text` is not a host name.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_of_name) {
            return Err("use a name without a port, like exporter.example.org".to_owned());
        }
        self.0.push(name.to_ascii_lowercase());
        Ok(())
    }

    /// Whether a request with this head is allowed. A web page can make its own name resolve to
    /// this machine and then read the responses (DNS rebinding). That does not work with an IP
    /// address or `localhost`, so those are always allowed.
    pub fn allow(&self, head: &[u8]) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let mut lines = head.split(|byte| *byte == b'\n').skip(1);
        let hosts = lines.by_ref().filter_map(host_of);
        let hosts: Vec<&str> = hosts.collect();
        // With two `Host` lines, another program may use the other one.
        matches!(hosts[..], [host] if self.allow_host(host))
    }

    fn allow_host(&self, host: &str) -> bool {
        let Some(name) = without_port(host) else {
            return false;
        };
        if let Some(address) = name.strip_prefix('[') {
            let address = address.strip_suffix(']').unwrap_or_default();
            return address.parse::<Ipv6Addr>().is_ok();
        }
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        name == "localhost" || name.parse::<Ipv4Addr>().is_ok() || self.0.contains(&name)
    }
}

/// The value of a `Host` line; empty if it is not UTF-8, and `None` for other lines.
fn host_of(line: &[u8]) -> Option<&str> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at(colon);
    let value = str::from_utf8(value.get(1..)?).unwrap_or_default();
    name.trim_ascii()
        .eq_ignore_ascii_case(b"host")
        .then(|| value.trim())
}

/// `host` without `:PORT`; `None` if the port is invalid.
fn without_port(host: &str) -> Option<&str> {
    match host.rsplit_once(':') {
        // The colons of an IPv6 address are inside its brackets.
        Some((name, port)) if !port.contains(']') => {
            let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
            is_port.then_some(name)
        }
        _ => Some(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(names: &[&str], head: &str) -> bool {
        let mut hosts = AllowedHosts::default();
        names.iter().for_each(|name| hosts.add(name).unwrap());
        hosts.allow(head.as_bytes())
    }

    fn allows_host(host: &str) -> bool {
        let head = format!("GET / HTTP/1.1\r\nAccept: */*\r\nHost: {host}\r\n\r\n");
        assert!(allows(&[], &head), "{host}");
        allows(&["exporter.example.org", "Nas"], &head)
    }

    #[test]
    fn given_names_addresses_and_localhost_are_allowed() {
        for host in [
            "exporter.example.org",
            "EXPORTER.example.org.:9100",
            "nas:9100",
            "localhost",
            "localhost:9100",
            "127.0.0.1:9100",
            "192.0.2.7",
            "[::1]:9100",
            "[2001:db8::1]",
        ] {
            assert!(allows_host(host), "{host}");
        }
    }

    #[test]
    fn other_names_are_not_allowed() {
        for host in [
            "",
            "evil.example",
            "evil.example:9100",
            "nas.evil.example",
            "exporter.example.org.evil.example",
            "exporter.example.org@evil.example",
            "evil.example:nas",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.1",
            "[::1].evil.example",
            "[nas]",
            "[::1",
            "\u{e9}",
            "nas evil.example",
        ] {
            assert!(!allows_host(host), "{host}");
        }
    }

    #[test]
    fn exactly_one_host_is_required_if_names_are_given() {
        let nas = &["nas"];
        assert!(!allows(nas, "GET / HTTP/1.1\r\n\r\n"));
        assert!(!allows(nas, "GET / HTTP/1.1\nHost: nas\nHost: evil\n\n"));
        assert!(!allows(nas, "GET / HTTP/1.1\nHost: evil\nhost: nas\n\n"));
        assert!(!allows(nas, "GET / HTTP/1.1\nX-Host: nas\n\n"));
        assert!(allows(nas, "GET / HTTP/1.1\nhost:nas\n\n"));
        assert!(allows(&[], "GET / HTTP/1.1\r\n\r\n"));
    }

    #[test]
    fn only_a_plain_host_name_is_accepted() {
        for text in ["", ".", "nas:9100", "http://nas", "[::1]", "a b", "*"] {
            assert!(AllowedHosts::default().add(text).is_err(), "{text}");
        }
    }
}
