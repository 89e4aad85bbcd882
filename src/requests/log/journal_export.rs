//! Reads `journalctl -o export`: one field per line, and an empty line after each entry.
//!
//! A field that has control characters comes in binary: its name and a line end, its length in
//! eight bytes, its bytes, and a line end. Of an entry only the message and its origin are kept.

use crate::bounds;
use crate::requests::log::lines::MAX_LINE_BYTES;

/// The longest binary field that is waited for.
const MAX_FIELD_BYTES: usize = 1 << 20;

/// An entry that has begun.
#[derive(Debug, Default)]
pub struct JournalEntry {
    /// The text that was logged.
    pub message: Vec<u8>,
    unit: Option<String>,
    pid: Option<String>,
    binary: Option<BinaryField>,
}

/// A binary field whose bytes come next.
#[derive(Clone, Copy, Debug)]
struct BinaryField {
    is_message: bool,
    /// Bytes that are to come; `None` while the length itself is.
    left: Option<usize>,
}

/// What a line makes of an entry.
pub enum Progress {
    /// The entry continues.
    Continues,
    /// The entry is complete.
    Ended,
    /// The line is not of this format, so this is not an entry.
    Invalid,
}

impl JournalEntry {
    /// Takes the next line, without its end.
    pub fn take(&mut self, line: &[u8]) -> Progress {
        if let Some(field) = self.binary {
            return self.take_binary(field, line);
        }
        if line.is_empty() {
            return Progress::Ended;
        }
        let is_name =
            |byte: &&u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || **byte == b'_';
        let (name, rest) = line.split_at(line.iter().take_while(is_name).count());
        let text = |value| Some(bounds::cut(&String::from_utf8_lossy(value)).to_owned());
        match (name, rest.strip_prefix(b"=")) {
            (b"", _) => return Progress::Invalid,
            (b"MESSAGE", Some(value)) => self.message = value.to_vec(),
            (b"_PID", Some(value)) => self.pid = text(value),
            (b"_SYSTEMD_UNIT" | b"CONTAINER_NAME", Some(value)) => self.unit = text(value),
            (_, Some(_)) => {}
            (_, None) if rest.is_empty() => {
                self.binary = Some(BinaryField {
                    is_message: name == b"MESSAGE",
                    left: None,
                });
            }
            (_, None) => return Progress::Invalid,
        }
        Progress::Continues
    }

    fn take_binary(&mut self, field: BinaryField, line: &[u8]) -> Progress {
        let (left, bytes) = match field.left {
            Some(left) => (left, line),
            None => {
                let Some((length, bytes)) = line.split_first_chunk::<8>() else {
                    return Progress::Invalid;
                };
                match usize::try_from(u64::from_le_bytes(*length)) {
                    Ok(length) if length <= MAX_FIELD_BYTES => (length, bytes),
                    _ => return Progress::Invalid,
                }
            }
        };
        if field.is_message {
            if field.left.is_some() {
                self.message.push(b'\n');
            }
            self.message.extend_from_slice(bytes);
            self.message.truncate(MAX_LINE_BYTES);
        }
        // Line ends count too, except the last one.
        let left = left.checked_sub(bytes.len().saturating_add(1));
        self.binary = left.map(|left| BinaryField {
            left: Some(left),
            ..field
        });
        Progress::Continues
    }

    /// Which process wrote the message.
    pub fn origin(&self) -> Option<String> {
        process_name(self.unit.clone(), self.pid.clone())
    }
}

/// `unit[PID]`, as far as both are known.
pub fn process_name(unit: Option<String>, pid: Option<String>) -> Option<String> {
    match pid {
        Some(pid) => Some(format!("{}[{pid}]", unit.unwrap_or_default())),
        None => unit,
    }
}
