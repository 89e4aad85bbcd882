//! Which llama-servers of this machine the process at a base URL has started.

use std::sync::Arc;

use crate::machine::url_listener::UrlListener;
use crate::readings::LocalServer;
use crate::settings::{BaseUrl, Settings};

/// Finds the descendants of the process at a base URL.
pub struct StartedServers(UrlListener);

impl StartedServers {
    /// Of the process at `base`; not looked up yet.
    pub fn new(base: &BaseUrl, settings: &Settings) -> StartedServers {
        StartedServers(UrlListener::new(base, settings))
    }

    /// Those of `servers` that the process at the base URL has started; none if that process is on
    /// another machine, or cannot be seen.
    pub fn among(&mut self, servers: &[LocalServer]) -> Arc<[LocalServer]> {
        let ancestors = servers.iter().flat_map(|server| &server.ancestors);
        let parent = self.0.among(&ancestors.copied().collect());
        let is_descendant =
            |server: &&LocalServer| parent.is_some_and(|parent| server.ancestors.contains(&parent));
        servers.iter().filter(is_descendant).cloned().collect()
    }
}
