//! Resolves the base URL's host without blocking a poll.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::process::threads;

/// How long the first poll waits: the HTTP client has just resolved the name.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// The state of the lookup.
pub enum HostLookup {
    /// Not started.
    Idle,
    /// The lookup is running.
    Pending(Receiver<Vec<IpAddr>>),
    /// The addresses; empty if the name did not resolve.
    Done(Vec<IpAddr>),
}

impl HostLookup {
    /// The addresses of `host`; `None` while it is being resolved.
    pub fn addresses(&mut self, host: &str) -> Option<Vec<IpAddr>> {
        let mut wait = Duration::ZERO;
        if matches!(self, HostLookup::Idle) {
            *self = start(host.trim_matches(['[', ']']));
            wait = FIRST_WAIT;
        }
        if let HostLookup::Pending(answer) = self {
            *self = match answer.recv_timeout(wait) {
                Ok(addresses) => HostLookup::Done(addresses),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => HostLookup::Done(Vec::new()),
            };
        }
        match self {
            HostLookup::Done(addresses) => Some(addresses.clone()),
            _ => None,
        }
    }
}

fn start(host: &str) -> HostLookup {
    if host == "localhost" {
        return HostLookup::Done(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    if let Ok(address) = host.parse() {
        return HostLookup::Done(vec![destination(address)]);
    }
    // The system's resolver cannot be interrupted, so it gets a thread of its own.
    let host = host.to_owned();
    let found = threads::call("resolver", move || {
        let found = (host.as_str(), 0).to_socket_addrs().into_iter().flatten();
        found.map(|found| destination(found.ip())).collect()
    });
    found.map_or(HostLookup::Done(Vec::new()), HostLookup::Pending)
}

/// The address that a connection to `address` reaches; for a wildcard, the loopback address.
fn destination(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_resolved_once_and_a_wildcard_address_is_this_machine() {
        let of = |host: &str| HostLookup::Idle.addresses(host).unwrap();
        let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
        let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
        assert_eq!(of("localhost"), [v4, v6]);
        assert_eq!((of("0.0.0.0"), of("[::]")), (vec![v4], vec![v6]));
        assert_eq!(of("[::ffff:127.0.0.1]"), [v4]);
        assert_eq!(of("192.0.2.1"), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        let mut known = HostLookup::Done(vec![v4]);
        assert_eq!(known.addresses("changed.invalid"), Some(vec![v4]));
    }
}
