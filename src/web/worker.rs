//! Worker threads in front of tiny_http, which limit every connection.
//!
//! A fixed number of workers accepts connections of each listener. A worker handles one connection
//! at a time: it reads the head of one request, gets the response from the [`Backend`], writes it
//! and closes the connection. If nearly all workers are busy, the connection that has been slow for
//! the longest time is closed.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::process;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tiny_http::Server;

use crate::process::log;
use crate::process::own_metrics;
use crate::settings::AllowedHosts;
use crate::web::backend::Backend;
use crate::web::connections::{Connections, Phase};
use crate::web::listener::Listener;
use crate::web::request_head::{HEAD_LIMIT, read_head};
use crate::web::routes::used_part;
use crate::web::stream::Stream;

/// How long a client may take to send the head of its request.
const READ_TIME: Duration = Duration::from_secs(5);

/// How long a client may take to receive its response.
const WRITE_TIME: Duration = Duration::from_secs(5);

/// How long, and how many more bytes, a client may send after its response. Closing immediately
/// would discard a response that is still in transit.
const CLOSE_TIME: Duration = Duration::from_secs(1);
const CLOSE_LIMIT: u64 = 64 << 10;

/// Numbers of workers to try; the first that threads and file descriptors suffice for is used.
const WORKERS: [usize; 5] = [64, 32, 16, 8, FEWEST_WORKERS];
const FEWEST_WORKERS: usize = 4;
const WORKER_STACK: usize = 128 << 10;

/// Threads and descriptors that are reserved for the rest of the process.
const SPARE_THREADS: usize = 16;
const SPARE_DESCRIPTORS: usize = 32;

/// The pause after a failed `accept`: no file descriptor or memory is available.
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);

/// Starts the workers of `listeners`, which accept only requests to `hosts`. The returned server
/// receives the checked requests; its `recv` fails only if the process is broken. Responses must
/// have a known length and must not be chunked.
///
/// # Errors
/// A message: there are too few threads or file descriptors for the smallest number of workers.
pub fn start(listeners: Vec<Listener>, hosts: AllowedHosts) -> io::Result<&'static Server> {
    let workers = possible_workers()?;
    let (server, backend) = Backend::start().map_err(|error| {
        let text = format!("cannot start the HTTP server inside the process: {error}");
        io::Error::new(error.kind(), text)
    })?;
    let (backend, hosts) = (Arc::new(backend), Arc::new(hosts));
    let workers = workers
        .checked_div(listeners.len())
        .unwrap_or(workers)
        .max(2);
    for listener in listeners {
        let acceptor = Arc::new(Acceptor {
            listener,
            backend: Arc::clone(&backend),
            hosts: Arc::clone(&hosts),
            connections: Connections::new(workers),
            pausing: Mutex::new(()),
        });
        for worker in 0..workers {
            let acceptor = Arc::clone(&acceptor);
            thread::Builder::new()
                .name("web".into())
                .stack_size(WORKER_STACK)
                .spawn(move || acceptor.run(worker))?;
        }
    }
    Ok(server)
}

fn possible_workers() -> io::Result<usize> {
    let descriptors = own_metrics::max_fds().unwrap_or(usize::MAX);
    let descriptors = descriptors.saturating_sub(SPARE_DESCRIPTORS);
    let mut result = Err(ErrorKind::OutOfMemory.into());
    for workers in WORKERS {
        if workers > descriptors.max(FEWEST_WORKERS) {
            continue;
        }
        // tiny_http panics if it cannot start a thread, so try it first.
        result = try_threads(workers.saturating_add(SPARE_THREADS)).map(|()| workers);
        if result.is_ok() {
            break;
        }
    }
    result.map_err(|error| {
        let text = format!("cannot start threads: {error}; raise the limit (ulimit -u, pids.max)");
        io::Error::new(error.kind(), text)
    })
}

/// Runs this number of threads at the same time.
fn try_threads(threads: usize) -> io::Result<()> {
    let barrier = Mutex::new(());
    thread::scope(|scope| {
        let _closed = barrier.lock();
        for _ in 0..threads {
            thread::Builder::new()
                .stack_size(WORKER_STACK)
                .spawn_scoped(scope, || drop(barrier.lock()))?;
        }
        Ok(())
    })
}

/// A listener, and the state that its workers share.
struct Acceptor {
    listener: Listener,
    backend: Arc<Backend>,
    hosts: Arc<AllowedHosts>,
    connections: Connections,
    pausing: Mutex<()>,
}

impl Acceptor {
    fn run(&self, worker: usize) {
        loop {
            match self.listener.accept() {
                Ok(stream) => {
                    let stream = Arc::new(stream);
                    self.connections.open(worker, &stream);
                    self.handle(worker, &stream);
                    self.connections.remove(worker);
                }
                Err(_) => {
                    // One worker at a time: otherwise each of them would close a connection.
                    let _pausing = self.pausing.lock();
                    self.connections.close_one();
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    fn handle(&self, worker: usize, stream: &Stream) {
        // Not on the stack, whose pages each worker would hold permanently.
        let mut buffer = vec![0; HEAD_LIMIT];
        let Ok(request) = read_head(stream.within(READ_TIME), &mut buffer, &self.hosts) else {
            return; // The client disconnected, or the connection was closed for another one.
        };
        self.connections.set_phase(worker, Phase::Waiting);
        let response = match request {
            Err(rejection) => Arc::new(rejection.response()),
            Ok(request) => {
                // Generating a response for a client that disconnected would delay the others.
                let is_wanted = || !stream.is_reset();
                let target = used_part(request.target);
                match self.backend.request(request.method, target, is_wanted) {
                    Ok(Some(response)) => response,
                    Ok(None) => return,
                    Err(error) => fail(&error),
                }
            }
        };
        self.connections.set_phase(worker, Phase::Writing);
        if stream.within(WRITE_TIME).write_all(&response).is_ok() {
            drop(response);
            self.connections.set_phase(worker, Phase::Closing);
            stream.shutdown(Shutdown::Write);
            let mut rest = stream.within(CLOSE_TIME).take(CLOSE_LIMIT);
            while rest.read(&mut buffer).is_ok_and(|count| count > 0) {}
        }
    }
}

/// Ends the process: it cannot serve any more, and a supervisor can restart it.
fn fail(error: &io::Error) -> ! {
    log::error(
        "the connection to the HTTP server inside the process failed",
        &[("reason", error)],
    );
    process::exit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_workers_can_be_started() {
        assert!(possible_workers().unwrap() >= 4);
    }
}
