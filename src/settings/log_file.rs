//! The log files of llama-servers, and the server that each belongs to.

use std::path::PathBuf;
use std::str::FromStr;

use crate::settings::base_url::{self, BaseUrl};

/// One log to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// The server that writes the log; `None`: the only one.
    base: Option<BaseUrl>,
    /// The file; `-` is standard input.
    pub path: PathBuf,
}

impl LogFile {
    /// Whether the server at `base` writes the log.
    pub fn is_of(&self, base: &BaseUrl) -> bool {
        self.base
            .as_ref()
            .is_none_or(|own| own.is_same_server(base))
    }
}

impl FromStr for LogFile {
    type Err = String;

    fn from_str(text: &str) -> Result<LogFile, String> {
        let (base, path) = base_url::split(text)?;
        if path.is_empty() {
            return Err("use a file, -, or URL=F".to_owned());
        }
        Ok(LogFile {
            base,
            path: path.into(),
        })
    }
}

/// Checks that each log belongs to one server, and that no server has two.
///
/// # Errors
/// One of them does not; the error names it.
pub fn check(files: &[LogFile], bases: &[BaseUrl]) -> Result<(), String> {
    for (index, file) in files.iter().enumerate() {
        let path = file.path.display();
        let mut owners = bases.iter().filter(|base| file.is_of(base));
        let Some(owner) = owners.next() else {
            return Err(format!("--log-file {path}: its URL is none of --base-url"));
        };
        if owners.next().is_some() {
            return Err(format!(
                "--log-file {path}: with several base URLs, give the server too: URL={path}"
            ));
        }
        if files[..index]
            .iter()
            .any(|other| other.is_of(owner) || other.path == file.path)
        {
            return Err(format!(
                "--log-file {path}: give one log for each server, and no log twice"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(files: &[&str], bases: &[&str]) -> Result<(), String> {
        let files: Vec<LogFile> = files.iter().map(|file| file.parse().unwrap()).collect();
        let bases: Vec<BaseUrl> = bases.iter().map(|base| base.parse().unwrap()).collect();
        check(&files, &bases)
    }

    #[test]
    fn a_log_belongs_to_one_server() {
        const A: &str = "http://a:1";
        const B: &str = "http://b:1/v1";
        assert!(checked(&["/var/log/a=b.log"], &[A]).is_ok());
        assert!(checked(&["http://a:1=x", "http://b:1=y"], &[A, B]).is_ok());
        assert!(checked(&["http://b:1/v1/=-"], &[A, B]).is_ok());
        assert!(checked(&["x"], &[A, B]).is_err());
        assert!(checked(&["x", "y"], &[A]).is_err());
        assert!(checked(&["http://a:1=x", "http://b:1=x"], &[A, B]).is_err());
        assert!(checked(&["http://c:1=x"], &[A, B]).is_err());
        assert!("http://a:1=".parse::<LogFile>().is_err());
    }
}
