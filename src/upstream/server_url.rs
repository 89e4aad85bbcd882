//! The URLs of one server's endpoints.

use crate::upstream::http::endpoint::Endpoint;

/// The URL of one server, or of one model behind a router.
#[derive(Clone, Debug, Default)]
pub struct ServerUrl {
    /// The part before an endpoint's path.
    root: String,
    /// The part after it: empty, or a query with its question mark.
    query: String,
}

impl ServerUrl {
    /// The server whose endpoints are below `root`.
    pub fn new(root: String) -> ServerUrl {
        ServerUrl {
            root,
            query: String::new(),
        }
    }

    /// The same URL with a `query` (`?model=…`) at every endpoint.
    pub fn with_query(&self, query: String) -> ServerUrl {
        ServerUrl {
            root: self.root.clone(),
            query,
        }
    }

    /// The URL of `endpoint`.
    pub fn of(&self, endpoint: Endpoint) -> String {
        format!("{}{}{}", self.root, endpoint.path, self.query)
    }
}
