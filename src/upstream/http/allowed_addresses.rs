//! The addresses that a client may connect to, if an upstream names the server to poll.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The addresses that a client may connect to. They are checked after name resolution, so the check
/// cannot be bypassed by another spelling or a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowedAddresses {
    /// All addresses.
    #[default]
    Any,
    /// Loopback addresses.
    Loopback,
    /// This address.
    Only(IpAddr),
}

impl AllowedAddresses {
    /// The addresses that a server at `peer` may name: its own, with any port. If that is a
    /// loopback address, all loopback addresses.
    pub fn of_server_at(peer: IpAddr) -> AllowedAddresses {
        let peer = connected(peer);
        if peer.is_loopback() {
            AllowedAddresses::Loopback
        } else {
            AllowedAddresses::Only(peer)
        }
    }

    /// Whether a connection to `address` is allowed.
    pub fn includes(self, address: IpAddr) -> bool {
        match self {
            AllowedAddresses::Any => true,
            AllowedAddresses::Loopback => connected(address).is_loopback(),
            AllowedAddresses::Only(host) => connected(address) == host,
        }
    }
}

/// The address that a connection to `address` reaches: the IPv4 address inside an IPv4-mapped one,
/// and localhost for the unspecified address.
fn connected(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn includes(peer: &str, address: &str) -> bool {
        AllowedAddresses::of_server_at(peer.parse().unwrap()).includes(address.parse().unwrap())
    }

    #[test]
    fn only_a_server_on_loopback_may_name_loopback() {
        let spellings = [
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
        ];
        for address in spellings {
            for peer in spellings {
                assert!(includes(peer, address), "{peer} {address}");
            }
            for peer in ["192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7"] {
                assert!(!includes(peer, address), "{peer} {address}");
                assert!(!includes(address, peer), "{peer} {address}");
            }
        }
    }

    #[test]
    fn a_server_elsewhere_may_name_only_itself() {
        for (peer, address) in [
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7", "::ffff:192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::7"),
        ] {
            assert!(includes(peer, address), "{peer} {address}");
        }
        for address in ["192.0.2.8", "2001:db8::7", "169.254.169.254", "10.0.0.1"] {
            assert!(!includes("192.0.2.7", address), "{address}");
        }
        assert!(AllowedAddresses::Any.includes("169.254.169.254".parse().unwrap()));
    }
}
