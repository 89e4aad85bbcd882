//! Threads that run in the background, and the locks between them.

use std::io;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// Starts a thread that nobody waits for.
///
/// # Errors
/// The system cannot start a thread.
pub fn start(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(run).map(drop)
}

/// Starts a thread for a call that has no time-out, such as that of the system's resolver: its
/// result can be received with one.
///
/// # Errors
/// The system cannot start a thread.
pub fn call<T: Send + 'static>(
    name: &str,
    call: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Receiver<T>> {
    let (sender, receiver) = mpsc::channel();
    // The receiver is gone if its time has passed.
    start(name, move || drop(sender.send(call())))?;
    Ok(receiver)
}

/// Locks what stays valid if a thread panics while it changes it.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
