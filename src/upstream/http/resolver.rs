//! Name resolution that cannot outlive its deadline, nor pile up.
//!
//! The system's resolver cannot be interrupted, so it runs in a thread of its
//! own; while one is still at it, no second one is started.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::{Error, Timeout};

use crate::upstream::http::allowed_addresses::AllowedAddresses;

/// Resolves one name at a time.
#[derive(Debug, Default)]
pub struct TimedResolver {
    /// Which of the addresses may be connected to.
    reach: AllowedAddresses,
    /// Alive as long as the last lookup is under way.
    under_way: Mutex<Weak<()>>,
}

impl Resolver for TimedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let authority = uri.authority().ok_or(Error::HostNotFound)?;
        let port = authority
            .port_u16()
            .unwrap_or(if uri.scheme_str() == Some("https") {
                443
            } else {
                80
            });
        let address = format!("{}:{port}", authority.host());
        let mut result = self.empty();
        // A literal address needs no resolver, and so no thread.
        match address.parse::<SocketAddr>() {
            Ok(literal) => self.push(&mut result, literal),
            Err(_) => {
                for found in self.look_up(address, timeout)? {
                    self.push(&mut result, found);
                }
            }
        }
        if result.is_empty() {
            Err(Error::HostNotFound)
        } else {
            Ok(result)
        }
    }
}

/// As many addresses as ureq's list of them holds.
const MOST_ADDRESSES: usize = 16;

impl TimedResolver {
    /// Resolves to the addresses within `reach`.
    pub fn within(reach: AllowedAddresses) -> TimedResolver {
        TimedResolver {
            reach,
            under_way: Mutex::default(),
        }
    }

    fn push(&self, result: &mut ResolvedSocketAddrs, address: SocketAddr) {
        if self.reach.includes(address.ip()) && result.len() < MOST_ADDRESSES {
            result.push(address);
        }
    }

    fn look_up(&self, address: String, timeout: NextTimeout) -> Result<Vec<SocketAddr>, Error> {
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if under_way.upgrade().is_some() {
            return Err(Error::Timeout(Timeout::Resolve));
        }
        let token = Arc::new(());
        *under_way = Arc::downgrade(&token);
        let (sender, receiver) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("resolve".to_owned())
            .spawn(move || {
                let found = address.to_socket_addrs().map(|found| found.collect());
                drop(token);
                // Nobody listens any more when the deadline has passed.
                let _ = sender.send(found);
            })?;
        match receiver.recv_timeout(*timeout.after) {
            Ok(found) => Ok(found?),
            Err(RecvTimeoutError::Timeout) => Err(Error::Timeout(Timeout::Resolve)),
            Err(RecvTimeoutError::Disconnected) => Err(Error::HostNotFound),
        }
    }
}
