//! The names of the models in Ollama's store.
//!
//! Ollama starts a llama-server with the path of a blob, `STORE/blobs/sha256-DIGEST`. The model's
//! name is the path of a manifest, `STORE/manifests/HOST/NAMESPACE/NAME/TAG`: a JSON file whose
//! layer of the type [`WEIGHTS`] has that digest (Ollama's `manifest/` and `types/model/name.go`).

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::bounds;
use crate::bounds::lenient::text;
use crate::machine::procfs::Procfs;
use crate::process::file;

const WEIGHTS: &str = "application/vnd.ollama.image.model";
/// Left out of names, as Ollama does.
const DEFAULT_HOST: &str = "registry.ollama.ai";
const DEFAULT_NAMESPACE: &str = "library";

/// The folders of a manifest: host, namespace, name. The file is called like the tag.
const DEPTH: usize = 3;
/// The most files and folders of a store that are looked at.
const MAX_ENTRIES: usize = 4096;
/// The most bytes of a manifest: a real one has some hundred for each layer.
const MAX_MANIFEST_BYTES: u64 = 256 << 10;
/// The most names of one model.
const MAX_NAMES: usize = 16;

/// A manifest.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Manifest {
    layers: Vec<Layer>,
}

/// One layer of a [`Manifest`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Layer {
    #[serde(rename = "mediaType", deserialize_with = "text")]
    media_type: Option<String>,
    #[serde(deserialize_with = "text")]
    digest: Option<String>,
}

impl Manifest {
    fn has_weights(&self, digest: &str) -> bool {
        self.layers.iter().any(|layer| {
            let layer_digest = layer.digest.as_deref();
            layer.media_type.as_deref() == Some(WEIGHTS)
                && layer_digest.and_then(|text| text.strip_prefix("sha256:")) == Some(digest)
        })
    }
}

/// The names of the models whose weights are the file `model_path` of the process `pid`, shortest
/// first. Empty if that file is not in a store of Ollama, or its manifests cannot be read.
pub fn names_of_blob(procfs: &Procfs, pid: u32, model_path: &str) -> Vec<String> {
    let Some((store, digest)) = blob(model_path) else {
        return Vec::new();
    };
    let root = procfs.process_path(pid, "root");
    let is_closed = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let mut search = Search {
        // Another user's process: without a container, its root directory is ours.
        root: match fs::read_link(&root) {
            Err(error) if is_closed(&error) => PathBuf::from("/"),
            _ => root,
        },
        digest,
        entries: 0,
        names: Vec::new(),
    };
    search.folder(store.join("manifests"), &mut Vec::new());
    let mut names = search.names;
    names.sort_unstable_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    names
}

/// The store and the digest of a blob's path.
fn blob(path: &str) -> Option<(&Path, &str)> {
    let path = Path::new(path);
    let digest = path.file_name()?.to_str()?.strip_prefix("sha256-")?;
    let blobs = path.parent().filter(|_| path.is_absolute())?;
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_digest && blobs.ends_with("blobs")).then_some((blobs.parent()?, digest))
}

/// A search for the manifests of one blob.
struct Search<'a> {
    /// The root directory of the process.
    root: PathBuf,
    digest: &'a str,
    entries: usize,
    names: Vec<String>,
}

impl Search<'_> {
    /// Searches a folder, which is below `manifests` by these `parts`.
    fn folder(&mut self, path: PathBuf, parts: &mut Vec<String>) {
        let Ok(entries) = file::folder_in_root(&self.root, &path) else {
            return;
        };
        for entry in entries.flatten() {
            self.entries = self.entries.saturating_add(1);
            if self.entries > MAX_ENTRIES || self.names.len() >= MAX_NAMES {
                return;
            }
            let Ok(part) = entry.file_name().into_string() else {
                continue;
            };
            let path = path.join(&part);
            parts.push(part);
            if parts.len() <= DEPTH {
                self.folder(path, parts);
            } else if self.is_manifest(&path) {
                self.names.extend(name(parts));
            }
            parts.pop();
        }
    }

    fn is_manifest(&self, path: &Path) -> bool {
        let read = || -> io::Result<Manifest> {
            let mut text = Vec::new();
            let file = file::regular_file_in_root(&self.root, path)?;
            file.take(MAX_MANIFEST_BYTES).read_to_end(&mut text)?;
            Ok(serde_json::from_slice(&text)?)
        };
        read().is_ok_and(|manifest| manifest.has_weights(self.digest))
    }
}

/// The name of a model, as Ollama shows it.
fn name(parts: &[String]) -> Option<String> {
    let [host, namespace, name, tag] = parts else {
        return None;
    };
    let name = format!("{name}:{tag}");
    let is = |part: &String, default| part.eq_ignore_ascii_case(default);
    let name = match (is(host, DEFAULT_HOST), is(namespace, DEFAULT_NAMESPACE)) {
        (true, true) => name,
        (true, false) => format!("{namespace}/{name}"),
        (false, _) => format!("{host}/{namespace}/{name}"),
    };
    Some(bounds::cut(&name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::file_tree::FileTree;

    const DIGEST: &str = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818";
    const MANIFESTS: &str = "root/models/manifests";

    fn manifest(media_type: &str, digest: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{DIGEST}"}},
                 "layers":[{{"mediaType":"{media_type}","digest":"sha256:{digest}","size":7}}]}}"#
        )
    }

    fn names(tree: &FileTree, path: &str) -> Vec<String> {
        tree.link("7/root", tree.path("root"));
        names_of_blob(&Procfs::new(&tree.path("")), 7, path)
    }

    fn blob_path() -> String {
        format!("/models/blobs/sha256-{DIGEST}")
    }

    #[test]
    fn every_name_of_the_weights_is_found() {
        let this = manifest(WEIGHTS, DIGEST);
        let other = manifest(WEIGHTS, &DIGEST.replace('a', "b"));
        let template = manifest("application/vnd.ollama.image.template", DIGEST);
        let tree = FileTree::new(&[]);
        for (path, text) in [
            ("registry.ollama.ai/library/gemma3/270m", &this),
            ("registry.ollama.ai/library/copy/latest", &this),
            ("registry.ollama.ai/someone/tuned/v1", &this),
            ("hf.co/unsloth/gemma-3-270m-it-GGUF/Q4_K_M", &this),
            ("registry.ollama.ai/library/other/latest", &other),
            ("registry.ollama.ai/library/template/latest", &template),
            ("registry.ollama.ai/library/broken/latest", &"{".to_owned()),
            ("registry.ollama.ai/too-short/latest", &this),
            ("registry.ollama.ai/library/too/deep/latest", &this),
        ] {
            tree.write(&format!("{MANIFESTS}/{path}"), text);
        }
        let expected = [
            "copy:latest",
            "gemma3:270m",
            "someone/tuned:v1",
            "hf.co/unsloth/gemma-3-270m-it-GGUF:Q4_K_M",
        ];
        assert_eq!(names(&tree, &blob_path()), expected);
        for path in [
            format!("/models/sha256-{DIGEST}"),
            format!("models/blobs/sha256-{DIGEST}"),
            format!("/models/blobs/sha256-{}", &DIGEST[1..]),
            "/models/gemma.gguf".to_owned(),
        ] {
            assert!(names(&tree, &path).is_empty(), "{path}");
        }
    }

    #[test]
    fn no_link_leads_out_of_the_process_root() {
        let tree = FileTree::new(&[]);
        let this = manifest(WEIGHTS, DIGEST);
        tree.write("outside/library/secret/latest", &this);
        tree.link(
            &format!("{MANIFESTS}/registry.ollama.ai"),
            tree.path("outside"),
        );
        assert!(names(&tree, &blob_path()).is_empty());
    }

    #[test]
    fn a_huge_manifest_or_store_is_left_alone() {
        let tree = FileTree::new(&[]);
        let padding = " ".repeat(usize::try_from(MAX_MANIFEST_BYTES).unwrap());
        let library = format!("{MANIFESTS}/registry.ollama.ai/library");
        tree.write(
            &format!("{library}/huge/latest"),
            padding + &manifest(WEIGHTS, DIGEST),
        );
        assert!(names(&tree, &blob_path()).is_empty());
        for number in 0..50 {
            let this = manifest(WEIGHTS, DIGEST);
            tree.write(&format!("{library}/model/{number}"), this);
        }
        assert_eq!(names(&tree, &blob_path()).len(), MAX_NAMES);
    }
}
