//! Name resolution with a deadline.
//!
//! The system's resolver cannot be interrupted, so it runs in a thread of its own. While it runs,
//! no second lookup is started.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, Weak};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::{Error, Timeout};

use crate::process::threads;
use crate::upstream::http::allowed_addresses::AllowedAddresses;

/// The capacity of ureq's list of addresses.
const MAX_ADDRESSES: usize = 16;

/// Resolves one name at a time.
#[derive(Debug)]
pub struct TimedResolver {
    allowed: AllowedAddresses,
    /// Whether the connector ignores the addresses.
    is_unix: bool,
    /// Alive while the last lookup is running.
    running: Mutex<Weak<()>>,
}

impl TimedResolver {
    /// A resolver that returns only `allowed` addresses; with `is_unix`, none.
    pub fn new(allowed: AllowedAddresses, is_unix: bool) -> TimedResolver {
        TimedResolver {
            allowed,
            is_unix,
            running: Mutex::default(),
        }
    }

    fn look_up(&self, address: String, timeout: NextTimeout) -> Result<Vec<SocketAddr>, Error> {
        // An IP address needs no lookup.
        if let Ok(address) = address.parse() {
            return Ok(vec![address]);
        }
        let mut running = threads::lock(&self.running);
        if running.upgrade().is_some() {
            return Err(Error::Timeout(Timeout::Resolve));
        }
        let token = Arc::new(());
        *running = Arc::downgrade(&token);
        let resolve = move || {
            let found = address.to_socket_addrs().map(|found| found.collect());
            drop(token);
            found
        };
        let found = threads::call("resolver", resolve)?;
        match found.recv_timeout(*timeout.after) {
            Ok(found) => Ok(found?),
            Err(RecvTimeoutError::Timeout) => Err(Error::Timeout(Timeout::Resolve)),
            Err(RecvTimeoutError::Disconnected) => Err(Error::HostNotFound),
        }
    }
}

impl Resolver for TimedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(Error::HostNotFound);
        };
        if self.is_unix {
            return Ok(self.empty());
        }
        let address = DefaultResolver::host_and_port(scheme, authority);
        let found = self.look_up(address.ok_or(Error::HostNotFound)?, timeout)?;
        let is_allowed = |address: &SocketAddr| self.allowed.includes(address.ip());
        let mut result = self.empty();
        for address in found.into_iter().filter(is_allowed).take(MAX_ADDRESSES) {
            result.push(address);
        }
        if result.is_empty() {
            return Err(Error::HostNotFound);
        }
        Ok(result)
    }
}
