//! System calls that the standard library does not offer. The only unsafe code of the crate.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_ulong, c_void};
use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

#[cfg(target_os = "linux")]
pub use linux::{connect_without_waiting, open_in_root, open_with_flags, refuse_connections};

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

/// The descriptor that the signal handler writes to if [`before_exit`] was called, else -1.
static EXIT_DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);

/// The datagram socket to the service manager if [`notify_when_stopping`] was called, else -1.
static MANAGER_DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);

/// Makes SIGTERM and SIGINT end the process with status 0, immediately or after the action of
/// [`before_exit`]. A handler is needed: PID 1 ignores signals that have none.
///
/// # Errors
/// The system call failed; no known system refuses it.
pub fn exit_on_signals() -> io::Result<()> {
    const SIGINT: c_int = 2;
    const SIGTERM: c_int = 15;
    const SIG_ERR: usize = usize::MAX;
    for number in [SIGTERM, SIGINT] {
        // SAFETY: `exit_handler` has the type of a handler, lives as long as the process, and
        // calls only async-signal-safe functions.
        if unsafe { signal(number, exit_handler) } == SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Must not lock or allocate: the signal may have interrupted code that does.
extern "C" fn exit_handler(_number: c_int) {
    let stopping = "STOPPING=1";
    let manager = MANAGER_DESCRIPTOR.load(Ordering::Acquire);
    if manager >= 0 {
        // SAFETY: write is async-signal-safe and reads bytes that exist; the descriptor is never
        // closed. The service manager need not receive the message.
        let _ = unsafe { write(manager, stopping.as_ptr().cast(), stopping.len()) };
    }
    let descriptor = EXIT_DESCRIPTOR.load(Ordering::Acquire);
    // SAFETY: write is async-signal-safe and reads one byte that exists; the descriptor, if there
    // is one, is never closed.
    if descriptor >= 0 && unsafe { write(descriptor, c"x".as_ptr().cast(), 1) } == 1 {
        return; // The thread of `before_exit` continues.
    }
    // SAFETY: _exit is async-signal-safe and takes any status.
    unsafe { _exit(0) }
}

/// Runs `action` on a thread of its own before a signal ends the process. A later call replaces
/// the action.
///
/// # Errors
/// No thread or descriptor is available.
pub fn before_exit(action: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let (mut receiver, sender) = UnixStream::pair()?;
    // The signal handler must not wait.
    sender.set_nonblocking(true)?;
    let thread = thread::Builder::new().name("exit".into());
    thread.stack_size(64 << 10).spawn(move || {
        if receiver.read(&mut [0]).is_ok_and(|count| count == 1) {
            action();
            // SAFETY: _exit takes any status.
            unsafe { _exit(0) }
        }
    })?;
    // The previous descriptor stays open: the handler may be writing to it.
    EXIT_DESCRIPTOR.store(sender.into_raw_fd(), Ordering::Release);
    Ok(())
}

/// Makes the handler of [`exit_on_signals`] send `STOPPING=1` on this connected socket first.
///
/// # Errors
/// The socket cannot be made non-blocking: the signal handler must not wait.
pub fn notify_when_stopping(socket: UnixDatagram) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    MANAGER_DESCRIPTOR.store(socket.into_raw_fd(), Ordering::Release);
    Ok(())
}

/// Makes glibc return freed memory to the system. By default it uses several arenas, each of which
/// keeps the memory of the largest response that it held: with 100 models, that took 4 to 10 MB.
/// Other C libraries do not need this.
pub fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        const M_TRIM_THRESHOLD: c_int = -1;
        const M_MMAP_THRESHOLD: c_int = -3;
        const M_ARENA_MAX: c_int = -8;
        // Larger blocks, such as the text of a scrape, are returned immediately.
        const MAX_KEPT_BYTES: c_int = 64 << 10;
        for (parameter, value) in [
            (M_ARENA_MAX, 1),
            (M_MMAP_THRESHOLD, MAX_KEPT_BYTES),
            (M_TRIM_THRESHOLD, MAX_KEPT_BYTES),
        ] {
            // SAFETY: mallopt takes any two numbers; called before there are other threads.
            unsafe { mallopt(parameter, value) };
        }
    }
}

/// Runs `create` with the permission bits of `mask` cleared in the mode of every file it creates.
/// The mask applies to all threads during the call.
pub fn with_umask<T>(mask: u16, create: impl FnOnce() -> T) -> T {
    #[cfg(target_vendor = "apple")]
    type Mode = u16;
    #[cfg(not(target_vendor = "apple"))]
    type Mode = u32;
    unsafe extern "C" {
        fn umask(mask: Mode) -> Mode;
    }
    // SAFETY: umask takes any number and cannot fail.
    let previous = unsafe { umask(Mode::from(mask)) };
    let created = create();
    // SAFETY: as above.
    unsafe { umask(previous) };
    created
}

/// Prevents core dumps, and prevents other processes of the same user from reading the memory,
/// environment and descriptors of this process, all of which contain keys. Its files in `/proc`
/// then belong to root; the process itself can still read most of them. Linux only.
///
/// # Errors
/// The system call failed; no known system refuses it.
pub fn hide_memory() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    linux::set_undumpable()?;
    Ok(())
}

/// Kills the child of `command` with SIGKILL when the thread that starts it, or this process, ends
/// for any reason: a child that never writes would not notice, and a looping `nvidia-smi` survived
/// SIGTERM. Linux only.
pub fn kill_with_parent(command: &mut Command) {
    #[cfg(target_os = "linux")]
    linux::kill_with_parent(command);
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// Returns the offset of the next data in a sparse file, at or after `offset`: the length of the
/// file if only a hole follows, and `offset` if holes cannot be detected. Changes the file's
/// position.
///
/// # Errors
/// The system call failed.
pub fn next_data(file: &File, offset: u64) -> io::Result<u64> {
    #[cfg(target_os = "linux")]
    return linux::next_data(file, offset);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        Ok(offset)
    }
}

/// Connects to the Unix socket at `path`. On Linux, waits at most for `time`, which must not be
/// zero, if its queue is full; elsewhere a full queue refuses the connection. Returns a `TcpStream`,
/// which works with any stream socket, and unlike `UnixStream` can peek.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if its queue stayed full, or the system call failed.
pub fn connect_unix(path: &Path, time: Duration) -> io::Result<TcpStream> {
    #[cfg(target_os = "linux")]
    let stream = linux::connect_unix(path, time)?;
    #[cfg(not(target_os = "linux"))]
    let (_, stream) = (time, UnixStream::connect(path)?);
    Ok(OwnedFd::from(stream).into())
}

/// The PID of the process that listens on the other end of `stream`, as this process sees it.
/// Linux only.
///
/// # Errors
/// `NotFound` if it is in a PID namespace that this process does not see, or `Unsupported`.
pub fn listener_pid(stream: &impl AsFd) -> io::Result<u32> {
    #[cfg(target_os = "linux")]
    return linux::listener_pid(stream);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = stream;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The user who owns the file; `None` where files have no such user.
pub fn owner(file: &Metadata) -> Option<u32> {
    Some(file.uid())
}

/// Whether the mode of the file allows someone to execute it.
pub fn is_executable(file: &Metadata) -> bool {
    file.permissions().mode() & 0o111 != 0
}

/// Identifies an open file on this machine, whatever its name is now: device and inode.
///
/// # Errors
/// The system call failed.
pub fn file_identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|file| (file.dev(), file.ino()))
}

/// [`file_identity`] of the file that has this name now.
///
/// # Errors
/// There is no such file, or the system call failed.
pub fn file_identity_at(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Reads at an offset, which must not move for other readers of the file.
///
/// # Errors
/// The system call failed.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(buffer, offset)
}

/// Whether the file is a FIFO.
pub fn is_fifo(kind: FileType) -> bool {
    kind.is_fifo()
}

/// Whether the file is a Unix socket.
pub fn is_socket(kind: FileType) -> bool {
    kind.is_socket()
}

/// Checks that a Unix socket can have this path.
///
/// # Errors
/// A message: it is too long.
pub fn check_socket_path(path: &str) -> Result<(), String> {
    match SocketAddr::from_pathname(path) {
        Ok(_) => Ok(()),
        Err(_) => Err(
            "the path after unix: is too long for a socket: at most 107 bytes on Linux, \
             103 elsewhere"
                .to_owned(),
        ),
    }
}

/// The columns of the terminal behind `stream`; `None` if it is none, or does not say. Linux and macOS
/// only.
pub fn terminal_width(stream: &impl AsFd) -> Option<usize> {
    #[repr(C)]
    #[derive(Default)]
    struct WindowSize {
        rows: u16,
        columns: u16,
        pixels: [u16; 2],
    }
    unsafe extern "C" {
        fn ioctl(descriptor: c_int, request: c_ulong, ...) -> c_int;
    }
    #[cfg(not(target_os = "macos"))]
    const TIOCGWINSZ: c_ulong = 0x5413;
    #[cfg(target_os = "macos")]
    const TIOCGWINSZ: c_ulong = 0x4008_7468;
    if !cfg!(any(target_os = "linux", target_os = "macos")) {
        return None;
    }
    let mut size = WindowSize::default();
    // SAFETY: the descriptor is borrowed, so it stays open during the call, which writes a window
    // size only.
    let result = unsafe { ioctl(stream.as_fd().as_raw_fd(), TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.columns > 0).then_some(size.columns.into())
}

/// Sets how many connections may wait to be accepted; the system may limit the number. The standard
/// library uses 128, and further clients retry after a second.
///
/// # Errors
/// The socket is not bound.
pub fn set_backlog(listener: &impl AsFd, length: i32) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed, so it stays open during the call.
    check(unsafe { listen(listener.as_fd().as_raw_fd(), length) })
}

/// Delays `accept` of a connection until its first bytes arrive, or for about `seconds`. Linux
/// only; elsewhere connections are accepted immediately.
///
/// # Errors
/// The socket is not TCP.
pub fn set_defer_accept(listener: &impl AsFd, seconds: i32) -> io::Result<()> {
    const TCP_DEFER_ACCEPT: c_int = 9;
    match cfg!(target_os = "linux") {
        true => set_option(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, seconds),
        false => Ok(()),
    }
}

const IPPROTO_TCP: c_int = 6;

/// Makes a TCP connection fail within about a minute after its peer disappears without closing it.
/// Linux and macOS only; has no effect elsewhere.
///
/// # Errors
/// The socket is not TCP.
pub fn detect_lost_peer(stream: &impl AsFd) -> io::Result<()> {
    /// Seconds of silence before the first of three probes, and between them.
    const SECONDS: c_int = 15;
    #[cfg(target_os = "linux")]
    let options = [
        (IPPROTO_TCP, 4, SECONDS), // TCP_KEEPIDLE
        (IPPROTO_TCP, 5, SECONDS), // TCP_KEEPINTVL
        (IPPROTO_TCP, 6, 3),       // TCP_KEEPCNT
        // TCP_USER_TIMEOUT: milliseconds that sent data may stay unacknowledged.
        (IPPROTO_TCP, 18, 4 * 1000 * SECONDS),
        (1, 9, 1), // SOL_SOCKET, SO_KEEPALIVE
    ];
    #[cfg(target_os = "macos")]
    let options = [
        (IPPROTO_TCP, 0x10, SECONDS),  // TCP_KEEPALIVE
        (IPPROTO_TCP, 0x101, SECONDS), // TCP_KEEPINTVL
        (IPPROTO_TCP, 0x102, 3),       // TCP_KEEPCNT
        (0xffff, 8, 1),                // SOL_SOCKET, SO_KEEPALIVE
    ];
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    let options: [(c_int, c_int, c_int); 0] = [];
    for (level, name, value) in options {
        set_option(stream, level, name, value)?;
    }
    Ok(())
}

fn set_option(socket: &impl AsFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed, so it stays open during the call; the value is an int
    // that lives through the call, and the length is its own.
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

fn check(result: c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Linux only.
#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::{CString, c_char, c_long, c_ulong};
    use std::mem;
    use std::os::fd::FromRawFd;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::UnixListener;
    use std::os::unix::process::CommandExt;

    use super::*;

    const AF_UNIX: c_int = 1;
    const O_CLOEXEC: c_int = 0o2_000_000;

    /// `sockaddr_un`; the path of an abstract socket starts with a zero byte.
    #[repr(C)]
    struct UnixAddress {
        family: u16,
        path: [u8; 108],
    }

    /// `struct open_how` of `linux/openat2.h`.
    #[repr(C)]
    struct OpenHow {
        flags: u64,
        mode: u64,
        resolve: u64,
    }

    unsafe extern "C" {
        fn prctl(option: c_int, ...) -> c_int;
        fn open(path: *const c_char, flags: c_int, ...) -> c_int;
        fn syscall(number: c_long, ...) -> c_long;
        fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
        fn connect(descriptor: c_int, address: *const UnixAddress, length: u32) -> c_int;
        fn shutdown(descriptor: c_int, how: c_int) -> c_int;
        fn getsockopt(
            descriptor: c_int,
            level: c_int,
            name: c_int,
            value: *mut c_void,
            length: *mut u32,
        ) -> c_int;
        // glibc's `lseek` takes 32 bits on 32-bit machines; musl's always takes 64.
        #[cfg_attr(target_env = "gnu", link_name = "lseek64")]
        fn lseek(descriptor: c_int, offset: i64, whence: c_int) -> i64;
    }

    pub fn set_undumpable() -> io::Result<()> {
        const PR_SET_DUMPABLE: c_int = 4;
        let no: c_ulong = 0;
        // SAFETY: this call takes any number.
        check(unsafe { prctl(PR_SET_DUMPABLE, no) })
    }

    pub fn kill_with_parent(command: &mut Command) {
        const PR_SET_PDEATHSIG: c_int = 1;
        const SIGKILL: c_ulong = 9;
        // SAFETY: this is one system call, which takes any signal number.
        let set_signal = || check(unsafe { prctl(PR_SET_PDEATHSIG, SIGKILL) });
        // SAFETY: between fork and exec, only what is async-signal-safe may be called: this is.
        unsafe { command.pre_exec(set_signal) };
    }

    pub fn next_data(file: &File, offset: u64) -> io::Result<u64> {
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

    /// Connects to the abstract Unix socket `name` without waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if its queue is full, or the system call failed.
    pub fn connect_without_waiting(name: &[u8]) -> io::Result<UnixStream> {
        let stream = unix_socket()?;
        stream.set_nonblocking(true)?;
        connect_to(&stream, &[b"\0", name].concat())?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    pub fn connect_unix(path: &Path, time: Duration) -> io::Result<UnixStream> {
        let stream = unix_socket()?;
        // Linux waits this long for a place in the queue (unix(7), SO_SNDTIMEO).
        stream.set_write_timeout(Some(time))?;
        let path = CString::new(path.as_os_str().as_bytes())?;
        connect_to(&stream, path.as_bytes_with_nul())?;
        Ok(stream)
    }

    pub fn listener_pid(stream: &impl AsFd) -> io::Result<u32> {
        const SOL_SOCKET: c_int = 1;
        let powerpc = cfg!(any(target_arch = "powerpc", target_arch = "powerpc64"));
        let so_peercred: c_int = if powerpc { 21 } else { 17 };
        // `struct ucred`: PID, user, group.
        let mut credentials: [c_int; 3] = [0; 3];
        let mut length = size_of_val(&credentials) as u32;
        // SAFETY: the descriptor is borrowed, so it stays open during the call; the credentials
        // and their length live through it, and the system writes at most that many bytes.
        check(unsafe {
            getsockopt(
                stream.as_fd().as_raw_fd(),
                SOL_SOCKET,
                so_peercred,
                credentials.as_mut_ptr().cast(),
                &raw mut length,
            )
        })?;
        let pid = u32::try_from(credentials[0]).ok().filter(|pid| *pid > 0);
        pid.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn unix_socket() -> io::Result<UnixStream> {
        const SOCK_STREAM: c_int = 1;
        const SOCK_CLOEXEC: c_int = 0o2_000_000;
        // SAFETY: socket takes any numbers.
        let descriptor = unsafe { socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open, and nothing else owns it.
        Ok(UnixStream::from(unsafe {
            OwnedFd::from_raw_fd(descriptor)
        }))
    }

    /// Connects to a path that ends with a zero byte, or to an abstract name after one.
    fn connect_to(stream: &UnixStream, name: &[u8]) -> io::Result<()> {
        let mut address = UnixAddress {
            family: AF_UNIX as u16,
            path: [0; 108],
        };
        let path = address.path.get_mut(..name.len());
        path.ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(name);
        let length = mem::offset_of!(UnixAddress, path).saturating_add(name.len());
        // SAFETY: the descriptor is borrowed, so it stays open during the call; the address lives
        // through it, and has at least `length` bytes.
        check(unsafe { connect(stream.as_raw_fd(), &raw const address, length as u32) })
    }

    /// Makes a listening Unix socket refuse new connections. Those in its queue are still
    /// accepted; then `accept` fails.
    ///
    /// # Errors
    /// The system call failed; some sandboxes do not support it for a listening socket.
    pub fn refuse_connections(listener: &UnixListener) -> io::Result<()> {
        const SHUT_RDWR: c_int = 2;
        // SAFETY: the descriptor is borrowed, so it stays open during the call.
        check(unsafe { shutdown(listener.as_raw_fd(), SHUT_RDWR) })
    }

    /// Opens `path` with these `O_*` flags. With musl, the standard library removes `O_PATH`, which is
    /// a part of `O_ACCMODE` there.
    ///
    /// # Errors
    /// The system call failed.
    pub fn open_with_flags(path: &Path, flags: i32) -> io::Result<File> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the path ends with a zero byte and lives through the call; no flag creates a file.
        let opened = unsafe { open(path.as_ptr(), flags | O_CLOEXEC) };
        match opened {
            // SAFETY: the system just returned this descriptor, and nothing else owns it.
            0.. => Ok(unsafe { File::from_raw_fd(opened) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Opens `path` as seen by a process whose root directory is `root`, with `O_*` flags. Calls
    /// `openat2` with `RESOLVE_IN_ROOT`, and does not follow magic links (`/proc/PID/fd` etc.).
    ///
    /// # Errors
    /// `Unsupported` before Linux 5.6, `WouldBlock` if something on the path is being renamed, or
    /// the system call failed.
    pub fn open_in_root(root: &impl AsFd, path: &Path, flags: i32) -> io::Result<File> {
        const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
        const RESOLVE_IN_ROOT: u64 = 0x10;
        /// The same on all architectures that number system calls from 0, except Alpha.
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
            // SAFETY: the system just returned this descriptor, and nothing else owns it.
            Ok(opened @ 0..) => Ok(unsafe { File::from_raw_fd(opened) }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests;
