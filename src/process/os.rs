//! What the standard library does not offer. The only unsafe code of the crate.
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
use std::ffi::{CString, c_ulong};
use std::ffi::{c_int, c_void};
#[cfg(target_os = "linux")]
use std::fs::File;
use std::io::{self, Read};
#[cfg(target_os = "linux")]
use std::mem;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
#[cfg(target_os = "linux")]
use std::os::fd::{FromRawFd, OwnedFd};
#[cfg(target_os = "linux")]
use std::os::unix::ffi::OsStrExt;
#[cfg(target_os = "linux")]
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
#[cfg(target_os = "linux")]
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
const SIG_ERR: usize = usize::MAX;
const IPPROTO_TCP: c_int = 6;
/// Linux's number for it.
const TCP_DEFER_ACCEPT: c_int = 9;
/// How long a connection is quiet before its peer is asked for a sign of life, and how long it
/// is waited for each of three; in seconds.
#[cfg(any(target_os = "linux", target_os = "macos"))]
const KEEP_ALIVE_SECONDS: c_int = 15;

unsafe extern "C" {
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn write(descriptor: c_int, bytes: *const c_void, count: usize) -> isize;
    fn _exit(status: c_int) -> !;
    fn listen(descriptor: c_int, backlog: c_int) -> c_int;
    fn setsockopt(
        descriptor: c_int,
        level: c_int,
        name: c_int,
        value: *const c_void,
        length: u32,
    ) -> c_int;
}

#[cfg(target_os = "linux")]
unsafe extern "C" {
    fn prctl(option: c_int, ...) -> c_int;
}

/// The descriptor that a signal writes to, where there is something to do before the end; else -1.
static BEFORE_END: AtomicI32 = AtomicI32::new(-1);

/// Lets SIGTERM and SIGINT end the process at once with status 0, after what
/// [`before_end`] was given. With a handler they also reach a
/// process with the number 1, for which the default is to ignore them.
///
/// # Errors
/// What the system says; no known system refuses it.
pub fn exit_on_signals() -> io::Result<()> {
    for number in [SIGTERM, SIGINT] {
        // SAFETY: `leave` has the type of a handler, lives as long as the
        // process, and calls nothing that a handler may not.
        if unsafe { signal(number, leave) } == SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Has glibc give memory back. It would have several arenas, each of which keeps what an
/// answer once needed, and would come to keep ever larger blocks once they were freed: 100
/// models took 4 to 10 MB more. Other C libraries have no such habits.
pub fn keep_no_spare_memory() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        const M_TRIM_THRESHOLD: c_int = -1;
        const M_MMAP_THRESHOLD: c_int = -3;
        const M_ARENA_MAX: c_int = -8;
        // Larger blocks, such as the text of a scrape, go back to the system at once.
        const LARGEST_KEPT: c_int = 64 << 10;
        for (parameter, value) in [
            (M_ARENA_MAX, 1),
            (M_MMAP_THRESHOLD, LARGEST_KEPT),
            (M_TRIM_THRESHOLD, LARGEST_KEPT),
        ] {
            // SAFETY: mallopt takes any two numbers; called before there are other threads.
            unsafe { mallopt(parameter, value) };
        }
    }
}

/// Nothing may run here that takes a lock or allocates: the signal may have
/// come in the midst of either.
extern "C" fn leave(_number: c_int) {
    let descriptor = BEFORE_END.load(Ordering::Acquire);
    // SAFETY: write is async-signal-safe, and reads one byte that is there; the
    // descriptor, where there is one, is never closed.
    if descriptor >= 0 && unsafe { write(descriptor, c"x".as_ptr().cast(), 1) } == 1 {
        return; // The thread of `before_end` goes on from here.
    }
    // SAFETY: _exit is async-signal-safe and takes any status.
    unsafe { _exit(0) }
}

/// Has `act` run, on a thread of its own, before a signal ends the process. Only
/// the last one given is.
///
/// # Errors
/// No thread or descriptor can be had.
pub fn before_end(act: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let (mut told, tell) = UnixStream::pair()?;
    // A handler must not wait.
    tell.set_nonblocking(true)?;
    thread::Builder::new()
        .name("end".into())
        .stack_size(64 << 10)
        .spawn(move || {
            if told.read(&mut [0]).is_ok_and(|count| count == 1) {
                act();
                // SAFETY: _exit takes any status.
                unsafe { _exit(0) }
            }
        })?;
    // The former one stays open: a handler may be writing to it.
    BEFORE_END.store(tell.into_raw_fd(), Ordering::Release);
    Ok(())
}

/// Runs `make` with the file mode bits in `mask` forbidden to what it makes, whatever the
/// process's own mask. Other threads have that mask meanwhile.
pub fn with_umask<T>(mask: u16, make: impl FnOnce() -> T) -> T {
    #[cfg(target_vendor = "apple")]
    type Mode = u16;
    #[cfg(not(target_vendor = "apple"))]
    type Mode = u32;
    unsafe extern "C" {
        fn umask(mask: Mode) -> Mode;
    }
    // SAFETY: umask takes any number, and cannot fail.
    let former = unsafe { umask(Mode::from(mask)) };
    let made = make();
    // SAFETY: as above.
    unsafe { umask(former) };
    made
}

/// Has the system write no core of this process, whatever its limits, and let no other process of
/// the same user read its memory, environment or descriptors: there are keys in them. Only Linux
/// can. The process's files in `/proc` then belong to root; itself, it can still read most.
///
/// # Errors
/// What the system says; no known system refuses it.
pub fn hide_memory() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        const PR_SET_DUMPABLE: c_int = 4;
        let no: c_ulong = 0;
        // SAFETY: this call takes any number.
        check(unsafe { prctl(PR_SET_DUMPABLE, no) })
    }
    #[cfg(not(target_os = "linux"))]
    Ok(())
}

/// The size of a page of memory, in bytes. Known on Linux only.
pub fn page_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        unsafe extern "C" {
            fn getauxval(kind: c_ulong) -> c_ulong;
        }
        const AT_PAGESZ: c_ulong = 6;
        // SAFETY: getauxval takes any number.
        let bytes = unsafe { getauxval(AT_PAGESZ) };
        (bytes > 0).then_some(bytes as u64)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Lets `length` connections wait to be accepted; the system may cap it. The
/// standard library listens with 128, and what a burst brings beyond that
/// meets a client's retry, a second later.
///
/// # Errors
/// What the system says, for a socket that is not listening or bound.
pub fn set_backlog(listener: &impl AsFd, length: i32) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed, so it stays open during the call.
    check(unsafe { listen(listener.as_fd().as_raw_fd(), length) })
}

/// Connects to the abstract Unix socket `name` of this machine without waiting.
/// Only Linux has such sockets.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] where its queue is full; what the system says.
#[cfg(target_os = "linux")]
pub fn connect_at_once(name: &[u8]) -> io::Result<UnixStream> {
    /// `sockaddr_un`; the path of an abstract socket begins with a zero byte.
    #[repr(C)]
    struct Address {
        family: u16,
        path: [u8; 108],
    }
    unsafe extern "C" {
        fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
        fn connect(descriptor: c_int, address: *const Address, length: u32) -> c_int;
    }
    const AF_UNIX: c_int = 1;
    const SOCK_STREAM: c_int = 1;
    const SOCK_CLOEXEC: c_int = 0o2_000_000;

    let mut address = Address {
        family: AF_UNIX as u16,
        path: [0; 108],
    };
    let place = address.path[1..].get_mut(..name.len());
    let place = place.ok_or(io::ErrorKind::InvalidInput)?;
    place.copy_from_slice(name);
    // SAFETY: socket takes any numbers.
    let descriptor = unsafe { socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nobody else has it.
    let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    stream.set_nonblocking(true)?;
    let length = mem::offset_of!(Address, path)
        .saturating_add("\0".len())
        .saturating_add(name.len());
    // SAFETY: the address lives through the call, and has at least `length` bytes.
    check(unsafe { connect(descriptor, &raw const address, length as u32) })?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Has a listening Unix socket refuse whoever connects from now on. What is in its
/// queue is still accepted; after that, `accept` fails. Known of Linux only.
///
/// # Errors
/// What the system says; some sandboxes do not know it of a socket that listens.
#[cfg(target_os = "linux")]
pub fn refuse_connections(listener: &UnixListener) -> io::Result<()> {
    unsafe extern "C" {
        fn shutdown(descriptor: c_int, how: c_int) -> c_int;
    }
    const SHUT_RDWR: c_int = 2;
    // SAFETY: the descriptor is borrowed, so it stays open during the call.
    check(unsafe { shutdown(listener.as_raw_fd(), SHUT_RDWR) })
}

/// Keeps each connection in the system until its first bytes are there, or for
/// about `seconds`, before it can be accepted. Only Linux can; elsewhere
/// connections are accepted at once.
///
/// # Errors
/// What the system says, for a socket that is not TCP.
pub fn set_defer_accept(listener: &impl AsFd, seconds: i32) -> io::Result<()> {
    match cfg!(target_os = "linux") {
        true => set_tcp_option(listener, TCP_DEFER_ACCEPT, seconds),
        false => Ok(()),
    }
}

/// Has this TCP connection end with an error within about a minute once its peer, or the way to
/// it, is gone without a word. Only Linux and macOS can; elsewhere nothing is changed.
///
/// # Errors
/// What the system says, for a socket that is not TCP.
pub fn notice_lost_peer(stream: &impl AsFd) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        const SOL_SOCKET: c_int = 1;
        const SO_KEEPALIVE: c_int = 9;
        const TCP_KEEPIDLE: c_int = 4;
        const TCP_KEEPINTVL: c_int = 5;
        const TCP_KEEPCNT: c_int = 6;
        /// For what was sent and is not acknowledged; in milliseconds.
        const TCP_USER_TIMEOUT: c_int = 18;
        set_tcp_option(stream, TCP_KEEPIDLE, KEEP_ALIVE_SECONDS)?;
        set_tcp_option(stream, TCP_KEEPINTVL, KEEP_ALIVE_SECONDS)?;
        set_tcp_option(stream, TCP_KEEPCNT, 3)?;
        set_tcp_option(stream, TCP_USER_TIMEOUT, 4 * 1000 * KEEP_ALIVE_SECONDS)?;
        set_option(stream, SOL_SOCKET, SO_KEEPALIVE, 1)
    }
    #[cfg(target_os = "macos")]
    {
        const SOL_SOCKET: c_int = 0xffff;
        const SO_KEEPALIVE: c_int = 8;
        const TCP_KEEPALIVE: c_int = 0x10;
        const TCP_KEEPINTVL: c_int = 0x101;
        const TCP_KEEPCNT: c_int = 0x102;
        set_tcp_option(stream, TCP_KEEPALIVE, KEEP_ALIVE_SECONDS)?;
        set_tcp_option(stream, TCP_KEEPINTVL, KEEP_ALIVE_SECONDS)?;
        set_tcp_option(stream, TCP_KEEPCNT, 3)?;
        set_option(stream, SOL_SOCKET, SO_KEEPALIVE, 1)
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    {
        let _ = stream;
        Ok(())
    }
}

fn set_tcp_option(socket: &impl AsFd, name: c_int, value: c_int) -> io::Result<()> {
    set_option(socket, IPPROTO_TCP, name, value)
}

fn set_option(socket: &impl AsFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed, so it stays open during the call;
    // the value is an int that lives through the call, and the length is its own.
    check(unsafe {
        setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            ptr::from_ref(&value).cast(),
            size_of::<c_int>() as u32,
        )
    })
}

/// Has the program that `command` starts end when the thread that starts it does, or with
/// the whole process, however that ends: one that never writes would not notice. It is killed:
/// a real `nvidia-smi` in a loop was seen to outlive SIGTERM. Only Linux can.
pub fn end_with_us(command: &mut Command) {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt;
        const PR_SET_PDEATHSIG: c_int = 1;
        const SIGKILL: c_ulong = 9;
        // SAFETY: between fork and exec only what a signal handler may call may be called:
        // this is one system call, which takes any number of a signal.
        let ask = || check(unsafe { prctl(PR_SET_PDEATHSIG, SIGKILL) });
        // SAFETY: as above.
        unsafe { command.pre_exec(ask) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// Opens `path` as one sees it whose `/` is `root`, with the `O_*` flags `flags`: `openat2`
/// with `RESOLVE_IN_ROOT`, and not through the links of `/proc/PID` that lead anywhere.
///
/// # Errors
/// What the system says; `Unsupported` where it has no such call (before Linux 5.6), and
/// `WouldBlock` where something was renamed meanwhile that the path leads through.
#[cfg(target_os = "linux")]
pub fn open_in_root(root: &impl AsFd, path: &Path, flags: i32) -> io::Result<File> {
    use std::ffi::c_long;
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }
    /// `struct open_how` of `linux/openat2.h`.
    #[repr(C)]
    struct OpenHow {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    const O_CLOEXEC: c_int = 0o2_000_000;
    const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
    const RESOLVE_IN_ROOT: u64 = 0x10;
    /// The same wherever system calls are numbered from 0, but on Alpha.
    const SYS_OPENAT2: c_long = 437;
    if cfg!(any(
        target_arch = "mips",
        target_arch = "mips64",
        target_abi = "x32"
    )) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let how = OpenHow {
        flags: (flags | O_CLOEXEC) as u64,
        mode: 0,
        resolve: RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
    };
    // SAFETY: the descriptor is borrowed, so it stays open during the call; the path ends with
    // a zero byte; both it and `how` live through the call, and the size is that of `how`.
    let opened = unsafe {
        syscall(
            SYS_OPENAT2,
            c_long::from(root.as_fd().as_raw_fd()),
            path.as_ptr(),
            ptr::from_ref(&how),
            size_of::<OpenHow>(),
        )
    };
    match c_int::try_from(opened) {
        // SAFETY: the system just gave this descriptor to us, and nobody else has it.
        Ok(opened @ 0..) => Ok(unsafe { File::from_raw_fd(opened) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The offset of the next bytes of a file that are no hole, from `offset` on; its length where
/// there are none. Where holes cannot be told, `offset` itself. Moves the file's own position.
///
/// # Errors
/// What the system says.
pub fn next_data(file: &File, offset: u64) -> io::Result<u64> {
    #[cfg(target_os = "linux")]
    {
        unsafe extern "C" {
            // glibc's plain one takes 32 bits on 32-bit machines; musl has only one, of 64.
            #[cfg_attr(target_env = "gnu", link_name = "lseek64")]
            fn lseek(descriptor: c_int, offset: i64, whence: c_int) -> i64;
        }
        const SEEK_DATA: c_int = 3;
        const ENXIO: i32 = 6;
        const EINVAL: i32 = 22;
        let from = i64::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the descriptor is borrowed, so it stays open during the call.
        let found = unsafe { lseek(file.as_raw_fd(), from, SEEK_DATA) };
        if let Ok(found) = u64::try_from(found) {
            return Ok(found);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(ENXIO) => Ok(file.metadata()?.len()),
            Some(EINVAL) => Ok(offset),
            _ => Err(error),
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        Ok(offset)
    }
}

fn check(result: c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    #[cfg(target_os = "linux")]
    fn a_connection_that_says_nothing_is_accepted_later() {
        use std::io::{ErrorKind, Read as _, Write as _};
        use std::time::{Duration, Instant};

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_defer_accept(&listener, 1).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        client.write_all(b"x").unwrap();
        let start = Instant::now();
        let mut accepted = loop {
            match listener.accept() {
                Ok((accepted, _)) => break accepted,
                Err(_) => assert!(start.elapsed() < Duration::from_secs(10)),
            }
        };
        accepted.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn errors_are_reported() {
        let (connected, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(set_backlog(&connected, 10).is_err());
        assert_eq!(
            notice_lost_peer(&connected).is_err(),
            cfg!(any(target_os = "linux", target_os = "macos"))
        );
        assert_eq!(
            set_defer_accept(&connected, 1).is_err(),
            cfg!(target_os = "linux")
        );
    }

    #[test]
    fn what_is_made_has_the_mode_that_was_asked_for() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = with_umask(0o117, || std::os::unix::net::UnixListener::bind(&path));
        listener.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660, "{mode:o}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_page_is_what_the_system_says() {
        let kb = page_bytes().unwrap() / 1024;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let line = smaps
            .lines()
            .find_map(|line| line.strip_prefix("KernelPageSize:"));
        assert_eq!(line.unwrap().trim(), format!("{kb} kB"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn connecting_at_once_never_waits() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::SocketAddr;

        let name = format!("os-test-{}", std::process::id());
        let refused = connect_at_once(name.as_bytes()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        set_backlog(&listener, 0).unwrap();
        let _first = connect_at_once(name.as_bytes()).unwrap();
        let second = connect_at_once(name.as_bytes()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        assert!(connect_at_once(&[b'x'; 108]).is_err());
    }
}
