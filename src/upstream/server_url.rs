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

    /// The URL of `path`, which may have a query.
    pub fn of_path(&self, path: &str) -> String {
        format!("{}{path}", self.root)
    }

    /// The URL of `endpoint`.
    pub fn of(&self, endpoint: Endpoint) -> String {
        format!("{}{}{}", self.root, endpoint.path, self.query)
    }
}

/// Percent-encodes `text` as a value in a query, or as a part of a path.
pub fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_encoded_for_a_query() {
        assert_eq!(
            percent_encoded("alpha/one:Q4&x=ü"),
            "alpha%2Fone%3AQ4%26x%3D%C3%BC"
        );
    }
}
