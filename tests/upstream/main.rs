//! Each kind of server: how it is detected, what is read from it, and that it is not disturbed.

mod busy_server;
mod idle_guard;
mod ik_llama;
mod llama_swap;
mod polling;
mod products;
mod proxies;
mod recordings;
mod router;
mod stats;
#[path = "../support/mod.rs"]
mod support;
#[cfg(feature = "tls")]
mod tls;
mod unix_socket;

use support::server::{Outcome, Request};
use support::{Answer, Scrape, Server};

const ENDPOINTS: [&str; 5] = ["/health", "/props", "/v1/models", "/metrics", "/slots"];

/// Only `llamacpp_up` is exported of the server, as 0.
fn assert_down(scrape: &Scrape) {
    assert!(scrape.down(), "{scrape:?}");
    for (family, _) in &scrape.families {
        let own = ["llamacpp_up", "llamacpp_exporter_", "process_"];
        assert!(
            own.iter().any(|start| family.starts_with(start)),
            "{family} of a server that is down:\n{scrape:?}"
        );
    }
}

fn kind(scrape: &Scrape) -> Option<&str> {
    scrape.label("llamacpp_server_info", "kind")
}

/// The most of these requests that waited in the server at one time.
fn most_waiting(requests: &[Request]) -> usize {
    let mut changes = Vec::new();
    for request in requests {
        changes.push((request.at, 1));
        if let Outcome::Answered(end) | Outcome::Disconnected(end) = request.outcome {
            changes.push((end, -1));
        }
    }
    changes.sort();
    let waiting = changes.iter().scan(0_i32, |waiting, (_, change)| {
        *waiting += change;
        Some(*waiting)
    });
    waiting.max().unwrap_or(0) as usize
}

/// Requests that wait behind the work of the model.
fn work_requests(server: &Server) -> Vec<Request> {
    let mut requests = server.requests();
    requests.retain(|request| ["/metrics", "/slots"].contains(&request.path.as_str()));
    requests
}

/// A JSON document of `tests/cases`.
fn json_case(name: &str) -> Answer {
    Answer::json(support::recordings::case(name))
}
