//! Cuts a stream of bytes into lines of bounded length.

/// The most bytes of a line that are kept. llama-server's own lines about requests have 200; an
/// object of journald with one of them, as bytes, has 4,000; one of Docker has up to 16 KiB of a
/// line, each byte of which may be escaped as six.
pub const MAX_LINE_BYTES: usize = 128 << 10;

/// Cuts bytes into lines.
#[derive(Debug)]
pub struct LineSplitter {
    /// The most bytes of a line that are kept.
    max: usize,
    /// The line that has begun.
    begun: Vec<u8>,
    /// Whether its beginning was not read: then the line is left out.
    is_cut: bool,
}

impl Default for LineSplitter {
    fn default() -> LineSplitter {
        LineSplitter::with_limit(MAX_LINE_BYTES)
    }
}

impl LineSplitter {
    /// Keeps at most `max` bytes of a line.
    pub fn with_limit(max: usize) -> LineSplitter {
        LineSplitter {
            max,
            begun: Vec::new(),
            is_cut: false,
        }
    }

    /// Takes the next bytes, and calls `each` with every line that ends in them, without its end
    /// and cut to the limit.
    pub fn take(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.strip_prefix(b"\n").unwrap_or(rest);
            if std::mem::take(&mut self.is_cut) {
                self.begun.clear();
                continue;
            }
            if self.begun.is_empty() {
                each(trimmed(line, self.max));
            } else {
                self.push(line);
                each(trimmed(&self.begun, self.max));
                self.begun.clear();
            }
        }
        self.push(bytes);
    }

    /// Discards the line that has begun.
    pub fn clear(&mut self) {
        *self = LineSplitter::with_limit(self.max);
    }

    /// Leaves out the rest of the line that has begun.
    pub fn skip_line(&mut self) {
        self.is_cut = true;
    }

    fn push(&mut self, bytes: &[u8]) {
        let bytes = match self.begun.is_empty() {
            true => without_hole(bytes),
            false => bytes,
        };
        let room = self.max.saturating_sub(self.begun.len());
        self.begun
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// llama-server does not open its log for appending: after a truncation it continues at its old
/// position, and the bytes before that read as zeros.
fn without_hole(bytes: &[u8]) -> &[u8] {
    let hole = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[hole..]
}

fn trimmed(line: &[u8], max: usize) -> &[u8] {
    let line = without_hole(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    &line[..line.len().min(max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = LineSplitter::default();
        let mut seen = Vec::new();
        for piece in pieces {
            lines.take(piece, |line| {
                seen.push(String::from_utf8_lossy(line).into_owned());
            });
        }
        seen
    }

    #[test]
    fn a_line_is_whole_however_it_arrives() {
        let text = b"one\n\r\ntwo\r\nthree\nfour";
        for size in 1..text.len() {
            let pieces: Vec<_> = text.chunks(size).collect();
            assert_eq!(lines(&pieces), ["one", "", "two", "three"], "{size}");
        }
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_one_is_whole() {
        let long = vec![b'x'; 3 * MAX_LINE_BYTES];
        for seen in [
            lines(&[&long, &long, b"\nnext\n"]),
            lines(&[&[&long[..], b"\nnext\n"].concat()]),
        ] {
            assert_eq!((seen[0].len(), seen[1].as_str()), (MAX_LINE_BYTES, "next"));
        }
    }

    #[test]
    fn a_hole_before_a_line_is_skipped() {
        assert_eq!(
            lines(&[&[0; 9000], &[0; 9000], b"\0\0line\nnext\n"]),
            ["line", "next"]
        );
    }
}
