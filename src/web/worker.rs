//! The door before tiny_http: who may come in, how long, how much.
//!
//! A fixed number of threads, the keepers, stand at each listener. A keeper
//! takes one visitor at a time: it reads the head of one request, has it
//! answered over the [sealed connection](crate::web::backend), hands the answer over
//! and says goodbye. When nearly all keepers are taken, the visitor who has
//! been slow for longest has to go.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::process;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tiny_http::Server;

use crate::process::log;
use crate::process::own_metrics;
use crate::web::backend::Sealed;
use crate::web::connections::{Phase, Visits};
pub use crate::web::host::{AllowedHost, AllowedHosts};
use crate::web::listener::Listener;
use crate::web::request_head::{HEAD_LIMIT, read_head};
use crate::web::stream::Stream;

/// How long the head of a request may take to come.
const READ_TIME: Duration = Duration::from_secs(5);

/// How long a client may take to receive its answer.
const WRITE_TIME: Duration = Duration::from_secs(5);

/// How long, and for how many bytes more, an answered client may go on
/// sending. To close at once would destroy an answer that is still on its way.
const LEAVE_TIME: Duration = Duration::from_secs(1);
const LEAVE_LIMIT: u64 = 64 << 10;

/// How many keepers there may be; fewer where threads or descriptors are scarce.
const KEEPERS: [usize; 5] = [64, 32, 16, 8, FEWEST_KEEPERS];
const FEWEST_KEEPERS: usize = 4;
const KEEPER_STACK: usize = 128 << 10;

/// What the keepers leave to the rest of the process.
const SPARE_THREADS: usize = 16;
const SPARE_DESCRIPTORS: usize = 32;

/// The wait after a failed accept, which comes from a lack of descriptors or
/// memory on the whole machine.
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);

/// Opens the listeners to the world, for requests to the allowed hosts, and gives the server whose `recv` brings
/// the vetted requests. Answers to it must have a known length and must not be
/// chunked. `recv` never fails while the process is in order.
///
/// # Errors
/// A sentence for people: threads or descriptors are so scarce that not even a
/// few keepers can be had.
pub fn open(listeners: Vec<Listener>, hosts: AllowedHosts) -> io::Result<&'static Server> {
    let keepers = affordable_keepers()?;
    let (server, sealed) = Sealed::new().map_err(|error| {
        let text = format!("cannot start the HTTP server inside the process: {error}");
        io::Error::new(error.kind(), text)
    })?;
    let (sealed, hosts) = (Arc::new(sealed), Arc::new(hosts));
    let keepers = keepers
        .checked_div(listeners.len())
        .unwrap_or(keepers)
        .max(2);
    for listener in listeners {
        let door = Arc::new(Door {
            listener,
            sealed: Arc::clone(&sealed),
            hosts: Arc::clone(&hosts),
            visits: Visits::new(keepers),
            pausing: Mutex::new(()),
        });
        for keeper in 0..keepers {
            let door = Arc::clone(&door);
            thread::Builder::new()
                .name("gate".into())
                .stack_size(KEEPER_STACK)
                .spawn(move || door.keep(keeper))?;
        }
    }
    Ok(server)
}

fn affordable_keepers() -> io::Result<usize> {
    let descriptors = own_metrics::max_fds().unwrap_or(usize::MAX);
    let descriptors = descriptors.saturating_sub(SPARE_DESCRIPTORS);
    let mut result = Err(ErrorKind::OutOfMemory.into());
    for keepers in KEEPERS {
        if keepers > descriptors.max(FEWEST_KEEPERS) {
            continue;
        }
        // tiny_http panics where it cannot have a thread: see first.
        result = rehearse(keepers.saturating_add(SPARE_THREADS)).map(|()| keepers);
        if result.is_ok() {
            break;
        }
    }
    result.map_err(|error| {
        let text =
            format!("cannot start threads, too few are allowed (ulimit -u, pids.max): {error}");
        io::Error::new(error.kind(), text)
    })
}

/// Has that many threads at the same time, and ends them.
fn rehearse(threads: usize) -> io::Result<()> {
    let door = Mutex::new(());
    thread::scope(|scope| {
        let _closed = door.lock();
        for _ in 0..threads {
            thread::Builder::new()
                .stack_size(KEEPER_STACK)
                .spawn_scoped(scope, || drop(door.lock()))?;
        }
        Ok(())
    })
}

/// A listener with its keepers.
struct Door {
    listener: Listener,
    sealed: Arc<Sealed>,
    hosts: Arc<AllowedHosts>,
    visits: Visits,
    pausing: Mutex<()>,
}

impl Door {
    fn keep(&self, keeper: usize) {
        loop {
            match self.listener.accept() {
                Ok(stream) => {
                    let stream = Arc::new(stream);
                    self.visits.begin(keeper, &stream);
                    self.attend(keeper, &stream);
                    self.visits.end(keeper);
                }
                Err(_) => {
                    // One keeper at a time, or each would cut a visitor.
                    let _pausing = self.pausing.lock();
                    self.visits.cut_one();
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    fn attend(&self, keeper: usize, stream: &Stream) {
        // Not on the stack, whose pages each keeper would hold for good.
        let mut buffer = vec![0; HEAD_LIMIT];
        let Ok(verdict) = read_head(stream.within(READ_TIME), &mut buffer, &self.hosts) else {
            return; // Gone, or cut to make room.
        };
        self.visits.enter(keeper, Phase::Answering);
        let answer = match verdict {
            Err(refusal) => refusal.answer(),
            Ok(request) => {
                // What a client that has gone asked for would delay the others.
                let is_there = || !stream.is_reset();
                match self.sealed.ask(request.method, request.target, is_there) {
                    Ok(Some(answer)) => answer,
                    Ok(None) => return,
                    Err(error) => fail(&error),
                }
            }
        };
        self.visits.enter(keeper, Phase::Writing);
        if stream.within(WRITE_TIME).write_all(&answer).is_ok() {
            drop(answer);
            self.visits.enter(keeper, Phase::Leaving);
            stream.shutdown(Shutdown::Write);
            let mut rest = stream.within(LEAVE_TIME).take(LEAVE_LIMIT);
            while rest.read(&mut buffer).is_ok_and(|count| count > 0) {}
        }
    }
}

/// Nothing could be answered from now on, so the supervisor is to start anew.
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
    fn a_few_keepers_can_be_had() {
        assert!(affordable_keepers().unwrap() >= 4);
    }
}
