use super::import::import;
use super::*;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

fn store() -> (TempDir, Store) {
    let directory = tempdir().unwrap();
    let aliases = [("public.example/x".to_owned(), "debian:12".to_owned())].into();
    let store = Store::open(&directory.path().join("store"), aliases).unwrap();
    (directory, store)
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// An OCI layout with one layer; `spoil` changes a blob after its digest was taken.
fn layout(directory: &Path, architecture: &str, spoil: bool) -> PathBuf {
    let path = directory.join("layout");
    let blobs = path.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = sha256(bytes);
        fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), bytes).unwrap();
        digest
    };
    let layer = put(b"a layer");
    let config = json!({
        "architecture": architecture, "os": "linux", "config": { "Env": ["A=b"], "Cmd": null },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    });
    let config = put(config.to_string().as_bytes());
    let manifest: Value = json!({
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer }],
    });
    let manifest = put(manifest.to_string().as_bytes());
    let index = json!({ "manifests": [
        { "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest,
          "platform": { "architecture": architecture, "os": "linux" } },
    ]});
    fs::write(path.join("index.json"), index.to_string()).unwrap();
    if spoil {
        fs::write(blobs.join(layer.strip_prefix("sha256:").unwrap()), b"another").unwrap();
    }
    path
}

#[test]
fn a_layout_is_taken_in_and_its_layers_are_verified() {
    let (directory, store) = store();
    let base = import(&store, "Debian:12", &layout(directory.path(), "arm64", false)).unwrap();
    assert_eq!(base.config.env, ["A=b"]);
    let mut layer = Vec::new();
    store.read_layer(&base.layers[0], &mut layer).unwrap();
    assert_eq!(layer, b"a layer");
    assert_eq!(store.get("docker.io/library/debian:12").unwrap(), base);
    assert_eq!(store.get("public.example/x:latest").unwrap(), base);
}

#[test]
fn a_layout_may_be_a_tar() {
    let (directory, store) = store();
    let path = directory.path().join("layout.tar");
    let mut tar = tar::Builder::new(File::create(&path).unwrap());
    tar.append_dir_all(".", layout(directory.path(), "arm64", false)).unwrap();
    tar.finish().unwrap();
    assert_eq!(import(&store, "x", &path).unwrap().layers.len(), 1);
}

#[test]
fn what_is_damaged_or_for_another_machine_is_refused() {
    let (directory, store) = store();
    let spoilt = import(&store, "x", &layout(directory.path(), "arm64", true)).unwrap_err();
    assert!(spoilt.to_string().contains("should be sha256:"), "{spoilt}");
    let (directory, store) = self::store();
    let other = import(&store, "x", &layout(directory.path(), "amd64", false)).unwrap_err();
    assert!(other.to_string().contains("linux/arm64"), "{other}");
}

#[test]
fn a_layer_that_was_changed_in_the_store_is_not_used() {
    let (directory, store) = store();
    let base = import(&store, "x", &layout(directory.path(), "arm64", false)).unwrap();
    fs::write(store.layer_path(&base.layers[0].digest), b"changed").unwrap();
    let error = store.read_layer(&base.layers[0], &mut io::sink()).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[test]
fn an_unknown_name_is_refused_with_the_known_ones_and_the_remedy() {
    let (directory, store) = store();
    import(&store, "debian:11", &layout(directory.path(), "arm64", false)).unwrap();
    let error = store.get("public.example/x").unwrap_err().to_string();
    assert!(error.contains("debian:12") && error.contains("debian:11"), "{error}");
    let remedies = [
        "rotifer base add debian:12 docker://debian:12",
        "`aliases`",
        "docker.io under `registries`",
    ];
    for remedy in remedies {
        assert!(error.contains(remedy), "{remedy}: {error}");
    }
}

#[test]
fn names_have_no_case_and_tags_have_one() {
    for (name, normal) in [
        ("Python", "python:latest"),
        ("docker.io/library/Python:RC", "python:RC"),
        ("Registry.example:5000/A", "registry.example:5000/a:latest"),
        ("registry.example/a:RC@sha256:00", "registry.example/a:RC@sha256:00"),
    ] {
        assert_eq!(normalize(name), normal);
    }
}

#[test]
fn a_registry_is_named_as_in_names_of_images() {
    for name in ["docker.io", "public.ecr.aws", "localhost", "127.0.0.1:5000"] {
        assert!(pull::is_registry(name), "{name}");
    }
    for name in ["", "docker", "Docker.io", "index.docker.io", "docker.io/library", "https://a.b"] {
        assert!(!pull::is_registry(name), "{name}");
    }
}

#[test]
fn a_docker_save_is_taken_in() {
    let (directory, store) = store();
    let path = directory.path().join("save");
    fs::create_dir(&path).unwrap();
    let config = json!({
        "architecture": "arm64", "os": "linux", "config": {},
        "rootfs": { "diff_ids": [sha256(b"a layer")] },
    });
    fs::write(path.join("config.json"), config.to_string()).unwrap();
    fs::write(path.join("layer.tar"), b"a layer").unwrap();
    let manifest = json!([{ "Config": "config.json", "Layers": ["layer.tar"] }]);
    fs::write(path.join("manifest.json"), manifest.to_string()).unwrap();
    assert_eq!(import(&store, "x", &path).unwrap().layers.len(), 1);
    let manifest = json!([{ "Config": "config.json", "Layers": ["../config.json"] }]);
    fs::write(path.join("manifest.json"), manifest.to_string()).unwrap();
    let error = import(&store, "x", &path).unwrap_err().to_string();
    assert!(error.contains("leads out"), "{error}");
}

#[test]
fn what_a_killed_addition_left_is_removed_by_the_next() {
    let (directory, store) = store();
    let left = store.directory.join(format!("layers/{PARTIAL}of-old"));
    fs::write(&left, b"half").unwrap();
    import(&store, "x", &layout(directory.path(), "arm64", false)).unwrap();
    assert!(!left.exists());
}

#[test]
fn an_image_without_one_of_its_layers_is_not_added() {
    let (directory, store) = store();
    let base = import(&store, "a", &layout(directory.path(), "arm64", false)).unwrap();
    store.remove("a").unwrap();
    assert!(store.put(&base).unwrap_err().to_string().contains("was removed"));
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn what_is_removed_takes_only_its_own_layers_along() {
    let (directory, store) = store();
    let layout = layout(directory.path(), "arm64", false);
    let (base, _) = (import(&store, "a", &layout).unwrap(), import(&store, "b", &layout).unwrap());
    let read = || store.read_layer(&base.layers[0], &mut Vec::new());
    store.remove("docker.io/library/a").unwrap();
    assert!(
        store.get("a").is_err() && store.remove("a").unwrap_err().to_string().contains("a:latest")
    );
    read().unwrap();
    store.remove("b").unwrap();
    read().unwrap_err();
}
