//! `rotifer base`: the base images that builds start from.

use std::io::Write;
use std::path::PathBuf;

use rotifer_build::base::pull::{self, PullError};
use rotifer_build::base::{Base, BaseError, Store, debian};
use serde_json::json;

use crate::settings::{Settings, SettingsError};

/// What to do, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The daemon's settings.
    pub config: PathBuf,
    /// Whether to print JSON.
    pub json: bool,
    /// What to do.
    pub what: What,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the help says it")]
pub enum What {
    Add { name: String, from: Option<PathBuf> },
    List,
    Remove { name: String },
}

/// Why it cannot be done.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum BasesError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("the settings {path:?} have no `host.builds`, which says where base images are")]
    NoBuilds { path: PathBuf },
    #[error("the settings of image builds cannot be used")]
    Builds(#[from] rotifer_build::settings::SettingsError),
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error("cannot write what came of it")]
    Write(#[source] std::io::Error),
}

/// Does it, and prints what there is or was made.
pub fn run(wish: &Wish) -> Result<(), BasesError> {
    let store = store(wish)?;
    let bases = match &wish.what {
        What::Add { name, from: Some(from) } => {
            vec![pull::add(&store, name, from, &mut |line| eprintln!("{line}"))?]
        }
        What::Add { name, from: None } => vec![debian::make(&store, name, &[])?],
        What::List => store.list()?,
        What::Remove { name } => {
            store.remove(name)?;
            Vec::new()
        }
    };
    bases.iter().try_for_each(|base| show(base, wish.json)).map_err(BasesError::Write)
}

fn store(wish: &Wish) -> Result<Store, BasesError> {
    let host = Settings::read(&wish.config)?.host;
    let builds = host.and_then(|host| host.builds);
    let builds = builds.ok_or_else(|| BasesError::NoBuilds { path: wish.config.clone() })?;
    let settings = rotifer_build::Settings::read(&builds)?;
    Ok(Store::open(&settings.store, settings.aliases)?)
}

fn show(base: &Base, json: bool) -> std::io::Result<()> {
    let (name, digest, layers) = (&base.name, base.digest(), base.layers.len());
    let mut output = std::io::stdout();
    if json {
        let line = json!({ "name": name, "digest": digest, "layers": layers });
        return writeln!(output, "{line}");
    }
    writeln!(output, "{name}  {digest}  {layers} layers")
}
