//! Makes text from outside safe to print.

use std::fmt::{self, Display};

/// Displays a text with its control characters escaped: it stays on one line, and changes neither
/// the cursor nor the writing direction. Text is escaped once, when a line of a log or report is
/// written.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            write_escaped(f, c)?;
        }
        Ok(())
    }
}

/// Writes one character, escaped like [`Escaped`] does it.
///
/// # Errors
/// Those of `out`.
pub fn write_escaped(out: &mut impl fmt::Write, c: char) -> fmt::Result {
    if is_control(c) {
        write!(out, "{}", c.escape_default())
    } else {
        out.write_char(c)
    }
}

/// Whether a terminal, pager or browser interprets the character instead of displaying it.
fn is_control(c: char) -> bool {
    // C0, DEL and C1.
    c.is_control()
        || matches!(c,
            // Ends of lines and paragraphs.
            '\u{2028}' | '\u{2029}'
            // Marks, embeddings, overrides and isolates of the bidirectional algorithm.
            | '\u{061c}' | '\u{200e}' | '\u{200f}'
            | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_direction_characters_are_escaped() {
        for (text, escaped) in [
            ("a b\\\"é日", "a b\\\"é日"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[2J\u{7}\0", "\\u{1b}[2J\\u{7}\\u{0}"),
            ("\u{7f}\u{9b}2J\u{85}", "\\u{7f}\\u{9b}2J\\u{85}"),
            ("a\u{202e}b\u{2066}c", "a\\u{202e}b\\u{2066}c"),
            ("\u{200e}\u{200f}\u{61c}", "\\u{200e}\\u{200f}\\u{61c}"),
            ("\u{2028}\u{2029}", "\\u{2028}\\u{2029}"),
        ] {
            assert_eq!(Escaped(text).to_string(), escaped);
        }
    }

    #[test]
    fn no_control_character_is_left() {
        for c in '\0'..=char::MAX {
            let escaped = Escaped(&c.to_string()).to_string();
            let is_left = escaped.chars().any(is_control);
            assert!(!is_left, "{:?}", u32::from(c));
        }
    }
}
