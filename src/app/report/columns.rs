//! Columns of a table whose first one holds names from outside.

use std::collections::BTreeMap;

use crate::bounds::escape::Escaped;

/// `names` escaped and cut to `width` characters in the middle. Names that differ stay different:
/// those that are cut to the same text get a number.
pub fn cut_names(names: &[&str], width: usize) -> Vec<String> {
    let cut: Vec<String> = names.iter().map(|name| cut_middle(name, width)).collect();
    let mut seen = BTreeMap::<&str, usize>::new();
    for name in &cut {
        let count = seen.entry(name).or_default();
        *count = count.saturating_add(1);
    }
    let mut numbers = BTreeMap::<&str, usize>::new();
    let numbered = cut.iter().map(|name| {
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
        let cut = cut_names(&["short", &a, &b, "name\n"], 20);
        assert_eq!(cut[0], "short");
        assert_eq!(cut[1], "begin-xxxx…xxxxx-end #1");
        assert_eq!(cut[2], "begin-xxxx…xxxxx-end #2");
        assert_eq!(cut[3], "name\\n");
    }
}
