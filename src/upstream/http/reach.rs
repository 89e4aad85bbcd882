//! Which addresses a client may connect to, where an upstream says whom to ask.

use std::net::IpAddr;

/// The addresses that a client may connect to. They are judged once they are resolved, so that
/// no spelling of one, and no name for it, makes a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// All of them.
    #[default]
    Anywhere,
    /// Those of the machine that this program runs on.
    Loopback,
    /// This one.
    Host(IpAddr),
}

impl Reach {
    /// What a server at `peer` may have us connect to: itself, at any port. Where it is at a
    /// loopback address, every loopback address is the same machine.
    pub fn of(peer: IpAddr) -> Reach {
        let peer = connected(peer);
        if peer.is_loopback() {
            Reach::Loopback
        } else {
            Reach::Host(peer)
        }
    }

    /// Whether a connection to `address` stays within it.
    pub fn includes(self, address: IpAddr) -> bool {
        match self {
            Reach::Anywhere => true,
            Reach::Loopback => connected(address).is_loopback(),
            Reach::Host(host) => connected(address) == host,
        }
    }
}

/// The address that a connection to `address` ends at: the IPv4 one in an IPv4-mapped one, and
/// the machine's own in place of none.
fn connected(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(none) if none.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(none) if none.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn includes(peer: &str, address: &str) -> bool {
        Reach::of(peer.parse().unwrap()).includes(address.parse().unwrap())
    }

    #[test]
    fn loopback_is_reached_from_loopback_alone() {
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
    fn another_host_reaches_itself_alone() {
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
        assert!(Reach::Anywhere.includes("169.254.169.254".parse().unwrap()));
    }
}
