//! A text that must not appear in logs, metrics, pages or errors.

use std::fmt;

/// A key or password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`, which must be usable as an HTTP header's value.
    ///
    /// # Errors
    /// The text is unusable; the error does not quote it.
    pub fn new(text: &str) -> Result<Secret, String> {
        let text = text.trim();
        if text.is_empty() {
            Err("holds no key".to_owned())
        } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Err("the key must be one line of printable ASCII without spaces".to_owned())
        } else {
            Ok(Secret(text.to_owned()))
        }
    }

    /// The text itself, for the one header that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_in_its_debug_output() {
        let secret = Secret::new(" hush\n").unwrap();
        assert_eq!(secret.reveal(), "hush");
        assert!(!format!("{secret:?}").contains("hush"));
    }
}
