//! Writes HTML: markup of this program as it is, every other text escaped and cut.

use crate::bounds;
use crate::bounds::escape::write_escaped;

/// The most bytes of a text from outside.
const MAX_TEXT_BYTES: usize = 160;

/// A part of the page.
#[derive(Debug, Default)]
pub struct Html(String);

impl Html {
    /// Appends markup, which is part of this program.
    pub fn raw(&mut self, markup: &'static str) -> &mut Html {
        self.0.push_str(markup);
        self
    }

    /// Appends a text of any origin, for an element or a quoted attribute. It is cut if it is long;
    /// what would change the direction of the text around it is made visible.
    pub fn text(&mut self, text: &str) -> &mut Html {
        self.text_of(text, MAX_TEXT_BYTES)
    }

    /// The same, with another limit of its bytes.
    pub fn text_of(&mut self, text: &str, bytes: usize) -> &mut Html {
        let cut = bounds::cut_at(text, bytes);
        for c in cut.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // A String takes every character.
                _ => write_escaped(&mut self.0, c).unwrap_or_default(),
            }
        }
        if cut.len() < text.len() {
            self.0.push('…');
        }
        self
    }

    /// Appends a name from outside, whose writing direction is its own.
    pub fn name(&mut self, name: &str) -> &mut Html {
        self.raw("<bdi>").text(name).raw("</bdi>")
    }

    /// Appends another part.
    pub fn part(&mut self, part: &Html) -> &mut Html {
        self.0.push_str(&part.0);
        self
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends `write` of each item, while all of them together have at most `bytes`. Returns how
    /// many items were left out.
    pub fn items<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        bytes: usize,
        mut write: impl FnMut(&mut Html, T),
    ) -> usize {
        let end = self.0.len().saturating_add(bytes);
        let mut left_out = 0_usize;
        for item in items {
            let length = self.0.len();
            if left_out == 0 {
                write(self, item);
            }
            if left_out > 0 || self.0.len() > end {
                self.0.truncate(length);
                left_out = left_out.saturating_add(1);
            }
        }
        left_out
    }

    /// The HTML.
    pub fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> String {
        let mut html = Html::default();
        html.text(text);
        html.finish()
    }

    #[test]
    fn no_text_is_markup() {
        assert_eq!(
            text("<script>\"&'</script>"),
            "&lt;script&gt;&quot;&amp;&#39;&lt;/script&gt;"
        );
        assert_eq!(text("a\u{202e}b\n\u{0}"), "a\\u{202e}b\\n\\u{0}");
    }

    #[test]
    fn a_long_text_is_cut() {
        let long = text(&"ü".repeat(5000));
        assert!(long.ends_with("ü…") && long.len() < 200);
    }

    #[test]
    fn items_that_do_not_fit_are_counted() {
        let mut html = Html::default();
        let left_out = html.items(0..10, 7, |out, _| {
            out.raw("ab");
        });
        assert_eq!((left_out, html.finish().as_str()), (7, "ababab"));
    }
}
