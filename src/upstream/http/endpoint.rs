//! An endpoint, and the size limit of its response.

/// An endpoint of an upstream.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Begins with a slash; also the label `endpoint`.
    pub path: &'static str,
    /// The most bytes of a response.
    pub limit: u64,
}

impl Endpoint {
    /// The endpoint at `path`, whose response has at most `limit` bytes.
    pub const fn new(path: &'static str, limit: u64) -> Endpoint {
        Endpoint { path, limit }
    }
}
