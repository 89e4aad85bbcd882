//! Bounded reads of the files in `/proc` and `/sys`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The most bytes of a file that has one value or a small table.
const MAX_TEXT_BYTES: u64 = 64 << 10;

/// Few of these files are longer.
const USUAL_BYTES: usize = 2048;

/// Reads the first `limit` bytes of a file.
///
/// # Errors
/// The file cannot be read.
pub fn read_bytes(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // Most are short. Such a file has no size, so that reading would begin with a few bytes.
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads the first 64 KiB of a file as text.
///
/// # Errors
/// The file cannot be read.
pub fn read_text(path: &Path) -> io::Result<String> {
    let bytes = read_bytes(path, MAX_TEXT_BYTES)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads a file that holds one value; `None` if it is unreadable or empty.
pub fn read_value(path: &Path) -> Option<String> {
    let text = read_text(path).ok()?;
    let value = text.trim();
    (!value.is_empty()).then(|| value.to_owned())
}
