//! Opening files that other users may control: a model file, a log, a PID file.
//!
//! Another user may replace such a path at any moment with a FIFO, whose `open` waits for a writer;
//! with a device, whose `open` may have side effects (opening a watchdog device can reboot the
//! machine); or with a symbolic link to either, or out of a container. On Linux the file is
//! therefore pinned with `O_PATH`, which does not open it. Then its type is checked, and the same
//! file is opened through `/proc/self/fd`, with `O_NONBLOCK` (never waits) and `O_NOCTTY` (never
//! becomes the controlling terminal). The standard library adds `O_CLOEXEC`.

use std::fs::{File, FileType, Metadata, OpenOptions, ReadDir};
use std::io;
#[cfg(unix)]
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
#[cfg(target_os = "linux")]
use std::{ffi::OsString, fs, os::fd::AsRawFd, path::PathBuf};

use crate::process::os;

#[cfg(target_os = "linux")]
mod flags {
    pub const O_NOCTTY: i32 = 0o400;
    pub const O_NONBLOCK: i32 = 0o4000;
    pub const O_NOFOLLOW: i32 = match cfg!(any(
        target_arch = "arm",
        target_arch = "aarch64",
        target_arch = "powerpc64"
    )) {
        true => 0o100_000,
        false => 0o400_000,
    };
    pub const O_PATH: i32 = 0o10_000_000;
}
#[cfg(all(unix, not(target_os = "linux")))]
mod flags {
    pub const O_NOCTTY: i32 = 0;
    /// The value on macOS and the BSDs.
    pub const O_NONBLOCK: i32 = 4;
}
#[cfg(unix)]
use flags::*;

/// Opens the regular file at `path` for reading. Never waits for another process; only an
/// unresponsive file system can block it.
///
/// # Errors
/// It cannot be opened, or is not a regular file.
pub fn regular_file(path: &Path) -> io::Result<File> {
    open(path, FileType::is_file)
}

/// Opens the regular file or FIFO at `path` for reading. A FIFO opens once it has a writer: call
/// this on a thread that may wait.
///
/// # Errors
/// It cannot be opened, or is of another type.
pub fn regular_file_or_fifo(path: &Path) -> io::Result<File> {
    open(path, |kind| kind.is_file() || os::is_fifo(*kind))
}

/// Opens the regular file at `path` as seen by a process whose root directory is `root`: no
/// symbolic link and no `..` leads out of it. Uses `openat2` with `RESOLVE_IN_ROOT`. If the kernel
/// lacks it (before Linux 5.6), or a seccomp filter forbids it, resolves the path one folder at a
/// time. Linux only.
///
/// # Errors
/// It cannot be opened, or is not a regular file.
pub fn regular_file_in_root(root: &Path, path: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    {
        let pinned = in_root::pin(root, path)?;
        check_type(&pinned.metadata()?, FileType::is_file)?;
        open_pinned(&pinned)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (root, path);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Lists the folder at `path` as seen by a process whose root directory is `root`, like
/// [`regular_file_in_root`]. Linux only.
///
/// # Errors
/// It cannot be listed, or is not a folder.
pub fn folder_in_root(root: &Path, path: &Path) -> io::Result<ReadDir> {
    #[cfg(target_os = "linux")]
    {
        let pinned = in_root::pin(root, path)?;
        check_type(&pinned.metadata()?, FileType::is_dir)?;
        fs::read_dir(descriptor_path(&pinned))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (root, path);
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn open(path: &Path, is_wanted: impl Fn(&FileType) -> bool) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    let pinned = pin(path, 0)?;
    #[cfg(target_os = "linux")]
    let (expected, identity) = (pinned.metadata()?, os::file_identity(&pinned)?);
    #[cfg(not(target_os = "linux"))]
    let (expected, identity) = (std::fs::metadata(path)?, os::file_identity_at(path)?);
    check_type(&expected, &is_wanted)?;
    #[cfg(target_os = "linux")]
    match open_pinned(&pinned) {
        // No /proc is mounted.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let opened = open_as(path, &expected)?;
    match os::file_identity(&opened)? == identity {
        true => Ok(opened),
        false => Err(io::Error::other("it was replaced while it was opened")),
    }
}

/// Opens a file of the same type as `expected`: only a FIFO may wait.
fn open_as(path: &Path, expected: &Metadata) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    options.custom_flags(match os::is_fifo(expected.file_type()) {
        true => O_NOCTTY,
        false => O_NOCTTY | O_NONBLOCK,
    });
    #[cfg(not(unix))]
    let _ = expected;
    options.open(path)
}

fn check_type(found: &Metadata, is_wanted: impl Fn(&FileType) -> bool) -> io::Result<()> {
    let kind = found.file_type();
    let name = match kind {
        kind if is_wanted(&kind) => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if os::is_fifo(kind) => "a FIFO",
        kind if os::is_socket(kind) => "a socket",
        _ => "a device",
    };
    let message = format!("it is {name}, not a regular file");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

/// Pins the file at `path` without opening it.
#[cfg(target_os = "linux")]
fn pin(path: &Path, flags: i32) -> io::Result<File> {
    os::open_with_flags(path, O_PATH | flags)
}

/// Opens the pinned file, even if another file has its name now.
#[cfg(target_os = "linux")]
fn open_pinned(pinned: &File) -> io::Result<File> {
    open_as(&descriptor_path(pinned), &pinned.metadata()?)
}

#[cfg(target_os = "linux")]
fn descriptor_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

#[cfg(target_os = "linux")]
mod in_root {
    use super::*;

    /// The most symbolic links on one path, as in the kernel.
    const MAX_LINKS: u32 = 40;
    /// The most folders that are open at a time.
    const MAX_DEPTH: usize = 128;
    /// The most attempts if something on the path is being renamed.
    const MAX_TRIES: u32 = 8;

    pub fn pin(root: &Path, path: &Path) -> io::Result<File> {
        let root = super::pin(root, 0)?;
        for _ in 0..MAX_TRIES {
            match os::open_in_root(&root, path, O_PATH) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if is_call_missing(&error) => break,
                pinned => return pinned,
            }
        }
        walk(root, path)
    }

    /// Whether the system call is unavailable (and not the file missing).
    fn is_call_missing(error: &io::Error) -> bool {
        const EPERM: i32 = 1;
        // Older seccomp filters answer unknown system calls with EPERM.
        error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(EPERM)
    }

    /// Pins the file at `path` below `root`, without `openat2`.
    pub fn walk(root: File, path: &Path) -> io::Result<File> {
        let parts = |path: &Path| -> Vec<OsString> {
            let backwards = path.components().rev();
            backwards.map(|part| part.as_os_str().to_owned()).collect()
        };
        let mut ahead = parts(path);
        let mut folders: Vec<File> = Vec::new();
        let mut links: u32 = 0;
        while let Some(part) = ahead.pop() {
            match part.as_encoded_bytes() {
                b"." => {}
                b"/" => folders.clear(),
                b".." => drop(folders.pop()),
                _ => {
                    let path = descriptor_path(folders.last().unwrap_or(&root)).join(part);
                    let next = super::pin(&path, O_NOFOLLOW)?;
                    if !next.metadata()?.is_symlink() {
                        folders.push(next);
                    } else if links < MAX_LINKS {
                        links = links.saturating_add(1);
                        // The target is resolved below the root, even if the link has changed.
                        ahead.extend(parts(&fs::read_link(&path)?));
                    } else {
                        return Err(io::Error::other("too many symbolic links"));
                    }
                    if folders.len() > MAX_DEPTH {
                        return Err(io::Error::other("too many folders in one path"));
                    }
                }
            }
        }
        Ok(folders.pop().unwrap_or(root))
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::symlink;
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn fifo(path: &Path) {
        let made = Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    }

    /// Runs `action`; fails if it does not return within a minute.
    fn in_time<T: Send + 'static>(action: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(action()));
        let minute = Duration::from_secs(60);
        receiver
            .recv_timeout(minute)
            .expect("did not return within a minute")
    }

    #[test]
    fn only_regular_files_are_opened_and_nothing_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "text").unwrap();
        fifo(&at("fifo"));
        for (link, target) in [
            ("to-file", at("file")),
            ("to-fifo", at("fifo")),
            ("to-zero", "/dev/zero".into()),
        ] {
            symlink(target, at(link)).unwrap();
        }
        let refused = |path: PathBuf| {
            let opened = in_time(move || regular_file(&path));
            opened.unwrap_err().to_string()
        };
        assert_eq!(refused(at("fifo")), "it is a FIFO, not a regular file");
        assert_eq!(refused(at("to-fifo")), refused(at("fifo")));
        assert_eq!(refused(at("to-zero")), "it is a device, not a regular file");
        let folder_itself = refused(folder.path().to_owned());
        assert_eq!(folder_itself, "it is a directory, not a regular file");
        for name in ["file", "to-file"] {
            let mut text = String::new();
            let mut file = regular_file(&at(name)).unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "text");
        }
        assert!(regular_file_or_fifo(&at("to-zero")).is_err());
        assert!(regular_file_or_fifo(&at("file")).is_ok());
    }

    #[test]
    fn a_wanted_fifo_opens_once_it_has_a_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fifo(&path);
        let reader = {
            let path = path.clone();
            thread::spawn(move || {
                let mut text = String::new();
                let mut file = regular_file_or_fifo(&path).unwrap();
                file.read_to_string(&mut text).unwrap();
                text
            })
        };
        in_time(move || fs::write(path, "a line\n").unwrap());
        assert_eq!(in_time(|| reader.join().unwrap()), "a line\n");
    }

    #[test]
    fn a_file_that_keeps_being_swapped_with_a_fifo_is_opened_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "text").unwrap();
        fifo(&at("b"));
        let swapping = Arc::new(AtomicBool::new(true));
        let swapper = {
            let (swapping, a, b, spare) = (Arc::clone(&swapping), at("a"), at("b"), at("spare"));
            thread::spawn(move || {
                for _ in 0..20_000 {
                    for (from, to) in [(&a, &spare), (&b, &a), (&spare, &b)] {
                        fs::rename(from, to).unwrap();
                    }
                }
                swapping.store(false, Ordering::Relaxed);
            })
        };
        let path = at("a");
        let [opened, refused] = in_time(move || {
            let mut counts: [u32; 2] = [0, 0];
            while swapping.load(Ordering::Relaxed) || counts[0] == 0 {
                match regular_file(&path) {
                    Ok(file) => {
                        assert!(file.metadata().unwrap().is_file());
                        counts[0] += 1;
                    }
                    Err(_) => counts[1] += 1,
                }
            }
            counts
        });
        swapper.join().unwrap();
        assert!(opened > 0 && refused > 0, "{opened} {refused}");
    }

    /// With `openat2` and with the fallback.
    #[test]
    fn no_symbolic_link_leads_out_of_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["root/app", "root/data/v2", "outside"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        for name in ["root/app/m", "root/data/v2/m", "outside/m", "root/m"] {
            fs::write(at(name), name).unwrap();
        }
        fifo(&at("root/app/fifo"));
        for (link, target) in [
            ("root/app/latest", "/data/v2".into()),
            ("root/app/beside", "../data/./v2/m".into()),
            ("root/app/out", "../../outside/m".into()),
            ("root/app/out-outright", at("outside/m")),
            ("root/app/up", "../../../../m".into()),
            ("root/app/zero", "/dev/zero".into()),
            ("root/app/self", "/proc/self/root".into()),
            ("root/app/round", "round".into()),
            ("container", at("root")),
        ] {
            symlink(target, at(link)).unwrap();
        }
        let root = at("container");
        let by_walk = |path: &Path| -> io::Result<File> {
            let pinned = in_root::walk(pin(&root, 0)?, path)?;
            check_type(&pinned.metadata()?, FileType::is_file)?;
            open_pinned(&pinned)
        };
        let by_kernel = |path: &Path| regular_file_in_root(&root, path);
        for kernel in [true, false] {
            let read = |path: &str| {
                let path = Path::new(path);
                let opened = if kernel {
                    by_kernel(path)
                } else {
                    by_walk(path)
                };
                let mut text = String::new();
                opened?.read_to_string(&mut text)?;
                io::Result::Ok(text)
            };
            for (path, real) in [
                ("/app/m", "root/app/m"),
                ("app/m", "root/app/m"),
                ("/app/latest/m", "root/data/v2/m"),
                ("/app/beside", "root/data/v2/m"),
                ("../../app/m", "root/app/m"),
                ("/app/up", "root/m"),
            ] {
                assert_eq!(read(path).unwrap(), real, "{path}");
            }
            for path in ["out", "out-outright", "zero", "self/etc/passwd", "round"] {
                assert!(read(&format!("/app/{path}")).is_err(), "{path}");
            }
            assert!(read("/outside/m").is_err() && read("/").is_err());
            let refused = read("/app/fifo").unwrap_err().to_string();
            assert_eq!(refused, "it is a FIFO, not a regular file");
        }
    }
}
