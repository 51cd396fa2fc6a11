//! What an image says of itself: OCI's configuration, as far as a root disk and its app need it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The configuration of an image, with OCI's names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `NAME=value`, each name once, in the order of their first mention.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// The first words of the command.
    #[serde(deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    /// The rest of the command, or all of it.
    #[serde(deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    /// Who it runs as; root if empty.
    pub user: String,
    /// Where it runs; `/` if empty.
    pub working_dir: String,
    /// The signal that asks the app to end.
    pub stop_signal: String,
    /// `8080/tcp`.
    #[serde(deserialize_with = "nullable")]
    pub exposed_ports: BTreeMap<String, Value>,
    /// Directories that hold data.
    #[serde(deserialize_with = "nullable")]
    pub volumes: BTreeMap<String, Value>,
    /// Anything.
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    /// What shell-form commands are given to.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// How its health would be checked. Nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Value>,
    /// Instructions for images built on this one.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
}

/// Docker writes `null` where OCI has nothing.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl ImageConfig {
    /// The value of a variable.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    }

    /// Gives a variable a value.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}");
        let known = self
            .env
            .iter_mut()
            .find(|old| old.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')));
        match known {
            Some(old) => *old = entry,
            None => self.env.push(entry),
        }
    }

    /// All variables.
    #[must_use]
    pub fn variables(&self) -> BTreeMap<String, String> {
        let pairs = self.env.iter().filter_map(|entry| entry.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// The agent's description of the app (`/etc/rotifer/app.json`); none if the image names no
    /// command.
    #[must_use]
    pub fn app(&self) -> Option<Value> {
        let command: Vec<&String> = self.entrypoint.iter().chain(&self.cmd).collect();
        if command.is_empty() {
            return None;
        }
        let mut app = json!({ "command": command, "env": self.variables() });
        if !self.user.is_empty() {
            app["user"] = self.user.clone().into();
        }
        if !self.working_dir.is_empty() {
            app["cwd"] = self.working_dir.clone().into();
        }
        Some(app)
    }

    /// The whole configuration file of OCI, without layers: the disk is the only one.
    #[must_use]
    pub fn to_oci(&self) -> Value {
        json!({ "architecture": "arm64", "os": "linux", "config": self })
    }

    /// The ports, without their protocol.
    #[must_use]
    pub fn ports(&self) -> BTreeSet<u16> {
        let numbers = self.exposed_ports.keys().filter_map(|port| port.split('/').next());
        numbers.filter_map(|number| number.parse().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_nulls_are_empty() {
        let config: ImageConfig = serde_json::from_value(json!({
            "Env": ["PATH=/bin"], "Cmd": null, "Entrypoint": null, "Labels": null,
            "Hostname": "x", "Volumes": null, "OnBuild": null
        }))
        .unwrap();
        assert_eq!(config.variable("PATH"), Some("/bin"));
        assert_eq!(config.app(), None);
    }

    #[test]
    fn a_variable_is_there_once() {
        let mut config = ImageConfig::default();
        for (name, value) in [("A", "1"), ("AB", "2"), ("A", "3")] {
            config.set_variable(name, value);
        }
        assert_eq!(config.env, ["A=3", "AB=2"]);
    }

    #[test]
    fn the_app_is_entrypoint_and_command() {
        let config = ImageConfig {
            entrypoint: vec!["tini".into()],
            cmd: vec!["app".into()],
            user: "web".into(),
            ..ImageConfig::default()
        };
        let app = json!({"command": ["tini", "app"], "env": {}, "user": "web"});
        assert_eq!(config.app(), Some(app));
    }
}
