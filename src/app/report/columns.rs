//! Columns of a table whose first one holds names from outside.

use std::collections::{BTreeMap, BTreeSet};

use crate::bounds::escape::Escaped;

/// `names` escaped and cut in the middle, to the first of `widths` at which those that differ stay
/// different; if there is none, those that are cut to the same text get a number.
pub fn cut_names(names: &[&str], widths: &[usize]) -> Vec<String> {
    let cut_to = |width: &usize| -> Vec<String> {
        let cut = names.iter().map(|name| cut_middle(name, *width));
        cut.collect()
    };
    let is_unambiguous = |cut: &Vec<String>| {
        let before: BTreeSet<&&str> = names.iter().collect();
        let after: BTreeSet<&String> = cut.iter().collect();
        before.len() == after.len()
    };
    let fitting = widths.iter().map(cut_to).find(is_unambiguous);
    fitting.unwrap_or_else(|| numbered(&cut_to(widths.first().unwrap_or(&0))))
}

/// `names` with a number for each that comes more than once.
fn numbered(names: &[String]) -> Vec<String> {
    let mut seen = BTreeMap::<&str, usize>::new();
    for name in names {
        let count = seen.entry(name).or_default();
        *count = count.saturating_add(1);
    }
    let mut numbers = BTreeMap::<&str, usize>::new();
    let numbered = names.iter().map(|name| {
        if seen.get(name.as_str()) == Some(&1) {
            return name.clone();
        }
        let number = numbers.entry(name).or_default();
        *number = number.saturating_add(1);
        format!("{name} #{number}")
    });
    numbered.collect()
}

/// `text` escaped, with its middle left out if it has more than `width` characters.
fn cut_middle(text: &str, width: usize) -> String {
    let escaped = Escaped(text).to_string();
    let length = escaped.chars().count();
    if length <= width {
        return escaped;
    }
    let tail = width.saturating_sub(1) / 2;
    let head = width.saturating_sub(1).saturating_sub(tail);
    let start: String = escaped.chars().take(head).collect();
    let end: String = escaped.chars().skip(length.saturating_sub(tail)).collect();
    format!("{start}…{end}")
}

/// `text` filled with spaces to `width` characters.
pub fn padded(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    format!("{text}{}", " ".repeat(missing))
}

/// The width of the widest of `texts`.
pub fn widest<'a>(texts: impl IntoIterator<Item = &'a str>) -> usize {
    let widths = texts.into_iter().map(|text| text.chars().count());
    widths.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_stay_different() {
        let long = |middle: &str| format!("begin-{}{middle}{}-end", "x".repeat(40), "x".repeat(40));
        let (a, b) = (long("a"), long("b"));
        let cut = cut_names(&["short", &a, &b, "name\n"], &[20]);
        assert_eq!(cut[0], "short");
        assert_eq!(cut[1], "begin-xxxx…xxxxx-end #1");
        assert_eq!(cut[2], "begin-xxxx…xxxxx-end #2");
        assert_eq!(cut[3], "name\\n");
        assert_eq!(cut_names(&[&a, &b], &[20, 100]), [a.clone(), b]);
        assert_eq!(cut_names(&[&a, &a], &[20, 100])[0], "begin-xxxx…xxxxx-end");
    }
}
