//! Cutting a stream of bytes into lines, of which none is held longer than it may be.

/// The most bytes of a line that are kept. llama-server's own lines about requests have 200; an
/// object of journald with one of them, as bytes, has 4,000; one of Docker has up to 16 KiB of a
/// line, each byte of which may be escaped as six.
pub const LONGEST_LINE: usize = 128 << 10;

/// The line at hand.
#[derive(Debug, Default)]
pub struct Lines {
    begun: Vec<u8>,
    /// Whether the beginning of the line was not read: then it is left out.
    is_cut: bool,
}

impl Lines {
    /// Takes the next bytes and hands on every line that ends in them, without its end.
    /// What is longer than a line may be is cut off.
    pub fn take(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.strip_prefix(b"\n").unwrap_or(rest);
            if std::mem::take(&mut self.is_cut) {
                self.begun.clear();
                continue;
            }
            if self.begun.is_empty() {
                each(trimmed(line));
            } else {
                self.push(line);
                each(trimmed(&self.begun));
                self.begun.clear();
            }
        }
        self.push(bytes);
    }

    /// Forgets the line that has begun.
    pub fn clear(&mut self) {
        *self = Lines::default();
    }

    /// Leaves out what comes before the next line's beginning.
    pub fn leave_out_the_rest(&mut self) {
        self.is_cut = true;
    }

    fn push(&mut self, bytes: &[u8]) {
        let bytes = if self.begun.is_empty() {
            without_hole(bytes)
        } else {
            bytes
        };
        let room = LONGEST_LINE.saturating_sub(self.begun.len());
        self.begun
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// llama-server does not append: once its file is cut to nothing it goes on where it was,
/// and what lies before reads as zeros.
fn without_hole(bytes: &[u8]) -> &[u8] {
    let hole = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[hole..]
}

fn trimmed(line: &[u8]) -> &[u8] {
    let line = without_hole(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    &line[..line.len().min(LONGEST_LINE)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for piece in pieces {
            lines.take(piece, |line| {
                seen.push(String::from_utf8_lossy(line).into_owned());
            });
        }
        seen
    }

    #[test]
    fn a_line_is_whole_however_it_comes() {
        let text = b"one\n\r\ntwo\r\nthree\nfour";
        for size in 1..text.len() {
            let pieces: Vec<_> = text.chunks(size).collect();
            assert_eq!(lines(&pieces), ["one", "", "two", "three"], "{size}");
        }
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_one_is_whole() {
        let long = vec![b'x'; 3 * LONGEST_LINE];
        for seen in [
            lines(&[&long, &long, b"\nnext\n"]),
            lines(&[&[&long[..], b"\nnext\n"].concat()]),
        ] {
            assert_eq!((seen[0].len(), seen[1].as_str()), (LONGEST_LINE, "next"));
        }
    }

    #[test]
    fn a_hole_before_a_line_is_no_part_of_it() {
        assert_eq!(
            lines(&[&[0; 9000], &[0; 9000], b"\0\0line\nnext\n"]),
            ["line", "next"]
        );
    }
}
