//! Tells systemd that the exporter is ready, alive or stopping: `sd_notify(3)`, for units with
//! `Type=notify`.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::process;
use std::thread;
use std::time::Duration;

use super::{log, os, threads};

/// How long a message may wait until systemd has read earlier ones.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// The shortest `WATCHDOG_USEC` that is kept.
const SHORTEST_WATCHDOG: Duration = Duration::from_millis(20);

/// Sends `READY=1`, then `WATCHDOG=1` twice per `WATCHDOG_USEC` while `health` is good, and
/// `STOPPING=1` when a signal ends the process. Does nothing without `NOTIFY_SOCKET`. Failures are
/// logged: systemd then acts on the missing message.
pub fn start(health: impl Fn() -> Result<(), String> + Send + 'static) {
    let Some(address) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = notify(
        &address,
        watchdog_interval(|name| env::var(name).ok()),
        health,
    ) {
        let pairs: [(&str, &dyn std::fmt::Display); 2] =
            [("socket", &address.to_string_lossy()), ("error", &error)];
        log::warn("cannot notify systemd (NOTIFY_SOCKET)", &pairs);
    }
}

fn notify(
    address: &OsStr,
    watchdog: Option<Duration>,
    health: impl Fn() -> Result<(), String> + Send + 'static,
) -> io::Result<()> {
    // A socket of its own, because the signal handler must not wait.
    os::notify_when_stopping(connect(address)?)?;
    let socket = connect(address)?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    socket.send(b"READY=1")?;
    if let Some(interval) = watchdog {
        threads::start("watchdog", move || keep_alive(&socket, interval, health))?;
    }
    Ok(())
}

/// Connects to a path, or to an abstract socket (`@NAME`).
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match address.as_bytes() {
        [b'/', ..] => socket.connect(address)?,
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt as _;
            use std::os::unix::net::SocketAddr;
            socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?;
        }
        _ => return Err(io::Error::other("use an absolute path or @NAME")),
    }
    Ok(socket)
}

/// Half of `WATCHDOG_USEC`, unless it is for another process (`WATCHDOG_PID`).
fn watchdog_interval(variable: impl Fn(&str) -> Option<String>) -> Option<Duration> {
    if variable("WATCHDOG_PID").is_some_and(|pid| pid != process::id().to_string()) {
        return None;
    }
    let within = Duration::from_micros(variable("WATCHDOG_USEC")?.parse().ok()?);
    let within = (!within.is_zero()).then(|| within.max(SHORTEST_WATCHDOG))?;
    within.checked_div(2)
}

fn keep_alive(
    socket: &UnixDatagram,
    interval: Duration,
    health: impl Fn() -> Result<(), String>,
) -> ! {
    let mut was_sent = true;
    loop {
        let send = || {
            socket
                .send(b"WATCHDOG=1")
                .map_err(|error| error.to_string())
        };
        let sent = health().and_then(|()| send());
        if let Err(reason) = &sent
            && was_sent
        {
            log::error(
                "the watchdog of systemd is not notified, so systemd will restart the exporter",
                &[("reason", reason)],
            );
        }
        was_sent = sent.is_ok();
        thread::sleep(interval);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn the_watchdog_is_notified_only_while_healthy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let receive = |wait| {
            manager.set_read_timeout(Some(wait)).unwrap();
            let mut bytes = [0; 20];
            let length = manager.recv(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
        };
        let is_healthy = Arc::new(AtomicBool::new(false));
        let health = is_healthy.clone();
        let health = move || match health.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("no poll for 9 s".to_owned()),
        };
        notify(path.as_os_str(), Some(Duration::from_millis(5)), health).unwrap();
        assert_eq!(receive(Duration::from_secs(60)).as_deref(), Some("READY=1"));
        assert_eq!(receive(Duration::from_millis(100)), None);
        is_healthy.store(true, Ordering::Relaxed);
        assert_eq!(
            receive(Duration::from_secs(60)).as_deref(),
            Some("WATCHDOG=1")
        );
    }

    #[test]
    fn the_watchdog_interval_is_half_of_the_time_allowed() {
        let interval = |usec: &'static str, pid: Option<String>| {
            watchdog_interval(move |name| match name {
                "WATCHDOG_USEC" => Some(usec.to_owned()),
                _ => pid.clone(),
            })
        };
        let own = Some(process::id().to_string());
        assert_eq!(interval("30000000", own), Some(Duration::from_secs(15)));
        assert_eq!(interval("30000000", None), Some(Duration::from_secs(15)));
        assert_eq!(interval("30000000", Some("1".into())), None);
        assert_eq!(interval("1", None), Some(SHORTEST_WATCHDOG / 2));
        for unusable in ["0", "", "-1", "99999999999999999999999"] {
            assert_eq!(interval(unusable, None), None, "{unusable}");
        }
    }
}
