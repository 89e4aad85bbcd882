//! Listens at a Unix socket, whose file may be there already.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

use crate::process::os;
use crate::web::listener::{BACKLOG, Listener};

/// Listens at `path`; replaces a socket that no process listens on.
///
/// # Errors
/// The socket is in use, the path is another file, or the system call failed.
pub fn bind(path: &Path) -> io::Result<Listener> {
    match bind_new(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let found = FileId::of(path)?;
            if !found.is_socket {
                return Err(io::Error::new(
                    ErrorKind::AlreadyExists,
                    "a file that is not a socket exists at that path",
                ));
            }
            // Another process may replace the stale socket at the same time: then it is already
            // gone, and the other process's socket is in its place.
            if is_live(path)? || !found.remove(path)? {
                return Err(error);
            }
            bind_new(path)
        }
        result => result,
    }
}

/// Owner and group may connect, whatever the umask is. The file is removed at exit, unless it
/// has been replaced.
fn bind_new(path: &Path) -> io::Result<Listener> {
    const NOT_FOR_OTHERS: u16 = 0o117;
    let listener = os::with_umask(NOT_FOR_OTHERS, || UnixListener::bind(path))?;
    os::set_backlog(&listener, BACKLOG)?;
    let (ours, path) = (FileId::of(path)?, path.to_owned());
    os::before_exit(move || {
        // There is nothing left to do if this fails.
        let _ = ours.remove(&path);
    })?;
    Ok(Listener::Unix(listener))
}

/// Identifies the file at a path. Symbolic links are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
    /// A file system may reuse the inode of a removed file immediately.
    created_or_changed: (i64, i64),
    is_socket: bool,
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path)?;
        Ok(Self {
            device: file.dev(),
            inode: file.ino(),
            created_or_changed: (file.ctime(), file.ctime_nsec()),
            is_socket: file.file_type().is_socket(),
        })
    }

    /// Removes the file, unless another one is at `path` now. Returns whether it was removed.
    fn remove(self, path: &Path) -> io::Result<bool> {
        let is_this = Self::of(path).is_ok_and(|now| now == self);
        if is_this {
            fs::remove_file(path)?;
        }
        Ok(is_this)
    }
}

/// Whether a process listens on the socket file. Connects with a datagram socket, which never waits
/// in a queue: the error shows whether a stream socket listens.
fn is_live(path: &Path) -> io::Result<bool> {
    match UnixDatagram::unbound()?.connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(false),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::settings::ListenAddress;
    use crate::web::listener::bind;

    /// A folder that is removed at the end, and the path of a socket in it.
    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        (folder, path)
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let (_folder, path) = scratch();
        let address = ListenAddress::Unix(path.clone());
        drop(bind(&address).unwrap()); // Leaves its file.
        assert!(path.exists());

        let listeners = bind(&address).unwrap();
        assert_eq!(listeners[0].to_string(), address.to_string());
        let error = bind(&address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains("address in use"), "{error}");
        let _client = UnixStream::connect(&path).unwrap();
        listeners[0].accept().unwrap();
    }

    /// Two exporters that start at the same time find the same stale socket.
    #[test]
    fn a_socket_that_replaced_a_stale_one_is_not_removed() {
        let (_folder, path) = scratch();
        drop(UnixListener::bind(&path).unwrap());
        let stale = FileId::of(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!stale.remove(&path).unwrap());
        // On many file systems it has the inode of the stale one. Their times differ after a tick
        // of the kernel's clock.
        thread::sleep(Duration::from_millis(50));
        let _other = UnixListener::bind(&path).unwrap();
        assert!(!stale.remove(&path).unwrap());
        assert!(path.exists());
        assert!(FileId::of(&path).unwrap().remove(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_with_a_full_queue_does_not_block() {
        let (_folder, path) = scratch();
        let listener = UnixListener::bind(&path).unwrap();
        os::set_backlog(&listener, 0).unwrap();
        let _queued = UnixStream::connect(&path).unwrap();
        let error = bind(&ListenAddress::Unix(path.clone())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn an_existing_file_or_link_is_not_removed() {
        let (_folder, file) = scratch();
        fs::write(&file, "precious").unwrap();
        let error = bind(&ListenAddress::Unix(file.clone())).unwrap_err();
        assert!(error.to_string().contains("not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

        let (socket, link) = (file.with_extension("sock"), file.with_extension("link"));
        drop(UnixListener::bind(&socket).unwrap());
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        assert!(bind(&ListenAddress::Unix(link.clone())).is_err());
        assert!(link.is_symlink() && socket.exists());
    }
}
