//! The API keys, and which of them is sent to which upstream.

use crate::settings::Secret;
use crate::settings::base_url::{self, BaseUrl};
use crate::settings::table::read_file;

/// The API keys that the user gave.
#[derive(Clone, Debug, Default)]
pub struct ApiKeys {
    /// Keys that were given for one base URL.
    own: Vec<(BaseUrl, Secret)>,
    /// The key that was given without a base URL.
    plain: Option<Secret>,
}

impl ApiKeys {
    /// The key of the only server.
    pub fn only(key: Option<Secret>) -> ApiKeys {
        ApiKeys {
            own: Vec::new(),
            plain: key,
        }
    }

    /// Adds the key in a file: `F`, or `URL=F` for one base URL.
    ///
    /// # Errors
    /// The file cannot be read or holds no key, or its upstream has a key already. The error does
    /// not quote the text, which may be the key itself.
    pub fn take_file(&mut self, text: &str) -> Result<(), String> {
        const FORMS: &str = "give the path of a file that holds nothing but the key, or URL=PATH";
        let (base, path) = base_url::split(text)?;
        let key = read_file(path)
            .and_then(|bytes| Secret::new(&String::from_utf8_lossy(&bytes)))
            .map_err(|error| format!("{error}; {FORMS}"))?;
        match base {
            None if self.plain.is_some() => {
                Err("there is a key without a base URL already; use URL=PATH".to_owned())
            }
            None => {
                self.plain = Some(key);
                Ok(())
            }
            Some(base) if self.own_of(&base).is_some() => {
                Err("this base URL has a key already".to_owned())
            }
            Some(base) => {
                self.own.push((base, key));
                Ok(())
            }
        }
    }

    /// Adds a key itself. Ignored if a file without a base URL was given.
    ///
    /// # Errors
    /// The text cannot be a key.
    pub fn take_key(&mut self, text: &str) -> Result<(), String> {
        if self.plain.is_none() {
            self.plain = Some(Secret::new(text)?);
        }
        Ok(())
    }

    /// The key for `base`, if that is one of `bases`. A key without a base URL applies to the only
    /// base URL, or to those of several that have neither a key of their own nor a user.
    pub fn of(&self, base: &BaseUrl, bases: &[BaseUrl]) -> Option<&Secret> {
        if !bases.contains(base) {
            // An address that an upstream reported gets no key.
            return None;
        }
        let takes_plain = bases.len() == 1 || base.userinfo().is_none();
        let plain = self.plain.as_ref().filter(|_| takes_plain);
        self.own_of(base).or(plain)
    }

    /// Checks that the URL of each key is one of `bases`.
    ///
    /// # Errors
    /// One of them is not; the error names it.
    pub fn check(&self, bases: &[BaseUrl]) -> Result<(), String> {
        let is_known = |own: &BaseUrl| bases.iter().any(|base| base.is_same_server(own));
        match self.own.iter().find(|(own, _)| !is_known(own)) {
            Some((own, _)) => Err(format!(
                "--api-key-file {own}=…: its URL is none of --base-url"
            )),
            None => Ok(()),
        }
    }

    fn own_of(&self, base: &BaseUrl) -> Option<&Secret> {
        let mut own = self.own.iter();
        own.find(|(own, _)| own.is_same_server(base))
            .map(|(_, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const A: &str = "http://a:1";
    const B: &str = "http://b:1/v1";
    const WITH_USER: &str = "http://me:pw@c:1";

    fn bases(urls: &[&str]) -> Vec<BaseUrl> {
        urls.iter().map(|url| url.parse().unwrap()).collect()
    }

    /// The key that is sent to each of `urls`, for these key files and this key from the variable.
    fn sent(files: &[(&str, &str)], key: Option<&str>, urls: &[&str]) -> Vec<Option<String>> {
        let mut keys = ApiKeys::default();
        for (url, key) in files {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(key.as_bytes()).unwrap();
            let path = file.path().to_str().unwrap();
            let text = match *url {
                "" => path.to_owned(),
                url => format!("{url}={path}"),
            };
            keys.take_file(&text).unwrap();
        }
        if let Some(key) = key {
            keys.take_key(key).unwrap();
        }
        let bases = bases(urls);
        keys.check(&bases).unwrap();
        let sent = bases.iter().map(|base| keys.of(base, &bases));
        sent.map(|key| key.map(|key| key.reveal().to_owned()))
            .collect()
    }

    fn some(key: &str) -> Option<String> {
        Some(key.to_owned())
    }

    #[test]
    fn a_plain_key_applies_to_base_urls_without_key_and_user() {
        assert_eq!(sent(&[("", "k")], None, &[A]), [some("k")]);
        assert_eq!(sent(&[("", "k")], None, &[WITH_USER]), [some("k")]);
        assert_eq!(sent(&[], Some("v"), &[WITH_USER]), [some("v")]);
        assert_eq!(
            sent(&[("", "k")], None, &[A, B, WITH_USER]),
            [some("k"), some("k"), None]
        );
        assert_eq!(
            sent(
                &[("http://b:1", "own"), ("", "k")],
                None,
                &[A, B, WITH_USER]
            ),
            [some("k"), some("own"), None]
        );
        assert_eq!(
            sent(&[("http://b:1/", "own")], Some("v"), &[A, B]),
            [some("v"), some("own")]
        );
        // A file overrides the variable that holds the key itself.
        assert_eq!(
            sent(&[("", "k")], Some("v"), &[A, B]),
            [some("k"), some("k")]
        );
    }

    #[test]
    fn a_base_url_with_a_user_may_have_a_key_of_its_own() {
        assert_eq!(
            sent(&[("http://c:1", "own")], None, &[A, WITH_USER]),
            [None, some("own")]
        );
    }

    #[test]
    fn an_address_that_is_no_base_url_gets_no_key() {
        let mut keys = ApiKeys::default();
        keys.take_key("k").unwrap();
        let other = "http://a:2".parse().unwrap();
        assert!(keys.of(&other, &bases(&[A])).is_none());
        assert!(keys.of(&other, &[]).is_none());
    }

    #[test]
    fn keys_without_a_base_url_or_for_the_same_one_are_rejected() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"sk-hidden").unwrap();
        let path = file.path().to_str().unwrap();
        let mut keys = ApiKeys::default();
        keys.take_file(&format!("{A}={path}")).unwrap();
        assert!(keys.take_file(&format!("{A}/v1={path}")).is_err());
        keys.take_file(path).unwrap();
        assert!(keys.take_file(path).is_err());
        let error = keys.check(&bases(&[B])).unwrap_err();
        assert!(error.contains(A) && !error.contains(path), "{error}");
    }

    #[test]
    fn an_error_about_a_key_file_does_not_quote_it() {
        for text in ["sk-hidden", "/sk-hidden", "http://a:1=sk-hidden"] {
            let error = ApiKeys::default().take_file(text).unwrap_err();
            assert!(!error.contains("sk-hidden"), "{error}");
            assert!(error.contains("path of a file"), "{error}");
        }
    }
}
