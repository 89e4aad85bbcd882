//! What [`os`](crate::process::os) is on Windows. What Windows does not have does nothing, or fails.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, IsTerminal};
use std::net::{TcpListener, TcpStream};
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::os::windows::io::AsRawHandle;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Windows ends the process by itself when Ctrl+C is pressed or the user logs off.
///
/// # Errors
/// None.
pub fn exit_on_signals() -> io::Result<()> {
    Ok(())
}

/// Does nothing: the heap of Windows returns freed memory.
pub fn return_freed_memory() {}

/// Does nothing.
///
/// # Errors
/// None.
pub fn hide_memory() -> io::Result<()> {
    Ok(())
}

/// Does nothing: no child is started on Windows.
pub fn kill_with_parent(_: &mut Command) {}

/// Holes are not detected.
///
/// # Errors
/// None.
pub fn next_data(_: &File, offset: u64) -> io::Result<u64> {
    Ok(offset)
}

/// Checks that a Unix socket can have this path.
///
/// # Errors
/// A message: the standard library has no Unix sockets on Windows.
pub fn check_socket_path(_: &str) -> Result<(), String> {
    Err("Unix sockets cannot be used on Windows: give host and port instead".to_owned())
}

/// Connects to a Unix socket.
///
/// # Errors
/// `Unsupported`.
pub fn connect_unix(_: &Path, _: Duration) -> io::Result<TcpStream> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The PID of the process at the other end.
///
/// # Errors
/// `Unsupported`.
pub fn listener_pid(_: &TcpStream) -> io::Result<u32> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Files have no user as a number.
pub fn owner(_: &Metadata) -> Option<u32> {
    None
}

/// Files have no mode.
pub fn is_executable(_: &Metadata) -> bool {
    true
}

/// Identifies an open file on this machine, whatever its name is now: volume and file index.
///
/// # Errors
/// The system call failed.
pub fn file_identity(file: &File) -> io::Result<(u64, u64)> {
    /// `BY_HANDLE_FILE_INFORMATION`, all of whose fields have 32 bits.
    type Information = [u32; 13];
    unsafe extern "system" {
        fn GetFileInformationByHandle(file: *mut c_void, information: *mut Information) -> i32;
    }
    let mut information: Information = [0; 13];
    // SAFETY: the handle is borrowed, so it stays open during the call; the information lives
    // through it, and has the size that the system writes.
    if unsafe { GetFileInformationByHandle(file.as_raw_handle(), &raw mut information) } == 0 {
        return Err(io::Error::last_os_error());
    }
    let [.., volume, _, _, _, index_high, index_low] = information;
    let index = u64::from(index_high) << 32 | u64::from(index_low);
    Ok((volume.into(), index))
}

/// [`file_identity`] of the file or folder that has this name now.
///
/// # Errors
/// There is no such file, or the system call failed.
pub fn file_identity_at(path: &Path) -> io::Result<(u64, u64)> {
    /// Opens folders, too.
    const FILE_FLAG_BACKUP_SEMANTICS: u32 = 0x0200_0000;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(FILE_FLAG_BACKUP_SEMANTICS);
    file_identity(&options.open(path)?)
}

/// Reads at an offset.
///
/// # Errors
/// The system call failed.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    file.seek_read(buffer, offset)
}

/// There are no FIFOs in folders.
pub fn is_fifo(_: FileType) -> bool {
    false
}

/// The standard library has no Unix sockets on Windows.
pub fn is_socket(_: FileType) -> bool {
    false
}

/// Does nothing: Windows keeps as many connections waiting as it can.
///
/// # Errors
/// None.
pub fn set_backlog(_: &TcpListener, _: i32) -> io::Result<()> {
    Ok(())
}

/// Does nothing.
///
/// # Errors
/// None.
pub fn set_defer_accept(_: &TcpListener, _: i32) -> io::Result<()> {
    Ok(())
}

/// Does nothing: a connection whose peer disappears stays open until data is sent.
///
/// # Errors
/// None.
pub fn detect_lost_peer(_: &TcpStream) -> io::Result<()> {
    Ok(())
}

/// The columns of the terminal behind a stream: not known on this system.
pub fn terminal_width(_stream: &impl IsTerminal) -> Option<usize> {
    None
}
