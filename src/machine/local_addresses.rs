//! The addresses that the base URL's host has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// How long the first poll waits: the name was just looked up to ask the server.
const PATIENCE: Duration = Duration::from_millis(200);

/// What is known of them.
pub enum Addresses {
    /// Nobody has wanted to know.
    NotAsked,
    /// The name is being looked up, which may take long.
    Asked(Receiver<Vec<IpAddr>>),
    /// These; none where the name is not known.
    Known(Vec<IpAddr>),
}

impl Addresses {
    /// The addresses of `host`; `None` as long as they are being looked up.
    pub fn of(&mut self, host: &str) -> Option<Vec<IpAddr>> {
        let mut patience = Duration::ZERO;
        if matches!(self, Addresses::NotAsked) {
            *self = ask(host.trim_matches(['[', ']']));
            patience = PATIENCE;
        }
        if let Addresses::Asked(answer) = self {
            *self = match answer.recv_timeout(patience) {
                Ok(addresses) => Addresses::Known(addresses),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => Addresses::Known(Vec::new()),
            };
        }
        match self {
            Addresses::Known(addresses) => Some(addresses.clone()),
            _ => None,
        }
    }
}

fn ask(host: &str) -> Addresses {
    if host == "localhost" {
        return Addresses::Known(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    if let Ok(address) = host.parse() {
        return Addresses::Known(vec![reached(address)]);
    }
    // The system's resolver cannot be interrupted, so it has a thread of its own.
    let (sender, receiver) = mpsc::channel();
    let host = host.to_owned();
    let lookup = move || {
        let found = (host.as_str(), 0).to_socket_addrs().into_iter().flatten();
        let _ = sender.send(found.map(|found| reached(found.ip())).collect());
    };
    let thread = thread::Builder::new().name("where".to_owned());
    match thread.spawn(lookup) {
        Ok(_) => Addresses::Asked(receiver),
        Err(_) => Addresses::Known(Vec::new()),
    }
}

/// The address that is reached under `address`: "any" is this machine.
fn reached(address: IpAddr) -> IpAddr {
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
    fn a_host_is_looked_up_once_and_any_address_is_this_machine() {
        let of = |host: &str| Addresses::NotAsked.of(host).unwrap();
        let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
        let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
        assert_eq!(of("localhost"), [v4, v6]);
        assert_eq!((of("0.0.0.0"), of("[::]")), (vec![v4], vec![v6]));
        assert_eq!(of("[::ffff:127.0.0.1]"), [v4]);
        assert_eq!(of("192.0.2.1"), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        let mut known = Addresses::Known(vec![v4]);
        assert_eq!(known.of("changed.invalid"), Some(vec![v4]));
    }
}
