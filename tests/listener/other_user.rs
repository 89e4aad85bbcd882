//! Programs as a user who runs nothing else, so that a limit of processes counts nothing else. Only
//! root can start them, and only with util-linux.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::exporter::BINARY;

pub struct OtherUser {
    binary: PathBuf,
    folder: TempDir,
}

impl OtherUser {
    /// `None`, with a message, where that is not possible.
    pub fn new() -> Option<Self> {
        let readable = fs::Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new()
            .permissions(readable)
            .tempdir()
            .unwrap();
        let binary = folder.path().join("exporter");
        fs::copy(BINARY, &binary).unwrap(); // The other user may not reach the original.
        let user = Self { binary, folder };
        let mut version = user.exporter("");
        version.arg("--version").stdout(Stdio::null());
        if version.status().is_ok_and(|status| status.success()) {
            return Some(user);
        }
        eprintln!("skipped: cannot run a program as another user");
        None
    }

    /// A folder that the user can read.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The exporter with `setup` run before it.
    pub fn exporter(&self, setup: &str) -> Command {
        self.command(setup, &self.binary)
    }

    pub fn command(&self, setup: &str, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=61327",
            "--regid=61327",
            "--clear-groups",
            "sh",
            "-c",
        ]);
        command
            .arg(format!("{setup}\nexec \"$0\" \"$@\""))
            .arg(program);
        command
    }
}
