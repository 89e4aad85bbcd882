//! Lines of a report: escaped, coloured and wrapped as the terminal allows.

use std::env;
use std::io::{IsTerminal as _, stdout};
use std::ops::RangeInclusive;

use crate::bounds::escape::Escaped;
use crate::process::os;

/// The width of lines on a terminal that does not say how wide it is, and the limits otherwise.
const WIDTH: usize = 80;
const WIDTHS: RangeInclusive<usize> = 60..=160;

/// How a text is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// Whether it has colours.
    pub has_colour: bool,
    /// The width at which lines are wrapped; `None`: each item is one line, for `grep`.
    pub width: Option<usize>,
}

/// What a text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Heading,
    Good,
    Bad,
    Attention,
    Minor,
}

impl Tone {
    /// The parameters of the escape sequence SGR.
    fn code(self) -> Option<&'static str> {
        match self {
            Tone::Plain => None,
            Tone::Heading => Some("1"),
            Tone::Good => Some("32"),
            Tone::Bad => Some("1;31"),
            Tone::Attention => Some("33"),
            Tone::Minor => Some("2"),
        }
    }
}

impl Style {
    /// The style of stdout: colours only on a terminal that has them, and without `NO_COLOR`.
    pub fn of_stdout() -> Style {
        let is_terminal = stdout().is_terminal();
        let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        Style {
            has_colour: is_terminal && !is_dumb && !is_set("NO_COLOR"),
            width: is_terminal.then(|| {
                let width = os::terminal_width(&stdout()).unwrap_or(WIDTH);
                width.clamp(*WIDTHS.start(), *WIDTHS.end())
            }),
        }
    }
}

/// The lines of a report. All text is escaped here, so that it can neither forge a line nor
/// control the terminal.
#[derive(Debug)]
pub struct Lines {
    style: Style,
    text: String,
}

impl Lines {
    pub fn new(style: Style) -> Lines {
        Lines {
            style,
            text: String::new(),
        }
    }

    /// The lines so far.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Ends a part with an empty line.
    pub fn end_part(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    /// One line or, wrapped, several: the parts one after another, each with its tone. Lines after
    /// the first are indented by `hanging`.
    pub fn line(&mut self, indent: usize, hanging: usize, parts: &[(Tone, &str)]) {
        let mut column = indent;
        self.text.push_str(&" ".repeat(indent));
        for (tone, part) in parts.iter().filter(|(_, part)| !part.is_empty()) {
            let part = Escaped(part).to_string();
            if let Some(code) = self.colour(*tone) {
                self.text.push_str(&format!("\u{1b}[{code}m"));
            }
            for (index, word) in part.split(' ').enumerate() {
                let length = word.chars().count();
                let space = usize::from(index > 0);
                let end = column.saturating_add(space).saturating_add(length);
                let is_full = self.style.width.is_some_and(|width| end > width);
                if is_full && column > hanging && index > 0 {
                    self.text.push('\n');
                    self.text.push_str(&" ".repeat(hanging));
                    column = hanging;
                } else if index > 0 {
                    self.text.push(' ');
                    column = column.saturating_add(1);
                }
                self.text.push_str(word);
                column = column.saturating_add(length);
            }
            if self.colour(*tone).is_some() {
                self.text.push_str("\u{1b}[0m");
            }
        }
        self.text.push('\n');
    }

    fn colour(&self, tone: Tone) -> Option<&'static str> {
        tone.code().filter(|_| self.style.has_colour)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(style: Style, parts: &[(Tone, &str)]) -> String {
        let mut lines = Lines::new(style);
        lines.line(2, 6, parts);
        lines.into_text()
    }

    #[test]
    fn text_is_escaped_in_every_style() {
        let hostile = "\u{1b}[2J\n\u{202e}x";
        for (has_colour, width) in [(false, None), (true, Some(WIDTH))] {
            let style = Style { has_colour, width };
            let text = line(style, &[(Tone::Bad, hostile)]);
            assert!(text.contains("\\u{1b}[2J\\n\\u{202e}x"), "{text:?}");
            assert_eq!(
                text.matches('\u{1b}').count(),
                if has_colour { 2 } else { 0 }
            );
        }
    }

    #[test]
    fn long_lines_are_wrapped_between_words() {
        let words = "word ".repeat(40);
        let plain = line(Style::default(), &[(Tone::Plain, words.trim())]);
        assert_eq!(plain.lines().count(), 1);
        let style = Style {
            has_colour: false,
            width: Some(WIDTH),
        };
        let wrapped = line(style, &[(Tone::Plain, "a "), (Tone::Plain, words.trim())]);
        assert!(wrapped.lines().count() > 1);
        for line in wrapped.lines().skip(1) {
            assert!(
                line.starts_with("      word") && line.chars().count() <= WIDTH,
                "{line:?}"
            );
        }
        assert_eq!(wrapped.split_whitespace().count(), 41);
    }
}
