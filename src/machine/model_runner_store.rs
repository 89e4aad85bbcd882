//! The tags of the models in Docker Model Runner's store.
//!
//! Model Runner starts a llama-server with the model `STORE/bundles/sha256/ID/model/model.gguf`, and
//! `STORE/models.json` has the tags of each ID (measured with its snapshot of 22 July 2026).

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::bounds;
use crate::machine::procfs::Procfs;

/// The most bytes of the list of models: a real one has some hundred for each.
const MAX_LIST_BYTES: u64 = 1 << 20;
/// The most tags of one model.
const MAX_TAGS: usize = 16;

#[derive(Deserialize)]
struct StoredModels {
    models: Vec<StoredModel>,
}

#[derive(Deserialize)]
struct StoredModel {
    id: String,
    #[serde(default)]
    tags: Vec<String>,
}

/// The tags of the model whose bundle has the file `model_path` of the process `pid`, the first one
/// first. Empty if that file is not in a store of Docker Model Runner, or its list cannot be read.
pub fn tags_of_bundle(procfs: &Procfs, pid: u32, model_path: &str) -> Vec<String> {
    let read = |(store, id): (PathBuf, String)| -> io::Result<Vec<String>> {
        let file = procfs.open_as_seen_by(pid, &store.join("models.json"))?;
        let mut text = Vec::new();
        file.take(MAX_LIST_BYTES).read_to_end(&mut text)?;
        let list: StoredModels = serde_json::from_slice(&text)?;
        let mut models = list.models.into_iter();
        let model = models.find(|model| model.id.strip_prefix("sha256:") == Some(&*id));
        let tags = model.map(|model| model.tags).unwrap_or_default();
        let tags = tags.iter().take(MAX_TAGS).filter(|tag| !tag.is_empty());
        Ok(tags.map(|tag| bounds::cut(tag).to_owned()).collect())
    };
    bundle(model_path)
        .and_then(|bundle| read(bundle).ok())
        .unwrap_or_default()
}

/// The store and the ID of a bundle's file.
fn bundle(path: &str) -> Option<(PathBuf, String)> {
    let bundle = Path::new(path).parent()?.parent()?;
    let id = bundle.file_name()?.to_str()?;
    let bundles = bundle.parent().filter(|_| path.starts_with('/'))?;
    let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_id && bundles.ends_with("bundles/sha256"))
        .then_some((bundles.parent()?.parent()?.to_owned(), id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::file_tree::FileTree;

    const ID: &str = "77f17e6b839116d469f909578e07d8009776384e558b3c1ceb6fa9a69df0eda0";

    #[test]
    fn the_tags_of_a_bundle_are_found() {
        let other = ID.replace('7', "8");
        let list = format!(
            r#"{{"models":[{{"id":"sha256:{other}","tags":["ai/other"]}},
                {{"id":"sha256:{ID}","tags":["docker.io/ai/gemma3:270M","mine"],"files":[]}}]}}"#
        );
        let tree = FileTree::new(&[("root/models/models.json", &list)]);
        tree.link("7/root", tree.path("root"));
        let procfs = Procfs::new(&tree.path(""));
        let tags = |path: &str| tags_of_bundle(&procfs, 7, path);
        let file = |id: &str| format!("/models/bundles/sha256/{id}/model/model.gguf");
        assert_eq!(tags(&file(ID)), ["docker.io/ai/gemma3:270M", "mine"]);
        let unknown = ID.replace('7', "9");
        for path in [
            file(&unknown),
            file("short"),
            format!("/models/sha256/{ID}/model/model.gguf"),
            format!("/other/bundles/sha256/{ID}/model/model.gguf"),
            format!("bundles/sha256/{ID}/model/model.gguf"),
            "/model.gguf".to_owned(),
        ] {
            assert!(tags(&path).is_empty(), "{path}");
        }
        for list in ["", "{}", r#"{"models":[{"tags":[]}]}"#] {
            tree.write("root/models/models.json", list);
            assert!(tags(&file(ID)).is_empty(), "{list}");
        }
    }
}
