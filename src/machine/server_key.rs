//! Reads the API key that a llama-server was started with: from its arguments, the file that they
//! name, or its environment.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::machine::procfs::Procfs;
use crate::machine::server_arguments::ServerArguments;
use crate::process::os;
use crate::settings::Secret;

/// The most bytes of a file of keys that are read.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// One of the keys that the process `pid` accepts; `None` if it needs none, or none can be read.
pub fn read(procfs: &Procfs, pid: u32) -> Option<Secret> {
    let words = procfs.command_line(pid).ok()?;
    let variables = procfs.llama_variables(pid).unwrap_or_default();
    let arguments = ServerArguments::new(&words, &variables);
    let given = arguments.api_keys().map(str::to_owned);
    let given = given.or_else(|| procfs.variable(pid, "LLAMA_API_KEY"));
    if let Some(keys) = given {
        let mut keys = keys.split(',');
        if let Some(key) = keys.find_map(|key| Secret::new(key).ok()) {
            return Some(key);
        }
    }
    let file = procfs.open_as_seen_by(pid, Path::new(arguments.api_key_file()?));
    let file = file.ok().filter(|file| is_of_its_user(procfs, pid, file))?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| Secret::new(line).ok())
}

/// Whether the file belongs to the user who runs the process. Any user may name a process
/// `llama-server`, and give it the path of a file that only we may read.
fn is_of_its_user(procfs: &Procfs, pid: u32, file: &File) -> bool {
    let owner = file.metadata().ok().and_then(|file| os::owner(&file));
    let user = procfs.status(pid).filter(|user| user.uid == user.real_uid);
    owner.is_some() && user.is_some_and(|user| user.uid == owner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::machine::tests::file_tree::FileTree;

    #[test]
    fn a_key_is_read_from_arguments_environment_or_a_file() {
        let tree = FileTree::new(&[("app/keys", "\nfrom-file\nother\n")]);
        tree.link("7/root", tree.path("app"));
        let own = std::fs::metadata(tree.path("app/keys")).unwrap().uid();
        tree.write("7/status", format!("Uid:\t{own}\t{own}\t{own}\t{own}\n"));
        let key = |line: &str, environment: &str| {
            tree.write("7/cmdline", line.replace(' ', "\0") + "\0");
            tree.write("7/environ", environment.replace(' ', "\0") + "\0");
            let key = read(&Procfs::new(&tree.path("")), 7)?;
            Some(key.reveal().to_owned())
        };
        let none = "HOME=/ LLAMA_API_KEY_2=x";
        for (line, environment, expected) in [
            ("llama-server", none, None),
            ("llama-server --api-key first,second", none, Some("first")),
            ("llama-server --api-key-file /keys", none, Some("from-file")),
            ("llama-server --api-key-file /none", none, None),
            (
                "llama-server",
                "A=b LLAMA_API_KEY=variable",
                Some("variable"),
            ),
            (
                "llama-server --api-key own",
                "LLAMA_API_KEY=variable",
                Some("own"),
            ),
        ] {
            assert_eq!(
                key(line, environment).as_deref(),
                expected,
                "{line} {environment}"
            );
        }
        // Neither another user's process nor a set-user-ID program gets a file of this user read.
        let other = own + 1;
        for uids in [format!("{other}\t{other}"), format!("{other}\t{own}")] {
            tree.write("7/status", format!("Uid:\t{uids}\t{own}\t{own}\n"));
            assert_eq!(
                key("llama-server --api-key-file /keys", none),
                None,
                "{uids}"
            );
        }
    }
}
