//! Whether this process runs in a container, for advice: there, localhost is usually the container.

use std::env;
use std::path::Path;

/// The kind of container that this process runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// A pod of Kubernetes.
    Kubernetes,
    /// One of Docker, Podman or another engine.
    Other,
}

/// Files that engines create in each container.
const FILES: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];
/// Values of the variable `container` of engines whose containers hold one application.
const ENGINES: [&str; 3] = ["docker", "podman", "oci"];

impl Container {
    /// The container that this process runs in, if it runs in one that can be recognized.
    pub fn of_this_process() -> Option<Container> {
        if env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            return Some(Container::Kubernetes);
        }
        let engine = env::var("container").unwrap_or_default();
        let is_other =
            ENGINES.contains(&engine.as_str()) || FILES.iter().any(|file| Path::new(file).exists());
        is_other.then_some(Container::Other)
    }
}
