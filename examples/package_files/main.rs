//! Writes the man page and the shell completions, from the table of settings:
//! `package_files FOLDER DATE`. For `scripts/dist` and `scripts/debian-package`.

mod completions;
mod man;

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [folder, date] = arguments.as_slice() else {
        return Err("usage: package_files FOLDER DATE".into());
    };
    let folder = PathBuf::from(folder);
    for (name, text) in [
        ("llamacpp-exporter.1", man::page(date)),
        ("llamacpp-exporter.bash", completions::bash()),
        ("_llamacpp-exporter", completions::zsh()),
        ("llamacpp-exporter.fish", completions::fish()),
    ] {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}
